//go:build cgo

package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"

	"github.com/miekg/pkcs11"

	"github.com/tlsski/tlsski/ski"
)

// privateKey is a private key on a token. It does not change once it is found,
// but for being gone.
type privateKey struct {
	target *target
	gone   atomic.Bool // from the token
	info   KeyInfo
	token  *token
	public crypto.PublicKey
	label  []byte // CKA_LABEL
	ckaID  []byte // CKA_ID
	pkcs1  bool   // the token has CKM_RSA_PKCS
	pss    bool   // CKM_RSA_PKCS_PSS
	raw    bool   // CKM_RSA_X_509, for decryption
	noRaw  bool   // it may decrypt, and that is what is missing
}

// foundKey is a private key in a session.
type foundKey struct {
	handle pkcs11.ObjectHandle
	proved bool // it has made a signature that fits the public half
}

// The mechanisms without parameters.
var (
	mechECDSA  = pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)
	mechEdDSA  = pkcs11.NewMechanism(ckmEdDSA, nil)
	mechPKCS1  = pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil)
	mechRawRSA = pkcs11.NewMechanism(pkcs11.CKM_RSA_X_509, nil)
)

var errKeyGone = errors.New("the key is not on the token any more")

// errKeyRemoved is an errKeyGone for sure: the token works and has other objects,
// but not this key.
var errKeyRemoved = fmt.Errorf("%w, which has others", errKeyGone)

// find returns the handle that a key has in a session. It can be another one in
// each, and the token another one too, so what is found is compared with what
// was found at the start: the modulus here, and otherwise the first signature.
func (s *session) find(k *privateKey) (*foundKey, error) {
	if f := s.found[k]; f != nil {
		return f, nil
	}
	handles, err := s.findAll(k.template()...)
	if err != nil {
		return nil, err
	}
	if len(handles) == 0 && k.token.login {
		// Who is logged out does not see private keys.
		if loggedIn, err := s.loggedIn(); err != nil || !loggedIn {
			return nil, &lostError{errors.New("the token has logged us out")}
		}
	}
	if len(handles) == 0 {
		// That all objects are gone is the token's fault and not the key's: SoftHSM
		// forgets them when its folder is away for a moment, until it is started
		// again.
		if others, err := s.findAll(); err != nil {
			return nil, err
		} else if len(others) == 0 {
			return nil, &lostError{fmt.Errorf("%w, nor is any other object", errKeyGone)}
		}
		return nil, errKeyRemoved
	}
	if len(handles) != 1 {
		return nil, fmt.Errorf("%w (%d found)", errKeyGone, len(handles))
	}
	f := &foundKey{handle: handles[0]}
	if pub, ok := k.public.(*rsa.PublicKey); ok {
		n, err := s.attribute(f.handle, pkcs11.CKA_MODULUS)
		if err != nil {
			return nil, err
		}
		if n != nil && new(big.Int).SetBytes(n).Cmp(pub.N) != 0 {
			return nil, fmt.Errorf("%w: there is another one in its place", errKeyRemoved)
		}
	}
	s.found[k] = f
	return f, nil
}

// template returns the attributes by which the key is found.
func (k *privateKey) template() []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true)}
	if len(k.ckaID) > 0 {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_ID, k.ckaID))
	}
	if len(k.label) > 0 {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_LABEL, k.label))
	}
	return t
}

// signature is a signature that is to be made: what the token is asked to do,
// and what the answer must be.
type signature struct {
	key    *privateKey
	mech   *pkcs11.Mechanism
	data   []byte // for the token; its own copy
	digest []byte // for verifying; its own copy
	hash   crypto.Hash
	opts   crypto.SignerOpts
}

// newSignature checks what crypto.Signer is asked for, before the token is.
func (k *privateKey) newSignature(digest []byte, opts crypto.SignerOpts) (*signature, error) {
	if !k.info.Signs {
		return nil, fmt.Errorf("the token does not let the key %q sign (CKA_SIGN is false)", k.info.Name)
	}
	sig := &signature{key: k, digest: bytes.Clone(digest), hash: opts.HashFunc(), opts: opts}
	if sig.hash != 0 {
		if _, known := digestInfoPrefix[sig.hash]; !known {
			return nil, fmt.Errorf("signatures with %s are not supported", sig.hash)
		}
		if sig.hash.Size() != len(digest) {
			return nil, fmt.Errorf("a digest of %d bytes is not one of %s", len(digest), sig.hash)
		}
	}
	switch pub := k.public.(type) {
	case *ecdsa.PublicKey:
		if sig.hash == 0 || sig.hash == crypto.MD5SHA1 {
			return nil, errors.New("an ECDSA signature is made over a digest of one hash")
		}
		sig.mech = mechECDSA
		sig.data = truncateDigest(sig.digest, pub)
		return sig, nil
	case ed25519.PublicKey:
		if sig.hash != 0 {
			return nil, errors.New("an Ed25519 signature is made over the message, not a digest")
		}
		sig.mech, sig.data = mechEdDSA, sig.digest
		return sig, nil
	}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		return sig, sig.usePSS(pss)
	}
	if !k.pkcs1 {
		return nil, errors.New("the token has no RSA signatures with PKCS #1 v1.5 padding (CKM_RSA_PKCS)")
	}
	sig.mech = mechPKCS1
	var err error
	sig.data, err = digestInfo(sig.hash, sig.digest)
	return sig, err
}

