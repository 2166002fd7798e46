package skihttp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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

// eventually waits until the log has a text.
func (l *logBuffer) eventually(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(l.String(), text) }, time.Minute, 5*time.Millisecond,
		"the log has no %q", text)
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// serve starts a key server and stops it with the test.
func serve(t *testing.T, ca *testCA, cfg ServerConfig) *Server {
	t.Helper()
	return serveAt(t, "127.0.0.1:0", ca, cfg)
}

// apart is where a key server has a port that nobody else takes when it is gone.
const apart = "127.0.0.2:0"

func serveAt(t *testing.T, addr string, ca *testCA, cfg ServerConfig) *Server {
	t.Helper()
	defaults(&cfg.Logger, quiet)
	if cfg.Handler == nil {
		cfg.Handler = ski.HandlerFunc(echo)
	}
	if cfg.Certificate.PrivateKey == nil {
		cfg.Certificate = ca.keyServer()
	}
	cfg.ClientCAs = ca.pool
	s, err := Listen(addr, cfg)
	require.NoError(t, err)
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
	// It waits for a machine that is busy with other tests.
	cfg := ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, Logger: quiet, DialTimeout: time.Minute, DeadAfter: time.Minute}
	for _, c := range change {
		c(&cfg)
	}
	c, err := NewClient(fmt.Sprintf("https://%s/ski", s.Addr()), cfg)
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

// httpClient is a client that is not ours: it speaks HTTP version 1 or 2 with an
// edge's certificate.
func httpClient(t *testing.T, ca *testCA, version int) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(version == 1)
	protocols.SetHTTP2(version == 2)
	tr := &http.Transport{
		TLSClientConfig:    &tls.Config{Certificates: []tls.Certificate{ca.edge()}, RootCAs: ca.pool},
		Protocols:          protocols,
		DisableCompression: true,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestARequestIsAnsweredToAnAuthenticatedPeer(t *testing.T) {
	ca := newTestCA(t)
	peers := make(chan ski.Peer, 1)
	s := serve(t, ca, ServerConfig{
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			peers <- p
			return echo(ctx, p, req)
		}),
	})
	edge := ca.edge()
	leaf, err := x509.ParseCertificate(edge.Certificate[0])
	require.NoError(t, err)
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate, cfg.Format = edge, f })
		require.NoError(t, ask(t.Context(), c, 1))
		p := <-peers
		assert.Equal(t, ski.CertificateKeyID(leaf), p.SPKI)
		assert.Equal(t, []string{"localhost"}, p.DNSNames)
		assert.Equal(t, "127.0.0.1", p.Addr.Addr().String())
	}
}

func TestEachAnswerHasItsStatus(t *testing.T) {
	ca := newTestCA(t)
	var next atomic.Pointer[ski.Response]
	s := serve(t, ca, ServerConfig{
		Handler: ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
			r := *next.Load()
			r.Output = bytes.Clone(r.Output)
			return &r
		}),
	})
	url := fmt.Sprintf("https://%s/ski", s.Addr())
	for _, tc := range []struct {
		resp       ski.Response
		status     int
		retryAfter string
	}{
		{ski.Response{Output: []byte("signature")}, 200, ""},
		{ski.Response{Error: ski.MalformedRequest}, 400, ""},
		{ski.Response{Error: ski.RequestDenied}, 403, ""},
		{ski.Response{Error: ski.RequestDenied, RetryAfter: 1500 * time.Millisecond}, 429, "2"},
		{ski.Response{Error: ski.SPKINotFound}, 404, ""},
		{ski.Response{Error: ski.UnspecifiedError}, 500, ""},
		{*ski.Busy(1500 * time.Millisecond), 503, "2"},
	} {
		next.Store(&tc.resp)
		for _, version := range []int{1, 2} {
			for _, method := range []string{"POST", "PUT"} {
				for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
					body, err := ski.EncodeRequest(f, request(1))
					require.NoError(t, err)
					req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
					require.NoError(t, err)
					req.Header.Set("Content-Type", f.MediaType())
					got, err := httpClient(t, ca, version).Do(req)
					require.NoError(t, err)
					data, err := io.ReadAll(got.Body)
					require.NoError(t, err)
					got.Body.Close()
					assert.Equal(t, version, got.ProtoMajor)
					assert.Equal(t, tc.status, got.StatusCode)
					assert.Equal(t, tc.retryAfter, got.Header.Get("Retry-After"))
					assert.Equal(t, f.MediaType(), got.Header.Get("Content-Type"))
					assert.Equal(t, "no-store", got.Header.Get("Cache-Control"))
					resp, err := ski.DecodeResponse(f, data)
					require.NoError(t, err)
					assert.Equal(t, tc.resp.Error, resp.Error)
					assert.Equal(t, tc.resp.Output, resp.Output)
				}
			}
		}
		resp, err := dialTo(t, s, ca).RoundTrip(t.Context(), request(1))
		require.NoError(t, err)
		assert.Equal(t, tc.resp.Error, resp.Error)
		assert.Equal(t, tc.resp.Overloaded, resp.Overloaded)
		assert.Equal(t, wholeSeconds(tc.resp.RetryAfter), uint64(resp.RetryAfter/time.Second))
	}
}

