package skitest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/md5"
	"crypto/rsa"
	"crypto/sha1"
	_ "crypto/sha256" // the hashes of the draft
	_ "crypto/sha512"
	"errors"
	"fmt"

	"github.com/tlsski/tlsski/ski"
)

// Verify checks that signature is what req asks for with the key whose public
// half is pub: the Signature of a ServerKeyExchange (RFC 5246, Section 7.4.3;
// RFC 8422, Section 5.4) or a CertificateVerify (RFC 8446, Section 4.4.3).
func Verify(pub crypto.PublicKey, req *ski.Request, signature []byte) error {
	opts := signerOpts(req, pub)
	hash := opts.HashFunc()
	var digest []byte
	switch hash {
	case 0:
	case crypto.MD5SHA1:
		m, h := md5.Sum(req.Input), sha1.Sum(req.Input)
		digest = append(m[:], h[:]...)
	default:
		h := hash.New()
		h.Write(req.Input)
		digest = h.Sum(nil)
	}
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(pub, digest, signature) {
			return errors.New("the output is not an ECDSA signature of the input by this key, in DER")
		}
	case ed25519.PublicKey:
		if !ed25519.Verify(pub, req.Input, signature) {
			return errors.New("the output is not an Ed25519 signature of the input by this key")
		}
	case *rsa.PublicKey:
		if len(signature) != pub.Size() {
			return fmt.Errorf("the output has %d bytes and the key's modulus %d", len(signature), pub.Size())
		}
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			if rsa.VerifyPSS(pub, hash, digest, signature, pss) != nil {
				return errors.New("the output is not an RSA-PSS signature of the input by this key, with a salt as long as the hash")
			}
			return nil
		}
		if rsa.VerifyPKCS1v15(pub, hash, digest, signature) != nil {
			return errors.New("the output is not an RSA PKCS #1 v1.5 signature of the input by this key")
		}
	default:
		return fmt.Errorf("a key of type %T signs nothing in TLS", pub)
	}
	return nil
}
