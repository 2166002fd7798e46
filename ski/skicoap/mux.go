package skicoap

import (
	"bytes"
	"container/list"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/transport/v5/packetio"
)

// The bounds on what somebody who has shown no certificate can occupy. Beyond
// them the oldest handshake gives way.
const (
	// maxUnverified bounds the handshakes whose client has not shown yet, with
	// a cookie (RFC 6347, Section 4.2.1), that it receives at its address.
	// Forging them costs a datagram each, and each has its place until as many
	// others have come: that has to be longer than a round trip. Those from
	// the addresses of peers that have been authenticated before have places
	// of their own, which who does not know these addresses cannot take.
	maxUnverified = 2048
	// maxKnown bounds the addresses that are remembered for this.
	maxKnown = 4096
	// maxVerified bounds the handshakes of those who have. The address that has
	// the most of them gives way.
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
	returning  *list.List // likewise, from known addresses
	verified   *list.List
	known      map[netip.Addr]*list.Element
	knownOrder *list.List // of netip.Addr, the one seen longest ago first
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
		returning:  list.New(),
		verified:   list.New(),
		known:      make(map[netip.Addr]*list.Element),
		knownOrder: list.New(),
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
	p := m.byAddr[addr]
	hello, isHello := parseHello(datagram)
	if isHello {
		m.routeHello(addr, p, hello, datagram)
		return
	}
	if p == nil {
		return
	}
	// What is protected for one of the two cannot be read by the other.
	if p.next != nil {
		p.next.deliver(addr, datagram)
	}
	p.current.deliver(addr, datagram)
}

// routeHello finds the handshake that a ClientHello belongs to, or begins one.
func (m *mux) routeHello(addr netip.AddrPort, p *place, hello clientHello, datagram []byte) {
	var f *flow
	switch {
	case p == nil:
		if f = m.newFlow(addr, hello); f != nil {
			m.byAddr[addr] = &place{current: f}
		}
	case p.current.random == hello.random:
		f = p.current
	case p.current.state == unverified && hello.initial:
		// It has shown nothing yet: who comes later may be the one who is there.
		p.current.end(errFlood)
		m.routeHello(addr, m.byAddr[addr], hello, datagram)
		return
	default:
		// The peer may have lost its session and come back on the same port, or
		// somebody may want us to think so: the session stays until the new
		// handshake has succeeded (RFC 6347, Section 4.2.8).
		if p.next != nil && p.next.random != hello.random && p.next.state == unverified && hello.initial {
			p.next.end(errFlood)
		}
		if p.next == nil {
			p.next = m.newFlow(addr, hello)
		}
		f = p.next
	}
	if f != nil {
		f.deliver(addr, datagram)
	}
}

// newFlow is called with mu held. The flow it returns has not begun to run: its
// first step takes mu. It is nil for a ClientHello that begins nothing, and
// when the server stops.
func (m *mux) newFlow(addr netip.AddrPort, hello clientHello) *flow {
	if !hello.initial {
		return nil // Its beginning was lost here; the peer begins again.
	}
	f := &flow{mux: m, addr: addr, random: hello.random, buffer: packetio.NewBuffer(), remote: net.UDPAddrFromAddrPort(addr)}
	f.buffer.SetLimitSize(maxQueued)
	rand.Read(f.cid[:])
	m.byCID[f.cid] = f
	queue := m.unverified
	if m.known[addr.Addr()] != nil {
		queue = m.returning
	}
	m.enqueue(f, queue, maxUnverified)
	if m.begin(f); f.state == ended {
		return nil
	}
	return f
}

// remember notes the address of a peer that has been authenticated. It is
// called with mu held.
func (m *mux) remember(addr netip.Addr) {
	if e := m.known[addr]; e != nil {
		m.knownOrder.MoveToBack(e)
		return
	}
	if m.knownOrder.Len() >= maxKnown {
		delete(m.known, m.knownOrder.Remove(m.knownOrder.Front()).(netip.Addr))
	}
	m.known[addr] = m.knownOrder.PushBack(addr)
}

