package split

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // for the hashes below
	_ "crypto/sha512"
	"crypto/tls"
	"errors"
	"slices"
)

// Of the signature schemes (RFC 5246, Section 7.4.1.4.1; RFC 8446, Section
// 4.2.3) those with SHA-1 and MD5 are not used. In TLS 1.2 an ECDSA scheme
// names only the hash, not the curve.
var (
	ecdsaSchemes = []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512}
	rsaSchemes   = []tls.SignatureScheme{
		tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PSSWithSHA512,
		tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512,
	}
	ed25519Schemes = []tls.SignatureScheme{tls.Ed25519}

	// acceptedSchemes are those of a CertificateRequest.
	acceptedSchemes = slices.Concat(ecdsaSchemes, ed25519Schemes, rsaSchemes)
)

// schemesOf returns the schemes that a key can do.
func schemesOf(pub crypto.PublicKey) []tls.SignatureScheme {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsaSchemes
	case ed25519.PublicKey:
		return ed25519Schemes
	case *rsa.PublicKey:
		// A modulus too short for PSS with SHA-512 is too short altogether.
		if pub.Size() >= 2*64+2 {
			return rsaSchemes
		}
	}
	return nil
}

// signerOpts returns the options for crypto.MessageSigner.
func signerOpts(scheme tls.SignatureScheme) crypto.SignerOpts {
	hash := hashOf(scheme)
	switch scheme {
	case tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PSSWithSHA512:
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return hash
}

// hashOf returns the scheme's hash, 0 for Ed25519.
func hashOf(scheme tls.SignatureScheme) crypto.Hash {
	switch scheme {
	case tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256, tls.PKCS1WithSHA256:
		return crypto.SHA256
	case tls.ECDSAWithP384AndSHA384, tls.PSSWithSHA384, tls.PKCS1WithSHA384:
		return crypto.SHA384
	case tls.ECDSAWithP521AndSHA512, tls.PSSWithSHA512, tls.PKCS1WithSHA512:
		return crypto.SHA512
	}
	return 0
}

// verifySignature checks a client's signature of msg.
func verifySignature(pub crypto.PublicKey, scheme tls.SignatureScheme, msg, signature []byte) error {
	if !slices.Contains(schemesOf(pub), scheme) {
		return errors.New("the scheme is not one for the key")
	}
	if key, ok := pub.(ed25519.PublicKey); ok {
		if !ed25519.Verify(key, msg, signature) {
			return errors.New("the Ed25519 signature is wrong")
		}
		return nil
	}
	hash := hashOf(scheme)
	h := hash.New()
	h.Write(msg)
	digest := h.Sum(nil)
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(key, digest, signature) {
			return errors.New("the ECDSA signature is wrong")
		}
		return nil
	case *rsa.PublicKey:
		if opts, ok := signerOpts(scheme).(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(key, hash, digest, signature, opts)
		}
		return rsa.VerifyPKCS1v15(key, hash, digest, signature)
	}
	return errors.New("not a key for signatures")
}
