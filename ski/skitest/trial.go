package skitest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// trial is one run of a case.
type trial struct {
	ctx    context.Context
	cfg    *Config
	format ski.Format
}

// exchange sends any question.
func (t *trial) exchange(q *Question) (*Answer, error) {
	a, err := t.cfg.Exchanger.Exchange(t.ctx, q)
	if err != nil {
		return nil, fmt.Errorf("no answer: %w", err)
	}
	return a, nil
}

// post sends a body in the trial's format.
func (t *trial) post(body []byte) (*Answer, error) {
	return t.exchange(&Question{ContentType: t.format.MediaType(), Body: body})
}

// ask sends a body and reads the answer as SKI, in the same format.
func (t *trial) ask(body []byte) (*ski.Response, error) {
	a, err := t.post(body)
	if err != nil {
		return nil, err
	}
	return a.response(t.format)
}

// refused checks that a body is answered with one of the errors.
func (t *trial) refused(body []byte, want ...ski.Error) error {
	resp, err := t.ask(body)
	switch {
	case err != nil:
		return err
	case resp.Error == "":
		return fmt.Errorf("answered with an output of %d bytes, not with %s", len(resp.Output), either(want))
	case !slices.Contains(want, resp.Error):
		return fmt.Errorf("answered with '%s', not with %s", resp.Error, either(want))
	}
	return nil
}

func either(errors []ski.Error) string {
	quoted := make([]string, len(errors))
	for i, e := range errors {
		quoted[i] = "'" + string(e) + "'"
	}
	return strings.Join(quoted, " or ")
}

// output checks that a body is answered with an output and returns it.
func (t *trial) output(body []byte) ([]byte, error) {
	resp, err := t.ask(body)
	if err != nil {
		return nil, err
	}
	if resp.Error != "" {
		return nil, fmt.Errorf("answered with '%s', not with an output", resp.Error)
	}
	return resp.Output, nil
}

// signed checks that a body that says what req does is answered with the
// signature that req asks for.
func (t *trial) signed(body []byte, pub crypto.PublicKey, req *ski.Request) error {
	signature, err := t.output(body)
	if err != nil {
		return err
	}
	return Verify(pub, req, signature)
}

// signs is signed with the body that req itself gives.
func (t *trial) signs(pub crypto.PublicKey, req *ski.Request) error {
	return t.signed(RequestMessage(req).Encode(t.format), pub, req)
}

// signsOrRefuses is signs where a policy may as well refuse: with one of the
// errors.
func (t *trial) signsOrRefuses(pub crypto.PublicKey, req *ski.Request, or ...ski.Error) error {
	resp, err := t.ask(RequestMessage(req).Encode(t.format))
	if err != nil || slices.Contains(or, resp.Error) {
		return err
	}
	if resp.Error != "" {
		return fmt.Errorf("answered with '%s', not with a signature or %s", resp.Error, either(or))
	}
	return Verify(pub, req, resp.Output)
}

// signer returns a key that signs, the cheapest first.
func (t *trial) signer() crypto.PublicKey {
	if pub := keyOf[*ecdsa.PublicKey](t.cfg); pub != nil {
		return pub
	}
	if pub := keyOf[ed25519.PublicKey](t.cfg); pub != nil {
		return pub
	}
	return keyOf[*rsa.PublicKey](t.cfg)
}

// request returns a request for a signature in TLS 1.2 that every key server
// with such a key answers. Its randoms are new.
func request(pub crypto.PublicKey) *ski.Request {
	req := &ski.Request{Protocol: ski.TLS12, SPKI: keyID(pub), Hash: ski.SHA256, Input: ECDHEInput(tls.CurveP256)}
	if _, ok := pub.(ed25519.PublicKey); ok {
		req.Hash, req.Scheme = ski.HashDefault, tls.Ed25519
	}
	return req
}

// good is request for the key that signer returns.
func (t *trial) good() (crypto.PublicKey, *ski.Request) {
	pub := t.signer()
	return pub, request(pub)
}

// goodMessage is good as its pairs.
func (t *trial) goodMessage() Message {
	_, req := t.good()
	return RequestMessage(req)
}

func keyID(pub crypto.PublicKey) ski.KeyID {
	id, err := ski.PublicKeyID(pub)
	if err != nil {
		panic(err)
	}
	return id
}

// tls13Scheme returns the SignatureScheme that TLS 1.3 has for a key.
func tls13Scheme(pub crypto.PublicKey) tls.SignatureScheme {
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		return tls.Ed25519
	case *ecdsa.PublicKey:
		switch pub.Params().BitSize {
		case 384:
			return tls.ECDSAWithP384AndSHA384
		case 521:
			return tls.ECDSAWithP521AndSHA512
		}
		return tls.ECDSAWithP256AndSHA256
	}
	return tls.PSSWithSHA256
}
