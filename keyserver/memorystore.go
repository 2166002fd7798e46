package keyserver

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"runtime"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// The lengths of an RSA modulus in bits. Below the first a key can be factored;
// above the second one operation takes long enough to serve as an attack.
// Keys under modernRSABits need a legacy switch in the policy.
const (
	minRSABits    = 1024
	modernRSABits = 2048
	maxRSABits    = 8192
)

// MemoryStore is a KeyStore whose keys are in the process's memory. The zero
// value is empty and ready for use. Add must not be called once a Server uses
// the store.
type MemoryStore struct {
	keys map[ski.KeyID]*memoryKey
}

// memoryKey does not change once it is in a store. Whoever uses private keeps the
// memoryKey alive meanwhile: see clearWhenUnused.
type memoryKey struct {
	id      ski.KeyID
	name    string
	private crypto.Signer
	public  crypto.PublicKey
	leaf    *x509.Certificate // nil for none
	failure [32]byte          // of an RSA key, see FailureKeyStore
}

var (
	_ FailureKeyStore     = (*MemoryStore)(nil)
	_ CertificateKeyStore = (*MemoryStore)(nil)
)

// Add adds a private key under a name that is not yet taken: an
// *ecdsa.PrivateKey on P-256, P-384 or P-521, an *rsa.PrivateKey of 1024 to
// 8192 bits or an ed25519.PrivateKey. The error says why the key is refused.
// The store keeps a copy of an RSA key and the others as they are.
func (s *MemoryStore) Add(name string, private crypto.Signer) error { return s.add(name, private, nil) }

// add adds a key with its certificate, if there is one.
func (s *MemoryStore) add(name string, private crypto.Signer, leaf *x509.Certificate) error {
	k, err := newMemoryKey(name, private, leaf)
	if err != nil {
		return err
	}
	for _, other := range s.keys {
		if err := k.conflict(other); err != nil {
			return err
		}
	}
	if s.keys == nil {
		s.keys = make(map[ski.KeyID]*memoryKey)
	}
	s.keys[k.id] = k
	return nil
}

func newMemoryKey(name string, private crypto.Signer, leaf *x509.Certificate) (*memoryKey, error) {
	if err := checkKeyName(name); err != nil {
		return nil, err
	}
	if err := checkKeyType(private); err != nil {
		return nil, err
	}
	k := &memoryKey{name: name, private: private, leaf: leaf}
	if given, ok := private.(*rsa.PrivateKey); ok {
		own := *given
		own.Precompute() // Otherwise every operation would check the key anew.
		k.private, k.failure = &own, failureKey(&own)
	}
	var err error
	k.public = k.private.Public()
	k.id, err = ski.PublicKeyID(k.public)
	return k, err
}

// conflict returns why a store cannot have both.
func (k *memoryKey) conflict(other *memoryKey) error {
	switch {
	case k.id == other.id:
		return fmt.Errorf("it is the same key as %q", other.name)
	case k.name == other.name:
		return fmt.Errorf("another key has the name %q", k.name)
	}
	return nil
}

// clearWhenUnused overwrites the private key once no store has it any more and
// no operation uses it: nothing but k may have it. What the standard library
// keeps of a key for itself is out of reach.
func (k *memoryKey) clearWhenUnused() { runtime.AddCleanup(k, clearPrivate, k.private) }

func clearPrivate(private crypto.Signer) {
	zero := func(numbers ...*big.Int) {
		for _, n := range numbers {
			if n != nil {
				clear(n.Bits())
			}
		}
	}
	switch private := private.(type) {
	case *ecdsa.PrivateKey:
		//lint:ignore SA1019 There is no other way to overwrite it.
		zero(private.D)
	case *rsa.PrivateKey:
		zero(private.D, private.Precomputed.Dp, private.Precomputed.Dq, private.Precomputed.Qinv)
		zero(private.Primes...)
	case ed25519.PrivateKey:
		clear(private)
	}
}

// checkKeyName keeps names apart from the other two ways in which a policy
// speaks of keys.
func checkKeyName(name string) error {
	switch _, err := ski.ParseKeyID(name); {
	case err == nil:
		return fmt.Errorf("the name %q looks like a fingerprint", name)
	case name == "", strings.Contains(name, "*"):
		return fmt.Errorf("a key cannot have the name %q", name)
	}
	return nil
}

