package ski

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultTimeout is how long a Client gives a request by default. A TLS client
// waits for the answer.
const DefaultTimeout = 5 * time.Second

// Client is a Transport over one or more others, each to a key server that
// holds the same keys. It gives every request a deadline, and asks again where
// there was no answer, the next key server first: the operations can be done
// twice without harm, or are refused the second time (Ephemeral).
//
// Which key server is asked first is said by Balance and by what their answers
// are like. One that gives none is asked last from then on. Copies of requests,
// the first after a second and then ever fewer, find out when it is back;
// nobody waits for those.
type Client struct {
	// Transports are the key servers in order of preference. At least one.
	// Where they change later: Replace.
	Transports []Transport
	// Timeout bounds a request with all its attempts. 0 means DefaultTimeout.
	// A context that ends sooner bounds it more; one that ends much sooner says
	// nothing about who has not answered by then.
	Timeout time.Duration
	// Balance says which key server is asked first, of those that answer. The
	// zero value means Failover.
	Balance Balance
	// MaxExtra is the share of requests, 0.05 for one in twenty, that may be
	// hedged: sent to a second key server too when the first takes longer than
	// for 95 of 100 answers. The first answer counts. 0 means none.
	MaxExtra float64
	// OnAttempt is called after each attempt and OnHealth when a key server
	// stops or begins to answer, for metrics and logs. Many goroutines call
	// them at once; they must return soon and must not call the Client.
	OnAttempt func(Attempt)
	OnHealth  func(Health)

	members atomic.Pointer[[]*member]
	mu      sync.Mutex // of changes of members, and of ctx
	turn    atomic.Uint64
	budget  budget
	retries retries

	ctx     context.Context // of what RoundTrip leaves behind; ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// The pause after all Transports have failed. It doubles from the first value
// to the second, so that a key server that comes back is found soon and one
// that stays away is not hammered.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 250 * time.Millisecond
)

// enoughTime is how long an attempt must have had for its time-out to say
// something about the key server, unless Timeout leaves less to each.
const enoughTime = 500 * time.Millisecond

