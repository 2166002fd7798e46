package skicoap

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/transport/v5/packetio"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/pace"
)

// Of what a peer sends, datagrams are lost while it is held up, and not because it
// was a moment ago.
func TestDatagramsAreLostOnlyWhileAPeerIsHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var peer pace.Pace
		f := &flow{buffer: packetio.NewBuffer()}
		f.pace.Follow(&peer)
		peer.Refused(time.Now(), pace.PerRefusal)
		for range 100 {
			f.pass(make([]byte, 100), &net.UDPAddr{})
		}
		assert.Less(t, f.buffer.Count(), 30)
		time.Sleep(pace.PerRefusal)
		for range 100 {
			f.pass(make([]byte, 100), &net.UDPAddr{})
		}
		assert.Greater(t, f.buffer.Count(), 100)
	})
}

// An edge that is over its limit is read no faster than it may ask, however many
// sessions it has: others are served meanwhile, the edge keeps its sessions, and a
// shutdown does not wait for it.
func TestAPeerOverItsLimitIsReadNoFaster(t *testing.T) {
	ca := newTestCA(t)
	greedy := ca.edge()
	leaf, err := x509.ParseCertificate(greedy.Certificate[0])
	require.NoError(t, err)
	for _, binding := range []string{"coaps", "coaps+tcp"} {
		for _, path := range []string{"/ski", "/other"} {
			t.Run(binding+path, func(t *testing.T) {
				cfg := ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Logger: quiet}
				cfg.Handler = ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
					if p.SPKI == ski.CertificateKeyID(leaf) {
						return &ski.Response{Error: ski.RequestDenied, RetryAfter: time.Hour, Slow: time.Hour}
					}
					return echo(ctx, p, req)
				})
				var s *Server
				dial := dialTo
				if binding == "coaps" {
					s = serve(t, "127.0.0.1:0", cfg)
				} else {
					s, dial = serveTCP(t, ca, func(c *ServerConfig) { *c = cfg }), dialTCP
				}
				ctx, cancel := context.WithCancel(t.Context())
				var flood sync.WaitGroup
				defer flood.Wait()
				defer cancel()
				var refused atomic.Int64
				const sessions, inFlight = 4, 32
				for range sessions {
					c, err := NewClient(fmt.Sprintf("%s://%s%s", binding, s.Addr(), path), ClientConfig{Certificate: greedy, RootCAs: ca.pool, Logger: quiet})
					require.NoError(t, err)
					defer c.Close()
					for range inFlight {
						flood.Go(func() {
							for ctx.Err() == nil {
								if _, err := c.RoundTrip(ctx, request(1)); ski.Answered(err) {
									refused.Add(1)
								}
							}
						})
					}
				}
				other := dial(t, s, ca)
				require.Eventually(t, func() bool { return refused.Load() > 0 }, time.Minute, time.Millisecond)
				began, before := time.Now(), refused.Load()
				for n := 0; time.Since(began) < time.Second; n++ {
					require.NoError(t, ask(t.Context(), other, n))
				}
				n := refused.Load() - before // before the time that it took
				most := float64(time.Since(began))/float64(pace.PerRefusal) + 3*sessions*inFlight
				assert.LessOrEqual(t, float64(n), most)

				ending, stop := context.WithTimeout(t.Context(), time.Minute)
				defer stop()
				assert.NoError(t, s.Shutdown(ending))
			})
		}
	}
}
