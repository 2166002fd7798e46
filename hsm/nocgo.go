//go:build !cgo

package hsm

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"

	"github.com/tlsski/tlsski/ski"
)

// ErrNoCgo is what everything that needs a PKCS #11 module returns from a
// program that was built without cgo.
var ErrNoCgo = errors.New("this program was built without support for PKCS #11 modules: build it with CGO_ENABLED=1 and a C compiler")

// Store is a key store on PKCS #11 tokens. There are none in a program that was
// built without cgo.
type Store struct{}

// Open returns ErrNoCgo.
func Open(context.Context, Config) (*Store, error) { return nil, ErrNoCgo }

// List returns ErrNoCgo.
func List(context.Context, Config) ([]KeyInfo, error) { return nil, ErrNoCgo }

// Generate returns ErrNoCgo.
func Generate(context.Context, Config, Template) (KeyInfo, error) { return KeyInfo{}, ErrNoCgo }

// Reload does nothing.
func (*Store) Reload(context.Context) []error { return nil }

// Close does nothing.
func (*Store) Close() error { return nil }

// Warnings returns nothing.
func (*Store) Warnings() []string { return nil }

// Keys returns nothing.
func (*Store) Keys() []KeyInfo { return nil }

// Stats returns nothing.
func (*Store) Stats() []Stats { return nil }

// IDs returns nothing.
func (*Store) IDs() []ski.KeyID { return nil }

// Lookup finds nothing.
func (*Store) Lookup(ski.KeyID) (string, crypto.PublicKey, bool) { return "", nil, false }

// Certificates finds nothing.
func (*Store) Certificates(ski.KeyID) []*x509.Certificate { return nil }

// Device finds nothing.
func (*Store) Device(ski.KeyID) (string, int) { return "", 0 }

// Health returns ErrNoCgo.
func (*Store) Health(ski.KeyID) error { return ErrNoCgo }

// Signs returns false.
func (*Store) Signs(ski.KeyID, crypto.SignerOpts) bool { return false }

// Decrypts returns false.
func (*Store) Decrypts(ski.KeyID) bool { return false }

// Sign returns ErrNoCgo.
func (*Store) Sign(context.Context, ski.KeyID, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, ErrNoCgo
}

// DecryptPreMasterSecret returns ErrNoCgo.
func (*Store) DecryptPreMasterSecret(context.Context, ski.KeyID, []byte, []byte) error {
	return ErrNoCgo
}

// Signer returns ErrNoCgo.
func (*Store) Signer(context.Context, ski.KeyID) (crypto.Signer, error) { return nil, ErrNoCgo }
