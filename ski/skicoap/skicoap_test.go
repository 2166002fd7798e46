package skicoap

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// echo answers each request with an answer of its own.
func echo(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
	sum := sha256.Sum256(req.Input)
	return &ski.Response{Output: sum[:]}
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// serve starts a key server at addr, after the changes, and stops it with the test.
func serve(t *testing.T, addr string, cfg ServerConfig, change ...func(*Server)) *Server {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	s, err := Listen(addr, cfg)
	require.NoError(t, err)
	for _, c := range change {
		c(s)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		assert.NoError(t, s.Close())
		assert.NoError(t, <-served)
	})
	return s
}

func dialTo(t *testing.T, s *Server, ca *testCA, change ...func(*ClientConfig)) *Client {
	t.Helper()
	cfg := ca.client()
	for _, c := range change {
		c(&cfg)
	}
	c, err := NewClient(fmt.Sprintf("coaps://%s/ski", s.Addr()), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return c
}

func request(n int) *ski.Request {
	return &ski.Request{Protocol: ski.TLS12, SPKI: ski.KeyID{1}, Input: fmt.Appendf(nil, "request %d", n)}
}

// ask sends request n and checks that the answer is its own.
func ask(ctx context.Context, tr ski.Transport, n int) error {
	req := request(n)
	resp, err := tr.RoundTrip(ctx, req)
	if err != nil {
		return err
	}
	if want := echo(ctx, ski.Peer{}, req); !bytes.Equal(resp.Output, want.Output) {
		return fmt.Errorf("request %d got the answer %+v of another", n, resp)
	}
	return nil
}

func TestARequestIsAnsweredToAnAuthenticatedPeer(t *testing.T) {
	ca := newTestCA(t)
	peers := make(chan ski.Peer, 1)
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			peers <- p
			return echo(ctx, p, req)
		}),
	})
	edge := ca.edge()
	c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate = edge })
	require.NoError(t, ask(t.Context(), c, 1))

	leaf, err := x509.ParseCertificate(edge.Certificate[0])
	require.NoError(t, err)
	p := <-peers
	assert.Equal(t, ski.CertificateKeyID(leaf), p.SPKI)
	assert.Equal(t, []string{"localhost"}, p.DNSNames)
	assert.Equal(t, "127.0.0.1", p.Addr.Addr().String())
}

func TestEachSKIErrorComesBackAsItself(t *testing.T) {
	ca := newTestCA(t)
	for _, e := range []ski.Error{ski.RequestDenied, ski.SPKINotFound, ski.MalformedRequest, ski.UnspecifiedError} {
		for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
			t.Run(fmt.Sprintf("%s in %s", e, f), func(t *testing.T) {
				s := serve(t, "127.0.0.1:0", ServerConfig{
					Certificate: ca.keyServer(), ClientCAs: ca.pool,
					Handler: ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
						return ski.Failed(e)
					}),
				})
				c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.Format = f })
				resp, err := c.RoundTrip(t.Context(), request(1))
				require.NoError(t, err)
				assert.Equal(t, e, resp.Error)
				assert.Zero(t, resp.RetryAfter)
			})
		}
	}
}

func TestALimitTellsWhenToComeBack(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
			return &ski.Response{Error: ski.RequestDenied, RetryAfter: 1500 * time.Millisecond}
		}),
	})
	resp, err := dialTo(t, s, ca).RoundTrip(t.Context(), request(1))
	require.NoError(t, err)
	assert.Equal(t, ski.RequestDenied, resp.Error)
	assert.Equal(t, 2*time.Second, resp.RetryAfter, "whole seconds, rounded up")
}

