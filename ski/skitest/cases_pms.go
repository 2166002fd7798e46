package skitest

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tlsski/tlsski/ski"
)

const sectionPMS = "docs/protocol.md, section 5"

// stateLifetime is how long a state may be used (docs/protocol.md, section 5).
const stateLifetime = 30 * time.Second

var pmsCases = slices.Concat(pmsGood(), pmsFirst(), pmsSecond())

// pmsGood are both exchanges, done right.
func pmsGood() []Case {
	var cases []Case
	add := func(name, rule string, needs []Need, key func(*trial) crypto.PublicKey, group tls.CurveID, change func(*ski.Request)) {
		cases = append(cases, pmsCase(name, sectionPMS, rule, needs, func(t *trial) error {
			pub := key(t)
			req := t.pmsRequest(pub, group)
			change(req)
			x, err := t.firstExchange(pub, req)
			if err != nil {
				return err
			}
			return x.agrees(x.secondExchange())
		}))
	}
	const rule = "the first exchange is answered with the signature over the randoms and params, the second with the x-coordinate of the shared point"
	signer := (*trial).signer
	for _, g := range []struct {
		name  string
		group tls.CurveID
	}{{"p256", tls.CurveP256}, {"p384", tls.CurveP384}, {"p521", tls.CurveP521}, {"x25519", tls.X25519}} {
		add("ecdhe-pms/"+g.name, rule, aSigner, signer, g.group, func(*ski.Request) {})
	}
	add("ecdhe-pms/dtls", "DTLS 1.2 is as TLS 1.2 is", aSigner, signer, tls.CurveP256, func(r *ski.Request) { r.Protocol = ski.DTLS12 })
	add("ecdhe-pms/rsa", rule, aRSA, func(t *trial) crypto.PublicKey { return keyOf[*rsa.PublicKey](t.cfg) }, tls.CurveP256, func(*ski.Request) {})
	add("ecdhe-pms/scheme-rsa_pss_rsae_sha256", "'scheme' is how RSA-PSS is asked for", aRSA,
		func(t *trial) crypto.PublicKey { return keyOf[*rsa.PublicKey](t.cfg) }, tls.X25519,
		func(r *ski.Request) { r.Hash, r.Scheme = "", tls.PSSWithSHA256 })
	return cases
}

// pmsFirst are first exchanges that are wrong.
func pmsFirst() []Case {
	var cases []Case
	add := func(name, rule string, change func(t *trial, r *ski.Request), want ...ski.Error) {
		cases = append(cases, pmsCase(name, sectionPMS, rule, aSigner, func(t *trial) error {
			req := t.pmsRequest(t.signer(), tls.CurveP256)
			change(t, req)
			return t.refused(RequestMessage(req).Encode(t.format), want...)
		}))
	}
	add("ecdhe-pms/group-and-state-missing", "one of 'group' and 'state' is there",
		func(_ *trial, r *ski.Request) { r.Group = 0 }, ski.MalformedRequest)
	add("ecdhe-pms/group-and-state", "one of 'group' and 'state' is there, not both",
		func(_ *trial, r *ski.Request) { r.State = randomBytes(119) }, ski.MalformedRequest)
	add("ecdhe-pms/group-unknown", "the group is one of those served",
		func(_ *trial, r *ski.Request) { r.Group = 0xFAFA }, ski.MalformedRequest)
	add("ecdhe-pms/randoms-short", "the randoms have 32 bytes each",
		func(_ *trial, r *ski.Request) { r.Input = r.Input[1:] }, ski.MalformedRequest)
	add("ecdhe-pms/params-of-the-edge", "the key server signs no parameters but its own",
		func(_ *trial, r *ski.Request) { r.Input = ECDHEInput(tls.CurveP256) }, ski.MalformedRequest)
	add("ecdhe-pms/form-cose", "randoms that make of the input a Sig_structure of COSE, whatever the params, are not signed",
		func(_ *trial, r *ski.Request) {
			copy(r.Input, "\x84\x6aSignature1\x43\xa1\x01\x26\x40\x58\x74")
		}, ski.MalformedRequest)
	add("ecdhe-pms/tls13", "TLS 1.3 has no PreMasterSecret", func(t *trial, r *ski.Request) {
		r.Protocol, r.Hash, r.Scheme = ski.TLS13, "", tls13Scheme(t.signer())
	}, ski.MalformedRequest, ski.RequestDenied)
	return cases
}

