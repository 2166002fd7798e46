package skitest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/tlsski/tlsski/ski"
)

var (
	staticRSA    = []Need{NeedStaticRSA}
	randomAnswer = []Need{NeedStaticRSA, NeedRandom}
	errorAnswer  = []Need{NeedStaticRSA, NeedErrorRSA}
)

const (
	tls12Wire  = 0x0303
	dtls12Wire = 0xFEFD
)

var rsaCases = []Case{
	{
		Name: "rsa/premaster", Section: sectionRSA, Needs: staticRSA,
		Rule: "the output is the PreMasterSecret",
		run:  decrypts(ski.TLS12, tls12Wire, 0, ""),
	},
	{
		Name: "rsa/premaster-dtls", Section: sectionRSA, Needs: staticRSA,
		Rule: "the output is the PreMasterSecret, which begins with 0xFEFD",
		run:  decrypts(ski.DTLS12, dtls12Wire, 0, ""),
	},
	{
		Name: "rsa/hash-ignored", Section: messages, Needs: staticRSA,
		Rule: "'hash' means nothing: nothing is signed",
		run:  decrypts(ski.TLS12, tls12Wire, 0, ski.SHA384),
	},
	{
		Name: "rsa/client-version", Section: sectionRSA, Needs: staticRSA, Extension: true,
		Rule: "the request provides the ClientHello.client_version: with 'client_version'",
		run:  decrypts(ski.TLS12, tls12Wire, tls12Wire, ""),
	},
	{
		Name: "rsa/client-version-unfit", Section: processing, Needs: staticRSA, Extension: true,
		Rule: "'client_version' is not older than 'protocol', nor of DTLS with TLS",
		run: func(t *trial) error {
			req, _ := t.premaster(tls12Wire)
			req.ClientVersion = dtls12Wire
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
		},
	},
	{
		Name: "rsa/client-version-older", Section: processing, Needs: staticRSA, Extension: true,
		Rule: "no client offers a version below the negotiated one",
		run: func(t *trial) error {
			req, _ := t.premaster(0x0301)
			req.ClientVersion = 0x0301
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
		},
	},
	{
		Name: "rsa/older-client-version", Section: sectionRSA, Needs: staticRSA,
		Rule: "in TLS 1.1 a secret that begins with the version offered, TLS 1.2, is the output; or the version is denied",
		run: func(t *trial) error {
			req, secret := t.premaster(tls12Wire)
			req.Protocol = ski.TLS11
			resp, err := t.ask(RequestMessage(req).Encode(t.format))
			if err != nil || resp.Error == ski.RequestDenied {
				return err
			}
			return isSecret(resp, secret)
		},
	},
	badRSA("rsa/input-short", "the input is as long as the modulus", func(_ *rsa.PublicKey, input []byte) []byte { return input[1:] }),
	badRSA("rsa/input-long", "the input is as long as the modulus: the 2 bytes of length before it are not of it", func(pub *rsa.PublicKey, input []byte) []byte {
		return append([]byte{byte(pub.Size() >> 8), byte(pub.Size())}, input...)
	}),
	badRSA("rsa/input-modulus", "the input is below the modulus", func(pub *rsa.PublicKey, _ []byte) []byte {
		return pub.N.FillBytes(make([]byte, pub.Size()))
	}),
	badRSA("rsa/input-above-modulus", "the input is below the modulus", func(pub *rsa.PublicKey, _ []byte) []byte {
		above := new(big.Int).Add(pub.N, big.NewInt(1))
		return above.FillBytes(make([]byte, pub.Size()))
	}),
	{
		Name: "rsa/of-ecdsa-key", Section: processing, Needs: anECDSA,
		Rule: "an ECDSA key decrypts nothing",
		run: func(t *trial) error {
			req := &ski.Request{Protocol: ski.TLS12, SPKI: keyID(keyOf[*ecdsa.PublicKey](t.cfg)), Method: ski.MethodRSA, Input: randomBytes(256)}
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
		},
	},
	{
		Name: "rsa/tls13", Section: "RFC 8446, Section 1.2", Needs: staticRSA, Extension: true,
		Rule: "TLS 1.3 has no static RSA",
		run: func(t *trial) error {
			req, _ := t.premaster(tls12Wire)
			req.Protocol = ski.TLS13
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest, ski.RequestDenied)
		},
	},
}

