package skicoap

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// through returns a client whose datagrams go through a relay to s.
func through(t *testing.T, s *Server, ca *testCA, change ...func(*ClientConfig)) (*Client, *relay) {
	t.Helper()
	r := newRelay(t, s.Addr().String())
	cfg := ca.client()
	for _, c := range change {
		c(&cfg)
	}
	c, err := NewClient("coaps://"+r.addr(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return c, r
}

// askMany sends n requests, workers of them at a time, and returns how long
// each took, the shortest first.
func askMany(t *testing.T, c *Client, n, workers int) []time.Duration {
	t.Helper()
	took := make([]time.Duration, n)
	errs := make(chan error, workers)
	for w := range workers {
		go func() {
			for i := w; i < n; i += workers {
				began := time.Now()
				if err := askLong(t.Context(), c, longRequest(i, 100, 72)); err != nil {
					errs <- err
					return
				}
				took[i] = time.Since(began)
			}
			errs <- nil
		}()
	}
	for range workers {
		require.NoError(t, <-errs)
	}
	slices.Sort(took)
	return took
}

func TestRequestsOverABadNetworkAreEachExecutedOnceAndAnswered(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	for name, f := range map[string]faults{
		"5% lost each way":      {lost: 0.05},
		"doubled and reordered": {doubled: 0.3, held: 0.3},
		"all of it":             {lost: 0.05, doubled: 0.1, held: 0.2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var handler longEcho
			s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: &handler})
			c, r := through(t, s, ca, func(cfg *ClientConfig) { cfg.DeadAfter = time.Minute })
			const roundTrip = 50 * time.Millisecond
			f.delay = roundTrip / 2
			r.faults.Store(&faults{delay: f.delay})
			require.NoError(t, ask(t.Context(), c, 0)) // the handshake
			first, before := c.current, r.up.Load()
			r.faults.Store(&f)
			const n = 2000
			took := askMany(t, c, n, 100)
			handler.assertOnce(t, 1+n)
			assert.Same(t, first, c.current, "on one session")
			t.Logf("round trips: p50 %.2f, p99 %.2f, the longest %.2f; %.3f datagrams for each request",
				float64(took[n/2])/float64(roundTrip), float64(took[n*99/100])/float64(roundTrip),
				float64(took[n-1])/float64(roundTrip), float64(r.up.Load()-before)/n)
		})
	}
}

// Without connection IDs the server would know the client by its port only.
func TestASessionOutlivesANewPortOfTheClient(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	var handler longEcho
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: &handler})
	c, r := through(t, s, ca)
	require.NoError(t, ask(t.Context(), c, 0))
	first := c.current
	for i := range 5 {
		r.rebind()
		require.NoError(t, askLong(t.Context(), c, longRequest(i, 3000, 3000)), "in blocks too")
	}
	for i := range 20 { // with a request under way
		rebound := make(chan struct{})
		go func() { r.rebind(); close(rebound) }()
		require.NoError(t, askLong(t.Context(), c, longRequest(i, 50, 40)))
		<-rebound
	}
	assert.Same(t, first, c.current)
	assert.Len(t, s.all(), 1)
	assert.EqualValues(t, 1, r.hellos.Load(), "handshakes")
}

func TestARestartOfTheKeyServerCostsOneHandshake(t *testing.T) {
	ca := newTestCA(t)
	cfg := ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), Logger: quiet}
	s, err := Listen("127.0.0.2:0", cfg) // whose ports no client's socket takes while it is gone
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	c, r := through(t, s, ca)
	require.NoError(t, ask(t.Context(), c, 0))
	require.EqualValues(t, 1, r.hellos.Load())

	addr := s.Addr().String()
	first := c.current
	require.NoError(t, s.Close())
	require.NoError(t, <-served)
	require.Eventually(t, func() bool { return !first.alive() }, time.Minute, time.Millisecond, "it was told")
	serve(t, addr, cfg)
	client := &ski.Client{Transports: []ski.Transport{c}, Timeout: time.Minute}
	var asking sync.WaitGroup
	for i := range 50 {
		asking.Go(func() { assert.NoError(t, ask(t.Context(), client, i)) })
	}
	asking.Wait()
	assert.EqualValues(t, 2, r.hellos.Load(), "handshakes")
}

// What CoAP itself refuses is in the log, and no more of it than a few lines.
func TestBadRequestsAreLogged(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Handler: ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
			t.Error("a request reached the handler")
			return ski.Failed(ski.UnspecifiedError)
		}),
	})
	p := newRawPeer(t, s, ca)
	began := time.Now()
	for i, m := range badRequests() {
		m.Type, m.MessageID, m.Token = 0, int32(i), []byte{1}
		p.ask(m)
	}
	for _, want := range []string{"4.15", "4.05", "4.04", "4.02", "4.08"} {
		assert.Contains(t, log.String(), want)
	}
	for i := range 500 {
		m := badRequests()[0]
		m.Type, m.MessageID, m.Token = 0, int32(i), []byte{2}
		p.ask(m)
	}
	lines := strings.Count(log.String(), "request refused") // before the time that they took
	assert.Less(t, float64(lines), 100+10*time.Since(began).Seconds(), "ten a second")
	s.tidy(time.Now())
	assert.Contains(t, log.String(), "more requests were refused")
}

// A peer that has shown its address and goes no further is given up, and
// leaves nothing.
func TestAHandshakeThatStandsStillIsGivenUp(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo),
		Logger: slog.New(slog.NewTextHandler(&log, nil)), HandshakeTimeout: 300 * time.Millisecond,
	})
	in := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.DialTimeout = time.Second })
	require.NoError(t, ask(t.Context(), &ski.Client{Transports: []ski.Transport{in}, Timeout: time.Minute}, 0))
	before := runtime.NumGoroutine()
	const peers = 30
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, peers)
	for range peers {
		r := newRelay(t, s.Addr().String())
		r.upMost.Store(2) // ClientHello, and again with the cookie
		conn, err := dtls.DialWithOptions("udp", r.front.LocalAddr().(*net.UDPAddr),
			dtls.WithCertificates(ca.edge()), dtls.WithRootCAs(ca.pool), dtls.WithServerName("localhost"))
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		go func() { ended <- conn.HandshakeContext(ctx) }()
	}
	open := func() int {
		s.mux.mu.Lock()
		defer s.mux.mu.Unlock()
		return s.mux.strangers.Len() + s.mux.familiar.Len()
	}
	require.Eventually(t, func() bool { return open() > 0 }, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool { return open() == 0 && strings.Contains(log.String(), "handshake failed") }, time.Minute, 10*time.Millisecond)
	cancel()
	for range peers {
		require.Error(t, <-ended)
	}
	const each = 2 // goroutines of a relay, which live as long as the test
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+peers*each+5 }, time.Minute, 10*time.Millisecond, "goroutines")
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	assert.Len(t, s.mux.byAddr, 1)
	assert.Len(t, s.mux.byCID, 1)
	assert.LessOrEqual(t, strings.Count(log.String(), "handshake failed"), 30)
}
