package skicoap

import (
	"container/list"
	"net/netip"
)

// origin is what somebody has one of: an IPv4 address, or the /64 of an IPv6 one.
func origin(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		p, _ := a.WithZone("").Prefix(64)
		return p.Addr()
	}
	return a
}

// yielding returns the element of a queue that gives way when there are too
// many: the oldest of the origin that has the most, so that nobody alone drives
// others out; and how many each origin has. The queue is not empty.
func yielding(queue *list.List) (oldest *list.Element, count map[netip.Addr]int) {
	from := func(e *list.Element) netip.Addr { return e.Value.(interface{ origin() netip.Addr }).origin() }
	count, most := make(map[netip.Addr]int), 0
	for e := queue.Front(); e != nil; e = e.Next() {
		count[from(e)]++
		most = max(most, count[from(e)])
	}
	e := queue.Front()
	for count[from(e)] < most {
		e = e.Next()
	}
	return e, count
}
