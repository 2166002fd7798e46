package edgeserver

import (
	"context"
	"errors"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// asking is the ski.Transport that all keys are asked over. It bounds the
// time, whatever the Transport below does, and leaves the outcome with the
// connection: crypto/tls keeps only an error's text.
type asking struct {
	transport ski.Transport
	timeout   time.Duration
	known     *answering
	notFound  func() // is told of a key that a key server does not have; nil: nobody is
}

// RoundTrip asks the Transport below.
func (a asking) RoundTrip(ctx context.Context, req *ski.Request) (*ski.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	start := time.Now()
	resp, err := a.transport.RoundTrip(ctx, req)
	// An answer to RSA is none of the key server's health, and no failure,
	// whatever it is: ski.Key goes on with a random PreMasterSecret (RFC 5246,
	// Section 7.4.7.1), and nothing here may tell the difference.
	verdict := err
	switch {
	case req.Method == ski.MethodRSA && ski.Answered(err):
		verdict = nil
	case err == nil:
		verdict = resp.Err()
		if resp.Error != ski.UnspecifiedError || resp.Overloaded {
			a.known.answered()
		}
	}
	if a.notFound != nil && errors.Is(verdict, ski.SPKINotFound) {
		a.notFound()
	}
	if c := connFrom(ctx); c != nil {
		c.asked = question{method: req.KeyExchange(), took: c.asked.took + time.Since(start), err: verdict}
	}
	return resp, err
}

// reason names the kind of a failure to have the key server's answer.
func reason(err error) string {
	transport := (*ski.TransportError)(nil)
	switch {
	case errors.Is(err, ski.RequestDenied):
		return "denied"
	case errors.Is(err, ski.SPKINotFound):
		return "spki not found"
	case errors.Is(err, ski.MalformedRequest):
		return "malformed request"
	case errors.Is(err, ski.ErrOverloaded):
		return "overloaded"
	case errors.Is(err, ski.UnspecifiedError):
		return "unspecified error"
	case errors.Is(err, ski.ErrRefused):
		return "refused" // the edge server itself, and not what it asked for
	case errors.As(err, &transport) && !transport.Timeout():
		return "unreachable" // also when it stayed so until the time was up
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return "failed"
}
