package netlab

import (
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// SetName says which addresses a DNS name has on every host from now on. Without
// addresses, it does not exist. Answers are for no time: what keeps a name longer
// does so on its own account.
func (n *Network) SetName(name string, addrs ...netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[strings.ToLower(name)+"."] = addrs
}

// serveNames answers a host's programs, which ask at 127.0.0.1 because their
// /etc/resolv.conf is empty (resolv.conf(5)).
func (n *Network) serveNames(c net.PacketConn) {
	buffer := make([]byte, 512)
	for {
		length, from, err := c.ReadFrom(buffer)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buffer[:length]) != nil || len(m.Questions) != 1 {
			continue
		}
		n.answer(&m)
		if out, err := m.Pack(); err == nil {
			_, _ = c.WriteTo(out, from)
		}
	}
}

// answer makes a question the answer (RFC 1035, Section 4.1).
func (n *Network) answer(m *dnsmessage.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	q := m.Questions[0]
	m.Response, m.Authoritative, m.RecursionAvailable = true, true, true
	m.Answers, m.Authorities, m.Additionals = nil, nil, nil
	addrs := n.names[strings.ToLower(q.Name.String())]
	if len(addrs) == 0 {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addrs {
		var body dnsmessage.ResourceBody
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			body = &dnsmessage.AResource{A: a.As4()}
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			body = &dnsmessage.AAAAResource{AAAA: a.As16()}
		default:
			continue
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: body})
	}
}