// Over DTLS and TLS alike, overload has a code of its own, and so a client knows it
// from a key server that is at fault; the message is the draft's.
func TestOverloadHasACodeOfItsOwn(t *testing.T) {
	ca := newTestCA(t)
	configure := func(cfg *ServerConfig) {
		cfg.Handler = ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
			return ski.Busy(1500 * time.Millisecond)
		})
	}
	cfg := ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool}
	configure(&cfg)
	for _, c := range []*Client{dialTo(t, serve(t, "127.0.0.1:0", cfg), ca), dialTCP(t, serveTCP(t, ca, configure), ca)} {
		resp, err := c.RoundTrip(t.Context(), request(1))
		require.NoError(t, err)
		assert.Equal(t, ski.Busy(2*time.Second), resp, "whole seconds, rounded up")
		s, err := c.session(t.Context())
		require.NoError(t, err)
		body, err := ski.EncodeRequest(ski.CBOR, request(1))
		require.NoError(t, err)
		a, err := s.exchange(t.Context(), "/ski", ski.CBOR, body)
		require.NoError(t, err)
		assert.Equal(t, codes.ServiceUnavailable, a.code)
		assert.EqualValues(t, 2, a.maxAge)
		assert.Equal(t, "\xa1\x65error\x71unspecified error", string(a.payload))
	}
}

// Whoever waits for a place of this client's own has not been failed by the key
// server.
func TestARequestThatFindsNoPlaceInTheClientSaysSo(t *testing.T) {
	ca := newTestCA(t)
	proceed, asked := make(chan struct{}), make(chan struct{}, 1)
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			asked <- struct{}{}
			<-proceed
			return echo(ctx, p, req)
		}),
	})
	c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.MaxInFlight = 1 })
	answered := make(chan error, 1)
	go func() { answered <- ask(t.Context(), c, 1) }()
	<-asked
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := c.RoundTrip(ctx, request(2))
	te := (*ski.TransportError)(nil)
	require.ErrorAs(t, err, &te)
	assert.Equal(t, "wait", te.Op)
	close(proceed)
	require.NoError(t, <-answered)
}

// The message comes first: an answer that is none of an overload is not made one by
// its code, and without a message there is no answer of a key server.
func TestAnotherErrorWithTheCodeOfOverloadIsThatError(t *testing.T) {
	for payload, want := range map[string]*ski.Response{
		"\xa1\x65error\x71unspecified error": ski.Busy(60 * time.Second), // RFC 7252, Section 5.10.5
		"\xa1\x65error\x6erequest denied":    ski.Failed(ski.RequestDenied),
		"\xa1\x66output\x41x":                nil,
		"":                                   nil,
	} {
		a := &answer{code: codes.ServiceUnavailable, format: message.AppCBOR, maxAge: defaultMaxAge, payload: []byte(payload)}
		resp, err := a.response()
		assert.Equal(t, want, resp)
		assert.Equal(t, want == nil, err != nil)
	}
}

func TestAPeerThatIsNotAuthenticatedGetsNoSession(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	for _, tc := range []struct {
		name string
		edge tls.Certificate
		why  string
	}{
		{"of another authority", other.edge(), "unknown authority"},
		{"expired", ca.issue(x509.ExtKeyUsageClientAuth, expired), "expired"},
		{"of a key server", ca.keyServer(), "incompatible key usage"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log logBuffer
			s := serve(t, "127.0.0.1:0", ServerConfig{
				Certificate: ca.keyServer(), ClientCAs: ca.pool,
				Logger: slog.New(slog.NewTextHandler(&log, nil)),
				Handler: ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
					t.Error("a request reached the handler")
					return ski.Failed(ski.UnspecifiedError)
				}),
			})
			c := dialTo(t, s, ca, func(cfg *ClientConfig) {
				cfg.Certificate, cfg.DialTimeout = tc.edge, 2*time.Second
			})
			_, err := c.RoundTrip(t.Context(), request(1))
			var te *ski.TransportError
			require.ErrorAs(t, err, &te)
			assert.Equal(t, "dial", te.Op)
			require.Eventually(t, func() bool { return strings.Count(log.String(), "\n") > 0 }, time.Minute, 10*time.Millisecond)
			assert.Contains(t, log.String(), "handshake failed")
			assert.Contains(t, log.String(), tc.why)
			assert.Equal(t, 1, strings.Count(log.String(), "\n"), "one log line: %s", log.String())
		})
	}
}

func TestAnEdgeDoesNotTalkToAnImpostor(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	otherName := func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{"elsewhere.example"}, nil }
	for name, cert := range map[string]tls.Certificate{
		"of another authority": other.keyServer(),
		"of an edge":           ca.edge(),
		"of another name":      ca.issue(x509.ExtKeyUsageServerAuth, otherName),
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, "127.0.0.1:0", ServerConfig{
				Certificate: cert, ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo),
			})
			_, err := dialTo(t, s, ca).RoundTrip(t.Context(), request(1))
			require.Error(t, err)
			assert.Contains(t, err.Error(), "x509")
		})
	}
}