// RoundTrip asks the Transports in turn until one has an answer, the time is
// up, or all have failed for good or refuse this edge (ErrRefused). An error answer
// is an answer, except UnspecifiedError: it says that this key server is at fault (its audit log's disk
// is full, say), so each other is asked once. Where it says that the key server is
// overloaded (Response.Overloaded), the request is asked again, twice at most,
// another key server first, or the same after the time that it has said: of all
// requests a fifth at most. SPKINotFound is the answer only if no other that answers
// has the key: a new key comes to one key server after the other. With MethodRSA
// whatever a key server answers is the end: of some it depends on the plaintext, and
// a second question takes time that the TLS client could measure.
func (c *Client) RoundTrip(ctx context.Context, req *Request) (*Response, error) {
	if len(c.pool()) == 0 {
		return nil, errors.New("ski: a Client needs a Transport")
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	c.budget.earn(c.MaxExtra)
	c.retries.earn()
	if c.MaxExtra > 0 || len(c.pool()) > 1 {
		req = req.clone() // What is left behind may still read it.
	}
	c.tryAgain(req)

	var (
		last      error
		given     []*member // who does not open req.State, or has not the key
		uncertain *Response // an UnspecifiedError
		missing   *Response // an SPKINotFound
		retried   int
		kind      = FirstAttempt
	)
rounds:
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		hopeless := true
		var busy *Response // of one that is overloaded, while another is asked
		order := c.order(req)
		for i, m := range order {
			if slices.Contains(given, m) || missing != nil && !m.answers() {
				continue
			}
			r := c.ask(ctx, req, order[i:], kind)
			kind = FailoverAttempt
			if req.Method == MethodRSA && Answered(r.err) {
				return r.resp, r.err
			}
			if r.err == nil && r.resp.Overloaded {
				busy = r.resp
				// Whether others have the secret to open a state is not known.
				if len(req.State) > 0 || i+1 == len(order) || !order[i+1].free(time.Now()) {
					break
				}
				if retried == maxRetries || !c.again(ctx, 0, true) {
					return busy, nil
				}
				retried, kind = retried+1, RetryAttempt
				continue
			}
			if r.err == nil && r.resp.Error == UnspecifiedError {
				uncertain = r.resp
				continue
			}
			if r.err == nil && r.resp.Error == SPKINotFound && len(req.State) == 0 {
				missing, given = r.resp, append(given, m)
				continue
			}
			if r.err != nil && missing != nil {
				continue // That is the answer, unless another has a better one.
			}
			// Who has another fleet's secret finds every state malformed, who has used one,
			// whose answer was lost, denies it, and who lacks the key cannot tell: none of
			// it is the TLS client's fault, and the one that gave the state may be back.
			spent := r.err == nil && last != nil && len(req.State) > 0 &&
				(r.resp.Error == MalformedRequest || r.resp.Error == RequestDenied || r.resp.Error == SPKINotFound)
			if r.err == nil && !spent {
				return r.resp, nil
			}
			if ctx.Err() != nil {
				return nil, timedOut(ctx, last, r.err)
			}
			if r.err == nil {
				given = append(given, m)
				continue
			}
			last = r.err
			te := (*TransportError)(nil)
			isTransport := errors.As(r.err, &te)
			if !r.ranOut && !isTransport {
				return nil, r.err // The request itself is at fault.
			}
			hopeless = hopeless && isTransport && te.inVain()
		}
		if busy != nil {
			if retried == maxRetries || !c.again(ctx, busy.RetryAfter, false) {
				return busy, nil
			}
			retried, kind = retried+1, RetryAttempt
			continue rounds
		}
		if uncertain != nil {
			return uncertain, nil
		}
		if missing != nil {
			return missing, nil
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

func (c *Client) timeout() time.Duration {
	if c.Timeout == 0 {
		return DefaultTimeout
	}
	return c.Timeout
}

// result is what came of an attempt.
type result struct {
	from   *member
	resp   *Response
	ranOut bool // it took all the time it was given
	err    error
}

// attempt asks one Transport. It may take a share of the time that is left, so that
// one that is silent leaves some to those after it: the first half of it, which is
// time to wait in the queue of a busy key server, those that are asked in its place
// equal parts.
func (c *Client) attempt(ctx context.Context, m *member, req *Request, left int, kind AttemptKind) result {
	given := c.timeout()
	if deadline, ok := ctx.Deadline(); ok {
		if kind != FailoverAttempt {
			left = min(left, 2)
		}
		given = time.Until(deadline) / time.Duration(left)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, given)
		defer cancel()
	}
	m.inFlight.Add(1)
	start := time.Now()
	resp, err := m.transport.RoundTrip(ctx, req)
	took := time.Since(start)
	m.inFlight.Add(-1)

	a := Attempt{Method: req.method(), Endpoint: m.endpoint, Transport: m.transport, Kind: kind, Took: took, Err: err}
	if err == nil {
		a.Answer, a.Overloaded, a.RetryAfter = resp.Error, resp.Overloaded, resp.RetryAfter
		if len(resp.State) > 0 {
			resp.origin = m
		}
	}
	// A TLS client that leaves the last milliseconds of its handshake's time
	// shall not have the key server taken for dead.
	hurried := ctx.Err() != nil && given < min(enoughTime, c.timeout()/time.Duration(2*len(c.pool())))
	m.note(&a, start, hurried, c.OnHealth)
	if c.OnAttempt != nil {
		c.OnAttempt(a)
	}
	return result{m, resp, ctx.Err() != nil, err}
}

// timedOut names what kept the request from being answered in time, if an
// earlier attempt found that out.
func timedOut(ctx context.Context, earlier, last error) error {
	switch {
	case earlier != nil:
		return fmt.Errorf("%w; before that: %w", ctx.Err(), earlier)
	case last != nil:
		return last
	}
	return ctx.Err()
}

// clone returns a copy that shares nothing with r that a caller may change.
func (r *Request) clone() *Request {
	c := *r
	c.Input, c.State = bytes.Clone(r.Input), bytes.Clone(r.State)
	return &c
}

// start runs f in a goroutine that Close waits for, with a context that ends
// with Close, and after the Client's Timeout. After Close it returns false.
func (c *Client) start(f func(ctx context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lifetime().Err() != nil {
		return false
	}
	c.running.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, c.timeout())
		defer cancel()
		f(ctx)
	})
	return true
}

func (c *Client) lifetime() context.Context {
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancel(context.Background())
	}
	return c.ctx
}

// Close ends what RoundTrip has left behind, copies of requests that nobody
// waits for. It does not close the Transports. Without it they end by
// themselves, within Timeout.
func (c *Client) Close() error {
	c.mu.Lock()
	c.lifetime()
	c.cancel()
	c.mu.Unlock()
	c.running.Wait()
	return nil
}
