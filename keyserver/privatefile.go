package keyserver

import "github.com/tlsski/tlsski/internal/guarded"

// maxFile bounds what is read of one file, in bytes. A key of 8192 bits with a
// chain of certificates stays far below it, and so does a policy for a thousand
// edges.
const maxFile = 1 << 20

// readPrivateFile reads a file that holds a secret.
func readPrivateFile(file string) ([]byte, error) {
	return guarded.Read(file, guarded.Secret, maxFile)
}

// readTrustedFile reads a file that says who may do what.
func readTrustedFile(file string) ([]byte, error) {
	return guarded.Read(file, guarded.Trusted, maxFile)
}
