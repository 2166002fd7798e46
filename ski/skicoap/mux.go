package skicoap

import (
	"bytes"
	"container/list"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/transport/v5/packetio"

	"github.com/tlsski/tlsski/ski/internal/pace"
)

// maxQueued bounds the datagrams of one flow that wait to be read, in bytes;
// more are lost, as on the way.
const maxQueued = 1 << 20

// maxQueuedSlow is the same of a flow whose peer is held up, since it is over a
// limit: what it sends meanwhile is not even decrypted.
const maxQueuedSlow = 2 << 10

// maxFlights bounds how often a handshake's first flight is sent (the one with
// the certificate): pion sends it anew until the handshake's time is over, and
// when the ClientHello comes again. Half of them may be lost.
const maxFlights = 5

var (
	errFlood    = errors.New("too many handshakes at once")
	errReplaced = errors.New("the peer made a new session from the same address")
)

// mux tells the datagrams of one socket apart: by connection ID, and where
// there is none by the peer's address. pion has such a listener too, but it
// lets anybody occupy it with a datagram each, reads without bound into each
// connection's queue, and does not take a new handshake from an address that
// has a session (RFC 6347, Section 4.2.8).
//
// Of a peer that has not returned a cookie it keeps nothing.
type mux struct {
	conn *net.UDPConn
	send func(datagram []byte, to netip.AddrPort) (int, error)
	// begin is called for each new flow, with mu held.
	begin   func(*flow)
	cookies *cookies // of the goroutine that reads
	arrival []byte   // likewise: where the datagram that it has read was sent to; nil where the socket has one address

	asked    atomic.Uint64 // ClientHellos that were answered with a cookie
	returned atomic.Uint64 // cookies that came back, not counting repetitions
	givenUp  atomic.Uint64 // handshakes that had no place, or lost it

	mu        sync.Mutex
	byAddr    map[netip.AddrPort]*place
	byCID     map[cid]*flow
	strangers *list.List // of *flow: the handshakes under way, oldest first
	familiar  *list.List // likewise, from known addresses
	known     *knownAddresses
	took      time.Duration // from a ClientHello to our first flight, the last time
}

type cid [cidLen]byte

// place is what is known of an address: the flow that has it, and one that
// will take its place if its handshake succeeds.
type place struct{ current, next *flow }

func newMux(conn *net.UDPConn, known []netip.Addr, begin func(*flow)) *mux {
	return &mux{
		conn:      conn,
		send:      conn.WriteToUDPAddrPort,
		begin:     begin,
		cookies:   newCookies(time.Now()),
		byAddr:    make(map[netip.AddrPort]*place),
		byCID:     make(map[cid]*flow),
		strangers: list.New(),
		familiar:  list.New(),
		known:     newKnownAddresses(known),
	}
}

// run reads until the socket is closed.
func (m *mux) run() error {
	buf := make([]byte, maxDatagram)
	var control []byte
	if tellArrivals(m.conn) {
		control = make([]byte, arrivalLen)
	}
	for {
		n, said, _, addr, err := m.conn.ReadMsgUDPAddrPort(buf, control)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		m.arrival = answerArrival(control[:said])
		if datagram := admit(buf[:n], cidLen); len(datagram) > 0 {
			m.route(addr, datagram, time.Now())
		}
	}
}

// answer sends a datagram from where arrival says, if it does.
func (m *mux) answer(arrival, datagram []byte, to netip.AddrPort) error {
	if arrival != nil {
		if _, _, err := m.conn.WriteMsgUDPAddrPort(datagram, arrival, to); err == nil {
			return nil
		}
	}
	_, err := m.send(datagram, to)
	return err
}

