package skicoap

import (
	"container/list"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/transport/v5/packetio"
)

// The bounds on what somebody who has shown no certificate can occupy. Beyond
// them the oldest handshake gives way, so that a flood delays nobody for longer
// than it takes to send a handshake again.
const (
	// maxUnverified bounds the handshakes whose client has not shown yet, with
	// a cookie (RFC 6347, Section 4.2.1), that it receives at its address.
	// Forging them costs a datagram each.
	maxUnverified = 512
	// maxVerified bounds the handshakes of those who have.
	maxVerified = 256
	// maxQueued bounds the datagrams of one flow that wait to be read, in
	// bytes; more are lost, as on the way.
	maxQueued = 1 << 20
)

var (
	errFlood    = errors.New("too many handshakes at once")
	errReplaced = errors.New("the peer made a new session from the same address")
)

// mux tells the datagrams of one socket apart: by connection ID, and where
// there is none by the peer's address. pion has such a listener too, but it
// lets anybody occupy it with a datagram each, reads without bound into each
// connection's queue, and does not take a new handshake from an address that
// has a session (RFC 6347, Section 4.2.8).
type mux struct {
	conn *net.UDPConn
	// begin is called for each new flow, with mu held.
	begin func(*flow)

	mu         sync.Mutex
	byAddr     map[netip.AddrPort]*place
	byCID      map[cid]*flow
	unverified *list.List // of *flow, oldest first
	verified   *list.List
}

type cid [cidLen]byte

// place is what is known of an address: the flow that has it, and one that
// will take its place if its handshake succeeds.
type place struct{ current, next *flow }

func newMux(conn *net.UDPConn, begin func(*flow)) *mux {
	return &mux{
		conn:       conn,
		begin:      begin,
		byAddr:     make(map[netip.AddrPort]*place),
		byCID:      make(map[cid]*flow),
		unverified: list.New(),
		verified:   list.New(),
	}
}

// run reads until the socket is closed.
func (m *mux) run() error {
	buf := make([]byte, maxDatagram)
	for {
		n, addr, err := m.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		if datagram := admit(buf[:n], cidLen); len(datagram) > 0 {
			m.route(addr, datagram)
		}
	}
}

func (m *mux) route(addr netip.AddrPort, datagram []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if datagram[0] == recordCID {
		if f := m.byCID[cid(datagram[recordCIDOffset:])]; f != nil {
			f.deliver(addr, datagram)
		}
		return
	}
	hello := isFirst(datagram, handshakeClientHello)
	p := m.byAddr[addr]
	switch {
	case p == nil && !hello:
		return
	case p == nil:
		f := m.newFlow(addr)
		if f.state == ended { // the server stops
			return
		}
		p = &place{current: f}
		m.byAddr[addr] = p
	case hello && p.current.state == established && p.next == nil:
		// The peer may have lost its session and come back on the same port, or
		// somebody may want us to think so: the session stays until the new
		// handshake has succeeded.
		if f := m.newFlow(addr); f.state != ended {
			p.next = f
		}
	}
	if p.next != nil {
		p.next.deliver(addr, datagram)
		if hello {
			return
		}
	}
	// What is protected for one of the two cannot be read by the other.
	p.current.deliver(addr, datagram)
}

// newFlow is called with mu held. The flow it returns has not begun to run: its
// first step takes mu.
func (m *mux) newFlow(addr netip.AddrPort) *flow {
	f := &flow{mux: m, addr: addr, buffer: packetio.NewBuffer(), remote: net.UDPAddrFromAddrPort(addr)}
	f.buffer.SetLimitSize(maxQueued)
	rand.Read(f.cid[:])
	m.byCID[f.cid] = f
	m.enqueue(f, m.unverified, maxUnverified)
	m.begin(f)
	return f
}

// enqueue puts a flow at the end of a queue of handshakes. If that is full, the
// flow at its head is ended.
func (m *mux) enqueue(f *flow, queue *list.List, most int) {
	if queue.Len() >= most {
		queue.Front().Value.(*flow).end(errFlood)
	}
	f.queue, f.element = queue, queue.PushBack(f)
}

// flowState is how far a flow's handshake has come.
type flowState uint8

