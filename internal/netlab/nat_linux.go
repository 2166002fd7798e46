package netlab

import (
	"encoding/binary"
	"net/netip"
)

// NAT translates the IPv4 addresses and ports of a host's UDP and TCP packets to an
// address that the other hosts know. Like most, it gives an address and port of the
// host one port, whoever it sends to, and lets in what comes from an address and
// port that the host has sent to (RFC 4787, Sections 4 and 5). ICMP and fragments
// vanish; IPv6 is not concerned.
type NAT struct {
	network *Network
	host    *Host
	outer   netip.Addr
	last    uint16
	flows   map[inner]uint16
	ports   map[outer]*mapping
}

type inner struct {
	protocol byte
	netip.AddrPort
}

type outer struct {
	protocol byte
	port     uint16
}

type mapping struct {
	to    netip.AddrPort
	peers map[netip.AddrPort]bool
}

// BehindNAT puts the host behind a NAT that has an address outside. The host's own
// IPv4 addresses are no longer reachable.
func (h *Host) BehindNAT(outside netip.Addr) *NAT {
	t := &NAT{network: h.network, host: h, outer: outside, last: 20000}
	t.Rebind()
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.nat = t
	h.network.owners[outside] = h
	return t
}

// Rebind makes the NAT forget its flows, as after a restart or a long silence:
// they get other ports, and packets to the ports they had vanish.
func (t *NAT) Rebind() {
	t.network.mu.Lock()
	defer t.network.mu.Unlock()
	t.flows, t.ports = map[inner]uint16{}, map[outer]*mapping{}
}

// Renumber gives the NAT another address outside, and makes it forget its flows.
func (t *NAT) Renumber(outside netip.Addr) {
	t.Rebind()
	t.network.mu.Lock()
	defer t.network.mu.Unlock()
	delete(t.network.owners, t.outer)
	t.outer = outside
	t.network.owners[outside] = t.host
}

// leave translates a packet of the host's. It returns false if the packet vanishes.
func (t *NAT) leave(data []byte) bool {
	p, ok := parse(data)
	if !ok {
		return false
	}
	from := inner{p.protocol, p.from()}
	port, known := t.flows[from]
	if !known {
		for t.last++; t.ports[outer{p.protocol, t.last}] != nil || t.last < 1024; t.last++ {
		}
		port = t.last
		t.flows[from] = port
		t.ports[outer{p.protocol, port}] = &mapping{from.AddrPort, map[netip.AddrPort]bool{}}
	}
	t.ports[outer{p.protocol, port}].peers[p.to()] = true
	p.rewrite(12, 0, netip.AddrPortFrom(t.outer, port))
	return true
}

// enter translates a packet to the host. It returns false if the packet vanishes.
func (t *NAT) enter(data []byte) bool {
	p, ok := parse(data)
	if !ok {
		return false
	}
	m := t.ports[outer{p.protocol, p.to().Port()}]
	if p.to().Addr() != t.outer || m == nil || !m.peers[p.from()] {
		return false
	}
	p.rewrite(16, 2, m.to)
	return true
}

// datagram is an IPv4 packet that has UDP or TCP in it.
type datagram struct {
	protocol byte
	data     []byte
	payload  []byte // data, after the header
	checksum int    // where in payload
}

// parse returns false if it is something else, or a fragment (RFC 791, Section 3.1;
// RFC 768; RFC 9293, Section 3.1).
func parse(data []byte) (p datagram, ok bool) {
	if len(data) < 20 || data[0]>>4 != 4 || binary.BigEndian.Uint16(data[6:])&0x3fff != 0 {
		return p, false
	}
	header, length := int(data[0]&15)*4, int(binary.BigEndian.Uint16(data[2:]))
	if header < 20 || length < header || length > len(data) {
		return p, false
	}
	p = datagram{protocol: data[9], data: data, payload: data[header:length]}
	switch p.protocol {
	case 6:
		p.checksum = 16
		return p, len(p.payload) >= 20
	case 17:
		p.checksum = 6
		return p, len(p.payload) >= 8
	}
	return p, false
}

func (p datagram) at(addr, port int) netip.AddrPort {
	a, _ := netip.AddrFromSlice(p.data[addr : addr+4])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(p.payload[port:]))
}

func (p datagram) from() netip.AddrPort { return p.at(12, 0) }
func (p datagram) to() netip.AddrPort   { return p.at(16, 2) }

// rewrite puts an address and a port in the places of the old ones, and the
// checksums right.
func (p datagram) rewrite(addr, port int, to netip.AddrPort) {
	copy(p.data[addr:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p.payload[port:], to.Port())
	header := p.data[:int(p.data[0]&15)*4]
	binary.BigEndian.PutUint16(header[10:], 0)
	binary.BigEndian.PutUint16(header[10:], ^sum(0, header))
	if p.protocol == 17 && binary.BigEndian.Uint16(p.payload[p.checksum:]) == 0 {
		return // it has none
	}
	pseudo := append(append([]byte(nil), p.data[12:20]...), 0, p.protocol)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(p.payload)))
	binary.BigEndian.PutUint16(p.payload[p.checksum:], 0)
	check := ^sum(sum(0, pseudo), p.payload)
	if check == 0 && p.protocol == 17 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(p.payload[p.checksum:], check)
}

// sum is the ones' complement sum of 16-bit words (RFC 1071).
func sum(start uint16, data []byte) uint16 {
	total := uint32(start)
	for ; len(data) >= 2; data = data[2:] {
		total += uint32(binary.BigEndian.Uint16(data))
	}
	if len(data) == 1 {
		total += uint32(data[0]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
