package skicoap

import (
	"container/list"
	"net/netip"
	"time"
)

const (
	// maxHandshakes bounds the handshakes under way, and once more those of
	// addresses from which a peer has been authenticated before. Each has 24
	// KiB of heap and 17 of stacks: together they have less than the rest of
	// an idle key server.
	maxHandshakes = 96
	// handshakeGrace is how long a handshake keeps its place when others want
	// it: longer than most round trips, and as short as that, because it is how
	// long those who do not go on keep others out.
	handshakeGrace = 500 * time.Millisecond
	// maxKnown bounds the addresses that are remembered for this.
	maxKnown = 4096
)

// places are handshakes under way, oldest first.
type places struct{ flows *list.List } // of *flow

// makeRoom reports whether there is a place for a handshake of this origin. If
// all are taken, the oldest handshake gives way of the origin that has the most:
// at once if it has more than the newcomer's will have, so that nobody alone
// drives others out, and otherwise when it has had its time.
func (p *places) makeRoom(newcomer netip.Addr, now time.Time) bool {
	if p.flows.Len() < maxHandshakes {
		return true
	}
	e, count := yielding(p.flows)
	f := e.Value.(*flow)
	if count[f.origin()] <= count[newcomer]+1 && now.Sub(f.began) < handshakeGrace {
		return false
	}
	f.end(errFlood)
	return true
}

// knownAddresses are the origins of peers that have been authenticated.
type knownAddresses struct {
	byAddr map[netip.Addr]*list.Element
	order  *list.List // of netip.Addr, the one seen longest ago first
}

func newKnownAddresses(all []netip.Addr) *knownAddresses {
	k := &knownAddresses{make(map[netip.Addr]*list.Element), list.New()}
	for _, a := range all {
		k.add(a)
	}
	return k
}

func (k *knownAddresses) has(addr netip.Addr) bool { return k.byAddr[origin(addr)] != nil }

func (k *knownAddresses) add(addr netip.Addr) {
	addr = origin(addr)
	if e := k.byAddr[addr]; e != nil {
		k.order.MoveToBack(e)
		return
	}
	if k.order.Len() >= maxKnown {
		delete(k.byAddr, k.order.Remove(k.order.Front()).(netip.Addr))
	}
	k.byAddr[addr] = k.order.PushBack(addr)
}

// all returns the addresses, the one seen longest ago first.
func (k *knownAddresses) all() []netip.Addr {
	all := make([]netip.Addr, 0, k.order.Len())
	for e := k.order.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(netip.Addr))
	}
	return all
}