func TestAcceptChoosesTheFormatOfTheAnswer(t *testing.T) {
	const cbor, json = "application/cbor", "application/json"
	for _, tc := range []struct {
		accept string
		want   string // "" for 406; of a request in CBOR
	}{
		{"", cbor}, {"*/*", cbor}, {"application/*", cbor}, {json, json}, {cbor, cbor},
		{"application/json, application/cbor", cbor},
		{"application/json, application/cbor;q=0.9", json},
		{"application/cbor;q=0.1, */*;q=0.2", json},
		{"application/cbor;q=0.1, application/*;q=0.1", cbor},
		{"*/*;q=0", ""}, {"application/cbor;q=0, */*", json}, {"application/cbor;q=0", ""},
		{"text/html, application/xhtml+xml", ""}, {"text/html, */*;q=0.1", cbor},
		{"Application/JSON; charset=utf-8", json}, {"nonsense", ""},
		{"application/json;q=2, application/cbor;q=0.5", cbor},
	} {
		out, ok := negotiate([]string{tc.accept}, ski.CBOR)
		assert.Equal(t, tc.want != "", ok, tc.accept)
		if ok {
			assert.Equal(t, tc.want, out.MediaType(), tc.accept)
		}
	}
	out, ok := negotiate([]string{"text/html", "application/*"}, ski.JSON)
	assert.True(t, ok)
	assert.Equal(t, ski.JSON, out)

	ca := newTestCA(t)
	s := serve(t, ca, ServerConfig{})
	for _, in := range []ski.Format{ski.CBOR, ski.JSON} {
		for _, want := range []ski.Format{ski.CBOR, ski.JSON} {
			body, err := ski.EncodeRequest(in, request(7))
			require.NoError(t, err)
			req, err := http.NewRequestWithContext(t.Context(), "POST", fmt.Sprintf("https://%s/ski", s.Addr()), bytes.NewReader(body))
			require.NoError(t, err)
			req.Header.Set("Content-Type", in.MediaType())
			req.Header.Set("Accept", want.MediaType())
			got, err := httpClient(t, ca, 2).Do(req)
			require.NoError(t, err)
			data, err := io.ReadAll(got.Body)
			require.NoError(t, err)
			got.Body.Close()
			assert.Equal(t, want.MediaType(), got.Header.Get("Content-Type"))
			resp, err := ski.DecodeResponse(want, data)
			require.NoError(t, err)
			assert.Equal(t, echo(t.Context(), ski.Peer{}, request(7)).Output, resp.Output)
		}
	}
}

func TestRequestsShareOneSession(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, ca, ServerConfig{
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			time.Sleep(time.Millisecond)
			return echo(ctx, p, req)
		}),
	})
	c := dialTo(t, s, ca)
	require.NoError(t, ask(t.Context(), c, 0))
	var wg sync.WaitGroup
	for n := range 400 {
		wg.Go(func() { assert.NoError(t, ask(t.Context(), c, n)) })
	}
	wg.Wait()
	assert.LessOrEqual(t, len(s.Peers()), 3)
}

