package skitest

import (
	"context"
	"fmt"
	"slices"

	"github.com/tlsski/tlsski/ski"
)

// Exchanger carries encoded messages to a key server and its answers back, over
// one binding. It is called by many goroutines at once.
type Exchanger interface {
	// Exchange sends a question. The error is for those that get no answer at
	// all; it ends with the context.
	Exchange(ctx context.Context, q *Question) (*Answer, error)
}

// Question is a request on the wire.
type Question struct {
	// Method is that of the binding. "" means POST.
	Method string
	// Path is the resource. "" means that of the endpoint.
	Path string
	// ContentType is a media type, which CoAP has a number for: that of the
	// body. "" means that the question does not say.
	ContentType string
	// Accept is the media type that the answer shall have. "" means that the
	// question does not say.
	Accept string
	// Body is sent as it is.
	Body []byte
}

// Answer is what came back.
type Answer struct {
	// Status is the status code of HTTP. CoAP's 4.04 is 404 and its 2.04 is 204.
	Status int
	// ContentType is the body's media type, without parameters. "" means that
	// the answer does not say.
	ContentType string
	// Body is the answer as it came.
	Body []byte
}

// OK reports whether the status is one of success.
func (a *Answer) OK() bool { return a.Status/100 == 2 }

// InMemory returns an Exchanger that calls h with no wire between: with the
// statuses of HTTP (docs/protocol.md) and nothing of it besides.
func InMemory(h ski.Handler, peer ski.Peer) Exchanger { return inMemory{h, peer} }

type inMemory struct {
	handler ski.Handler
	peer    ski.Peer
}

var statuses = map[ski.Error]int{
	"":                   200,
	ski.MalformedRequest: 400,
	ski.RequestDenied:    403,
	ski.SPKINotFound:     404,
	ski.UnspecifiedError: 500,
}

func (m inMemory) Exchange(ctx context.Context, q *Question) (*Answer, error) {
	in, ok := formatOf(q.ContentType)
	out, okOut := in, true
	if q.Accept != "" {
		out, okOut = formatOf(q.Accept)
	}
	switch {
	case q.Path != "":
		return &Answer{Status: 404}, nil
	case q.Method != "" && q.Method != "POST" && q.Method != "PUT":
		return &Answer{Status: 405}, nil
	case !ok:
		return &Answer{Status: 415}, nil
	case !okOut:
		return &Answer{Status: 406}, nil
	case len(q.Body) > ski.MaxMessageSize:
		return &Answer{Status: 413}, nil
	}
	data, resp := ski.Serve(ctx, m.handler, m.peer, in, q.Body, out)
	return &Answer{Status: statuses[resp.Error], ContentType: out.MediaType(), Body: data}, nil
}

func formatOf(mediaType string) (ski.Format, bool) {
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		if mediaType == f.MediaType() {
			return f, true
		}
	}
	return 0, false
}

// response reads an answer in format f as SKI: the body, whatever the status.
func (a *Answer) response(f ski.Format) (*ski.Response, error) {
	switch {
	case len(a.Body) == 0:
		return nil, fmt.Errorf("the answer is status %d without an SKI message", a.Status)
	case a.ContentType != f.MediaType():
		return nil, fmt.Errorf("the answer (status %d) is of type %q, not %s", a.Status, a.ContentType, f.MediaType())
	}
	resp, err := ski.DecodeResponse(f, a.Body)
	if err != nil {
		return nil, fmt.Errorf("the answer (status %d): %w", a.Status, err)
	}
	return resp, nil
}

// refusal checks that an answer is one of the errors.
func (a *Answer) refusal(f ski.Format, want ...ski.Error) error {
	resp, err := a.response(f)
	switch {
	case err != nil:
		return err
	case !slices.Contains(want, resp.Error):
		return fmt.Errorf("answered with '%s' (status %d), not with %s", resp.Error, a.Status, either(want))
	}
	return nil
}
