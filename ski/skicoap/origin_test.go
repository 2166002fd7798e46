package skicoap

import (
	"container/list"
	"crypto"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/turn"
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
	first, ok := l.begin(turn.New(connFrom{addr: address(0)}, now), now)
	require.True(t, ok)
	for i := range 10_000 {
		l.begin(turn.New(connFrom{addr: address(i + 1)}, now), now)
	}
	assert.Equal(t, maxHandshakes, l.opening.Len())
	edge := turn.New(connFrom{addr: netip.MustParseAddrPort("192.0.2.7:1")}, now)
	_, ok = l.begin(edge, now)
	assert.False(t, ok)
	opened, ok := l.begin(edge, now.Add(handshakeGrace))
	assert.True(t, ok, "when it comes again")
	assert.False(t, first())
	assert.True(t, opened())
	for i := range maxHandshakes {
		l.begin(turn.New(connFrom{addr: netip.AddrPortFrom(address(1).Addr(), uint16(i+1))}, now.Add(time.Hour)), now.Add(time.Hour))
	}
	_, ok = l.begin(edge, now.Add(time.Hour))
	assert.True(t, ok)
}

// waitingSigner is a key of a machine that is slow.
type waitingSigner struct {
	crypto.Signer
	asked, sign chan struct{}
}

func (s waitingSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	close(s.asked)
	<-s.sign
	return s.Signer.Sign(random, digest, opts)
}

// A key server that has much to do does not take the time from those that wait for
// it: their handshakes would begin anew, and it would have more to do.
func TestAConnectionThatWaitsForItsServerKeepsItsPlace(t *testing.T) {
	ca := newTestCA(t)
	slow, asked, sign := ca.keyServer(), make(chan struct{}), make(chan struct{})
	slow.PrivateKey = waitingSigner{slow.PrivateKey.(crypto.Signer), asked, sign}
	s := serveTCP(t, ca, func(c *ServerConfig) { c.Certificate = slow })
	c := dialTCP(t, s, ca)
	got := make(chan error, 1)
	go func() { got <- ask(t.Context(), &ski.Client{Transports: []ski.Transport{c}, Timeout: time.Minute}, 1) }()
	<-asked
	s.tcp.mu.Lock()
	waits := s.tcp.opening.Front().Value.(opening)
	s.tcp.mu.Unlock()
	before := time.Now()
	assert.False(t, waits.since().Before(before))
	close(sign)
	require.NoError(t, <-got)
	assert.True(t, waits.since().Before(time.Now()))
}
