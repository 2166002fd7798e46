package skicoap

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestOriginsOfConnections(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:0:1:2:3:4:5": "2001:db8:0:1::", "fe80::1%eth0": "fe80::",
	} {
		assert.Equal(t, want, origin(netip.MustParseAddr(a)).String())
	}
}

// Who has shown that he receives at his address, and begins as many handshakes
// as he can, drives out his own.
func TestHandshakesOfOneAddressGiveWayToThoseOfOthers(t *testing.T) {
	m := newMux(nil, func(*flow) {})
	verify := func(addr string) *flow {
		m.mu.Lock()
		f := m.newFlow(netip.MustParseAddrPort(addr), clientHello{initial: true})
		m.mu.Unlock()
		f.verify()
		return f
	}
	slow := verify("192.0.2.7:1")
	for i := range 2 * maxVerified {
		verify(netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(i+1)).String())
	}
	assert.Equal(t, maxVerified, m.verified.Len())
	assert.Equal(t, verified, slow.state)
}
