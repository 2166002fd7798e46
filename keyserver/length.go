package keyserver

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"

	"github.com/tlsski/tlsski/ski"
)

// answerLen is the lengths in bytes of the parts of an answer.
type answerLen struct{ output, params, state int }

// longestAnswer returns what the answer to a request is padded to (docs/
// protocol.md, section 3): the longest that the method has with the key. With
// ECDHE-PMS it is that of the longest group, which so stays unknown, and of the
// server name, whose length the request shows.
func longestAnswer(req *ski.Request, pub crypto.PublicKey) answerLen {
	switch {
	case req.Method == ski.MethodRSA:
		return answerLen{output: ski.PreMasterSecretLen}
	case isSecondExchange(req):
		return answerLen{output: longestScalar}
	case req.Method == ski.MethodECDHEPMS:
		longestPoint := 1 + 2*longestScalar // uncompressed: RFC 8422, Section 5.4.1
		return answerLen{signatureLen(pub), pointOffset - curveTypeOffset + longestPoint, stateLen(req.ServerName)}
	}
	return answerLen{output: signatureLen(pub)}
}

// signatureLen returns the length in bytes of the longest signature with a key.
func signatureLen(pub crypto.PublicKey) int {
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
