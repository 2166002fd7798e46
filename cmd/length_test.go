package cmd_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
)

// capture passes datagrams between one client and the key server and counts
// those of the key server by their length.
type capture struct {
	addr string

	mu      sync.Mutex
	lengths map[int]int
}

func newCapture(t *testing.T, server string) *capture {
	t.Helper()
	front, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	back, err := net.Dial("udp", server)
	require.NoError(t, err)
	c := &capture{addr: front.LocalAddr().String(), lengths: map[int]int{}}
	var client net.Addr
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := front.ReadFrom(buf)
			if err != nil {
				return
			}
			c.mu.Lock()
			client = from
			c.mu.Unlock()
			_, _ = back.Write(buf[:n])
		}
	})
	running.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, err := back.Read(buf)
			if err != nil {
				return
			}
			c.mu.Lock()
			c.lengths[n]++
			to := client
			c.mu.Unlock()
			_, _ = front.WriteTo(buf[:n], to)
		}
	})
	t.Cleanup(func() {
		_ = front.Close()
		_ = back.Close()
		running.Wait()
	})
	return c
}

// take returns the lengths since it was last called.
func (c *capture) take() map[int]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.lengths
	c.lengths = map[int]int{}
	return taken
}

// edgeIdentity is what an edge has on the channel.
func (d *devSetup) edgeIdentity() (tls.Certificate, *x509.CertPool) {
	d.t.Helper()
	identity, err := tls.LoadX509KeyPair(d.endpoints.EdgeCert, d.endpoints.EdgeKey)
	require.NoError(d.t, err)
	ca, err := os.ReadFile(d.endpoints.KeyServerCA)
	require.NoError(d.t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return identity, roots
}

// requestsOfAllLengths makes, for each method and key, requests whose answers
// are of every length that there is, errors included.
func (d *devSetup) requestsOfAllLengths() map[string]func(i int) *ski.Request {
	d.t.Helper()
	params, err := hex.DecodeString("03001741" +
		"046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296" +
		"4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")
	require.NoError(d.t, err)
	signature := func(spki ski.KeyID) func(i int) *ski.Request {
		return func(i int) *ski.Request {
			input := append([]byte(strings.Repeat("r", 63)+string(rune('A'+i%50))), params...)
			input[0] = byte(i)
			if i%10 == 0 {
				input = input[1:] // malformed
			}
			return &ski.Request{Protocol: ski.TLS12, SPKI: spki, Hash: ski.SHA256, Input: input}
		}
	}
	rsaKey := d.endpoints.Sites[1].SPKI
	return map[string]func(i int) *ski.Request{
		"ECDHE with ECDSA": signature(d.endpoints.Sites[0].SPKI),
		"ECDHE with RSA":   signature(rsaKey),
		"RSA": func(i int) *ski.Request {
			n := 256
			if i%10 == 0 {
				n = 255 // malformed
			}
			input := []byte(strings.Repeat(string(rune('!'+i%90)), n)) // a PreMasterSecret of nobody
			return &ski.Request{Protocol: ski.TLS12, SPKI: rsaKey, Method: ski.MethodRSA, Input: input}
		},
	}
}

func TestAnswersOfOneMethodAndKeyHaveOneLengthOnTheNetwork(t *testing.T) {
	d := startDev(t)
	identity, roots := d.edgeIdentity()
	network := newCapture(t, d.keyServerAddr())
	client, err := skicoap.NewClient("coaps://"+network.addr, skicoap.ClientConfig{
		Certificate: identity, RootCAs: roots, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		DeadAfter: time.Minute, // A busy machine is not asked for a sign of life, whose length is another.
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })

	for name, request := range d.requestsOfAllLengths() {
		_, err := client.RoundTrip(t.Context(), request(0)) // the session's handshake
		require.NoError(t, err)
		network.take()
		outputs := map[int]int{}
		for i := range 60 {
			resp, err := client.RoundTrip(t.Context(), request(i))
			require.NoError(t, err)
			outputs[len(resp.Output)]++
		}
		assert.Greater(t, len(outputs), 1, "%s: outputs of several lengths and errors: %v", name, outputs)
		assert.Len(t, network.take(), 1, "%s: lengths of the answers' datagrams", name)
	}
}
