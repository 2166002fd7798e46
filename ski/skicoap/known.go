package skicoap

import (
	"container/list"
	"net/netip"
)

// maxKnown bounds the addresses of authenticated peers that are remembered.
const maxKnown = 4096

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
