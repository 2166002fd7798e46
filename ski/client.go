package ski

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// DefaultTimeout is how long a Client gives a request by default. A TLS client
// waits for the answer.
const DefaultTimeout = 5 * time.Second

// Client is a Transport over one or more others, each to a key server that
// holds the same keys. It gives every request a deadline, and asks again where
// there was no answer, the next key server first: the operations can be done
// twice without harm, or are refused the second time (Ephemeral).
type Client struct {
	// Transports are the key servers in order of preference. At least one.
	Transports []Transport
	// Timeout bounds a request with all its attempts. 0 means DefaultTimeout.
	// A context that ends sooner bounds it more.
	Timeout time.Duration
}

// The pause after all Transports have failed. It doubles from the first value
// to the second, so that a key server that comes back is found soon and one
// that stays away is not hammered.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 250 * time.Millisecond
)

// RoundTrip asks the Transports in turn until one has an answer, the time is
// up, or all have failed for good. An error answer is an answer.
func (c *Client) RoundTrip(ctx context.Context, req *Request) (*Response, error) {
	if len(c.Transports) == 0 {
		return nil, errors.New("ski: a Client needs a Transport")
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	var last error
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		hopeless := true
		for i, t := range c.Transports {
			resp, ranOut, err := attempt(ctx, t, req, len(c.Transports)-i)
			if err == nil {
				return resp, nil
			}
			if ctx.Err() != nil {
				return nil, timedOut(ctx, last, err)
			}
			last = err
			te := (*TransportError)(nil)
			isTransport := errors.As(err, &te)
			if !ranOut && !isTransport {
				return nil, err // The request itself is at fault.
			}
			hopeless = hopeless && isTransport && te.Permanent
		}
		if hopeless {
			return nil, last
		}
		// Half of the pause is random: the requests that failed together shall
		// not come back together.
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
			return nil, timedOut(ctx, last, last)
		}
	}
}

// attempt asks one Transport. It may take its share of the time that is left
// for it and those after it, so that one that is silent leaves some to the
// others. ranOut reports whether it took all of that.
func attempt(ctx context.Context, t Transport, req *Request, left int) (resp *Response, ranOut bool, err error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	resp, err = t.RoundTrip(ctx, req)
	return resp, ctx.Err() != nil, err
}

// timedOut names what kept the request from being answered in time, if an
// earlier attempt found that out.
func timedOut(ctx context.Context, earlier, last error) error {
	if earlier == nil {
		return last
	}
	return fmt.Errorf("%w; before that: %w", ctx.Err(), earlier)
}