func TestRequestsShareASessionWithoutWaitingForEachOther(t *testing.T) {
	ca := newTestCA(t)
	const n = 100
	arrived := make(chan struct{}, n)
	release := make(chan struct{})
	var peers sync.Map
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			peers.Store(p.Addr, true)
			arrived <- struct{}{}
			<-release // no answer before all requests are here
			return echo(ctx, p, req)
		}),
	})
	c := dialTo(t, s, ca)
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- ask(t.Context(), c, i) }()
	}
	for range n {
		<-arrived
	}
	close(release)
	for range n {
		require.NoError(t, <-errs)
	}
	sessions := 0
	peers.Range(func(any, any) bool { sessions++; return true })
	assert.Equal(t, 1, sessions)
}

func TestARetransmittedRequestIsExecutedOnce(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	var executed atomic.Int32
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			executed.Add(1)
			// Longer than several retransmission time-outs of the client.
			select {
			case <-time.After(2 * time.Second):
			case <-ctx.Done():
			}
			return echo(ctx, p, req)
		}),
	})
	require.NoError(t, ask(t.Context(), dialTo(t, s, ca), 1))
	assert.EqualValues(t, 1, executed.Load())
}

func TestADeadlineEndsARequestAtOnceAndLeavesNothing(t *testing.T) {
	ca := newTestCA(t)
	hang := make(chan struct{})
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			if string(req.Input) != "request 0" {
				<-hang
			}
			return echo(ctx, p, req)
		}),
	})
	c := dialTo(t, s, ca)
	require.NoError(t, ask(t.Context(), c, 0))
	before := runtime.NumGoroutine()

	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 50)
	for i := range 50 {
		go func() { errs <- ask(ctx, c, i+1) }()
	}
	require.Eventually(t, func() bool { return waiting(c) == 50 }, time.Minute, time.Millisecond)
	cancel()
	for range 50 {
		err := <-errs
		require.ErrorIs(t, err, context.Canceled)
		var te *ski.TransportError
		require.ErrorAs(t, err, &te)
	}
	assert.Zero(t, waiting(c), "tokens")
	close(hang)   // the 50 goroutines of the handler
	const few = 5 // that come and go with the session, not with the 50 requests
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+few }, time.Minute, time.Millisecond, "goroutines")
	require.NoError(t, ask(t.Context(), c, 0), "the session goes on")
}

func waiting(c *Client) int {
	c.mu.Lock()
	s := c.current.clientSide.(*clientSession)
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

func TestASessionIsMadeAgainAfterTheKeyServerRestarted(t *testing.T) {
	ca := newTestCA(t)
	cfg := ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), Logger: quiet}
	s, err := Listen("127.0.0.2:0", cfg) // whose ports no client's socket takes while it is gone
	require.NoError(t, err)
	go func() { _ = s.Serve() }()
	c := dialTo(t, s, ca)
	require.NoError(t, ask(t.Context(), c, 1))
	addr := s.Addr().String()
	require.NoError(t, s.Close())

	_, err = c.RoundTrip(t.Context(), request(2))
	require.Error(t, err, "nobody listens")

	serve(t, addr, cfg)
	client := &ski.Client{Transports: []ski.Transport{c}, Timeout: time.Minute}
	require.NoError(t, ask(t.Context(), client, 3))
}

func TestASilentKeyServerIsNoticed(t *testing.T) {
	ca := newTestCA(t)
	cfg := ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)}
	s := serve(t, "127.0.0.1:0", cfg)
	r := newRelay(t, s.Addr().String())
	c, err := NewClient("coaps://"+r.addr(), ClientConfig{
		Certificate: ca.edge(), RootCAs: ca.pool, Logger: quiet, DeadAfter: 300 * time.Millisecond,
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	patient := &ski.Client{Transports: []ski.Transport{c}, Timeout: time.Minute} // which asks again where it is this machine that is silent
	require.NoError(t, ask(t.Context(), patient, 1))

	r.drop.Store(true)
	_, err = c.RoundTrip(t.Context(), request(2))
	require.ErrorIs(t, err, errSilent)

	r.drop.Store(false)
	require.NoError(t, ask(t.Context(), patient, 3), "on a new session")
}

func TestLostDatagramsAreMadeUpFor(t *testing.T) {
	ca := newTestCA(t)
	var executed atomic.Int32
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			executed.Add(1)
			return echo(ctx, p, req)
		}),
	})
	r := newRelay(t, s.Addr().String())
	c, err := NewClient("coaps://"+r.addr(), ca.client())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, ask(t.Context(), c, 0))

	r.lossEvery.Store(7) // one datagram in seven, either way
	const n = 200
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- ask(t.Context(), c, i+1) }()
	}
	for range n {
		require.NoError(t, <-errs)
	}
	assert.EqualValues(t, n+1, executed.Load(), "each executed once")
}

