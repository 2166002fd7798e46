package skitest

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// ErrInjected is the cause of the failures that faults make.
var ErrInjected = errors.New("skitest: injected")

// A Fault is what goes wrong with one exchange. next does it as it should be
// done; a Fault calls it or does not.
type Fault func(ctx context.Context, req *ski.Request, next ski.Transport) (*ski.Response, error)

// Faulty returns a Transport whose first exchanges have the faults, in turn; a
// nil one is an exchange without. Those after them are t's own.
func Faulty(t ski.Transport, faults ...Fault) ski.Transport {
	var n atomic.Int64
	return ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
		if i := n.Add(1) - 1; i < int64(len(faults)) && faults[i] != nil {
			return faults[i](ctx, req, t)
		}
		return t.RoundTrip(ctx, req)
	})
}

// Always returns a Transport all of whose exchanges have the fault.
func Always(t ski.Transport, fault Fault) ski.Transport {
	return ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
		return fault(ctx, req, t)
	})
}

// Failed is an exchange that fails before the key server hears of it.
func Failed(op string) Fault {
	return func(context.Context, *ski.Request, ski.Transport) (*ski.Response, error) {
		return nil, injected(op, false)
	}
}

// FailedForGood is Failed with an error that asking again does not change.
func FailedForGood(op string) Fault {
	return func(context.Context, *ski.Request, ski.Transport) (*ski.Response, error) {
		return nil, injected(op, true)
	}
}

// FailedAfter is an exchange whose answer is lost: the key server has done what
// it was asked.
func FailedAfter() Fault {
	return func(ctx context.Context, req *ski.Request, next ski.Transport) (*ski.Response, error) {
		if _, err := next.RoundTrip(ctx, req); err != nil {
			return nil, err
		}
		return nil, injected("request", false)
	}
}

// Delayed is an exchange that begins only after d.
func Delayed(d time.Duration) Fault {
	return func(ctx context.Context, req *ski.Request, next ski.Transport) (*ski.Response, error) {
		select {
		case <-time.After(d):
			return next.RoundTrip(ctx, req)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Silent is an exchange that never ends by itself.
func Silent() Fault {
	return func(ctx context.Context, _ *ski.Request, _ ski.Transport) (*ski.Response, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
}

// Refused is an exchange that the key server answers with e.
func Refused(e ski.Error) Fault {
	return func(context.Context, *ski.Request, ski.Transport) (*ski.Response, error) {
		return ski.Failed(e), nil
	}
}

// AnsweringAnother is an exchange that brings the answer to another request:
// one with another first byte of the ClientRandom or the
// EncryptedPreMasterSecret.
func AnsweringAnother() Fault {
	return func(ctx context.Context, req *ski.Request, next ski.Transport) (*ski.Response, error) {
		other := *req
		other.Input = append([]byte(nil), req.Input...)
		other.Input[0] ^= 1
		return next.RoundTrip(ctx, &other)
	}
}

// Altered is an exchange whose answer is changed on its way.
func Altered(change func(*ski.Response)) Fault {
	return func(ctx context.Context, req *ski.Request, next ski.Transport) (*ski.Response, error) {
		resp, err := next.RoundTrip(ctx, req)
		if err == nil {
			change(resp)
		}
		return resp, err
	}
}

func injected(op string, permanent bool) error {
	return &ski.TransportError{Endpoint: "skitest", Op: op, Err: ErrInjected, Permanent: permanent}
}