// pmsSecond are second exchanges that are wrong, after a first one that is
// right.
func pmsSecond() []Case {
	var cases []Case
	add := func(name, section, rule string, group tls.CurveID, second func(x *exchange) error) {
		cases = append(cases, pmsCase(name, section, rule, aSigner, func(t *trial) error {
			pub := t.signer()
			x, err := t.firstExchange(pub, t.pmsRequest(pub, group))
			if err != nil {
				return err
			}
			return second(x)
		}))
	}
	refuses := func(want ski.Error, change func(r *ski.Request)) func(*exchange) error {
		return func(x *exchange) error {
			req := x.secondExchange()
			change(req)
			return x.t.refused(RequestMessage(req).Encode(x.t.format), want)
		}
	}
	// badPoint is refused, and the state goes on to be good.
	badPoint := func(change func(point []byte) []byte) func(*exchange) error {
		return func(x *exchange) error {
			req := x.secondExchange()
			req.Input = change(req.Input)
			if err := x.t.refused(RequestMessage(req).Encode(x.t.format), ski.MalformedRequest); err != nil {
				return err
			}
			if err := x.agrees(x.secondExchange()); err != nil {
				return fmt.Errorf("with a good point after that: %w", err)
			}
			return nil
		}
	}
	const p256 = tls.CurveP256
	add("ecdhe-pms/attributes-of-the-first", sectionPMS, "'hash' and 'server_name' of the second exchange do not count", p256, func(x *exchange) error {
		req := x.secondExchange()
		req.Hash, req.ServerName = ski.SHA512, "other.example"
		return x.agrees(req)
	})
	add("ecdhe-pms/state-used", sectionPMS, "a state is used once", p256, func(x *exchange) error {
		if err := x.agrees(x.secondExchange()); err != nil {
			return err
		}
		return refuses(ski.RequestDenied, func(*ski.Request) {})(x)
	})
	add("ecdhe-pms/state-changed", sectionPMS, "a state that was changed does not open", p256,
		refuses(ski.MalformedRequest, func(r *ski.Request) { r.State[len(r.State)/2] ^= 1 }))
	add("ecdhe-pms/state-cut", sectionPMS, "a state that was cut short does not open", p256,
		refuses(ski.MalformedRequest, func(r *ski.Request) { r.State = r.State[:len(r.State)-1] }))
	add("ecdhe-pms/state-made-up", sectionPMS, "a state that no key server has made does not open", p256,
		refuses(ski.MalformedRequest, func(r *ski.Request) { r.State = randomBytes(len(r.State)) }))
	add("ecdhe-pms/state-of-other-protocol", sectionPMS, "a state is bound to 'protocol'", p256,
		refuses(ski.MalformedRequest, func(r *ski.Request) { r.Protocol = ski.DTLS12 }))
	cases = append(cases, pmsCase("ecdhe-pms/state-of-other-key", sectionPMS, "a state is bound to 'spki'", []Need{NeedECDSA, NeedRSA}, func(t *trial) error {
		pub := t.signer()
		x, err := t.firstExchange(pub, t.pmsRequest(pub, p256))
		if err != nil {
			return err
		}
		req := x.secondExchange()
		req.SPKI = keyID(keyOf[*rsa.PublicKey](t.cfg))
		return t.refused(RequestMessage(req).Encode(t.format), ski.MalformedRequest)
	}))
	add("ecdhe-pms/point-cut", sectionPMS, "the input has the length of the group's points, or is malformed; the state is not used up by that", p256,
		badPoint(func(point []byte) []byte { return point[:len(point)-1] }))
	add("ecdhe-pms/point-off-curve", "RFC 8422, Section 5.11", "a point that is not on the curve is malformed; the state is not used up by that", p256,
		badPoint(func(point []byte) []byte {
			point[len(point)-1] ^= 1
			return point
		}))
	add("ecdhe-pms/point-compressed", "RFC 8422, Section 5.4.1", "the point is uncompressed", p256,
		badPoint(func(point []byte) []byte { return append([]byte{2 + point[64]&1}, point[1:33]...) }))
	add("ecdhe-pms/point-with-length", sectionPMS, "the input is the point without its length byte", p256,
		badPoint(func(point []byte) []byte { return append([]byte{byte(len(point))}, point...) }))
	add("ecdhe-pms/x25519-low-order", "RFC 7748, Section 6.1", "a point of low order gives a secret that anybody knows", tls.X25519,
		badPoint(func(point []byte) []byte { return make([]byte, len(point)) }))

	expired := pmsCase("ecdhe-pms/state-expired", sectionPMS, "a state can be used for 30 seconds", []Need{NeedSigner, NeedPatience}, func(t *trial) error {
		pub := t.signer()
		x, err := t.firstExchange(pub, t.pmsRequest(pub, p256))
		if err != nil {
			return err
		}
		select {
		case <-time.After(stateLifetime + time.Second):
		case <-t.ctx.Done():
			return t.ctx.Err()
		}
		return refuses(ski.RequestDenied, func(*ski.Request) {})(x)
	})
	expired.Formats, expired.waits = onlyCBOR, stateLifetime+time.Second
	return append(cases, expired)
}