// pssHash are the hashes for CK_RSA_PKCS_PSS_PARAMS: CKM_ and CKG_.
var pssHash = map[crypto.Hash][2]uint{
	crypto.SHA1:   {pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1},
	crypto.SHA224: {pkcs11.CKM_SHA224, pkcs11.CKG_MGF1_SHA224},
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

func (sig *signature) usePSS(opts *rsa.PSSOptions) error {
	if !sig.key.pss {
		return errors.New("the token has no RSA-PSS (CKM_RSA_PKCS_PSS)")
	}
	hash, ok := pssHash[sig.hash]
	if !ok {
		return fmt.Errorf("RSA-PSS with %s is not supported", sig.hash)
	}
	salt := opts.SaltLength
	switch salt {
	case rsa.PSSSaltLengthEqualsHash:
		salt = sig.hash.Size()
	case rsa.PSSSaltLengthAuto: // the longest, as in crypto/rsa (RFC 8017, Section 9.1.1)
		pub := sig.key.public.(*rsa.PublicKey)
		salt = (pub.N.BitLen()-1+7)/8 - 2 - sig.hash.Size()
	}
	if salt < 0 {
		return errors.New("the RSA key is too short for RSA-PSS with this hash")
	}
	sig.mech = pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(hash[0], hash[1], uint(salt)))
	sig.data = sig.digest
	return nil
}

// make has the token make the signature, in the form that TLS has it in. Only the
// first of a session is verified here.
func (sig *signature) make(s *session) ([]byte, error) {
	f, err := s.find(sig.key)
	if err != nil {
		return nil, err
	}
	if err := s.SignInit(s.handle, []*pkcs11.Mechanism{sig.mech}, f.handle); err != nil {
		return nil, fmt.Errorf("C_SignInit: %w", err)
	}
	raw, err := s.Sign(s.handle, sig.data)
	if err != nil {
		return nil, fmt.Errorf("C_Sign: %w", err)
	}
	out := raw
	if pub, ok := sig.key.public.(*ecdsa.PublicKey); ok {
		if out, err = ecdsaToDER(raw, pub); err != nil {
			return nil, err
		}
	}
	if !f.proved {
		if !sig.verify(out) {
			delete(s.found, sig.key)
			return nil, errWrongSignature
		}
		f.proved = true
	}
	return out, nil
}

var errWrongSignature = errors.New("the token made a signature that does not fit the public half of the key")

// verify reports whether the token has made the right signature.
func (sig *signature) verify(out []byte) bool {
	switch pub := sig.key.public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, sig.digest, out)
	case ed25519.PublicKey:
		return ed25519.Verify(pub, sig.digest, out)
	case *rsa.PublicKey:
		if pss, ok := sig.opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(pub, sig.hash, sig.digest, out, &rsa.PSSOptions{SaltLength: pss.SaltLength}) == nil
		}
		return rsa.VerifyPKCS1v15(pub, sig.hash, sig.digest, out) == nil
	}
	return false
}

// decryptRaw has the token raise a ciphertext to the private exponent: see
// rsa.go.
func (k *privateKey) decryptRaw(s *session, ciphertext []byte) ([]byte, error) {
	f, err := s.find(k)
	if err != nil {
		return nil, err
	}
	if err := s.DecryptInit(s.handle, []*pkcs11.Mechanism{mechRawRSA}, f.handle); err != nil {
		return nil, fmt.Errorf("C_DecryptInit: %w", err)
	}
	raw, err := s.Decrypt(s.handle, ciphertext)
	if err != nil {
		return nil, fmt.Errorf("C_Decrypt: %w", err)
	}
	return raw, nil
}

// decryptInTime is decryptRaw for somebody who waits as long as ctx allows. What
// comes later is cleared, and an error: the caller may still be there, and must
// not take the zeros for a plaintext.
func (k *privateKey) decryptInTime(ctx context.Context, s *session, ciphertext []byte) ([]byte, error) {
	raw, err := k.decryptRaw(s, ciphertext)
	if err == nil && ctx.Err() != nil {
		clear(raw)
		return nil, ctx.Err()
	}
	return raw, err
}

var errMisfit = errors.New("its public half does not fit: the token's public key or certificate with the same id, or the PEM file, is of another key")

// prove has the private key show that it belongs to its public half.
func (k *privateKey) prove(s *session) error {
	if k.info.Signs {
		challenge := make([]byte, sha256.Size)
		rand.Read(challenge)
		opts := crypto.Hash(crypto.SHA256)
		if _, ok := k.public.(ed25519.PublicKey); ok {
			opts = 0
		}
		signer := crypto.SignerOpts(opts)
		if _, ok := k.public.(*rsa.PublicKey); ok && !k.pkcs1 {
			signer = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
		}
		sig, err := k.newSignature(challenge, signer)
		if err != nil {
			return err
		}
		out, err := sig.make(s)
		if errors.Is(err, errKeyGone) || errors.Is(err, errWrongSignature) || err == nil && !sig.verify(out) {
			return errMisfit
		}
		if err != nil {
			return fmt.Errorf("it cannot sign: %w", err)
		}
	}
	pub, ok := k.public.(*rsa.PublicKey)
	if !ok || !k.info.Decrypts {
		return nil
	}
	want := make([]byte, ski.PreMasterSecretLen)
	rand.Read(want)
	//lint:ignore SA1019 It is what TLS clients do, and asked of our own key.
	ciphertext, err := rsa.EncryptPKCS1v15(rand.Reader, pub, want)
	if err != nil {
		return err
	}
	raw, err := k.decryptRaw(s, ciphertext)
	if errors.Is(err, errKeyGone) {
		return errMisfit
	}
	if err != nil {
		return fmt.Errorf("it cannot decrypt: %w", err)
	}
	got := make([]byte, ski.PreMasterSecretLen)
	if err := unpadPreMasterSecret(raw, pub.Size(), got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errMisfit
	}
	return nil
}
