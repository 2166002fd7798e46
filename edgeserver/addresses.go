package edgeserver

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// A site is a triple: the addresses on which it is served, its certificates, and
// its names. Which site a connection is for follows from its local address and
// the server name in its ClientHello; which requests may come on it, from the
// address and the names too.

// parseAddress reads one of Site.Addresses. The port is 0 where it has none,
// which stands for all.
func parseAddress(text string) (netip.AddrPort, error) {
	place, err := netip.ParseAddrPort(text)
	if err != nil {
		var address netip.Addr
		address, err = netip.ParseAddr(text)
		place = netip.AddrPortFrom(address, 0)
	} else if place.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("'%s' has the port 0, which no connection has", text)
	}
	switch address := place.Addr(); {
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("'%s' is not a local address such as 192.0.2.1 or 192.0.2.1:443", text)
	case address.IsUnspecified() || address.IsMulticast():
		return netip.AddrPort{}, fmt.Errorf("'%s' is not the local address of any connection; without addresses a site is served on all", text)
	}
	return netip.AddrPortFrom(place.Addr().Unmap(), place.Port()), nil
}

// places returns Addresses in the form in which they are compared. Those that
// validate has refused are not there.
func (s *Site) places() []netip.AddrPort {
	var all []netip.AddrPort
	for _, text := range s.Addresses {
		if place, err := parseAddress(text); err == nil {
			all = append(all, place)
		}
	}
	return all
}

// overlap reports whether a connection can have both local addresses.
func overlap(a, b netip.AddrPort) bool {
	return a.Addr() == b.Addr() && (a.Port() == b.Port() || a.Port() == 0 || b.Port() == 0)
}

// meets reports whether there is an address on which both sites are served.
func (s *Site) meets(other *Site) bool {
	if len(s.Addresses) == 0 || len(other.Addresses) == 0 {
		return true
	}
	for _, a := range s.places() {
		if slices.ContainsFunc(other.places(), func(b netip.AddrPort) bool { return overlap(a, b) }) {
			return true
		}
	}
	return false
}

// owners are the sites that have a name, by name. The default sites have the
// empty one.
type owners map[string][]owner

type owner struct {
	field string // that has the name
	site  *Site
}

// add adds the owner of a name. It returns the field of one that has it already,
// on an address on which the new one is served too.
func (o owners) add(name string, as owner) (taken string) {
	for _, other := range o[name] {
		if as.site.meets(other.site) {
			return other.field
		}
	}
	o[name] = append(o[name], as)
	return ""
}

// where is for an error about another site.
func (s *Site) where() string {
	if len(s.Addresses) == 0 {
		return ""
	}
	return ", on one of the same addresses"
}

func (c *Config) validateSiteAddresses(field string, s *Site) error {
	for i, text := range s.Addresses {
		at := fmt.Sprintf("%s.addresses[%d]", field, i)
		place, err := parseAddress(text)
		if err != nil {
			return c.errorAt(at, err)
		}
		before := Site{Addresses: s.Addresses[:i]}
		if slices.ContainsFunc(before.places(), func(b netip.AddrPort) bool { return overlap(place, b) }) {
			return c.errorf(at, "'%s' is there already", text)
		}
		// The address in a load balancer's header can be the balancer's.
		if len(c.ProxyProtocol.From) == 0 && !covered(c.Listen, place) {
			return c.errorf(at, "'%s' is on none of the addresses in listen: no connection comes there", text)
		}
	}
	return nil
}

// covered reports whether connections to place can come in on one of the
// addresses in listen.
func covered(listen []string, place netip.AddrPort) bool {
	return slices.ContainsFunc(listen, func(addr string) bool {
		if _, ok := socketName(addr); ok {
			return true // Only systemd knows its address.
		}
		host, service, err := net.SplitHostPort(addr)
		if err != nil {
			return false
		}
		port, err := net.LookupPort("tcp", service)
		if err != nil || place.Port() != 0 && int(place.Port()) != port {
			return false
		}
		address, err := netip.ParseAddr(host)
		switch {
		case err != nil: // All addresses, or a name, of which it is not known here.
			return true
		case address.IsUnspecified():
			return address.Is6() || place.Addr().Is4()
		}
		return address.Unmap() == place.Addr()
	})
}

