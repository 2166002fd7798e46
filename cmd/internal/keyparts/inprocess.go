package keyparts

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"

	"github.com/tlsski/tlsski/ski"
)

// InProcess is a ski.Transport to a Handler of the same process. Unlike
// ski.Direct it does not keep its caller waiting when the context ends, as for a
// disk that hangs while the audit record is written; and it can be closed, so
// that what the Handler needs is there until its last request has ended.
type InProcess struct {
	direct ski.Transport
	most   int

	mu       sync.Mutex
	closed   bool
	underWay int           // requests that the Handler has
	watches  int           // of ticket keys
	ended    chan struct{} // closed with the last of them, after Close
}

// NewInProcess returns the Transport that asks h as peer. No more than so many
// requests are with h at once, those that nobody waits for any more included.
func NewInProcess(h ski.Handler, peer ski.Peer, most int) *InProcess {
	return &InProcess{direct: ski.Direct(h, peer), most: most, ended: make(chan struct{})}
}

// The reasons of an InProcess for not asking.
var (
	errClosed   = errors.New("it is closed")
	errOverload = errors.New("it has too many requests that do not end")
)

// RoundTrip asks the Handler.
func (p *InProcess) RoundTrip(ctx context.Context, req *ski.Request) (*ski.Response, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := p.begin(&p.underWay, p.most); err != nil {
		return nil, &ski.TransportError{Endpoint: "embedded", Op: "ask", Err: err, Permanent: err == errClosed}
	}
	own := *req // The caller has its request back when the context ends.
	own.Input, own.State = slices.Clone(req.Input), slices.Clone(req.State)
	type answer struct {
		resp *ski.Response
		err  error
	}
	answered := make(chan answer)
	go func() { // which end counts, for Close
		defer p.end(&p.underWay)
		resp, err := p.direct.RoundTrip(ctx, &own)
		select {
		case answered <- answer{resp, err}:
		case <-ctx.Done():
			if resp != nil {
				clear(resp.Output)
			}
		}
	}()
	select {
	case a := <-answered:
		return a.resp, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// WatchTickets watches the Handler's ticket keys. Whoever watches ends before
// Close.
func (p *InProcess) WatchTickets(ctx context.Context, site string, update func(*ski.TicketKeys)) error {
	source, ok := p.direct.(ski.TicketSource)
	if !ok {
		return ski.ErrNoTickets
	}
	if err := p.begin(&p.watches, math.MaxInt); err != nil {
		return &ski.TransportError{Endpoint: "embedded", Op: "ask", Err: err, Permanent: true}
	}
	var updating sync.Mutex
	over := false
	ended := make(chan error, 1)
	go func() { // which end counts, for Close
		defer p.end(&p.watches)
		ended <- source.WatchTickets(ctx, site, func(t *ski.TicketKeys) {
			updating.Lock()
			defer updating.Unlock()
			if over {
				t.Clear()
				return
			}
			update(t)
		})
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		updating.Lock()
		defer updating.Unlock()
		over = true
		return ctx.Err()
	}
}

// begin counts one more of n in, of which there are not to be more than so many.
func (p *InProcess) begin(n *int, most int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return errClosed
	case *n >= most:
		return errOverload
	}
	*n++
	return nil
}

func (p *InProcess) end(n *int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if *n--; p.closed && p.underWay+p.watches == 0 {
		close(p.ended)
	}
}

// Close asks nothing more, and returns when the Handler has no request left or
// ctx ends, whose error it then returns. It is called once.
func (p *InProcess) Close(ctx context.Context) error {
	p.mu.Lock()
	if p.closed = true; p.underWay+p.watches == 0 {
		close(p.ended)
	}
	p.mu.Unlock()
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
