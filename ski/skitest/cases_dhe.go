package skitest

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"math/big"

	"github.com/tlsski/tlsski/ski"
)

const sectionDHParams = "RFC 5246, Section 7.4.3"

var dheCases = append(dheGood(), []Case{
	{
		Name: "dhe/default-hash", Section: sectionSKI, Needs: aRSA,
		Rule: "without 'hash' the default of the protocol, SHA-1 in TLS 1.2 (RFC 5246, Section 7.4.1.4.1), signs or is denied",
		run: func(t *trial) error {
			pub, req := t.dhe(FFDHE2048)
			req.Hash = ski.HashDefault
			return t.signsOrRefuses(pub, req, ski.RequestDenied)
		},
	},
	{
		Name: "dhe/tls10", Section: sectionSKI, Needs: aRSA,
		Rule: "'TLS 1.0' is signed with MD5 and SHA-1 (RFC 2246, Section 7.4.3) or denied",
		run: func(t *trial) error {
			pub, req := t.dhe(FFDHE2048)
			req.Protocol, req.Hash = ski.TLS10, ski.HashDefault
			return t.signsOrRefuses(pub, req, ski.RequestDenied)
		},
	},
	{
		Name: "dhe/of-ecdsa-key", Section: processing, Needs: anECDSA,
		Rule: "DHE is DHE_RSA: an ECDSA key signs no ServerDHParams",
		run: func(t *trial) error {
			req := &ski.Request{Protocol: ski.TLS12, SPKI: keyID(keyOf[*ecdsa.PublicKey](t.cfg)), Method: ski.MethodDHE, Hash: ski.SHA256, Input: DHEInput(FFDHE2048)}
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
		},
	},
	{
		Name: "dhe/tls13", Section: "RFC 8446, Section 4.4.3", Needs: aRSA, Extension: true,
		Rule: "TLS 1.3 signs no ServerDHParams",
		run: func(t *trial) error {
			_, req := t.dhe(FFDHE2048)
			req.Protocol, req.Hash, req.Scheme = ski.TLS13, "", tls.PSSWithSHA256
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
		},
	},
	{
		Name: "dhe/as-ecdhe", Section: sectionDH, Needs: aRSA,
		Rule: "ServerDHParams are not an input of ECDHE",
		run: func(t *trial) error {
			_, req := t.dhe(FFDHE2048)
			req.Method = ski.MethodECDHE
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
		},
	},
	{
		Name: "dhe/ecdhe-input", Section: sectionDH, Needs: aRSA,
		Rule: "ServerECDHParams are not an input of DHE",
		run: func(t *trial) error {
			_, req := t.dhe(FFDHE2048)
			req.Input = ECDHEInput(tls.CurveP256)
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
		},
	},
	badDHE("dhe/input-short", sectionDH, "the input has the wrong size: two randoms alone", func(in dheParts) []byte { return in.randoms }),
	badDHE("dhe/input-cut", sectionDH, "the input has the wrong size: dh_Ys is cut", func(in dheParts) []byte {
		whole := in.encode()
		return whole[:len(whole)-1]
	}),
	badDHE("dhe/input-long", sectionDH, "the input has the wrong size: a byte after dh_Ys", func(in dheParts) []byte { return append(in.encode(), 0) }),
	badDHE("dhe/length-above-input", sectionDHParams, "a length does not reach beyond the input", func(in dheParts) []byte {
		return append(in.randoms, 0xFF, 0xFF)
	}),
	badDHE("dhe/prime-unknown", processing, "dh_p is one of the known safe primes", func(in dheParts) []byte {
		in.p[len(in.p)-1] ^= 2
		return in.encode()
	}),
	badDHE("dhe/prime-short", processing, "dh_p has 2048 bits or more", func(in dheParts) []byte {
		in.p, in.ys = in.p[:128], in.ys[:128]
		return in.encode()
	}),
	badDHE("dhe/prime-leading-zero", processing, "dh_p has no leading zeros", func(in dheParts) []byte {
		in.p = append([]byte{0}, in.p...)
		return in.encode()
	}),
	badDHE("dhe/generator", processing, "dh_g is that of the group", func(in dheParts) []byte {
		in.g = []byte{5}
		return in.encode()
	}),
	badDHE("dhe/public-zero", "RFC 7919, Section 5.1", "dh_Ys is above 1: 0 is not", func(in dheParts) []byte {
		clear(in.ys)
		return in.encode()
	}),
	badDHE("dhe/public-one", "RFC 7919, Section 5.1", "dh_Ys is above 1", func(in dheParts) []byte {
		in.ys = []byte{1}
		return in.encode()
	}),
	badDHE("dhe/public-order-two", "RFC 7919, Section 5.1", "dh_Ys is below dh_p - 1", func(in dheParts) []byte {
		in.ys = new(big.Int).Sub(new(big.Int).SetBytes(in.p), big.NewInt(1)).Bytes()
		return in.encode()
	}),
	badDHE("dhe/public-prime", "RFC 7919, Section 5.1", "dh_Ys is below dh_p - 1: dh_p is not", func(in dheParts) []byte {
		in.ys = in.p
		return in.encode()
	}),
	badDHE("dhe/form-ber", processing, "an input that is also a SEQUENCE in BER, as of a certificate, is not signed", func(in dheParts) []byte {
		n := len(in.encode()) - 4
		copy(in.randoms, []byte{0x30, 0x82, byte(n >> 8), byte(n)})
		return in.encode()
	}),
	badDHE("dhe/form-handshake", processing, "an input that is also handshake messages from a ClientHello on is not signed", func(in dheParts) []byte {
		n := len(in.encode()) - 4
		copy(in.randoms, []byte{1, 0, byte(n >> 8), byte(n), 3, 3})
		return in.encode()
	}),
	badDHE("dhe/public-long", processing, "dh_Ys is not longer than dh_p", func(in dheParts) []byte {
		in.ys = append([]byte{0}, in.ys...)
		return in.encode()
	}),
}...)

