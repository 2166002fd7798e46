package edgeserver

import (
	"fmt"
	"net/netip"
)

// networks is a set of addresses.
type networks []netip.Prefix

// parseNetworks reads a list of networks. Its error names the field of the one
// that is wrong.
func (c *Config) parseNetworks(field string, texts []string) (networks, error) {
	var all networks
	for i, text := range texts {
		network, err := parseNetwork(text)
		if err != nil {
			return nil, c.errorAt(fmt.Sprintf("%s[%d]", field, i), err)
		}
		all = append(all, network)
	}
	return all, nil
}

// parseNetwork reads a network in CIDR notation (RFC 4632, Section 3.1; RFC
// 4291, Section 2.3), or one address. An address with bits beyond the prefix is
// a mistake in one of the two.
func parseNetwork(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil && address.Zone() == "" && !address.Is4In6() {
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	network, err := netip.ParsePrefix(text)
	switch {
	case err != nil || network.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("'%s' is neither a network such as 192.0.2.0/24 or 2001:db8::/32 nor an address", text)
	case network != network.Masked():
		return netip.Prefix{}, fmt.Errorf("'%s' has bits beyond its prefix: the network is %s", text, network.Masked())
	}
	return network, nil
}

// has reports whether the address is in one of the networks. That of a link
// counts without its zone.
func (n networks) has(address netip.Addr) bool {
	address = address.Unmap().WithZone("")
	for _, network := range n {
		if network.Contains(address) {
			return true
		}
	}
	return false
}

// hasEveryone reports whether one of the networks is all of IPv4 or IPv6.
func (n networks) hasEveryone() bool {
	for _, network := range n {
		if network.Bits() == 0 {
			return true
		}
	}
	return false
}