func TestAClientThatBeginsWithManyRequestsIsAnswered(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, ca, ServerConfig{})
	c := dialTo(t, s, ca)
	var wg sync.WaitGroup
	for n := range 300 {
		wg.Go(func() { assert.NoError(t, ask(t.Context(), c, n)) })
	}
	wg.Wait()
	assert.LessOrEqual(t, len(s.Peers()), 8)
}

func TestPeersThatAreNotTrustedGetNoSession(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	var log logBuffer
	var asked atomic.Int64
	s := serve(t, ca, ServerConfig{
		Logger: log.logger(),
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			asked.Add(1)
			return echo(ctx, p, req)
		}),
		Admit: func(p ski.Peer) error {
			if p.Certificate.Subject.CommonName == "stranger" {
				return errors.New("the policy does not know the peer")
			}
			return nil
		},
	})
	for name, tc := range map[string]struct {
		cert tls.Certificate
		want string
	}{
		"another authority": {other.edge(), "unknown authority"},
		"a key server's":    {ca.keyServer(), "certificate specifies an incompatible key usage"},
		"no usage":          {ca.issue(x509.ExtKeyUsageClientAuth, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), "lacks the extended key usage"},
		"expired":           {ca.issue(x509.ExtKeyUsageClientAuth, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "has expired"},
		"not admitted":      {ca.issue(x509.ExtKeyUsageClientAuth, func(c *x509.Certificate) { c.Subject.CommonName = "stranger" }), "the policy does not know the peer"},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate = tc.cert })
			_, err := c.RoundTrip(t.Context(), request(1))
			te := (*ski.TransportError)(nil)
			require.ErrorAs(t, err, &te)
			log.eventually(t, tc.want)
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool}}
		defer tr.CloseIdleConnections()
		_, err := (&http.Client{Transport: tr}).Get(fmt.Sprintf("https://%s/ski", s.Addr()))
		require.Error(t, err)
		log.eventually(t, "client didn't provide a certificate")
	})
	t.Run("no certificate, and slow", func(t *testing.T) {
		c, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{RootCAs: ca.pool})
		require.NoError(t, err, "in TLS 1.3 the client is done first")
		defer c.Close()
		time.Sleep(1500 * time.Millisecond) // a busy machine
		for range 2 {
			_, err = io.WriteString(c, "GET /ski HTTP/1.1\r\nHost: key.server\r\n\r\n")
			require.NoError(t, err)
		}
		_, err = c.Read(make([]byte, 1))
		require.ErrorContains(t, err, "certificate required")
	})
	t.Run("TLS 1.1", func(t *testing.T) {
		_, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{
			MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, Certificates: []tls.Certificate{ca.edge()}, RootCAs: ca.pool,
		})
		require.ErrorContains(t, err, "protocol version")
	})
	t.Run("CBC", func(t *testing.T) {
		_, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{
			MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA},
			Certificates: []tls.Certificate{ca.edge()}, RootCAs: ca.pool,
		})
		require.ErrorContains(t, err, "handshake failure")
	})
	assert.Zero(t, asked.Load())
	assert.Empty(t, s.Peers())
}

func TestAKeyServerThatIsNotTrustedIsAPermanentError(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	for name, tc := range map[string]struct {
		cert tls.Certificate
		name string
		want string
	}{
		"another authority": {other.keyServer(), "", "unknown authority"},
		"another name":      {ca.keyServer(), "ks-2.example", "not ks-2.example"},
		"an edge's":         {ca.edge(), "", "incompatible key usage"},
		"no usage":          {ca.issue(x509.ExtKeyUsageServerAuth, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), "", "lacks the extended key usage"},
	} {
		t.Run(name, func(t *testing.T) {
			var log logBuffer
			s := serve(t, ca, ServerConfig{Certificate: tc.cert})
			c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.ServerName, cfg.Logger = tc.name, log.logger() })
			for range 3 {
				_, err := c.RoundTrip(t.Context(), request(1))
				te := (*ski.TransportError)(nil)
				require.ErrorAs(t, err, &te)
				assert.True(t, te.Permanent)
				assert.Equal(t, "dial", te.Op)
				assert.ErrorContains(t, err, tc.want)
			}
			assert.Contains(t, log.String(), "no session")
		})
	}
}