func dheGood() []Case {
	var cases []Case
	add := func(name, section, rule string, g DHGroup, extension bool, change func(*ski.Request)) {
		cases = append(cases, Case{
			Name: name, Section: section, Rule: rule, Needs: aRSA, Extension: extension,
			run: func(t *trial) error {
				pub, req := t.dhe(g)
				change(req)
				return t.signs(pub, req)
			},
		})
	}
	add("dhe/ffdhe2048", sectionDH, "the key server hashes and signs the input", FFDHE2048, false, func(*ski.Request) {})
	add("dhe/ffdhe4096", sectionDH, "parameters of 4096 bits are signed, in a request of more than a kilobyte", FFDHE4096, false, func(*ski.Request) {})
	add("dhe/modp2048", sectionDH, "parameters of a group of RFC 3526 are signed", MODP2048, false, func(*ski.Request) {})
	add("dhe/sha-384", sectionDH, "'hash' is the signature's", FFDHE2048, false, func(r *ski.Request) { r.Hash = ski.SHA384 })
	add("dhe/dtls", sectionSKI, "'DTLS 1.2' is signed as TLS 1.2 is", FFDHE2048, false, func(r *ski.Request) { r.Protocol = ski.DTLS12 })
	add("dhe/scheme-rsa_pss_rsae_sha256", messages, "'scheme' is how RSA-PSS is asked for", FFDHE2048, true, func(r *ski.Request) { r.Hash, r.Scheme = "", tls.PSSWithSHA256 })
	return cases
}

// dhe returns a good request of method DHE.
func (t *trial) dhe(g DHGroup) (*rsa.PublicKey, *ski.Request) {
	pub := keyOf[*rsa.PublicKey](t.cfg)
	return pub, &ski.Request{Protocol: ski.TLS12, SPKI: keyID(pub), Method: ski.MethodDHE, Hash: ski.SHA256, Input: DHEInput(g)}
}

// dheParts is an input of method DHE in pieces.
type dheParts struct{ randoms, p, g, ys []byte }

func (in dheParts) encode() []byte { return serverDHParams(in.randoms[:64:64], in.p, in.g, in.ys) }

// badDHE is a good request, in ffdhe2048, whose input is changed into one that
// is malformed.
func badDHE(name, section, rule string, change func(dheParts) []byte) Case {
	return Case{
		Name: name, Section: section, Rule: rule, Needs: aRSA,
		run: func(t *trial) error {
			_, req := t.dhe(FFDHE2048)
			const randoms, number = 2 * ski.RandomLen, 2048 / 8
			req.Input = change(dheParts{
				randoms: req.Input[:randoms:randoms], g: []byte{2},
				p:  append([]byte(nil), req.Input[randoms+2:][:number]...),
				ys: append([]byte(nil), req.Input[len(req.Input)-number:]...),
			})
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
		},
	}
}