func (m *mux) route(addr netip.AddrPort, datagram []byte, now time.Time) {
	if p, _, ok := nextPiece(datagram); ok {
		m.routeHello(addr, p, datagram, now)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if datagram[0] == recordCID {
		// A session may move to another port, as behind a NAT that forgets it, but not
		// to another address, which the peer has not shown to be reachable at (RFC 9146,
		// Section 6): whoever forges an address that the policy grants something to
		// would have the answer sent elsewhere afterwards.
		if f := m.byCID[cid(datagram[recordCIDOffset:])]; f != nil && f.addr.Addr() == addr.Addr() {
			f.deliver(addr, datagram)
		}
		return
	}
	p := m.byAddr[addr]
	if p == nil {
		return
	}
	// What is protected for one of the two cannot be read by the other.
	if p.next != nil {
		p.next.deliver(addr, datagram)
	}
	p.current.deliver(addr, datagram)
}

// routeHello answers a ClientHello without a cookie, and finds the handshake
// that one with a cookie belongs to, or begins it.
func (m *mux) routeHello(addr netip.AddrPort, p helloPiece, datagram []byte, now time.Time) {
	if p.sequence == 0 {
		if p.offset == 0 && len(datagram) >= verifyRequestLen {
			m.asked.Add(1)
			// A socket that takes no more loses it, as the network would.
			_ = m.answer(m.arrival, m.cookies.verifyRequest(p.record, addr, now), addr)
		}
		return
	}
	body, ok := parseBody(p.data)
	if p.offset == 0 && (!ok || p.sequence != 1 || p.record == 0 || !m.cookies.valid(body.cookie, addr, now)) {
		// RFC 6347, Section 4.2.1, would have it answered like one without a
		// cookie. But that is a third ClientHello, and pion takes two; and ours
		// are not wrong where nobody else has sent them.
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.byAddr[addr]
	if p.offset > 0 {
		if at == nil {
			return
		}
		f := at.current
		if at.next != nil {
			f = at.next
		}
		f.hello(addr, datagram)
		return
	}
	if at != nil {
		for _, f := range []*flow{at.current, at.next} {
			switch {
			case f == nil:
			case f.random == body.random():
				f.hello(addr, datagram)
				return
			case f.state != handshaking:
			case now.Sub(f.began) < handshakeGrace:
				m.givenUp.Add(1) // handshakes are not to be had faster by beginning anew
				return
			default:
				f.end(errReplaced) // its peer has begun again
			}
		}
	}
	m.returned.Add(1)
	f := m.newFlow(addr, body, now)
	if f == nil {
		return
	}
	if at = m.byAddr[addr]; at == nil {
		m.byAddr[addr] = &place{current: f}
	} else {
		// The peer may have lost its session and come back on the same port, or
		// somebody may want us to think so: the session stays until the new
		// handshake has succeeded (RFC 6347, Section 4.2.8).
		at.next = f
	}
	f.hello(addr, datagram)
}

// newFlow begins the handshake of a peer that has returned a cookie. It is
// called with mu held. The flow it returns has not begun to run: its first step
// takes mu. It is nil when there is no room, where the peer's ClientHello will
// come again, and when the server stops.
func (m *mux) newFlow(addr netip.AddrPort, hello helloBody, now time.Time) *flow {
	f := &flow{
		mux: m, addr: addr, random: hello.random(), cookie: bytes.Clone(hello.cookie), began: now, turn: now,
		arrival: bytes.Clone(m.arrival), buffer: packetio.NewBuffer(), remote: net.UDPAddrFromAddrPort(addr),
	}
	f.queue = m.strangers
	if m.known.has(addr.Addr()) {
		f.queue = m.familiar
	}
	if f.queue.Len() >= maxHandshakes {
		e := yielding(f.queue, f.origin(), now)
		if e == nil {
			m.givenUp.Add(1)
			return nil
		}
		e.Value.(*flow).end(errFlood)
	}
	f.buffer.SetLimitSize(maxQueued)
	rand.Read(f.cid[:])
	m.byCID[f.cid] = f
	f.element = f.queue.PushBack(f)
	if m.begin(f); f.state == ended {
		return nil
	}
	return f
}

// flowState is how far a flow has come.
type flowState uint8

const (
	handshaking flowState = iota
	established
	ended
)

// flow is the datagrams of one peer, as a net.PacketConn for pion.
type flow struct {
	mux  *mux
	addr netip.AddrPort // where it began
	// arrival is where its ClientHello was sent to. A client that moves stays with it.
	arrival []byte
	random  [34]byte // of its ClientHello
	cookie  []byte
	began   time.Time
	cid     cid
	buffer  *packetio.Buffer
	pace    pace.Gate
	silent  atomic.Bool // it has ended: nothing is sent any more

	// Of pion's handshake, and before it begins:
	conn    *dtls.Conn
	flights int // how often the first of ours was sent
	// What is added to pion's sequence numbers: the ServerHello has that of the
	// ClientHello (RFC 6347, Section 4.2.1). Set before pion gets that; what it sends
	// earlier, an alert when the time is up, has numbers of its own.
	ahead atomic.Uint64

	// With mux.mu held:
	state    flowState
	turn     time.Time  // since when it has been the turn of its peer, or ours:
	ours     bool       // pion has the ClientHello and has not answered yet
	settled  bool       // the peer has our Finished: nothing unprotected can come of it
	greeting helloPiece // its ClientHello as far as it has come
	greeted  bool       // that pion has it
	gate     gate
	early    []early // what came while the gate was shut
	earlyLen int     // in bytes
	cause    error   // why it ended
	queue    *list.List
	element  *list.Element
	remote   *net.UDPAddr // where the last datagram came from
}

// hello takes a datagram that begins with a piece of the flow's ClientHello.
// pion gets it whole, and before it the one without the cookie, for which it
// keeps the handshake's state; see expectCookie.
func (f *flow) hello(from netip.AddrPort, datagram []byte) {
	if f.greeted {
		f.deliver(from, datagram) // it has come again
		return
	}
	for p, rest, ok := nextPiece(datagram); ok; p, rest, ok = nextPiece(rest) {
		g := &f.greeting
		if p.offset == 0 && g.data == nil {
			*g = p
			g.data = make([]byte, 0, p.length)
		}
		// Pieces that overtake others come again.
		if p.sequence != 1 || p.length != g.length || p.offset != len(g.data) {
			continue
		}
		g.data = append(g.data, p.data...)
		if len(g.data) < g.length {
			continue
		}
		f.greeted = true
		if b, ok := parseBody(g.data); ok {
			f.turn, f.ours = time.Now(), true
			f.ahead.Store(g.record - 1) // pion's first is the HelloVerifyRequest
			f.deliver(from, helloRecord(g.version, g.record-1, 0, b.withoutCookie()))
			f.deliver(from, helloRecord(g.version, g.record, 1, g.data))
		}
		g.data = nil
		return
	}
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
	if f.buffer.Size() > maxQueuedSlow && f.pace.Shut(time.Now()) {
		return // lost, as it would be in a network that is slow
	}
	// A full queue loses it.
	_, _ = f.buffer.Write(datagram, packetio.Attributes{{Value: from}})
}

func (f *flow) origin() netip.Addr { return origin(f.addr.Addr()) }

// since is when its peer's turn began. While it is ours, it is when that is to be
// expected: where this machine is slow, giving up what it works on would waste the
// work, and the next handshake would fare no better.
func (f *flow) since() time.Time {
	if f.ours {
		return f.turn.Add(2 * f.mux.took)
	}
	return f.turn
}

// answered is called when our first flight is sent: it is the peer's turn.
func (f *flow) answered() {
	f.mux.mu.Lock()
	defer f.mux.mu.Unlock()
	now := time.Now()
	f.mux.took = now.Sub(f.turn)
	f.turn, f.ours = now, false
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
	f.mux.known.add(f.addr.Addr())
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
	if f.leaveQueue(); cause == errFlood {
		f.mux.givenUp.Add(1)
	}
	f.state, f.cause = ended, cause
	f.early, f.greeting.data = nil, nil
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
	f.pace.Close()
}

func (f *flow) leaveQueue() {
	if f.element != nil {
		f.queue.Remove(f.element)
		f.queue, f.element = nil, nil
	}
}

// fate returns why the flow has ended, or nil.
func (f *flow) fate() error {
	f.mux.mu.Lock()
	defer f.mux.mu.Unlock()
	return f.cause
}

// ReadFrom is part of net.PacketConn.
func (f *flow) ReadFrom(b []byte) (int, net.Addr, error) {
	n, attributes, err := f.buffer.Read(b, nil)
	if err != nil {
		return 0, nil, err
	}
	f.pace.Wait()
	return n, attributes[0].Value.(*net.UDPAddr), nil
}

// WriteTo is part of net.PacketConn.
func (f *flow) WriteTo(b []byte, to net.Addr) (int, error) {
	if f.silent.Load() {
		return 0, net.ErrClosed
	}
	datagram := b
	if len(b) >= recordHeaderLen && binary.BigEndian.Uint16(b[3:]) == 0 { // of the handshake
		switch {
		case isFirst(b, handshakeHelloVerifyRequest):
			expectCookie(f.conn, f.cookie) // which the peer has had of us
			return len(b), nil
		case isFirst(b, handshakeServerHello):
			if f.flights++; f.flights == 1 {
				f.answered()
			}
		case b[0] == recordChangeCipherSpec: // with the Finished behind it
			f.shutGate()
		}
		if b[0] == recordHandshake && f.flights > maxFlights {
			return len(b), nil
		}
		if ahead := f.ahead.Load(); ahead > 0 {
			datagram = bytes.Clone(b)
			renumber(datagram, ahead)
		}
	}
	if err := f.mux.answer(f.arrival, datagram, to.(*net.UDPAddr).AddrPort()); err != nil {
		return 0, err
	}
	return len(b), nil
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
