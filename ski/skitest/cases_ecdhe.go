package skitest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"strings"
	"sync"

	"github.com/tlsski/tlsski/ski"
)

var ecdheCases = append(ecdheGood(), []Case{
	{
		Name: "ecdhe/dtls", Section: sectionSKI, Needs: aSigner,
		Rule: "'DTLS 1.2' is signed as TLS 1.2 is",
		run: func(t *trial) error {
			pub, req := t.good()
			req.Protocol = ski.DTLS12
			return t.signs(pub, req)
		},
	},
	{
		Name: "ecdhe/default-hash", Section: sectionSKI, Needs: anECDSA,
		Rule: "without 'hash' the default of the protocol, SHA-1 in TLS 1.2 (RFC 5246, Section 7.4.1.4.1), signs or is denied",
		run: func(t *trial) error {
			pub := keyOf[*ecdsa.PublicKey](t.cfg)
			req := request(pub)
			req.Hash = ski.HashDefault
			return t.signsOrRefuses(pub, req, ski.RequestDenied)
		},
	},
	{
		Name: "ecdhe/tls10", Section: sectionSKI, Needs: anECDSA,
		Rule: "'TLS 1.0' is signed with SHA-1 (RFC 4492, Section 5.4) or denied",
		run:  older(ski.TLS10, keyOf[*ecdsa.PublicKey]),
	},
	{
		Name: "ecdhe/tls11-rsa", Section: sectionSKI, Needs: aRSA,
		Rule: "'TLS 1.1' is signed with MD5 and SHA-1 by an RSA key (RFC 4346, Section 7.4.3) or denied",
		run:  older(ski.TLS11, keyOf[*rsa.PublicKey]),
	},
	{
		Name: "ecdhe/dtls10", Section: sectionSKI, Needs: anECDSA,
		Rule: "'DTLS 1.0' is signed with SHA-1 (RFC 4492, Section 5.4) or denied",
		run:  older(ski.DTLS10, keyOf[*ecdsa.PublicKey]),
	},
	{
		Name: "ecdhe/hash-before-tls12", Section: processing, Needs: anECDSA,
		Rule: "before TLS 1.2 no hash is negotiated: 'hash' is malformed, where the version is not denied",
		run: func(t *trial) error {
			req := request(keyOf[*ecdsa.PublicKey](t.cfg))
			req.Protocol = ski.TLS11
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
		},
	},

	badInput("ecdhe/input-short", sectionDH, "the input has the wrong size: two randoms alone", func(input []byte) []byte { return input[:64] }),
	badInput("ecdhe/input-cut", sectionDH, "the input has the wrong size: the point is cut", func(input []byte) []byte { return input[:len(input)-1] }),
	badInput("ecdhe/input-long", sectionDH, "the input has the wrong size: a byte after the point", func(input []byte) []byte { return append(input, 0) }),
	badInput("ecdhe/random-short", sectionDH, "the randoms have 32 bytes each", func(input []byte) []byte { return input[1:] }),
	badInput("ecdhe/bare-digest", "draft, Section 4.3, REQ 5", "a digest in place of the parameters is not signed", func(input []byte) []byte { return input[:32] }),
	badInput("ecdhe/explicit-curve", processing, "curve_type is named_curve", func(input []byte) []byte {
		input[64] = 1
		return input
	}),
	badInput("ecdhe/group-unknown", processing, "the group is one of those served", func(input []byte) []byte {
		input[65], input[66] = 0xFA, 0xFA
		return input
	}),
	badInput("ecdhe/group-other", sectionDH, "the point is one of the group's", func(input []byte) []byte {
		input[66] = byte(tls.CurveP384)
		return input
	}),
	badInput("ecdhe/point-off-curve", sectionDH, "the public key is valid: a point that is not on the curve is not", func(input []byte) []byte {
		input[len(input)-1] ^= 1
		return input
	}),
	badInput("ecdhe/point-compressed", processing, "the point is uncompressed (RFC 8422, Section 5.4.1)", func(input []byte) []byte {
		point := append([]byte{2 + input[len(input)-1]&1}, input[69:101]...)
		return serverECDHParams(input[:64:64], tls.CurveP256, point)
	}),
	badInput("ecdhe/point-infinity", sectionDH, "the public key is valid: the point at infinity is not", func(input []byte) []byte {
		return serverECDHParams(input[:64:64], tls.CurveP256, []byte{0})
	}),
	badInput("ecdhe/x25519-low-order", processing, "a point of low order is not valid (RFC 7748, Section 6.1)", func(input []byte) []byte {
		return serverECDHParams(input[:64:64], tls.X25519, make([]byte, 32))
	}),
	badInput("ecdhe/x25519-length", processing, "a point of X25519 has 32 bytes", func(input []byte) []byte {
		return serverECDHParams(input[:64:64], tls.X25519, bytes.Repeat([]byte{9}, 31))
	}),

	badInput("ecdhe/form-ber", processing, "an input that is also a SEQUENCE in BER is not signed", beginning("\x30\x81\x82", tls.CurveP256)),
	badInput("ecdhe/form-ber-members", processing, "an input that is also a SEQUENCE with a short length, filled by its members, is not signed", beginning("\x30\x62\x0c\x60", tls.X25519)),
	badInput("ecdhe/form-ber-set", processing, "an input that is also a SET is not signed", beginning("\x31\x81\x82", tls.CurveP256)),
	badInput("ecdhe/form-ber-padded", processing, "an input that is also a SEQUENCE whose length is padded is not signed", beginning("\x30\x84\x00\x00\x00\x7f", tls.CurveP256)),
	badInput("ecdhe/form-ber-indefinite", processing, "an input that is also a SEQUENCE of indefinite length is not signed", ending("\x30\x80", "\x00\x00")),
	badInput("ecdhe/form-cose", processing, "an input that is also a Sig_structure of COSE is not signed", beginning("\x84\x6aSignature1\x43\xa1\x01\x26\x40\x58\x74", tls.CurveP256)),
	badInput("ecdhe/form-sshsig", processing, "an input that begins with \"SSHSIG\" is not signed", beginning("SSHSIG", tls.CurveP256)),
	badInput("ecdhe/form-openpgp", processing, "an input that ends with the trailer of an OpenPGP signature is not signed", ending("", "\x04\x00\x01\x08\x00\x00\x04\xff\x00\x00\x00\x06")),
	badInput("ecdhe/form-handshake", processing, "an input that is also handshake messages from a ClientHello on is not signed", beginning("\x01\x00\x00\x60\x03\x03", tls.X25519)),

	{
		Name: "ecdhe/of-dhe", Section: sectionSKI, Needs: aSigner,
		Rule: "ServerECDHParams are not signed as another method's: method RSA with an input of ECDHE",
		run: func(t *trial) error {
			_, req := t.good()
			req.Method, req.Hash, req.Scheme = ski.MethodRSA, "", 0
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
		},
	},
	{
		Name: "ecdhe/many-at-once", Section: sectionSKI, Needs: aSigner,
		Rule: "each of 32 requests at once gets its own answer",
		run: func(t *trial) error {
			errs := make([]error, 32)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() {
					pub, req := t.good()
					errs[i] = t.signs(pub, req)
				})
			}
			wg.Wait()
			for i, err := range errs {
				if err != nil {
					return fmt.Errorf("request %d: %w", i, err)
				}
			}
			return nil
		},
	},
}...)

