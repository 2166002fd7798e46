// Package pace reads peers that are over a limit no faster than they may ask.
// The servers of the bindings share it.
package pace

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// PerRefusal is the longest time that one refused request costs its peer: one
	// whose limit is below 100 requests a second is refused 100 times a second in
	// the long run, and not as often as it asks.
	PerRefusal = 10 * time.Millisecond
	// longest is how much of that a peer can owe.
	longest = 250 * time.Millisecond
	// patience is how long what has been read of a connection is held up at most.
	// The other end must hear something before it gives up on the connection,
	// after a second, however many others the peer has.
	patience = 500 * time.Millisecond
	// memory is how long after a refusal the connections of a peer are read in
	// turns.
	memory = time.Second
	// piece is how many bytes are read at once of a TCP connection whose peer is
	// slow: a request or two.
	piece = 512
)

// Pace is how fast a peer is read, over all its connections together. The zero
// value is a peer that has not been refused anything: it is read as fast as it
// sends.
type Pace struct {
	mu    sync.Mutex
	until time.Time     // the peer is not read before
	turn  time.Duration // from one read to the next
	paid  bool          // for the first request of the last read that is refused
	last  time.Time     // refusal
}

// Refused holds up the peer after a request that was refused because of a limit
// of the peer's own. after is the time until the limit would allow one.
func (p *Pace) Refused(now time.Time, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = now
	p.turn = max(0, min(after, PerRefusal))
	if p.until.Before(now) {
		p.until = now
	}
	if !p.paid {
		p.until = p.until.Add(p.turn)
	}
	p.paid = false
	if latest := now.Add(longest); p.until.After(latest) {
		p.until = latest
	}
}

// slow reports whether the peer was refused something a short while ago.
func (p *Pace) slow(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Sub(p.last) < memory
}

// wait returns how long it is until the peer is read again.
func (p *Pace) wait(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until.Sub(now)
}

// take returns how long the caller has to wait before it may ask again, or 0 if it
// may go on: the next then has to wait for its turn. Turns get shorter with each
// read that leads to no refusal: a peer that keeps its limit again is not to be
// read more slowly than it may ask, or what waits would exceed the limit once more.
func (p *Pace) take(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if wait := p.until.Sub(now); wait > 0 {
		return wait
	}
	if p.paid {
		p.turn /= 2
	}
	if p.paid = now.Sub(p.last) < memory; p.paid {
		p.until = now.Add(p.turn)
	}
	return 0
}

// Gate holds up what has been read of one connection. The zero value is open.
type Gate struct {
	pace  atomic.Pointer[Pace]
	once  sync.Once
	close sync.Once
	ended chan struct{}
}

func (g *Gate) done() chan struct{} {
	g.once.Do(func() { g.ended = make(chan struct{}) })
	return g.ended
}

// Follow has the gate keep to the pace of a peer from now on.
func (g *Gate) Follow(p *Pace) { g.pace.Store(p) }

// Shut reports whether the peer is held up at the moment.
func (g *Gate) Shut(now time.Time) bool {
	p := g.pace.Load()
	return p != nil && p.wait(now) > 0
}

// Wait returns when what has been read may be handed on, or after Close.
func (g *Gate) Wait() {
	p := g.pace.Load()
	if p == nil {
		return
	}
	began := time.Now()
	for now := began; ; now = time.Now() {
		wait := min(p.take(now), patience-now.Sub(began))
		if wait <= 0 {
			return
		}
		select {
		case <-time.After(wait):
		case <-g.done():
			return
		}
	}
}

// Close opens the gate for good.
func (g *Gate) Close() { g.close.Do(func() { close(g.done()) }) }

// Cut returns as much of b as is to be read of a TCP connection at once.
func (g *Gate) Cut(b []byte) []byte {
	if p := g.pace.Load(); len(b) > piece && p != nil && p.slow(time.Now()) {
		return b[:piece]
	}
	return b
}

// Conn is a TCP connection whose other end is read at its pace: the bytes that it
// sends meanwhile stay in the kernel's buffers, and then in its own.
type Conn struct {
	net.Conn
	Gate Gate
}

// Read reads, and returns what it has read when the gate lets it.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(c.Gate.Cut(b))
	if n > 0 {
		c.Gate.Wait()
	}
	return n, err
}

// Close closes the connection and lets a Read that waits return.
func (c *Conn) Close() error {
	c.Gate.Close()
	return c.Conn.Close()
}