func checkKeyType(private crypto.PrivateKey) error {
	switch private := private.(type) {
	case *ecdsa.PrivateKey:
		return checkECDSA(private)
	case *rsa.PrivateKey:
		return checkRSA(private)
	case ed25519.PrivateKey:
		if len(private) != ed25519.PrivateKeySize {
			return errIncomplete
		}
		return nil
	}
	return fmt.Errorf("a key of type %T is not supported: use ECDSA, RSA or Ed25519", private)
}

// errIncomplete says that a program has handed over a key without its parts;
// none that was read from a file is like this.
var errIncomplete = errors.New("the private key is not complete")

func checkECDSA(private *ecdsa.PrivateKey) error {
	if private == nil || private.Curve == nil {
		return errIncomplete
	}
	switch private.Curve {
	case elliptic.P256(), elliptic.P384(), elliptic.P521():
	default:
		return fmt.Errorf("an ECDSA key on %s is not supported: use P-256, P-384 or P-521", private.Curve.Params().Name)
	}
	if private.X == nil || private.Y == nil {
		return errIncomplete
	}
	return nil
}

func checkRSA(private *rsa.PrivateKey) error {
	if private == nil || private.N == nil {
		return errIncomplete
	}
	bits := private.N.BitLen()
	if bits < minRSABits || bits > maxRSABits {
		return fmt.Errorf("an RSA key of %d bits is not supported: use %d to %d bits", bits, modernRSABits, maxRSABits)
	}
	if private.D == nil {
		return errIncomplete
	}
	return private.Validate()
}

// failureKey is the SHA-256 of the private exponent as
// draft-irtf-cfrg-rsa-guidance uses it for implicit rejection, with the
// project's own label, so that it serves for nothing else.
func failureKey(private *rsa.PrivateKey) [32]byte {
	d := private.D.FillBytes(make([]byte, private.Size()))
	defer clear(d)
	hashed := sha256.Sum256(d)
	mac := hmac.New(sha256.New, hashed[:])
	mac.Write([]byte("tlsski RSA failure key"))
	return [32]byte(mac.Sum(nil))
}

// FailureKey implements FailureKeyStore.
func (s *MemoryStore) FailureKey(id ski.KeyID) (secret [32]byte, ok bool) {
	k, ok := s.keys[id]
	if !ok {
		return secret, false
	}
	_, ok = k.private.(*rsa.PrivateKey)
	return k.failure, ok
}

// Certificates implements CertificateKeyStore. Add gives a key none, LoadFolder
// the first that is in the key's file.
func (s *MemoryStore) Certificates(id ski.KeyID) []*x509.Certificate {
	if k, ok := s.keys[id]; ok && k.leaf != nil {
		return []*x509.Certificate{k.leaf}
	}
	return nil
}

// IDs implements KeyStore.
func (s *MemoryStore) IDs() []ski.KeyID {
	ids := make([]ski.KeyID, 0, len(s.keys))
	for id := range s.keys {
		ids = append(ids, id)
	}
	return ids
}

// Lookup implements KeyStore.
func (s *MemoryStore) Lookup(id ski.KeyID) (name string, pub crypto.PublicKey, ok bool) {
	k, ok := s.keys[id]
	if !ok {
		return "", nil, false
	}
	return k.name, k.public, true
}

var errNotInStore = errors.New("the key store has no such key")

// Sign implements KeyStore. ECDSA is deterministic (RFC 6979): it is faster,
// and a weak random number generator cannot give the key away.
func (s *MemoryStore) Sign(_ context.Context, id ski.KeyID, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k, ok := s.keys[id]
	if !ok {
		return nil, errNotInStore
	}
	defer runtime.KeepAlive(k)
	if _, isECDSA := k.private.(*ecdsa.PrivateKey); isECDSA {
		return k.private.Sign(nil, digest, opts)
	}
	return k.private.Sign(rand.Reader, digest, opts)
}

// DecryptPreMasterSecret implements KeyStore.
func (s *MemoryStore) DecryptPreMasterSecret(_ context.Context, id ski.KeyID, ciphertext, secret []byte) error {
	k, ok := s.keys[id]
	if !ok {
		return errNotInStore
	}
	defer runtime.KeepAlive(k)
	private, ok := k.private.(*rsa.PrivateKey)
	if !ok {
		return errNotInStore
	}
	//lint:ignore SA1019 The RSA key exchange of TLS is PKCS #1 v1.5; the caller does what the deprecation asks for.
	return rsa.DecryptPKCS1v15SessionKey(nil, private, ciphertext, secret)
}
