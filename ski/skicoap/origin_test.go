package skicoap

import (
	"container/list"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOriginsOfConnections(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:0:1:2:3:4:5": "2001:db8:0:1::", "fe80::1%eth0": "fe80::",
	} {
		assert.Equal(t, want, origin(netip.MustParseAddr(a)).String())
	}
}

// connFrom is a connection from an address.
type connFrom struct {
	net.Conn
	addr netip.AddrPort
}

func (c connFrom) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.addr) }

func (c connFrom) Close() error { return nil }

// Of many connections that do not go on, each from another address, each has its
// time, and then gives way. One address alone gives way to others at once.
func TestConnectionsOfManyAddressesHaveTheirTime(t *testing.T) {
	l := &tcpListener{opening: list.New()}
	now := time.Now()
	first, ok := l.begin(connFrom{addr: address(0)}, now)
	require.True(t, ok)
	for i := range 10_000 {
		l.begin(connFrom{addr: address(i + 1)}, now)
	}
	assert.Equal(t, maxHandshakes, l.opening.Len())
	edge := connFrom{addr: netip.MustParseAddrPort("192.0.2.7:1")}
	_, ok = l.begin(edge, now)
	assert.False(t, ok)
	opened, ok := l.begin(edge, now.Add(handshakeGrace))
	assert.True(t, ok, "when it comes again")
	assert.False(t, first())
	assert.True(t, opened())
	for i := range maxHandshakes {
		l.begin(connFrom{addr: netip.AddrPortFrom(address(1).Addr(), uint16(i+1))}, now.Add(time.Hour))
	}
	_, ok = l.begin(edge, now.Add(time.Hour))
	assert.True(t, ok)
}
