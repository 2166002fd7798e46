package skitest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"

	"github.com/tlsski/tlsski/ski"
)

const section13 = "docs/protocol.md, section 1; RFC 8446, Section 4.4.3"

var tls13Cases = []Case{
	good13("tls13/ecdsa", anECDSA, keyOf[*ecdsa.PublicKey], ski.TLS13, 32),
	good13("tls13/ecdsa-sha384-transcript", anECDSA, keyOf[*ecdsa.PublicKey], ski.TLS13, 48),
	good13("tls13/rsa-pss", aRSA, keyOf[*rsa.PublicKey], ski.TLS13, 32),
	good13("tls13/ed25519", []Need{NeedEd25519}, keyOf[ed25519.PublicKey], ski.TLS13, 32),
	good13("tls13/dtls", anECDSA, keyOf[*ecdsa.PublicKey], ski.DTLS13, 32),

	bad13("tls13/no-scheme", "'scheme' is required", func(r *ski.Request) { r.Scheme, r.Hash = 0, ski.SHA256 }),
	bad13("tls13/client", "the context string of a client is refused", func(r *ski.Request) {
		r.Input = certificateVerify("TLS 1.3, client CertificateVerify", randomBytes(32))
	}),
	bad13("tls13/other-context", "the context string is that of a server", func(r *ski.Request) {
		r.Input = certificateVerify("TLS 1.3, server certificateverify", randomBytes(32))
	}),
	bad13("tls13/spaces", "there are 64 spaces", func(r *ski.Request) { r.Input[63] = 0 }),
	bad13("tls13/one-space-more", "there are 64 spaces", func(r *ski.Request) { r.Input = append([]byte{0x20}, r.Input...) }),
	bad13("tls13/separator", "the separator is a zero", func(r *ski.Request) { r.Input[97] = 1 }),
	bad13("tls13/transcript-hash-length", "the transcript hash has 32 or 48 bytes", func(r *ski.Request) { r.Input = append(r.Input, 0) }),
	bad13("tls13/transcript-hash-missing", "the transcript hash has 32 or 48 bytes", func(r *ski.Request) { r.Input = r.Input[:98] }),
	bad13("tls13/input-of-tls12", "'protocol' and the input agree: ServerECDHParams are not of TLS 1.3", func(r *ski.Request) {
		r.Input = ECDHEInput(tls.CurveP256)
	}),
	{
		Name: "tls13/as-tls12", Section: processing, Needs: aSigner,
		Rule: "'protocol' and the input agree: a CertificateVerify's content is not of TLS 1.2",
		run: func(t *trial) error {
			_, req := t.good()
			req.Input = CertificateVerifyInput(32)
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
		},
	},
	{
		Name: "tls13/scheme-of-other-curve", Section: "RFC 8446, Section 4.2.3", Needs: []Need{NeedP256}, Extension: true,
		Rule: "an ECDSA scheme is bound to its curve",
		run: func(t *trial) error {
			req := request13(keyOf[*ecdsa.PublicKey](t.cfg), 32)
			req.Scheme = tls.ECDSAWithP384AndSHA384
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
		},
	},
	{
		Name: "tls13/rsa-pkcs1", Section: "RFC 8446, Section 4.2.3", Needs: aRSA, Extension: true,
		Rule: "RSA PKCS #1 v1.5 does not sign handshakes of TLS 1.3",
		run: func(t *trial) error {
			req := request13(keyOf[*rsa.PublicKey](t.cfg), 32)
			req.Scheme = tls.PKCS1WithSHA256
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
		},
	},
}

func request13(pub crypto.PublicKey, hashLen int) *ski.Request {
	return &ski.Request{Protocol: ski.TLS13, SPKI: keyID(pub), Scheme: tls13Scheme(pub), Input: CertificateVerifyInput(hashLen)}
}

func good13[T crypto.PublicKey](name string, needs []Need, key func(*Config) T, p ski.Protocol, hashLen int) Case {
	return Case{
		Name: name, Section: section13, Needs: needs, Extension: true,
		Rule: "the content covered by a server's CertificateVerify is signed",
		run: func(t *trial) error {
			pub := key(t.cfg)
			req := request13(pub, hashLen)
			req.Protocol = p
			return t.signs(pub, req)
		},
	}
}

func bad13(name, rule string, change func(*ski.Request)) Case {
	return Case{
		Name: name, Section: section13, Rule: rule, Needs: aSigner, Extension: true,
		run: func(t *trial) error {
			req := request13(t.signer(), 32)
			change(req)
			// What the key is not good for, a policy may deny before the input
			// is looked into.
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
		},
	}
}