func TestADenialEndsLiveSessions(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	entered := make(chan struct{})
	s := serve(t, ca, ServerConfig{
		Logger: log.logger(),
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			if string(req.Input) == "request 2" {
				close(entered)
				<-ctx.Done()
			}
			return echo(ctx, p, req)
		}),
	})
	c := dialTo(t, s, ca)
	require.NoError(t, ask(t.Context(), c, 1))
	require.Len(t, s.Peers(), 1)
	failed := make(chan error, 1)
	go func() { failed <- ask(t.Context(), c, 2) }()
	<-entered
	mine := s.Peers()[0].SPKI
	assert.Zero(t, s.CloseSessions(errors.New("x"), func(p ski.Peer) bool { return p.SPKI != mine }))
	assert.Equal(t, 1, s.CloseSessions(errors.New("the edge is cut off"), func(p ski.Peer) bool { return p.SPKI == mine }))
	assert.Error(t, <-failed)
	log.eventually(t, `reason="the edge is cut off"`)
	require.Eventually(t, func() bool { return s.InFlight() == 0 }, time.Minute, time.Millisecond)
	require.NoError(t, ask(t.Context(), c, 3), "a new session")
}

func TestASessionEndsWithItsCertificate(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, ca, ServerConfig{Logger: log.logger()})
	// Longer, where the handshake has not been done in time.
	for life := 2 * time.Second; ; life *= 2 {
		c := dialTo(t, s, ca, func(cfg *ClientConfig) {
			cfg.Certificate = ca.issue(x509.ExtKeyUsageClientAuth, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(life) })
		})
		err := ask(t.Context(), c, 1)
		if err == nil {
			break
		}
		require.Less(t, life, 30*time.Second, "%v", err)
	}
	log.eventually(t, `reason="the peer's certificate has expired"`)
	require.Eventually(t, func() bool { return len(s.Peers()) == 0 }, time.Minute, time.Millisecond, "which is logged before")
}

func TestShutdownAnswersWhatIsInFlight(t *testing.T) {
	ca := newTestCA(t)
	for _, version := range []int{1, 2} {
		entered, proceed := make(chan struct{}), make(chan struct{})
		s := serveAt(t, apart, ca, ServerConfig{
			Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
				close(entered)
				<-proceed
				return echo(ctx, p, req)
			}),
		})
		// One that has asked for nothing does not hold it up.
		idle, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{Certificates: []tls.Certificate{ca.edge()}, RootCAs: ca.pool})
		require.NoError(t, err)
		defer idle.Close()
		answered := make(chan string, 1)
		go func() {
			body, _ := ski.EncodeRequest(ski.JSON, request(1))
			resp, err := httpClient(t, ca, version).Post(fmt.Sprintf("https://%s/ski", s.Addr()), "application/json", bytes.NewReader(body))
			if err != nil {
				answered <- err.Error()
				return
			}
			data, _ := io.ReadAll(resp.Body)
			answered <- string(data)
		}()
		<-entered
		stopped := make(chan error, 1)
		go func() { stopped <- s.Shutdown(t.Context()) }()
		require.Eventually(t, func() bool {
			_, err := net.Dial("tcp", s.Addr().String())
			return err != nil
		}, time.Minute, time.Millisecond)
		close(proceed)
		assert.Contains(t, <-answered, `{"output":`)
		require.NoError(t, <-stopped)
		assert.Empty(t, s.Peers())
	}
}

