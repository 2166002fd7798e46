package main

import (
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// network carries packets between hosts, each after half of the two hosts'
// round-trip time. It does what tc's netem does, for kernels without that: TCP,
// its handshake included, and UDP find the same delay, below them.
type network struct {
	hosts   []*host
	lines   map[direction]chan packet
	running sync.WaitGroup
}

type direction struct{ from, to netip.Addr }

type packet struct {
	at   time.Time
	data []byte
}

// queueLen is how many packets can be on their way in one direction; others are
// lost.
const queueLen = 4096

func newNetwork(hosts ...*host) *network {
	return &network{hosts: hosts, lines: map[direction]chan packet{}}
}

// connect lets packets through between the ends of p. It is called before start.
func (n *network) connect(p *path) {
	for _, ends := range [][2]*host{{p.from, p.to}, {p.to, p.from}} {
		line := make(chan packet, queueLen)
		n.lines[direction{netip.MustParseAddr(ends[0].addr), netip.MustParseAddr(ends[1].addr)}] = line
		n.running.Go(func() {
			for sent := range line {
				waitUntil(sent.at.Add(p.roundTrip / 2))
				_, _ = ends[1].tun.Write(sent.data) // a packet that is lost is not the network's fault
			}
		})
	}
}

// waitUntil is more exact than time.Sleep, which wakes up to a millisecond late.
func waitUntil(due time.Time) {
	for left := time.Until(due); left > 0; left = time.Until(due) {
		wait := syscall.NsecToTimespec(int64(left))
		_ = syscall.Nanosleep(&wait, nil)
	}
}

// start begins to carry; stop must be called.
func (n *network) start() {
	var reading sync.WaitGroup
	for _, h := range n.hosts {
		reading.Go(func() {
			for {
				data := make([]byte, 2048)
				length, err := h.tun.Read(data)
				if err != nil {
					return
				}
				n.send(packet{time.Now(), data[:length]})
			}
		})
	}
	n.running.Go(func() {
		reading.Wait()
		for _, line := range n.lines {
			close(line)
		}
	})
}

// send puts an IPv4 packet on the line between its addresses (RFC 791, Section
// 3.1), if there is one.
func (n *network) send(p packet) {
	if len(p.data) < 20 || p.data[0]>>4 != 4 {
		return
	}
	from, _ := netip.AddrFromSlice(p.data[12:16])
	to, _ := netip.AddrFromSlice(p.data[16:20])
	select {
	case n.lines[direction{from, to}] <- p:
	default:
	}
}

// stop ends it.
func (n *network) stop() {
	for _, h := range n.hosts {
		h.tun.Close()
	}
	n.running.Wait()
}