const (
	unverified flowState = iota
	verified
	established
	ended
)

// flow is the datagrams of one peer, as a net.PacketConn for pion.
type flow struct {
	mux    *mux
	addr   netip.AddrPort // where it began
	cid    cid
	buffer *packetio.Buffer

	// With mux.mu held:
	state       flowState
	wasVerified bool
	cause       error // why it ended
	queue       *list.List
	element     *list.Element
	remote      *net.UDPAddr // where the last datagram came from
}

func (f *flow) deliver(from netip.AddrPort, datagram []byte) {
	if f.remote.AddrPort() != from {
		f.remote = net.UDPAddrFromAddrPort(from)
	}
	// A full queue loses it.
	_, _ = f.buffer.Write(datagram, packetio.Attributes{{Value: f.remote}})
}

// connectionID is a pion connection ID generator.
func (f *flow) connectionID() []byte { return f.cid[:] }

// establish makes f the flow of its address, and ends the one that was. It
// reports whether f has not ended itself meanwhile.
func (f *flow) establish() bool {
	f.mux.mu.Lock()
	defer f.mux.mu.Unlock()
	if f.state == ended {
		return false
	}
	f.leaveQueue()
	f.state = established
	if p := f.mux.byAddr[f.addr]; p != nil && p.next == f {
		p.current.end(errReplaced) // which puts f in its place
	}
	return true
}

// end is called with mux.mu held.
func (f *flow) end(cause error) {
	if f.state == ended {
		return
	}
	f.leaveQueue()
	f.state, f.cause = ended, cause
	delete(f.mux.byCID, f.cid)
	if p := f.mux.byAddr[f.addr]; p != nil {
		switch {
		case p.next == f:
			p.next = nil
		case p.current == f && p.next == nil:
			delete(f.mux.byAddr, f.addr)
		case p.current == f:
			p.current, p.next = p.next, nil
		}
	}
	_ = f.buffer.Close()
}

func (f *flow) leaveQueue() {
	if f.element != nil {
		f.queue.Remove(f.element)
		f.queue, f.element = nil, nil
	}
}

// fate returns why the flow has ended, or nil, and whether its peer had shown
// that it receives at its address.
func (f *flow) fate() (cause error, wasVerified bool) {
	f.mux.mu.Lock()
	defer f.mux.mu.Unlock()
	return f.cause, f.wasVerified
}

// ReadFrom is part of net.PacketConn.
func (f *flow) ReadFrom(b []byte) (int, net.Addr, error) {
	n, attributes, err := f.buffer.Read(b, nil)
	if err != nil {
		return 0, nil, err
	}
	return n, attributes[0].Value.(*net.UDPAddr), nil
}

// WriteTo is part of net.PacketConn.
func (f *flow) WriteTo(b []byte, to net.Addr) (int, error) {
	// pion sends the ServerHello once it has seen its cookie again.
	if isFirst(b, handshakeServerHello) {
		f.verify()
	}
	return f.mux.conn.WriteToUDPAddrPort(b, to.(*net.UDPAddr).AddrPort())
}

func (f *flow) verify() {
	f.mux.mu.Lock()
	defer f.mux.mu.Unlock()
	if f.state == unverified {
		f.leaveQueue()
		f.state, f.wasVerified = verified, true
		f.mux.enqueue(f, f.mux.verified, maxVerified)
	}
}

// Close is part of net.PacketConn.
func (f *flow) Close() error {
	f.mux.mu.Lock()
	defer f.mux.mu.Unlock()
	f.end(net.ErrClosed)
	return nil
}

// LocalAddr is part of net.PacketConn.
func (f *flow) LocalAddr() net.Addr { return f.mux.conn.LocalAddr() }

// SetDeadline is part of net.PacketConn.
func (f *flow) SetDeadline(t time.Time) error { return f.SetReadDeadline(t) }

// SetReadDeadline is part of net.PacketConn.
func (f *flow) SetReadDeadline(t time.Time) error { return f.buffer.SetReadDeadline(t) }

// SetWriteDeadline is part of net.PacketConn. The socket is shared, and a
// datagram does not wait.
func (f *flow) SetWriteDeadline(time.Time) error { return nil }

var _ net.PacketConn = (*flow)(nil)
