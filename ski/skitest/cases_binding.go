package skitest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

const sectionAuth = "draft, Section 5.2; Section 4.3, REQ 4"

var bindingCases = []Case{
	{
		Name: "binding/success", Section: "draft, Section 7.1", Needs: []Need{NeedSigner, NeedWire},
		Rule: "success is 2.04 Changed in CoAP and 200 OK in HTTP",
		run: func(t *trial) error {
			want := 200
			if t.cfg.Binding == "coap" {
				want = 204
			}
			return t.status(t.goodMessage().Encode(t.format), want)
		},
	},
	{
		Name: "binding/code-malformed", Section: coap, Needs: []Need{NeedSigner, NeedWire},
		Rule: "'malformed request' goes with 4.00 or 400",
		run:  func(t *trial) error { return t.status(t.goodMessage().Without("input").Encode(t.format), 400) },
	},
	{
		Name: "binding/code-not-found", Section: coap, Needs: []Need{NeedWire},
		Rule: "'spki not found' goes with 4.04 or 404",
		run:  func(t *trial) error { return t.status(RequestMessage(strangeKey()).Encode(t.format), 404) },
	},
	{
		Name: "binding/code-denied", Section: coap, Needs: []Need{NeedDenied, NeedWire},
		Rule: "'request denied' goes with 4.03 or 403",
		run:  func(t *trial) error { return t.status(RequestMessage(request(t.cfg.Denied)).Encode(t.format), 403) },
	},
	{
		Name: "binding/put", Section: coap, Needs: aSigner,
		Rule: "PUT does what POST does (draft -00)",
		run: func(t *trial) error {
			pub, req := t.good()
			a, err := t.exchange(&Question{Method: "PUT", ContentType: t.format.MediaType(), Body: RequestMessage(req).Encode(t.format)})
			if err != nil {
				return err
			}
			resp, err := a.response(t.format)
			if err != nil {
				return err
			}
			return Verify(pub, req, resp.Output)
		},
	},
	{
		Name: "binding/get", Section: coap, Needs: aSigner,
		Rule: "another method than POST and PUT is not allowed (4.05, 405)",
		run:  refusedByBinding(Question{Method: "GET"}, 405),
	},
	{
		Name: "binding/delete", Section: coap, Needs: aSigner,
		Rule: "another method than POST and PUT is not allowed (4.05, 405)",
		run:  refusedByBinding(Question{Method: "DELETE"}, 405),
	},
	{
		Name: "binding/other-path", Section: coap, Needs: aSigner,
		Rule: "another path is not found, without an SKI message (4.04, 404)",
		run:  refusedByBinding(Question{Path: "/other"}, 404),
	},
	{
		Name: "binding/other-content-format", Section: coap, Needs: aSigner,
		Rule: "another format than CBOR and JSON is not supported (4.15, 415)",
		run:  refusedByBinding(Question{ContentType: "text/plain"}, 415),
	},
	{
		Name: "binding/other-accept", Section: coap, Needs: aSigner,
		Rule: "where the answer is wanted in another format than CBOR and JSON: not acceptable (4.06, 406)",
		run:  refusedByBinding(Question{Accept: "text/plain"}, 406),
	},
	{
		Name: "binding/accept", Section: coap, Needs: aSigner,
		Rule: "the answer has the format that Accept names",
		run: func(t *trial) error {
			other := ski.JSON
			if t.format == ski.JSON {
				other = ski.CBOR
			}
			pub, req := t.good()
			a, err := t.exchange(&Question{ContentType: t.format.MediaType(), Accept: other.MediaType(), Body: RequestMessage(req).Encode(t.format)})
			if err != nil {
				return err
			}
			resp, err := a.response(other)
			if err != nil {
				return err
			}
			return Verify(pub, req, resp.Output)
		},
	},
	{
		Name: "binding/no-content-format", Section: coap, Needs: []Need{NeedSigner, NeedCoAP}, Formats: onlyCBOR,
		Rule: "without Content-Format, it is CBOR",
		run: func(t *trial) error {
			pub, req := t.good()
			a, err := t.exchange(&Question{Body: RequestMessage(req).Encode(ski.CBOR)})
			if err != nil {
				return err
			}
			resp, err := a.response(ski.CBOR)
			if err != nil {
				return err
			}
			return Verify(pub, req, resp.Output)
		},
	},
	{
		Name: "binding/well-known-core", Section: "docs/protocol.md, section 2; RFC 6690", Needs: []Need{NeedCoAP}, Formats: onlyCBOR,
		Rule: "/.well-known/core lists the resource, with rt=\"tls-ski\"",
		run: func(t *trial) error {
			a, err := t.exchange(&Question{Method: "GET", Path: "/.well-known/core"})
			switch {
			case err != nil:
				return err
			case a.Status != 205:
				return fmt.Errorf("the status is %d", a.Status)
			case !strings.Contains(string(a.Body), `rt="tls-ski"`):
				return fmt.Errorf("the links are %q", a.Body)
			}
			return nil
		},
	},
}

