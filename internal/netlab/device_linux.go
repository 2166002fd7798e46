package netlab

import (
	"net/netip"
	"slices"
	"strconv"
)

// device is the name of each host's.
const device = "tun0"

type address struct {
	netip.Addr
	deprecated bool
}

// Addr returns the host's first IPv4 address, or its first address if it has none.
func (h *Host) Addr() netip.Addr {
	all := h.Addrs()
	if i := slices.IndexFunc(all, netip.Addr.Is4); i >= 0 {
		return all[i]
	}
	return all[0]
}

// Addrs returns the host's addresses.
func (h *Host) Addrs() (all []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.addrs {
		all = append(all, a.Addr)
	}
	return all
}

// AddAddr gives the host an address, and routes again if it had none of the family.
func (h *Host) AddAddr(a netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addrs = append(h.addrs, address{Addr: a})
	h.network.own(a, h)
	return h.apply()
}

// RemoveAddr takes an address from the host. Packets to it and from it vanish.
func (h *Host) RemoveAddr(a netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addrs = slices.DeleteFunc(h.addrs, func(has address) bool { return has.Addr == a })
	h.network.own(a, nil)
	if h.down && a.Is6() {
		return nil // they went with the device
	}
	_, err := h.IP("address", "del", prefix(a), "dev", device)
	return err
}

// Renumber takes all addresses of a family from the host and gives it another,
// which is what a new DHCP lease or another uplink does.
func (h *Host) Renumber(to netip.Addr) error {
	for _, a := range h.Addrs() {
		if a.Is4() == to.Is4() {
			if err := h.RemoveAddr(a); err != nil {
				return err
			}
		}
	}
	return h.AddAddr(to)
}

// Deprecate deprecates an IPv6 address (RFC 4862, Section 5.5.4): it goes on
// working, and new connections are from another, if there is one.
func (h *Host) Deprecate(a netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.addrs {
		if h.addrs[i].Addr == a {
			h.addrs[i].deprecated = true
		}
	}
	return h.apply()
}

// Down takes the host's device down. Its routes and IPv6 addresses go with it.
func (h *Host) Down() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = true
	_, err := h.IP("link", "set", device, "down")
	return err
}

// Up takes the host's device up again, with its addresses and routes.
func (h *Host) Up() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.IP("link", "set", device, "up"); err != nil {
		return err
	}
	h.down = false
	return h.apply()
}

// WithdrawRoutes takes the host's routes away: no network is reachable.
func (h *Host) WithdrawRoutes() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.parted = true
	for _, family := range h.families() {
		if _, err := h.IP(family, "route", "flush", "dev", device); err != nil {
			return err
		}
	}
	return nil
}

// RestoreRoutes brings them back.
func (h *Host) RestoreRoutes() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.parted = false
	return h.apply()
}

// families returns ip's options for the families that the host has addresses of.
func (h *Host) families() (all []string) {
	for _, a := range h.addrs {
		family := "-4"
		if a.Is6() {
			family = "-6"
		}
		if !slices.Contains(all, family) {
			all = append(all, family)
		}
	}
	return all
}

// apply makes the device as h says that it is.
func (h *Host) apply() error {
	if h.down {
		return nil
	}
	for _, a := range h.addrs {
		args := []string{"address", "replace", prefix(a.Addr), "dev", device}
		if a.Is6() {
			args = append(args, "nodad")
		}
		if a.deprecated {
			args = append(args, "preferred_lft", "0")
		}
		if _, err := h.IP(args...); err != nil {
			return err
		}
	}
	if h.parted {
		return nil
	}
	for _, family := range h.families() {
		if _, err := h.IP(family, "route", "replace", "default", "dev", device); err != nil {
			return err
		}
	}
	return nil
}

// prefix is how the device has an address: it alone, everything else is behind the
// default route.
func prefix(a netip.Addr) string { return a.String() + "/" + strconv.Itoa(a.BitLen()) }

// own says that packets to an address go to h; nil means that nobody has it.
func (n *Network) own(a netip.Addr, h *Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h == nil {
		delete(n.owners, a)
	} else {
		n.owners[a] = h
	}
}