func init() {
	rsaCases = append(rsaCases,
		Case{
			Name: "rsa/client-version-other", Section: "docs/protocol.md, section 3.7", Needs: randomAnswer, Extension: true,
			Rule: "the secret begins with another version than 'client_version': answered with 48 bytes that are not the secret",
			run: func(t *trial) error {
				req, secret := t.otherVersion()
				output, err := t.output(RequestMessage(req).Encode(t.format))
				switch {
				case err != nil:
					return err
				case len(output) != len(secret):
					return fmt.Errorf("the output has %d bytes, unlike a PreMasterSecret", len(output))
				case bytes.Equal(output[2:], secret[2:]):
					return errors.New("the output is the secret")
				}
				return nil
			},
		},
		Case{
			Name: "rsa/client-version-other-error", Section: sectionRSA, Needs: errorAnswer, Extension: true,
			Rule: "the secret begins with another version than 'client_version': 'malformed request'",
			run: func(t *trial) error {
				req, _ := t.otherVersion()
				return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
			},
		},
	)
	for _, f := range []struct {
		name, rule string
		input      func(pub *rsa.PublicKey) []byte
	}{
		{"padding", "the padding is wrong (block type 1)", func(pub *rsa.PublicKey) []byte {
			return encryptBlockType(pub, 1, PreMasterSecret(tls12Wire))
		}},
		{"no-padding", "there is no padding", func(pub *rsa.PublicKey) []byte {
			return rawEncrypt(pub, append(make([]byte, pub.Size()-48), PreMasterSecret(tls12Wire)...))
		}},
		{"secret-short", "the secret has 47 bytes", func(pub *rsa.PublicKey) []byte {
			return encryptBlockType(pub, 2, PreMasterSecret(tls12Wire)[:47])
		}},
		{"secret-long", "the secret has 49 bytes", func(pub *rsa.PublicKey) []byte {
			return encryptBlockType(pub, 2, append(PreMasterSecret(tls12Wire), 0))
		}},
		{"secret-version", "the secret begins with another version", func(pub *rsa.PublicKey) []byte {
			return encryptBlockType(pub, 2, PreMasterSecret(0x0300))
		}},
	} {
		rsaCases = append(rsaCases,
			Case{
				Name: "rsa/" + f.name, Section: "docs/protocol.md, section 3.7", Needs: randomAnswer,
				Rule: f.rule + ": answered with 48 bytes that look right, the same for the same input",
				run:  func(t *trial) error { return t.looksRight(f.input(keyOf[*rsa.PublicKey](t.cfg))) },
			},
			Case{
				Name: "rsa/" + f.name + "-error", Section: sectionRSA, Needs: errorAnswer,
				Rule: f.rule + ": 'malformed request'",
				run: func(t *trial) error {
					req := t.rsaRequest(f.input(keyOf[*rsa.PublicKey](t.cfg)))
					return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
				},
			},
		)
	}
}

func (t *trial) rsaRequest(input []byte) *ski.Request {
	return &ski.Request{Protocol: ski.TLS12, SPKI: keyID(keyOf[*rsa.PublicKey](t.cfg)), Method: ski.MethodRSA, Input: input}
}

// premaster returns a request with a secret that begins with version.
func (t *trial) premaster(version uint16) (*ski.Request, []byte) {
	secret := PreMasterSecret(version)
	input, err := EncryptPreMasterSecret(keyOf[*rsa.PublicKey](t.cfg), secret)
	if err != nil {
		panic(err)
	}
	return t.rsaRequest(input), secret
}

// otherVersion returns a request whose secret begins with TLS 1.2, where the
// ClientHello is said to have offered more.
func (t *trial) otherVersion() (*ski.Request, []byte) {
	req, secret := t.premaster(tls12Wire)
	req.ClientVersion = tls12Wire + 1
	return req, secret
}

func decrypts(p ski.Protocol, version, sent uint16, hash ski.Hash) func(*trial) error {
	return func(t *trial) error {
		req, secret := t.premaster(version)
		req.Protocol, req.ClientVersion, req.Hash = p, sent, hash
		resp, err := t.ask(RequestMessage(req).Encode(t.format))
		if err != nil {
			return err
		}
		return isSecret(resp, secret)
	}
}

func isSecret(resp *ski.Response, secret []byte) error {
	switch {
	case resp.Error != "":
		return fmt.Errorf("answered with '%s', not with the PreMasterSecret", resp.Error)
	case !bytes.Equal(resp.Output, secret):
		return fmt.Errorf("the output (%d bytes) is not the PreMasterSecret", len(resp.Output))
	}
	return nil
}

// looksRight checks the answer to a wrong EncryptedPreMasterSecret: RFC 5246,
// Section 7.4.7.1, done at the key server.
func (t *trial) looksRight(input []byte) error {
	body := RequestMessage(t.rsaRequest(input)).Encode(t.format)
	first, err := t.output(body)
	if err != nil {
		return err
	}
	second, err := t.output(body)
	switch {
	case err != nil:
		return err
	case len(first) != ski.PreMasterSecretLen:
		return fmt.Errorf("the output has %d bytes, unlike a PreMasterSecret", len(first))
	case first[0] != 3 || first[1] != 3:
		return errors.New("the output does not begin with the version that a PreMasterSecret begins with")
	case !bytes.Equal(first, second):
		return errors.New("the same input gives two outputs, so that both are known to be made up")
	}
	return nil
}

func badRSA(name, rule string, change func(pub *rsa.PublicKey, input []byte) []byte) Case {
	return Case{
		Name: name, Section: "RFC 8017, Section 7.2.2", Rule: rule, Needs: staticRSA,
		run: func(t *trial) error {
			req, _ := t.premaster(tls12Wire)
			req.Input = change(keyOf[*rsa.PublicKey](t.cfg), req.Input)
			return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
		},
	}
}