// defaultPort is where sites are served that do not say.
const defaultPort = 8443

// defaultListen returns the addresses that the sites need.
func (c *Config) defaultListen() []string {
	var listen []string
	if len(c.Sites) == 0 || len(c.ProxyProtocol.From) > 0 || slices.ContainsFunc(c.Sites, func(s Site) bool { return len(s.Addresses) == 0 }) {
		listen = append(listen, fmt.Sprintf(":%d", defaultPort))
	}
	if len(c.ProxyProtocol.From) > 0 { // The sites' addresses can be a load balancer's.
		return listen
	}
	add := func(wanted func(netip.AddrPort) bool) {
		for i := range c.Sites {
			for _, place := range c.Sites[i].places() {
				if !wanted(place) || covered(listen, place) {
					continue
				}
				if place.Port() == 0 {
					place = netip.AddrPortFrom(place.Addr(), defaultPort)
				}
				listen = append(listen, place.String())
			}
		}
	}
	add(func(p netip.AddrPort) bool { return p.Port() != 0 })
	add(func(p netip.AddrPort) bool { return p.Port() == 0 }) // unless another site has brought a port
	return listen
}

// names are the sites that are served on an address.
type names struct {
	byName   map[string]*site // the names in canonical form, wildcards with their asterisk
	fallback *site            // the default site, or nil
}

// find returns the site that has name: as it is, by a wildcard in the place of
// its first label, or as the default. It is nil where there is no default.
func (n *names) find(name string) *site {
	name = canonicalName(name)
	if s, ok := n.byName[name]; ok {
		return s
	}
	if i := strings.IndexByte(name, '.'); i > 0 {
		if s, ok := n.byName["*"+name[i:]]; ok {
			return s
		}
	}
	return n.fallback
}

// byAddress returns the sites for each address that a site names, with port 0
// for the other ports, and for all other addresses, which are the zero AddrPort.
func byAddress(all []*site) map[netip.AddrPort]*names {
	table := map[netip.AddrPort]*names{{}: nil}
	for _, s := range all {
		for _, place := range s.places() {
			table[place] = nil
			table[netip.AddrPortFrom(place.Addr(), 0)] = nil
		}
	}
	for place := range table {
		at := &names{byName: map[string]*site{}}
		for _, s := range all {
			if !s.isAt(place) {
				continue
			}
			for _, name := range s.Names {
				at.byName[canonicalName(name)] = s
			}
			if s.Default {
				at.fallback = s
			}
		}
		table[place] = at
	}
	return table
}

// isAt reports whether the site is served on a local address.
func (s *Site) isAt(local netip.AddrPort) bool {
	return len(s.Addresses) == 0 || slices.ContainsFunc(s.places(), func(p netip.AddrPort) bool {
		return p.Addr() == local.Addr() && (p.Port() == 0 || p.Port() == local.Port())
	})
}

// at returns the sites that are served on a local address.
func (t *sites) at(local net.Addr) *names {
	place := addrPort(local)
	for _, p := range []netip.AddrPort{place, netip.AddrPortFrom(place.Addr(), 0)} {
		if n, ok := t.byAddress[p]; ok {
			return n
		}
	}
	return t.byAddress[netip.AddrPort{}]
}

// addrPort returns the address of a TCP connection. It is zero for one that has
// none, which is on no address of a site then.
func addrPort(a net.Addr) netip.AddrPort {
	place, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(place.Addr().Unmap(), place.Port())
}

// defaultLabel is what the log calls a site without a name. No site can have this
// name.
const defaultLabel = "(default)"

// label returns what the log calls a site: its first name, with an address where
// another site has the same.
func (c *Config) label(i int) string {
	name := func(s *Site) string {
		if len(s.Names) == 0 {
			return defaultLabel
		}
		return s.Names[0]
	}
	own := name(&c.Sites[i])
	for j := range c.Sites {
		if j != i && canonicalName(name(&c.Sites[j])) == canonicalName(own) && len(c.Sites[i].Addresses) > 0 {
			return own + "@" + c.Sites[i].Addresses[0]
		}
	}
	return own
}