var channelCases = []Case{
	{
		Name: "channel/stranger", Section: sectionAuth, Needs: []Need{NeedStranger}, Formats: onlyCBOR,
		Rule: "a client whose certificate is of another authority gets no answer",
		run:  func(t *trial) error { return t.noAnswer(t.cfg.Stranger) },
	},
	{
		Name: "channel/anonymous", Section: sectionAuth, Needs: []Need{NeedAnonymous}, Formats: onlyCBOR,
		Rule: "a client without a certificate gets no answer",
		run:  func(t *trial) error { return t.noAnswer(t.cfg.Anonymous) },
	},
	{
		Name: "channel/still-serves", Section: sectionSKI, Needs: aSigner, Formats: onlyCBOR,
		Rule: "after all that, the edge server is answered as before",
		run: func(t *trial) error {
			pub, req := t.good()
			return t.signs(pub, req)
		},
	},
}

// status checks the status that goes with an SKI message.
func (t *trial) status(body []byte, want int) error {
	a, err := t.post(body)
	if err != nil {
		return err
	}
	if _, err := a.response(t.format); err != nil {
		return err
	}
	if a.Status != want {
		return fmt.Errorf("the status is %d, not %d", a.Status, want)
	}
	return nil
}

// refusedByBinding sends a good request in a way that the binding refuses.
func refusedByBinding(q Question, status int) func(*trial) error {
	return func(t *trial) error {
		q := q
		if q.ContentType == "" {
			q.ContentType = t.format.MediaType()
		}
		if q.Method != "GET" {
			q.Body = t.goodMessage().Encode(t.format)
		}
		a, err := t.exchange(&q)
		switch {
		case err != nil:
			return err
		case a.Status != status:
			return fmt.Errorf("the status is %d, not %d", a.Status, status)
		}
		if resp, err := a.response(t.format); err == nil {
			return fmt.Errorf("with the status there is an SKI message (error '%s'), as if SKI had been asked", resp.Error)
		}
		return nil
	}
}

// noAnswer checks that a peer that is not authenticated gets no SKI message.
func (t *trial) noAnswer(x Exchanger) error {
	req := strangeKey()
	if t.cfg.has(NeedSigner) {
		_, req = t.good()
	}
	a, err := x.Exchange(t.ctx, &Question{ContentType: t.format.MediaType(), Body: RequestMessage(req).Encode(t.format)})
	if err != nil {
		return nil // no connection, no answer: as it must be
	}
	if _, err := a.response(t.format); err == nil || a.OK() {
		return errors.New("the peer is answered without having been authenticated")
	}
	return nil
}

// sameBody checks that two answers have the same message.
func sameBody(a, b *Answer) error {
	if !bytes.Equal(a.Body, b.Body) || a.Status != b.Status {
		return fmt.Errorf("two errors differ: %q (status %d) and %q (status %d)", a.Body, a.Status, b.Body, b.Status)
	}
	return nil
}
