package skicoap

import (
	"container/list"
	"net/netip"
	"time"
)

// origin is what somebody has one of: an IPv4 address, or the /64 of an IPv6 one.
func origin(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		p, _ := a.WithZone("").Prefix(64)
		return p.Addr()
	}
	return a
}

const (
	// maxHandshakes bounds the peers that are not authenticated yet: the
	// handshakes under way over DTLS, those from known addresses once more, and
	// the connections over TCP. A half-open handshake over DTLS has 24 KiB of
	// heap and 17 of stacks, over TLS 64 in all: together those of a binding
	// have less than the rest of an idle key server.
	maxHandshakes = 96
	// handshakeGrace is how long a handshake keeps its place when others want
	// it, from when it is the peer's turn: longer than most round trips, and as
	// short as that, because it is how long peers that do not go on keep others
	// out.
	handshakeGrace = 500 * time.Millisecond
)

// pending is a peer that is not authenticated yet.
type pending interface {
	origin() netip.Addr
	since() time.Time // when its time began
}

// yielding returns which of the pending, oldest first, gives way to a newcomer
// when all places are taken: one of the origin that has the most. The oldest does
// so at once if that origin has more than the newcomer's will have, so that
// nobody alone drives others out; otherwise the oldest that has had its time. It
// is nil when the newcomer has to come again.
func yielding(queue *list.List, newcomer netip.Addr, now time.Time) *list.Element {
	from := func(e *list.Element) netip.Addr { return e.Value.(pending).origin() }
	count, most := make(map[netip.Addr]int), 0
	for e := queue.Front(); e != nil; e = e.Next() {
		count[from(e)]++
		most = max(most, count[from(e)])
	}
	for e := queue.Front(); e != nil; e = e.Next() {
		if count[from(e)] == most && (most > count[newcomer]+1 || now.Sub(e.Value.(pending).since()) >= handshakeGrace) {
			return e
		}
	}
	return nil
}