func TestShutdownThatRunsOutOfTimeSaysSo(t *testing.T) {
	ca := newTestCA(t)
	entered := make(chan struct{})
	s := serve(t, ca, ServerConfig{
		Handler: ski.HandlerFunc(func(ctx context.Context, _ ski.Peer, _ *ski.Request) *ski.Response {
			close(entered)
			<-ctx.Done()
			return ski.Failed(ski.UnspecifiedError)
		}),
	})
	c := dialTo(t, s, ca)
	failed := make(chan error, 1)
	go func() { failed <- ask(t.Context(), c, 1) }()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Shutdown(ctx), context.Canceled)
	require.Error(t, <-failed)
}

func TestAPanicCostsOneRequest(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, ca, ServerConfig{
		Logger:  log.logger(),
		Handler: ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response { panic("bug") }),
	})
	c := dialTo(t, s, ca)
	for range 2 {
		resp, err := c.RoundTrip(t.Context(), request(1))
		require.NoError(t, err)
		assert.Equal(t, ski.UnspecifiedError, resp.Error)
	}
	assert.Contains(t, log.String(), "panic in the handler")
	assert.Len(t, s.Peers(), 1)
}

// The answers of key servers that are not ours.
func TestTheBodyCountsBeforeTheStatus(t *testing.T) {
	ca := newTestCA(t)
	type reply struct {
		status             int
		contentType, body  string
		header, headerText string
	}
	var next atomic.Pointer[reply]
	foreign := foreignServer(t, ca, func(w http.ResponseWriter, _ *http.Request) {
		r := next.Load()
		w.Header().Set("Content-Type", r.contentType)
		if r.header != "" {
			w.Header().Set(r.header, r.headerText)
		}
		w.WriteHeader(r.status)
		_, _ = io.WriteString(w, r.body)
	})
	c, err := NewClient(foreign, ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, Logger: quiet, DialTimeout: time.Minute, DeadAfter: time.Minute, Format: ski.JSON})
	require.NoError(t, err)
	defer c.Close()
	const json = "application/json"
	for _, tc := range []struct {
		reply
		want  ski.Error
		retry time.Duration
		err   string
		more  bool // worth another attempt
	}{
		{reply{200, json, `{"output":"AQ=="}`, "", ""}, "", 0, "", false},
		{reply{201, json + ";charset=utf-8", `{"output":"AQ=="}` + "\n", "", ""}, "", 0, "", false},
		{reply{200, json, `{"error":"request denied"}`, "", ""}, ski.RequestDenied, 0, "", false},
		{reply{404, json, `{"error":"request denied"}`, "", ""}, ski.RequestDenied, 0, "", false},
		{reply{429, json, `{"error":"request denied"}`, "Retry-After", "7"}, ski.RequestDenied, 7 * time.Second, "", false},
		{reply{429, json, `{"error":"request denied"}`, "Retry-After", "soon"}, ski.RequestDenied, 0, "", false},
		{reply{500, json, `{"output":"AQ=="}`, "", ""}, "", 0, "500 Internal Server Error with an output", true},
		{reply{404, "text/html", `<h1>404</h1>`, "", ""}, "", 0, "404 Not Found without an SKI message: is the path right?", false},
		{reply{502, "text/html", `<h1>502</h1>`, "", ""}, "", 0, "502 Bad Gateway without an SKI message", true},
		{reply{200, json, ``, "", ""}, "", 0, "200 OK without an SKI message", false},
		{reply{200, json, `{}`, "", ""}, "", 0, "200 OK: ski: malformed message", false},
		{reply{307, json, ``, "Location", "/elsewhere"}, "", 0, "307 Temporary Redirect without an SKI message", false},
		{reply{200, json, strings.Repeat(" ", ski.MaxMessageSize+1), "", ""}, "", 0, "more than 4096 bytes", true},
	} {
		next.Store(&tc.reply)
		resp, err := c.RoundTrip(t.Context(), request(1))
		if tc.err != "" {
			te := (*ski.TransportError)(nil)
			require.ErrorAs(t, err, &te, tc.reply)
			assert.ErrorContains(t, err, tc.err)
			assert.Equal(t, !tc.more, te.Permanent, tc.reply)
			continue
		}
		require.NoError(t, err, tc.reply)
		assert.Equal(t, tc.want, resp.Error)
		assert.Equal(t, tc.retry, resp.RetryAfter)
	}
}

