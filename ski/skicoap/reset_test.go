package skicoap

import (
	"net"
	"sync/atomic"
	"testing"

	"github.com/pion/dtls/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// A Reset is a key server's word on the request, and may depend on the plaintext
// like any answer; the session goes on.
func TestAResetIsAnAnswer(t *testing.T) {
	ca := newTestCA(t)
	l, err := dtls.ListenWithOptions("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, dtls.WithCertificates(ca.keyServer()))
	require.NoError(t, err)
	defer l.Close()
	var sessions atomic.Int64
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			sessions.Add(1)
			buf := make([]byte, maxDatagram)
			for {
				if _, err := conn.Read(buf); err != nil {
					break
				}
				_, _ = conn.Write([]byte{0x70, 0, buf[2], buf[3]}) // RFC 7252, Section 4.2
			}
		}
	}()
	c, err := NewClient("coaps://"+l.Addr().String(), ca.client())
	require.NoError(t, err)
	for range 3 {
		_, err := c.RoundTrip(t.Context(), request(1))
		assert.ErrorIs(t, err, errReset)
		assert.True(t, ski.Answered(err))
	}
	require.NoError(t, c.Close())
	assert.EqualValues(t, 1, sessions.Load())
}
