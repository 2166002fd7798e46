package skicoap

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// entrance is a key server's list of whom it lets in: everybody, or nobody.
type entrance struct {
	server *Server
	closed atomic.Bool
	asked  atomic.Int64
}

func (g *entrance) admit(ski.Peer) error {
	g.asked.Add(1)
	if g.closed.Load() {
		return errors.New("suspended")
	}
	return nil
}

// overEither runs a test over DTLS and over TLS.
func overEither(t *testing.T, f func(t *testing.T, ca *testCA, g *entrance, dial func(change ...func(*ClientConfig)) *Client)) {
	t.Run("coaps", func(t *testing.T) {
		ca, g := newTestCA(t), new(entrance)
		s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), Admit: g.admit})
		g.server = s
		f(t, ca, g, func(change ...func(*ClientConfig)) *Client { return dialTo(t, s, ca, change...) })
	})
	t.Run("coaps+tcp", func(t *testing.T) {
		ca, g := newTestCA(t), new(entrance)
		s := serveTCP(t, ca, func(cfg *ServerConfig) { cfg.Admit = g.admit })
		g.server = s
		f(t, ca, g, func(change ...func(*ClientConfig)) *Client { return dialTCP(t, s, ca, change...) })
	})
}

// hopeless asks until the answer is that the key server refuses this edge. The
// request's time is not what ends it.
func hopeless(t *testing.T, c *Client) {
	t.Helper()
	client := &ski.Client{Transports: []ski.Transport{c}, Timeout: 10 * time.Minute}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.ErrorIs(t, ask(ctx, client, 1), ski.ErrRefused)
}