// ecdheGood has the combinations of key, hash, scheme and group that are
// signed.
func ecdheGood() []Case {
	cases := []Case{}
	for _, h := range []ski.Hash{ski.SHA224, ski.SHA256, ski.SHA384, ski.SHA512} {
		cases = append(cases,
			good("ecdhe/ecdsa-"+strings.ToLower(string(h)), anECDSA, keyOf[*ecdsa.PublicKey], func(r *ski.Request) { r.Hash = h }),
			good("ecdhe/rsa-"+strings.ToLower(string(h)), aRSA, keyOf[*rsa.PublicKey], func(r *ski.Request) { r.Hash = h }))
	}
	for _, g := range []struct {
		name  string
		group tls.CurveID
	}{{"secp256r1", tls.CurveP256}, {"secp384r1", tls.CurveP384}, {"secp521r1", tls.CurveP521}, {"x25519", tls.X25519}} {
		c := good("ecdhe/group-"+g.name, anECDSA, keyOf[*ecdsa.PublicKey], func(r *ski.Request) { r.Input = ECDHEInput(g.group) })
		c.Section, c.Rule = "RFC 8422, Section 5.1.1", "parameters of the group "+g.name+" are signed"
		cases = append(cases, c)
	}
	for _, s := range []struct {
		name   string
		scheme tls.SignatureScheme
	}{
		{"rsa_pkcs1_sha256", tls.PKCS1WithSHA256},
		{"rsa_pss_rsae_sha256", tls.PSSWithSHA256}, {"rsa_pss_rsae_sha384", tls.PSSWithSHA384}, {"rsa_pss_rsae_sha512", tls.PSSWithSHA512},
	} {
		cases = append(cases, byScheme(good("ecdhe/scheme-"+s.name, aRSA, keyOf[*rsa.PublicKey], func(r *ski.Request) { r.Scheme, r.Hash = s.scheme, "" })))
	}
	return append(cases,
		byScheme(good("ecdhe/scheme-ecdsa", anECDSA, keyOf[*ecdsa.PublicKey], func(r *ski.Request) { r.Scheme, r.Hash = tls.ECDSAWithP256AndSHA256, "" })),
		byScheme(good("ecdhe/scheme-ed25519", []Need{NeedEd25519}, keyOf[ed25519.PublicKey], func(*ski.Request) {})),
		Case{
			Name: "ecdhe/scheme-of-other-key", Section: processing, Needs: anECDSA, Extension: true,
			Rule: "'scheme' fits the type of the key",
			run: func(t *trial) error {
				req := request(keyOf[*ecdsa.PublicKey](t.cfg))
				req.Scheme, req.Hash = tls.PSSWithSHA256, ""
				return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
			},
		},
		Case{
			Name: "ecdhe/scheme-unknown", Section: processing, Needs: aSigner, Extension: true,
			Rule: "'scheme' is one of those served",
			run: func(t *trial) error {
				_, req := t.good()
				req.Scheme, req.Hash = 0xFE00, ""
				return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
			},
		},
	)
}

