// Package netlab is a network for tests and for programs that measure: its hosts
// are network namespaces, in which real programs run, and this process carries
// every packet between them, or loses it.
//
//	n := netlab.New()
//	defer n.Close()
//	edge, err := n.Host("edge")
//	keyServer, err := n.Host("key server")
//	n.Between(edge, keyServer).Set(netlab.Conditions{Delay: 20 * time.Millisecond, Loss: 0.2})
//	err = edge.Command("bin/ski-edgeserver", "-config", "edge.yaml").Start()
//	err = edge.Renumber(n.NewAddr())
//
// It needs root, /dev/net/tun, and the programs ip, nsenter, sh and env; no module
// of the kernel that queues or filters packets. Namespaces have no names: they end
// with this process and the programs that run in them, so that nothing is left
// behind and networks do not meet. A shell is on a host with the command that
// [Host.Enter] returns.
package netlab

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Conditions are those of a path, in one direction. The zero value carries
// everything at once. The packets are IP packets.
type Conditions struct {
	Delay     time.Duration // each packet's
	Loss      float64       // which part of the packets is lost, from 0 to 1
	Seed      uint64        // decides which
	MaxPacket int           // larger packets vanish without an ICMP message; bytes, 0 means no limit
	Cut       bool          // all packets vanish
	// Drop, if not nil, says of each packet that nothing else has lost whether
	// it vanishes. It must not change the packet or keep it, and is called by one
	// goroutine at a time.
	Drop func(packet []byte) bool
}

// Counts says how many packets came to a direction of a path, and what became of
// them.
type Counts struct {
	Carried, Bytes uint64 // that arrived or are on their way
	Lost           uint64 // by Loss, or because the queue is full
	TooLarge       uint64 // by MaxPacket
	Cut            uint64
	Dropped        uint64 // by Drop
}

// Network carries packets between its hosts.
type Network struct {
	mu      sync.Mutex
	hosts   []*Host
	owners  map[netip.Addr]*Host // where packets to an address go
	paths   map[[2]*Host]*Direction
	usual   Conditions
	names   map[string][]netip.Addr
	given   int // addresses, of each family
	closed  bool
	reading sync.WaitGroup
	writing sync.WaitGroup
}

// New returns a network without hosts. Close must be called.
func New() *Network {
	return &Network{owners: map[netip.Addr]*Host{}, names: map[string][]netip.Addr{}, paths: map[[2]*Host]*Direction{}}
}

// Close ends it. The programs on the hosts may go on, but no packet is carried.
func (n *Network) Close() {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	n.closed = true
	hosts := n.hosts
	n.mu.Unlock()
	for _, h := range hosts {
		h.close()
	}
	n.reading.Wait()
	n.mu.Lock()
	for _, d := range n.paths {
		close(d.line)
	}
	n.mu.Unlock()
	n.writing.Wait()
}

// NewAddr returns an IPv4 address that it has not returned before.
func (n *Network) NewAddr() netip.Addr {
	a := netip.MustParseAddr("10.77.0.0").As4()
	binary.BigEndian.PutUint16(a[2:], n.next())
	return netip.AddrFrom4(a)
}

// NewAddr6 returns an IPv6 address that it has not returned before.
func (n *Network) NewAddr6() netip.Addr {
	a := netip.MustParseAddr("fd77::").As16()
	binary.BigEndian.PutUint16(a[14:], n.next())
	return netip.AddrFrom16(a)
}

func (n *Network) next() uint16 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.given++
	return uint16(n.given)
}

// Path is between two hosts.
type Path struct{ there, back *Direction }

// Between returns the path between two hosts.
func (n *Network) Between(a, b *Host) *Path {
	return &Path{n.direction(a, b), n.direction(b, a)}
}

// Set sets the conditions of both directions. Packets that are on their way are
// not concerned.
func (p *Path) Set(c Conditions) {
	p.there.Set(c)
	c.Seed++ // so that the directions do not lose alike
	p.back.Set(c)
}

// From returns the direction that leads away from h.
func (p *Path) From(h *Host) *Direction {
	if p.there.from == h {
		return p.there
	}
	return p.back
}