// enqueue puts a flow at the end of a queue of handshakes. If that is full, the
// flow at its head is ended or, where addresses cannot be forged, the oldest of
// the address that has the most.
func (m *mux) enqueue(f *flow, queue *list.List, most int) {
	if queue.Len() >= most {
		e := queue.Front()
		if queue == m.verified {
			e = yielding(queue)
		}
		e.Value.(*flow).end(errFlood)
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
	random [32]byte       // of its ClientHello
	cid    cid
	buffer *packetio.Buffer
	shown  atomic.Bool // the peer receives at its address
	silent atomic.Bool // it has ended: nothing is sent any more

	// With mux.mu held:
	state       flowState
	wasVerified bool
	settled     bool // the peer has our Finished: nothing unprotected can come of it
	gate        gate
	early       []early // what came while the gate was shut
	earlyLen    int     // in bytes
	cause       error   // why it ended
	queue       *list.List
	element     *list.Element
	remote      *net.UDPAddr // where the last datagram came from
}

// gate is whether pion may get what comes in. It drops all but the first
// message of a peer that has our Finished already when it has not yet noted
// itself that the handshake is done.
type gate uint8

const (
	untilFinished gate = iota // open: our Finished is not sent yet
	shut
	open // for good
)

// early is a datagram that has come while the gate was shut.
type early struct {
	data []byte
	from *net.UDPAddr
}

// shutGate is called before our Finished is sent. Nothing more needs to come in for
// pion to be done then.
func (f *flow) shutGate() {
	f.mux.mu.Lock()
	defer f.mux.mu.Unlock()
	if f.gate == untilFinished {
		f.gate = shut
	}
}

// openGate is called when pion is done with the handshake.
func (f *flow) openGate() {
	f.mux.mu.Lock()
	defer f.mux.mu.Unlock()
	f.gate = open
	for _, e := range f.early {
		f.pass(e.data, e.from)
	}
	f.early = nil
}

func (f *flow) deliver(from netip.AddrPort, datagram []byte) {
	if f.settled {
		if datagram = protectedOnly(datagram, cidLen); len(datagram) == 0 {
			return
		}
	}
	if f.remote.AddrPort() != from {
		f.remote = net.UDPAddrFromAddrPort(from)
	}
	switch {
	case f.gate != shut:
		f.pass(datagram, f.remote)
	case f.earlyLen+len(datagram) <= maxQueued:
		f.early = append(f.early, early{bytes.Clone(datagram), f.remote})
		f.earlyLen += len(datagram)
	}
}

func (f *flow) pass(datagram []byte, from *net.UDPAddr) {
	// A full queue loses it.
	_, _ = f.buffer.Write(datagram, packetio.Attributes{{Value: from}})
}

func (f *flow) origin() netip.Addr { return origin(f.addr.Addr()) }

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
	f.mux.remember(f.addr.Addr())
	if p := f.mux.byAddr[f.addr]; p != nil && p.next == f {
		if p.current.remote.AddrPort() != f.addr {
			p.current, p.next = f, nil // the old one's peer has moved, and lives on there
		} else {
			p.current.end(errReplaced) // which puts f in its place
		}
	}
	return true
}

// settle notes that the peer has sent something protected since the handshake.
// pion would otherwise keep forged pieces of handshake messages for as long as
// the session lives.
func (f *flow) settle() {
	f.mux.mu.Lock()
	defer f.mux.mu.Unlock()
	f.settled = true
}

// end is called with mux.mu held.
func (f *flow) end(cause error) {
	if f.state == ended {
		return
	}
	f.leaveQueue()
	f.state, f.cause = ended, cause
	f.early = nil
	// Or its last words, an alert, would end who comes after it at its address.
	f.silent.Store(true)
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
	if f.silent.Load() {
		return 0, net.ErrClosed
	}
	if !f.shown.Load() && len(b) > 0 && b[0] == recordAlert {
		// Somebody else may have asked in the name of this address, and the one
		// who is there would take the alert for an end of its own handshake.
		return len(b), nil
	}
	// pion sends the ServerHello once it has seen its cookie again.
	if isFirst(b, handshakeServerHello) {
		f.verify()
	}
	if len(b) > 0 && b[0] == recordChangeCipherSpec { // with the Finished behind it
		f.shutGate()
	}
	return f.mux.conn.WriteToUDPAddrPort(b, to.(*net.UDPAddr).AddrPort())
}

func (f *flow) verify() {
	f.mux.mu.Lock()
	defer f.mux.mu.Unlock()
	f.shown.Store(true)
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
