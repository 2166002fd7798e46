package skihttp

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/pace"
)

// An edge that is over its limit is read no faster than it may ask, however many
// connections it has and whatever it asks: others are served meanwhile, and a
// shutdown does not wait for it.
func TestAPeerOverItsLimitIsReadNoFaster(t *testing.T) {
	ca := newTestCA(t)
	greedy := ca.edge()
	leaf, err := x509.ParseCertificate(greedy.Certificate[0])
	require.NoError(t, err)
	var refused atomic.Int64
	for name, change := range map[string]func(*http.Request){
		"a limit refuses":       nil,
		"there is no such path": func(r *http.Request) { r.URL.Path = "/other" },
	} {
		for version := 1; version <= 2; version++ {
			t.Run(name, func(t *testing.T) {
				refused.Store(0)
				s := serve(t, ca, ServerConfig{
					Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
						if p.SPKI == ski.CertificateKeyID(leaf) {
							return &ski.Response{Error: ski.RequestDenied, RetryAfter: time.Hour, Slow: time.Hour}
						}
						return echo(ctx, p, req)
					}),
				})
				ctx, cancel := context.WithCancel(t.Context())
				var flood sync.WaitGroup
				defer flood.Wait()
				defer cancel()
				const connections, inFlight = 4, 16
				for range connections {
					c := httpClient(t, ca, version)
					c.Transport.(*http.Transport).TLSClientConfig.Certificates[0] = greedy
					c.Transport.(*http.Transport).MaxConnsPerHost = 4
					for range inFlight {
						flood.Go(func() { refusedUntil(ctx, c, s, change, &refused) })
					}
				}
				other := dialTo(t, s, ca)
				require.Eventually(t, func() bool { return refused.Load() > 0 }, time.Minute, time.Millisecond)
				began, before := time.Now(), refused.Load()
				for n := 0; time.Since(began) < time.Second; n++ {
					require.NoError(t, ask(t.Context(), other, n))
				}
				n := refused.Load() - before // before the time that it took
				most := float64(time.Since(began))/float64(pace.PerRefusal) + 3*connections*inFlight
				assert.LessOrEqual(t, float64(n), most)
				assert.Positive(t, refused.Load())

				ending, stop := context.WithTimeout(t.Context(), time.Minute)
				defer stop()
				assert.NoError(t, s.Shutdown(ending))
			})
		}
	}
}

// refusedUntil asks, and counts the answers, until ctx ends.
func refusedUntil(ctx context.Context, c *http.Client, s *Server, change func(*http.Request), refused *atomic.Int64) {
	body, _ := ski.EncodeRequest(ski.CBOR, request(1))
	for ctx.Err() == nil {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("https://%s/ski", s.Addr()), bytes.NewReader(body))
		if err != nil {
			return
		}
		r.Header.Set("Content-Type", ski.CBOR.MediaType())
		if change != nil {
			change(r)
		}
		resp, err := c.Do(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		refused.Add(1)
	}
}