// foreignServer is an HTTPS server that is not ours, and returns its URL.
func foreignServer(t *testing.T, ca *testCA, h http.HandlerFunc) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{ca.keyServer()}, ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	require.NoError(t, err)
	server := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(quiet.Handler(), slog.LevelInfo)}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return "https://" + l.Addr().String()
}

func TestTheContextEndsARequestAtOnce(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, ca, ServerConfig{
		Handler: ski.HandlerFunc(func(ctx context.Context, _ ski.Peer, _ *ski.Request) *ski.Response {
			<-ctx.Done()
			return ski.Failed(ski.UnspecifiedError)
		}),
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := dialTo(t, s, ca).RoundTrip(ctx, request(1))
	te := (*ski.TransportError)(nil)
	require.ErrorAs(t, err, &te)
	assert.True(t, te.Timeout())
	assert.False(t, te.Permanent)
	require.Eventually(t, func() bool { return s.InFlight() == 0 }, time.Minute, time.Millisecond, "the operation is ended too")

	// Also where nobody takes the connection's handshake further.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	c, err := NewClient("https://"+silent.Addr().String(), ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, Logger: quiet, DialTimeout: time.Minute})
	require.NoError(t, err)
	defer c.Close()
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err = c.RoundTrip(ctx, request(1))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Less(t, time.Since(begin), 30*time.Second)
}

func TestCloseEndsWhatWaitsAndLeavesNothing(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, ca, ServerConfig{
		Handler: ski.HandlerFunc(func(ctx context.Context, _ ski.Peer, _ *ski.Request) *ski.Response {
			<-ctx.Done()
			return ski.Failed(ski.UnspecifiedError)
		}),
	})
	before := runtime.NumGoroutine()
	c := dialTo(t, s, ca)
	failed := make(chan error, 20)
	for range cap(failed) {
		go func() { _, err := c.RoundTrip(t.Context(), request(1)); failed <- err }()
	}
	require.Eventually(t, func() bool { return s.InFlight() == cap(failed) }, time.Minute, time.Millisecond)
	require.NoError(t, c.Close())
	for range cap(failed) {
		assert.ErrorIs(t, <-failed, net.ErrClosed)
	}
	_, err := c.RoundTrip(t.Context(), request(1))
	assert.ErrorIs(t, err, net.ErrClosed)
	quietens(t, s, before)
}

// few is how many goroutines a server has without a session, and the one that
// looks.
const few = 4

// quietens waits until a server has no sessions and only few goroutines more
// than there were before.
func quietens(t *testing.T, s *Server, before int) {
	t.Helper()
	stacks := make([]byte, 1<<20)
	require.Eventually(t, func() bool {
		stacks = stacks[:runtime.Stack(stacks[:cap(stacks)], true)]
		return len(s.Peers()) == 0 && runtime.NumGoroutine() <= before+few
	}, time.Minute, 10*time.Millisecond, "%s", &stacks)
}

func TestAClientFindsAKeyServerThatCameBack(t *testing.T) {
	ca := newTestCA(t)
	first := serveAt(t, apart, ca, ServerConfig{})
	c := dialTo(t, first, ca)
	require.NoError(t, ask(t.Context(), c, 1))
	require.NoError(t, first.Close())
	_, err := c.RoundTrip(t.Context(), request(2))
	require.Error(t, err)

	second, err := Listen(first.Addr().String(), ServerConfig{
		Handler: ski.HandlerFunc(echo), Certificate: ca.keyServer(), ClientCAs: ca.pool, Logger: quiet,
	})
	require.NoError(t, err)
	go second.Serve()
	defer second.Close()
	patient := &ski.Client{Transports: []ski.Transport{c}, Timeout: time.Minute}
	require.NoError(t, ask(t.Context(), patient, 3))
}

func TestAProxyOfTheEnvironmentIsNotUsed(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	ca := newTestCA(t)
	s := serve(t, ca, ServerConfig{})
	require.NoError(t, ask(t.Context(), dialTo(t, s, ca), 1))
}

