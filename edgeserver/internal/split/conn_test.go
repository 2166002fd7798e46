package split

import (
	"crypto/tls"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// goClient returns what a client of crypto/tls wants.
func goClient(suite uint16, group tls.CurveID) *tls.Config {
	c := &tls.Config{
		RootCAs: theWorld().roots, ServerName: serverName,
		MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{group},
		NextProtos: []string{"h2", "http/1.1"},
	}
	if suite != 0 {
		c.CipherSuites = []uint16{suite}
	}
	return c
}

// talk sends a line and returns what comes back.
func talk(t *testing.T, c *tls.Conn, line string) {
	_, err := io.WriteString(c, line)
	require.NoError(t, err)
	answer := make([]byte, len(line))
	_, err = io.ReadFull(c, answer)
	require.NoError(t, err)
	assert.Equal(t, line, string(answer))
}

func TestGoClientEverySuiteMethodAndCurve(t *testing.T) {
	w := theWorld()
	for _, method := range []string{"ECDHE", "ECDHE-PMS", "RSA"} {
		for _, s := range suites {
			for _, group := range defaultGroups {
				if s.staticRSA != (method == "RSA") || s.id == 0xC0AC || s.id == 0xC0AE {
					continue // crypto/tls has no CCM
				}
				t.Run(fmt.Sprintf("%s/%s/%v", method, s.name, group), func(t *testing.T) {
					server := serve(t, &Config{
						Chains: []*Chain{w.ecdsa.chain, w.rsa.chain}, StaticRSA: true,
						KeyServerEphemeral: method == "ECDHE-PMS", NextProtos: []string{"h2", "http/1.1"},
					})
					client := goClient(s.id, group)
					if !s.rsa {
						client.CurvePreferences = append(client.CurvePreferences, tls.CurveP256) // that of the certificate
					}
					c, err := tls.Dial("tcp", server.addr, client)
					require.NoError(t, err)
					talk(t, c, "hello")
					c.Close()
					got := server.outcome(t)
					require.NoError(t, got.err)
					state := got.conn.ConnectionState()
					assert.Equal(t, s.id, state.CipherSuite)
					if s.staticRSA {
						assert.Equal(t, "http/1.1", state.NegotiatedProtocol)
					} else {
						assert.Equal(t, "h2", state.NegotiatedProtocol)
						assert.Equal(t, c.ConnectionState().CurveID, state.CurveID)
					}
				})
			}
		}
	}
}
