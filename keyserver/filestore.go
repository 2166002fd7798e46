package keyserver

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// LoadFolder reads the private keys of a folder into memory: every file whose
// name ends in .pem or .key and does not begin with a dot. A key is called by
// its file's name without that ending.
//
// A file holds one private key in PEM form (PKCS #8, PKCS #1 or SEC 1), and may
// hold its certificate chain too. Refused are files that group or others have
// any right to, folders in which they can put files, and both if they belong to
// another user than root or the process's own. A symbolic link stands for what
// it points at.
//
// One bad file fails the whole: a key server that starts without a key that it
// is thought to have is found out by the clients. See KeyFolder for one that is
// read again.
func LoadFolder(dir string) (*MemoryStore, error) {
	f, err := OpenKeyFolder(dir)
	if err != nil {
		return nil, err
	}
	return f.Store(), nil
}

// keyFileName returns the name of the key in a file. ok is false for files
// that are not looked at.
func keyFileName(file string) (name string, ok bool) {
	if strings.HasPrefix(file, ".") {
		return "", false
	}
	for _, ending := range []string{".pem", ".key"} {
		if name, ok := strings.CutSuffix(file, ending); ok {
			return name, true
		}
	}
	return "", false
}

func loadKey(file string) (crypto.Signer, *x509.Certificate, error) {
	data, err := readPrivateFile(file)
	if err != nil {
		return nil, nil, err
	}
	defer clear(data)
	private, leaf, err := parseKey(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	return private, leaf, nil
}

// parseKey returns the one private key in PEM data, and its certificate where
// there is one. A certificate before or after it must be its own.
func parseKey(data []byte) (private crypto.Signer, leaf *x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		switch {
		case block.Type == "EC PARAMETERS":
			// The curve, which openssl ecparam writes before the key that names it too.
		case block.Type == "CERTIFICATE":
			if leaf != nil {
				continue // the rest of the chain
			}
			if leaf, err = x509.ParseCertificate(block.Bytes); err != nil {
				return nil, nil, fmt.Errorf("certificate: %w", err)
			}
		case private != nil:
			return nil, nil, errors.New("it has more than one private key")
		default:
			if private, err = parseKeyBlock(block); err != nil {
				return nil, nil, err
			}
			clear(block.Bytes)
		}
	}
	if bytes.Contains(data, []byte("-----BEGIN")) { // which Decode skips, and so might a key be missed
		return nil, nil, errors.New("it has a PEM block that cannot be read")
	}
	if private == nil {
		return nil, nil, errors.New("it has no private key in PEM form")
	}
	if leaf != nil && !samePublicKey(leaf, private) {
		return nil, nil, errors.New("the certificate in it is of another key")
	}
	return private, leaf, nil
}

func parseKeyBlock(block *pem.Block) (crypto.Signer, error) {
	var (
		parsed crypto.PrivateKey
		err    error
	)
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY", block.Headers["DEK-Info"] != "":
		return nil, errors.New("the key is encrypted with a passphrase, which nobody can type at a start: " +
			"decrypt it (openssl pkey -in FILE -out FILE) and protect the file instead")
	case block.Type == "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case block.Type == "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case block.Type == "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("a PEM block of type %q is not supported", block.Type)
	}
	if err != nil {
		return nil, err
	}
	if err := checkKeyType(parsed); err != nil {
		return nil, err
	}
	return parsed.(crypto.Signer), nil
}

func samePublicKey(cert *x509.Certificate, private crypto.Signer) bool {
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	return err == nil && bytes.Equal(der, cert.RawSubjectPublicKeyInfo)
}
