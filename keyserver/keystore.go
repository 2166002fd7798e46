package keyserver

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"

	"github.com/tlsski/tlsski/ski"
)

// KeyStore holds private keys and does the two operations of TLS with them.
// Its methods are called by many goroutines at once. They use only the
// standard library's types and ski.KeyID, so that a store can be written
// without this package.
//
// A Server calls Sign and DecryptPreMasterSecret only with an id for which
// Lookup has said ok, and with an input that it has parsed. A store may lose
// keys: Lookup does not find them any more, and what fails is answered with
// 'spki not found'. Keys that come are for Server.SetKeys.
type KeyStore interface {
	// IDs returns the fingerprints of all keys, in no particular order.
	IDs() []ski.KeyID

	// Lookup returns the name that policies and audit logs call the key by and
	// its public half: an *ecdsa.PublicKey on P-256, P-384 or P-521, an
	// *rsa.PublicKey of 1024 to 8192 bits or an ed25519.PublicKey. ok is false
	// where the store has no such key.
	Lookup(id ski.KeyID) (name string, pub crypto.PublicKey, ok bool)

	// Sign signs digest as crypto.Signer does: opts is an *rsa.PSSOptions for
	// RSA-PSS and otherwise the crypto.Hash that made the digest
	// (crypto.MD5SHA1 for the RSA signatures before TLS 1.2). With Ed25519,
	// opts is crypto.Hash(0) and digest the message itself.
	Sign(ctx context.Context, id ski.KeyID, digest []byte, opts crypto.SignerOpts) ([]byte, error)

	// DecryptPreMasterSecret decrypts an EncryptedPreMasterSecret, which is as
	// long as the modulus and below it, with RSAES-PKCS1-v1_5 (RFC 8017,
	// Section 7.2.2) into secret, which has ski.PreMasterSecretLen bytes. The
	// caller has filled secret with what is to be there otherwise: it is
	// overwritten only where the padding is right and the plaintext as long as
	// secret. Neither time nor error tells whether it was.
	DecryptPreMasterSecret(ctx context.Context, id ski.KeyID, ciphertext, secret []byte) error
}

// FailureKeyStore is a KeyStore that can derive, from a private RSA key, what
// the answers to wrong PreMasterSecrets are made of. All key servers with the
// same key then give the same ones, before and after a restart, with no secret
// of their own to share. A store that never sees its keys, as with an HSM,
// cannot do so: see Options.RSAFailureSecret.
type FailureKeyStore interface {
	KeyStore

	// FailureKey returns 32 bytes that are a function of the private RSA key
	// alone, and give nothing of it away. ok is false where the store has no
	// such key or cannot tell.
	FailureKey(id ski.KeyID) (secret [32]byte, ok bool)
}

// CertificateKeyStore is a KeyStore that has come across certificates of its
// keys. They are public: a Policy warns of what they let a key be used for.
type CertificateKeyStore interface {
	KeyStore

	// Certificates returns those of a key; nil where none is known.
	Certificates(id ski.KeyID) []*x509.Certificate
}

// DeviceKeyStore is a KeyStore with keys in devices, such as HSMs, which may do
// less than a private key in memory does.
type DeviceKeyStore interface {
	KeyStore

	// Device returns what identifies the device that has the key, and how many
	// operations the device does at once. The Server lets no more begin. n is 0
	// for a key in memory.
	Device(id ski.KeyID) (device string, n int)

	// Signs reports whether Sign can be called with such opts, and Decrypts
	// whether DecryptPreMasterSecret can be.
	Signs(id ski.KeyID, opts crypto.SignerOpts) bool
	Decrypts(id ski.KeyID) bool
}

// HealthKeyStore is a KeyStore with keys that cannot be used at times, as those
// of a device that is away.
type HealthKeyStore interface {
	KeyStore

	// Health returns why no operation with the key can succeed at present, or
	// nil. It does not wait for the device. The store logs when that begins and
	// when it ends: the Server does not log what fails meanwhile.
	Health(id ski.KeyID) error
}

// key is what the Server knows of the key that a request names.
type key struct {
	store  KeyStore // that it was found in, which stays that of the request
	id     ski.KeyID
	name   string
	public crypto.PublicKey
	device DeviceKeyStore // nil where the key is in memory
	at     place          // of its operations
}

func lookup(store KeyStore, id ski.KeyID) (key, bool) {
	name, public, ok := store.Lookup(id)
	k := key{store: store, id: id, name: name, public: public}
	if d, isDevice := store.(DeviceKeyStore); isDevice && ok {
		if k.at.device, k.at.parallel = d.Device(id); k.at.parallel > 0 {
			k.device = d
		}
	}
	return k, ok
}

// algorithm returns how the key makes the signature that a request asks for, or
// why it cannot.
func (k key) algorithm(req *ski.Request) (algorithm, error) {
	alg, err := chooseAlgorithm(req, k.public)
	if err == nil && k.device != nil && !k.device.Signs(k.id, alg.opts) {
		err = errors.New("the key's device does not make such signatures")
	}
	return alg, err
}

// decrypts reports whether the key can decrypt an EncryptedPreMasterSecret.
func (k key) decrypts() bool {
	_, isRSA := k.public.(*rsa.PublicKey)
	return isRSA && (k.device == nil || k.device.Decrypts(k.id))
}
