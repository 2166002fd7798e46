package skihttp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// hopeless asks until the answer is that the key server refuses this edge. The
// request's time is not what ends it.
func hopeless(t *testing.T, c *Client) {
	t.Helper()
	client := &ski.Client{Transports: []ski.Transport{c}, Timeout: 10 * time.Minute}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.ErrorIs(t, ask(ctx, client, 1), ski.ErrRefused)
}

// In TLS 1.3 the refusal comes in the place of an answer, in TLS 1.2 in the
// handshake.
func overEither(t *testing.T, f func(t *testing.T, change func(*Client))) {
	for name, most := range map[string]uint16{"TLS 1.3": tls.VersionTLS13, "TLS 1.2": tls.VersionTLS12} {
		t.Run(name, func(t *testing.T) { f(t, func(c *Client) { c.tls.MaxVersion = most }) })
		t.Run(name+", HTTP/1.1", func(t *testing.T) {
			f(t, func(c *Client) {
				c.tls.MaxVersion, c.tls.NextProtos = most, []string{"http/1.1"}
				c.transport.ForceAttemptHTTP2 = false
			})
		})
	}
}

func TestAnEdgeThatIsRefusedAnswersAtOnceAndAsksRarely(t *testing.T) {
	overEither(t, func(t *testing.T, change func(*Client)) {
		ca := newTestCA(t)
		var log logBuffer
		var asked atomic.Int64
		var open atomic.Bool
		s := serve(t, ca, ServerConfig{Admit: func(ski.Peer) error {
			if asked.Add(1); open.Load() {
				return nil
			}
			return errors.New("suspended")
		}})
		c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.Logger = log.logger() })
		change(c)
		began := time.Now()
		for range 300 {
			hopeless(t, c)
		}
		// Two at once, and one after half of 1 s, 2 s and so on at the soonest.
		most, soonest := int64(2), time.Second/2
		for waited := soonest; waited < time.Since(began); waited += soonest {
			most++
			soonest *= 2
		}
		assert.LessOrEqual(t, asked.Load(), most, "sessions")
		log.eventually(t, "the key server refuses this edge")

		open.Store(true)
		c.Retry()
		require.NoError(t, ask(t.Context(), c, 2), "it is let in again")
		log.eventually(t, "the key server lets this edge in again")
	})
}

func TestAnEdgeWhoseCertificateIsNotTakenAnswersAtOnce(t *testing.T) {
	overEither(t, func(t *testing.T, change func(*Client)) {
		ca := newTestCA(t)
		c := dialTo(t, serve(t, ca, ServerConfig{}), ca, func(cfg *ClientConfig) { cfg.Certificate = newTestCA(t).edge() })
		change(c)
		hopeless(t, c)
	})
}

// Many at once make as many connections as there may be; they count as one.
func TestManyRequestsOfARefusedEdgeEndAtOnce(t *testing.T) {
	ca := newTestCA(t)
	var asked atomic.Int64
	s := serve(t, ca, ServerConfig{Admit: func(ski.Peer) error {
		asked.Add(1)
		return errors.New("suspended")
	}})
	c := dialTo(t, s, ca)
	for range 20 {
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { hopeless(t, c) })
		}
		all.Wait()
	}
	assert.LessOrEqual(t, asked.Load(), int64(8*c.cfg.MaxConns), "sessions")
}

// The connection that was to show whether a refusal is over shows nothing if it is
// cut. The next one does not wait for the pause.
func TestAConnectionThatIsCutDoesNotProlongARefusal(t *testing.T) {
	overEither(t, func(t *testing.T, change func(*Client)) {
		ca := newTestCA(t)
		var s *Server
		var open, cut atomic.Bool
		s = serve(t, ca, ServerConfig{
			Admit: func(ski.Peer) error {
				if open.Load() {
					return nil
				}
				return errors.New("suspended")
			},
			Handler: ski.HandlerFunc(func(ctx context.Context, peer ski.Peer, req *ski.Request) *ski.Response {
				if !cut.Swap(true) {
					s.CloseSessions(net.ErrClosed, func(ski.Peer) bool { return true })
				}
				return echo(ctx, peer, req)
			}),
		})
		c := dialTo(t, s, ca)
		change(c)
		hopeless(t, c)
		open.Store(true)
		c.Retry()
		require.Error(t, ask(t.Context(), c, 1))
		require.True(t, cut.Load())
		require.NoError(t, ask(t.Context(), c, 2))
	})
}