func TestAnEdgeThatIsRefusedAnswersAtOnceAndAsksRarely(t *testing.T) {
	overEither(t, func(t *testing.T, ca *testCA, g *entrance, dial func(...func(*ClientConfig)) *Client) {
		var log logBuffer
		c := dial(func(cfg *ClientConfig) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		g.closed.Store(true)
		began := time.Now()
		for range 1000 {
			hopeless(t, c)
		}
		// Two at once, and one after half of 1 s, 2 s and so on at the soonest.
		most, soonest := int64(2), time.Second/2
		for waited := soonest; waited < time.Since(began); waited += soonest {
			most++
			soonest *= 2
		}
		assert.LessOrEqual(t, g.asked.Load(), most, "sessions")
		assert.Contains(t, log.String(), "the key server refuses this edge")

		g.closed.Store(false)
		c.Retry()
		require.NoError(t, ask(t.Context(), c, 2), "it is let in again")
		assert.Contains(t, log.String(), "the key server lets this edge in again")
	})
}

func TestAnEdgeWhoseCertificateIsNotTakenAnswersAtOnce(t *testing.T) {
	overEither(t, func(t *testing.T, _ *testCA, _ *entrance, dial func(...func(*ClientConfig)) *Client) {
		stranger := newTestCA(t).edge()
		hopeless(t, dial(func(cfg *ClientConfig) { cfg.Certificate = stranger }))
	})
}

func TestTheNextKeyServerIsAskedWhereOneRefuses(t *testing.T) {
	overEither(t, func(t *testing.T, _ *testCA, g *entrance, dial func(...func(*ClientConfig)) *Client) {
		refuses := dial()
		g.closed.Store(true)
		hopeless(t, refuses)
		other := ski.Direct(ski.HandlerFunc(echo), ski.Peer{})
		client := &ski.Client{Transports: []ski.Transport{refuses, other}, Timeout: 10 * time.Minute}
		assert.NoError(t, ask(t.Context(), client, 1))
	})
}

func TestSessionsThatHadAnswersAreNoRefusalHoweverManyEnd(t *testing.T) {
	overEither(t, func(t *testing.T, _ *testCA, g *entrance, dial func(...func(*ClientConfig)) *Client) {
		c := dial()
		for i := range 5 {
			require.NoError(t, ask(t.Context(), c, i))
			session := c.current
			g.server.CloseSessions(net.ErrClosed, func(ski.Peer) bool { return true }) // as at its end
			<-session.ended()
		}
		assert.EqualValues(t, 5, g.asked.Load())
	})
}

// A watch of ticket keys makes no more sessions than requests do.
func TestAWatchIsRefusedToo(t *testing.T) {
	overEither(t, func(t *testing.T, _ *testCA, g *entrance, dial func(...func(*ClientConfig)) *Client) {
		c := dial()
		g.closed.Store(true)
		hopeless(t, c)
		asked := g.asked.Load()
		err := c.WatchTickets(t.Context(), "a.test", func(*ski.TicketKeys) { t.Error("keys") })
		if g.asked.Load() == asked { // Otherwise its time had come.
			assert.ErrorIs(t, err, ski.ErrRefused)
		}
	})
}

// Who can only end a TCP connection cannot make a key server look like one that
// refuses this edge.
func TestAConnectionThatIsCutIsNoRefusal(t *testing.T) {
	ca := newTestCA(t)
	var relay *cutter
	s := serveTCP(t, ca, func(cfg *ServerConfig) {
		cfg.Handler = ski.HandlerFunc(func(ctx context.Context, _ ski.Peer, _ *ski.Request) *ski.Response {
			relay.cut()
			<-ctx.Done()
			return ski.Failed(ski.UnspecifiedError)
		})
	})
	relay = newCutter(t, s.Addr().String())
	c, err := NewClient("coaps+tcp://"+relay.listener.Addr().String(), ca.client())
	require.NoError(t, err)
	defer c.Close()
	for range 5 {
		err := ask(t.Context(), c, 1)
		require.ErrorIs(t, err, errCut)
		require.NotErrorIs(t, err, ski.ErrRefused)
	}
}

// cutter passes connections on until it ends them, as a load balancer does.
type cutter struct {
	listener net.Listener
	mu       sync.Mutex
	conns    []net.Conn
}

func newCutter(t *testing.T, to string) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &cutter{listener: l}
	var running sync.WaitGroup
	t.Cleanup(func() {
		assert.NoError(t, l.Close())
		c.cut()
		running.Wait()
	})
	running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if !assert.NoError(t, err) {
				return
			}
			c.mu.Lock()
			c.conns = append(c.conns, near, far)
			c.mu.Unlock()
			running.Go(func() { _, _ = io.Copy(near, far) })
			running.Go(func() { _, _ = io.Copy(far, near) })
		}
	})
	return c
}

// cut ends the connections, with FIN.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
}

// The session that was to show whether a refusal is over shows nothing if the
// network ends it. The next one does not wait for the pause.
func TestASessionThatTheNetworkEndsDoesNotProlongARefusal(t *testing.T) {
	overEither(t, func(t *testing.T, _ *testCA, g *entrance, dial func(...func(*ClientConfig)) *Client) {
		c := dial()
		g.closed.Store(true)
		hopeless(t, c)
		g.closed.Store(false)
		c.Retry()
		s, err := c.session(t.Context())
		require.NoError(t, err)
		s.close(errSilent)
		<-s.ended()
		_, err = c.session(t.Context())
		require.NoError(t, err)
	})
}

// A key server that cannot be reached when its time has come is tried again as
// soon as any other, and not after the next pause.
func TestAKeyServerThatIsGoneIsNoLongerOneThatRefuses(t *testing.T) {
	overEither(t, func(t *testing.T, _ *testCA, g *entrance, dial func(...func(*ClientConfig)) *Client) {
		c := dial()
		g.closed.Store(true)
		hopeless(t, c)
		require.NoError(t, g.server.Close())
		c.Retry()
		for range 3 {
			err := ask(t.Context(), c, 1)
			require.Error(t, err)
			assert.NotErrorIs(t, err, ski.ErrRefused)
		}
	})
}
