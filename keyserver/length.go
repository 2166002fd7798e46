package keyserver

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"

	"github.com/tlsski/tlsski/ski"
)

// outputLen returns the length in bytes of the longest output that a method
// has with a key: what the answer is padded to (docs/protocol.md, section 3).
func outputLen(method ski.Method, pub crypto.PublicKey) int {
	if method == ski.MethodRSA {
		return ski.PreMasterSecretLen
	}
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		return pub.Size()
	case ed25519.PublicKey:
		return ed25519.SignatureSize
	case *ecdsa.PublicKey:
		// Ecdsa-Sig-Value (RFC 5480, Appendix A): a SEQUENCE of two INTEGERs,
		// each with a leading zero where its highest bit is set.
		integer := 2 + pub.Curve.Params().N.BitLen()/8 + 1
		if sequence := 2 * integer; sequence < 128 {
			return 2 + sequence
		} else {
			return 3 + sequence
		}
	}
	return 0
}