func pmsCase(name, section, rule string, needs []Need, run func(*trial) error) Case {
	return Case{Name: name, Section: section, Rule: rule, Extension: true, Needs: needs, run: run}
}

// pmsRequest returns a good request of the first exchange.
func (t *trial) pmsRequest(pub crypto.PublicKey, group tls.CurveID) *ski.Request {
	req := request(pub)
	req.Method, req.Group, req.Input = ski.MethodECDHEPMS, group, Randoms()
	return req
}

// exchange is what a first exchange has left.
type exchange struct {
	t      *trial
	first  *ski.Request
	state  []byte
	client *ecdh.PrivateKey
	server *ecdh.PublicKey
}

// firstExchange asks, and checks the signature and the parameters it is of.
func (t *trial) firstExchange(pub crypto.PublicKey, req *ski.Request) (*exchange, error) {
	resp, err := t.ask(RequestMessage(req).Encode(t.format))
	switch {
	case err != nil:
		return nil, err
	case resp.Error != "":
		return nil, fmt.Errorf("the first exchange is answered with '%s', not with an output", resp.Error)
	case len(resp.Params) == 0 || len(resp.State) == 0:
		return nil, errors.New("the first exchange is answered without 'params' and 'state'")
	}
	point, ok := bytes.CutPrefix(resp.Params, []byte{3, byte(req.Group >> 8), byte(req.Group)})
	if !ok || len(point) == 0 || int(point[0]) != len(point)-1 {
		return nil, errors.New("'params' are not ServerECDHParams of the group (RFC 8422, Section 5.4)")
	}
	curve := curves[req.Group]
	server, err := curve.NewPublicKey(point[1:])
	if err != nil {
		return nil, errors.New("'params' have no point of the group")
	}
	covered := *req
	covered.Input = slices.Concat(req.Input, resp.Params)
	if err := Verify(pub, &covered, resp.Output); err != nil {
		return nil, err
	}
	client, err := curve.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return &exchange{t, req, resp.State, client, server}, nil
}

// secondExchange returns a good request of the second exchange.
func (x *exchange) secondExchange() *ski.Request {
	return &ski.Request{
		Protocol: x.first.Protocol, SPKI: x.first.SPKI, Method: ski.MethodECDHEPMS,
		State: bytes.Clone(x.state), Input: x.client.PublicKey().Bytes(),
	}
}

// agrees checks that a second exchange is answered with the secret.
func (x *exchange) agrees(second *ski.Request) error {
	resp, err := x.t.ask(RequestMessage(second).Encode(x.t.format))
	if err != nil {
		return err
	}
	secret, err := x.client.ECDH(x.server)
	if err != nil {
		return err
	}
	if err := isSecret(resp, secret); err != nil {
		return fmt.Errorf("the second exchange: %w", err)
	}
	if len(resp.Params)+len(resp.State) > 0 {
		return errors.New("the second exchange is answered with 'params' and 'state'")
	}
	return nil
}