// SetDefault sets the conditions of the paths whose own are not set.
func (n *Network) SetDefault(c Conditions) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.usual = c
	for _, d := range n.paths {
		d.setDefault(c)
	}
}

// queueLen is how many packets can be on their way in one direction.
const queueLen = 4096

// direction returns the direction, which begins to carry if it is new.
func (n *Network) direction(from, to *Host) *Direction {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.paths[[2]*Host{from, to}]
	if d == nil {
		d = &Direction{from: from, line: make(chan packet, queueLen)}
		d.setDefault(n.usual)
		n.paths[[2]*Host{from, to}] = d
		if n.closed {
			return d
		}
		n.writing.Go(func() {
			for p := range d.line {
				waitUntil(p.due)
				_, _ = to.tun.Write(p.data) // fails while the device is down
			}
		})
	}
	return d
}

// carry reads the packets that h sends until its device is closed.
func (n *Network) carry(h *Host) {
	buffer := make([]byte, 1<<16)
	for {
		length, err := h.tun.Read(buffer)
		if err != nil {
			return
		}
		data := append([]byte(nil), buffer[:length]...)
		if to := n.route(h, data); to != nil {
			n.direction(h, to).send(data)
		}
	}
}

// route returns the host that a packet goes to, or nil if it vanishes: nobody has
// the address that it is for, its sender does not have the address that it is from,
// or a NAT does not let it through.
func (n *Network) route(h *Host, data []byte) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h.nat != nil && is4(data) && !h.nat.leave(data) {
		return nil
	}
	from, to, ok := addresses(data)
	if !ok || n.owners[from] != h {
		return nil
	}
	receiver := n.owners[to]
	if receiver != nil && receiver.nat != nil && is4(data) && !receiver.nat.enter(data) {
		return nil
	}
	return receiver
}

func is4(data []byte) bool { return len(data) > 0 && data[0]>>4 == 4 }

// addresses returns those of an IP packet (RFC 791, Section 3.1; RFC 8200, Section
// 3).
func addresses(data []byte) (from, to netip.Addr, ok bool) {
	switch {
	case len(data) >= 20 && data[0]>>4 == 4:
		from, _ = netip.AddrFromSlice(data[12:16])
		to, ok = netip.AddrFromSlice(data[16:20])
	case len(data) >= 40 && data[0]>>4 == 6:
		from, _ = netip.AddrFromSlice(data[8:24])
		to, ok = netip.AddrFromSlice(data[24:40])
	}
	return from, to, ok
}

// Direction is one direction of a path.
type Direction struct {
	from *Host
	line chan packet

	mu         sync.Mutex
	own        bool // conditions have been set
	conditions Conditions
	random     *rand.Rand
	counts     Counts
}

type packet struct {
	due  time.Time
	data []byte
}

// Set sets its conditions.
func (d *Direction) Set(c Conditions) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.own = true
	d.set(c)
}

func (d *Direction) setDefault(c Conditions) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.own {
		d.set(c)
	}
}

func (d *Direction) set(c Conditions) {
	d.conditions = c
	d.random = rand.New(rand.NewPCG(c.Seed, 0))
}

// Counts returns what has become of its packets so far.
func (d *Direction) Counts() Counts {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts
}

// send puts a packet on its way, or loses it.
func (d *Direction) send(data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &d.conditions
	switch {
	case c.Cut:
		d.counts.Cut++
	case c.MaxPacket > 0 && len(data) > c.MaxPacket:
		d.counts.TooLarge++
	case c.Loss > 0 && d.random.Float64() < c.Loss:
		d.counts.Lost++
	case c.Drop != nil && c.Drop(data):
		d.counts.Dropped++
	default:
		select {
		case d.line <- packet{time.Now().Add(c.Delay), data}:
			d.counts.Carried++
			d.counts.Bytes += uint64(len(data))
		default:
			d.counts.Lost++
		}
	}
}

// waitUntil is more exact than time.Sleep, which wakes up to a millisecond late.
func waitUntil(due time.Time) {
	for left := time.Until(due); left > 0; left = time.Until(due) {
		wait := syscall.NsecToTimespec(int64(left))
		_ = syscall.Nanosleep(&wait, nil)
	}
}
