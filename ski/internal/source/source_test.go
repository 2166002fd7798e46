package source

import (
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestAnAddressIsGoneThatThisMachineDoesNotHave(t *testing.T) {
	for name, want := range map[string]bool{
		"127.0.0.1":   false,
		"::1":         false,
		"0.0.0.0":     false, // of a listener
		"::":          false,
		"192.0.2.1":   true, // RFC 5737
		"2001:db8::1": true, // RFC 3849
	} {
		ip := net.ParseIP(name)
		assert.Equal(t, want, Gone(&net.UDPAddr{IP: ip, Port: 1}), name)
		assert.Equal(t, want, Gone(&net.TCPAddr{IP: ip, Port: 1}), name)
	}
	assert.False(t, Gone(&net.UnixAddr{Name: "@"}))
}

func TestWhoeverWatchesIsToldOnceAndNotAfterTheEnd(t *testing.T) {
	done := make(chan struct{})
	told := 0
	Watch(&net.UDPAddr{IP: net.IPv4(192, 0, 2, 1)}, done, func() { told++ })
	assert.Equal(t, 1, told)
	close(done)
	Watch(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, done, func() { t.Error("it is there") })
}