func TestShutdownAnswersWhatIsInFlight(t *testing.T) {
	ca := newTestCA(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	s, err := Listen("127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Logger: quiet,
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			close(arrived)
			<-release
			return echo(ctx, p, req)
		}),
	})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	c := dialTo(t, s, ca)
	answered := make(chan error, 1)
	go func() { answered <- ask(t.Context(), c, 1) }()
	<-arrived
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(t.Context()) }()
	require.Eventually(t, s.stopping, time.Minute, time.Millisecond)
	close(release)
	require.NoError(t, <-answered)
	require.NoError(t, <-stopped)
	require.NoError(t, <-served)
}

func TestShutdownDoesNotWaitLongerThanItsContext(t *testing.T) {
	ca := newTestCA(t)
	arrived := make(chan struct{})
	s, err := Listen("127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Logger: quiet,
		Handler: ski.HandlerFunc(func(ctx context.Context, _ ski.Peer, _ *ski.Request) *ski.Response {
			close(arrived)
			<-ctx.Done()
			return ski.Failed(ski.UnspecifiedError)
		}),
	})
	require.NoError(t, err)
	go func() { _ = s.Serve() }()
	c := dialTo(t, s, ca)
	go func() { _, _ = c.RoundTrip(t.Context(), request(1)) }()
	<-arrived
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Shutdown(ctx), context.DeadlineExceeded)
}

func TestASessionEndsWithThePeersCertificate(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo),
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	var c *Client
	// Longer, where the handshake has not been done in time.
	for life := 2 * time.Second; ; life *= 2 {
		soon := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(life) }
		c = dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate = ca.issue(x509.ExtKeyUsageClientAuth, soon) })
		err := ask(t.Context(), c, 1)
		if err == nil {
			break
		}
		require.Less(t, life, 30*time.Second, "%v", err)
	}
	require.Eventually(t, func() bool { return strings.Contains(log.String(), `reason="`+errExpired.Error()) }, 2*time.Minute, 20*time.Millisecond)
	_, err := c.RoundTrip(t.Context(), request(2))
	require.Error(t, err)
}

func TestAClosedClientRefuses(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	c := dialTo(t, s, ca)
	require.NoError(t, ask(t.Context(), c, 1))
	require.NoError(t, c.Close())
	_, err := c.RoundTrip(t.Context(), request(2))
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestConfigurationIsCheckedBeforeUse(t *testing.T) {
	ca := newTestCA(t)
	good := ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool}
	for url, want := range map[string]string{
		"coap://host/ski":       "the scheme is coaps",
		"coaps:///ski":          "the host is missing",
		"coaps://host/ski?a=b":  "only host, port and path",
		"coaps://host/a//b":     "unusable segment",
		"coaps://host:port/ski": "invalid port",
		"coaps://host:65536":    "there is no such port",
	} {
		_, err := NewClient(url, good)
		assert.ErrorContains(t, err, want, url)
	}
	_, err := NewClient("coaps://host", ClientConfig{RootCAs: ca.pool})
	assert.ErrorContains(t, err, "mutually authenticated")
	_, err = NewClient("coaps://host", ClientConfig{Certificate: ca.edge()})
	assert.ErrorContains(t, err, "RootCAs")
	_, err = Listen("127.0.0.1:0", ServerConfig{Certificate: ca.keyServer()})
	assert.ErrorContains(t, err, "Handler and ClientCAs")
	_, err = Listen("127.0.0.1:notaport", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	assert.Error(t, err)
}