func TestWrongConfigurationsAreRefused(t *testing.T) {
	ca := newTestCA(t)
	good := ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool}
	for url, want := range map[string]string{
		"http://host/ski":       "the scheme is https",
		"https:///ski":          "the host is missing",
		"https://host/ski?a=b":  "only host, port and path",
		"https://u:p@host/ski":  "only host, port and path",
		"https://host:port/ski": "invalid port",
	} {
		_, err := NewClient(url, good)
		assert.ErrorContains(t, err, want)
	}
	_, err := NewClient("https://host", ClientConfig{RootCAs: ca.pool})
	assert.ErrorContains(t, err, "mutually authenticated")
	_, err = NewClient("https://host", ClientConfig{Certificate: ca.edge()})
	assert.ErrorContains(t, err, "RootCAs")
	_, err = NewClient("https://host", ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, MaxConns: -1})
	assert.ErrorContains(t, err, "negative")

	h := ski.HandlerFunc(echo)
	_, err = Listen("127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool})
	assert.ErrorContains(t, err, "needs a Handler")
	_, err = Listen("127.0.0.1:0", ServerConfig{Handler: h, ClientCAs: ca.pool})
	assert.ErrorContains(t, err, "mutually authenticated")
	_, err = Listen("127.0.0.1:0", ServerConfig{Handler: h, Certificate: ca.keyServer(), ClientCAs: ca.pool, Path: "ski"})
	assert.ErrorContains(t, err, "slash")
	_, err = Listen("127.0.0.1:0", ServerConfig{Handler: h, Certificate: ca.keyServer(), ClientCAs: ca.pool, MaxSessions: -1})
	assert.ErrorContains(t, err, "negative")
	_, err = Listen("256.0.0.1:0", ServerConfig{Handler: h, Certificate: ca.keyServer(), ClientCAs: ca.pool})
	assert.Error(t, err)
}

// A page about an exception, which may be one of a padding, leaves the connection as
// any other answer does. It is an answer (ski.Answered), if not of SKI.
func TestAPageInThePlaceOfAnAnswerKeepsTheConnection(t *testing.T) {
	ca := newTestCA(t)
	from := map[string]bool{}
	url := foreignServer(t, ca, func(w http.ResponseWriter, r *http.Request) {
		from[r.RemoteAddr] = true
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, strings.Repeat("java.lang.Exception ", 1000))
	})
	c, err := NewClient(url, ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, Logger: quiet, DialTimeout: time.Minute, DeadAfter: time.Minute})
	require.NoError(t, err)
	defer c.Close()
	for range 5 {
		_, err := c.RoundTrip(t.Context(), request(1))
		require.Error(t, err)
		assert.True(t, ski.Answered(err), err)
	}
	assert.Len(t, from, 1)
}

// A stream that is reset is what an exception in a key server's handler looks like.
// It may depend on the plaintext, like any answer.
func TestAStreamThatIsResetIsAnAnswer(t *testing.T) {
	ca := newTestCA(t)
	var from sync.Map
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		from.Store(r.RemoteAddr, r.Proto)
		panic(http.ErrAbortHandler)
	}))
	server.EnableHTTP2, server.TLS = true, &tls.Config{Certificates: []tls.Certificate{ca.keyServer()}}
	server.StartTLS()
	defer server.Close()
	c, err := NewClient(server.URL, ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, Logger: quiet, DialTimeout: time.Minute, DeadAfter: time.Minute})
	require.NoError(t, err)
	defer c.Close()
	for range 3 {
		_, err := c.RoundTrip(t.Context(), request(1))
		te := (*ski.TransportError)(nil)
		require.ErrorAs(t, err, &te)
		assert.True(t, ski.Answered(err), err)
		assert.False(t, te.Permanent)
	}
	protos := slices.Collect(maps.Values(maps.Collect(from.Range)))
	assert.Equal(t, []any{"HTTP/2.0"}, protos, "over one connection")
}
