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