func byScheme(c Case) Case {
	c.Section, c.Rule, c.Extension = messages, "'scheme' is how RSA-PSS and EdDSA are asked for", true
	return c
}

func good[T crypto.PublicKey](name string, needs []Need, key func(*Config) T, change func(*ski.Request)) Case {
	return Case{
		Name: name, Section: sectionDH, Needs: needs,
		Rule: "the key server hashes and signs the input",
		run: func(t *trial) error {
			pub := key(t.cfg)
			req := request(pub)
			change(req)
			return t.signs(pub, req)
		},
	}
}

func older[T crypto.PublicKey](p ski.Protocol, key func(*Config) T) func(*trial) error {
	return func(t *trial) error {
		pub := key(t.cfg)
		req := request(pub)
		req.Protocol, req.Hash = p, ski.HashDefault
		return t.signsOrRefuses(pub, req, ski.RequestDenied)
	}
}

// beginning returns an input of a group that begins as told.
func beginning(with string, group tls.CurveID) func([]byte) []byte {
	return func([]byte) []byte {
		input := ECDHEInput(group)
		copy(input, with)
		return input
	}
}

// ending returns an input that begins and ends as told.
func ending(begin, end string) func([]byte) []byte {
	return func([]byte) []byte {
		input := ECDHEInput(tls.X25519) // any 32 bytes are a public key
		copy(input, begin)
		copy(input[len(input)-len(end):], end)
		return input
	}
}

// badInput is a good request, in P-256, whose input is changed into one that is
// malformed.
func badInput(name, section, rule string, change func(input []byte) []byte) Case {
	return Case{
		Name: name, Section: section, Rule: rule, Needs: aSigner,
		run: func(t *trial) error {
			_, req := t.good()
			req.Input = change(req.Input)
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
		},
	}
}
