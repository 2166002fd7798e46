package main

import (
	"context"
	"log/slog"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
	"github.com/tlsski/tlsski/ski/skitest"
)

// A closingTransport is a ski.Transport with an end.
type closingTransport interface {
	ski.Transport
	Close() error
}

// transport returns the Transport of edge servers to t, with room for inFlight
// requests. Nothing is sent yet.
func (t target) transport(id party, f ski.Format, inFlight int) (closingTransport, error) {
	if t.scheme == "coaps" {
		return skicoap.NewClient("coaps://"+t.addr+t.path, skicoap.ClientConfig{
			Certificate: *id.certificate, RootCAs: id.authorities, ServerName: id.name(t), Format: f,
			MaxInFlight: inFlight, Logger: slog.New(slog.DiscardHandler),
		})
	}
	return &wireTransport{t.dial(t, id), t.url, f}, nil
}

// wireTransport is a Transport over a wire.
type wireTransport struct {
	wire
	url    string
	format ski.Format
}

func (w *wireTransport) RoundTrip(ctx context.Context, req *ski.Request) (*ski.Response, error) {
	body, err := ski.EncodeRequest(w.format, req)
	if err != nil {
		return nil, err
	}
	a, err := w.Exchange(ctx, &skitest.Question{ContentType: w.format.MediaType(), Body: body})
	if err != nil {
		return nil, &ski.TransportError{Endpoint: w.url, Op: "request", Err: err}
	}
	resp, err := ski.DecodeResponse(w.format, a.Body)
	if err != nil {
		return nil, &ski.TransportError{Endpoint: w.url, Op: "answer", Err: err}
	}
	return resp, nil
}
