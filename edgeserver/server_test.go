package edgeserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// logBuffer collects a log that goroutines write.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// edge is a Server that runs on a loopback port.
type edge struct {
	*Server
	addr string
	log  *logBuffer
}

func start(t *testing.T, cfg Config, transport ski.Transport) *edge {
	return startWith(t, cfg, map[string]ski.Transport{"": transport})
}

func startWith(t *testing.T, cfg Config, transports map[string]ski.Transport) *edge {
	e := &edge{log: new(logBuffer)}
	var err error
	e.Server, err = NewWithKeyServers(cfg, transports, slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	e.addr = l.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- e.Serve(l) }()
	t.Cleanup(func() {
		e.Close()
		assert.NoError(t, <-ended)
	})
	return e
}

// dial does a handshake, as a client that trusts the test's certificates.
func (e *edge) dial(p *testPKI, c *tls.Config) (*tls.Conn, error) {
	c.RootCAs = p.roots
	return tls.DialWithDialer(&net.Dialer{Timeout: time.Minute}, "tcp", e.addr, c)
}

// client returns an HTTP client that finds every name at the edge.
func (e *edge) client(t *testing.T, p *testPKI) *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", e.addr)
		},
		TLSClientConfig:   &tls.Config{RootCAs: p.roots},
		ForceAttemptHTTP2: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	resp, err := c.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(body)
}

// htdocs returns a folder whose index.html says text.
func htdocs(t *testing.T, text string) string {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index.html"), []byte(text), 0o644))
	return dir
}

func TestTwoSites(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
		{Names: []string{"*.b.test"}, Certificates: []string{p.rsa(t, "*.b.test")}, Static: htdocs(t, "this is b")},
	}}, p.transport())
	c := e.client(t, p)

	resp, body := get(t, c, "https://a.test/")
	assert.Equal(t, "this is a", body)
	assert.Equal(t, 2, resp.ProtoMajor)
	_, body = get(t, c, "https://WWW.b.test/")
	assert.Equal(t, "this is b", body)

	c = e.client(t, p)
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	resp, body = get(t, c, "https://a.test/")
	assert.Equal(t, "this is a", body)
	assert.Equal(t, 1, resp.ProtoMajor)

	assert.Contains(t, e.log.String(), "msg=listening addr="+e.addr+" url=https://a.test:")
	assert.Contains(t, e.log.String(), "msg=handshake remote=127.0.0.1:")
}

func TestMisdirectedRequest(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test", "*.a.test"}, Certificates: []string{p.ecdsa(t, "a.test", "*.a.test")}, Static: htdocs(t, "this is a")},
		{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: htdocs(t, "this is b")},
	}}, p.transport())
	for host, status := range map[string]int{
		"a.test": 200, "A.Test.:8443": 200, "other.a.test": 200, "deep.other.a.test": 421,
		"b.test": 421, "b.test:443": 421, "unknown.test": 421, "127.0.0.1": 421, "[::1]:443": 421,
	} {
		req, err := http.NewRequest("GET", "https://a.test/", nil)
		require.NoError(t, err)
		req.Host = host
		resp, err := e.client(t, p).Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, status, resp.StatusCode, host)
	}

	t.Run("HTTP/1.0 without a Host", func(t *testing.T) {
		c, err := e.dial(p, &tls.Config{ServerName: "b.test"})
		require.NoError(t, err)
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
		answer, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Contains(t, string(answer), "this is b")
	})
}

func TestDefaultSite(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
		{Default: true, Certificates: []string{p.ecdsa(t, "fallback.test")}, Static: htdocs(t, "the default")},
	}}, p.transport())
	c := e.client(t, p)
	c.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
	for url, want := range map[string]string{
		"https://a.test/": "this is a", "https://unknown.test/": "the default", "https://127.0.0.1/": "the default",
	} {
		_, body := get(t, c, url)
		assert.Equal(t, want, body, url)
	}
}

func TestPlainHTTP(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
	}}, p.transport())
	resp, body := get(t, http.DefaultClient, "http://"+e.addr)
	assert.Equal(t, 400, resp.StatusCode)
	assert.Contains(t, body, "HTTPS")
}

func TestShutdownFinishesRequests(t *testing.T) {
	entered, proceed := make(chan struct{}), make(chan struct{})
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-proceed
		io.WriteString(w, "finished")
	}))
	defer origin.Close()
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL},
	}}, p.transport())

	answer := make(chan string, 1)
	go func() {
		resp, err := e.client(t, p).Get("https://a.test/")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answer <- string(body)
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- e.Shutdown(t.Context()) }()
	require.Eventually(t, func() bool {
		_, err := net.DialTimeout("tcp", e.addr, time.Second)
		return err != nil
	}, time.Minute, 5*time.Millisecond, "it has to stop listening")
	close(proceed)
	assert.Equal(t, "finished", <-answer)
	assert.NoError(t, <-stopped)
}

func TestShutdownDeadline(t *testing.T) {
	entered := make(chan struct{})
	origin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done() // The edge server has to end it.
	}))
	defer origin.Close()
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL},
	}}, p.transport())
	failed := make(chan error, 1)
	go func() {
		resp, err := e.client(t, p).Get("https://a.test/")
		if err == nil {
			resp.Body.Close()
		}
		failed <- err
	}()
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	assert.ErrorIs(t, e.Shutdown(ctx), context.DeadlineExceeded)
	assert.Error(t, <-failed)
}

func TestListenAndServe(t *testing.T) {
	p := newPKI(t)
	cfg := Config{
		Listen: []string{"127.0.0.1:0", "127.0.0.1:0"},
		Sites:  []Site{{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir}},
	}
	log := new(logBuffer)
	srv, err := New(cfg, p.transport(), slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe() }()
	require.Eventually(t, func() bool {
		return strings.Count(log.String(), "msg=listening") == 2
	}, time.Minute, time.Millisecond)
	require.NoError(t, srv.Shutdown(t.Context()))
	assert.NoError(t, <-ended)

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	cfg.Listen = []string{"127.0.0.1:0", taken.Addr().String()}
	srv, err = New(cfg, p.transport(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	assert.Error(t, srv.ListenAndServe())
}

func TestProbe(t *testing.T) {
	p := newPKI(t)
	cfg := Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir},
		{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: p.dir},
	}}
	e := start(t, cfg, p.transport())
	b := ski.CertificateKeyID(e.Sites()[1].Leaves[0])
	p.keys.Remove(b)
	e.Probe(t.Context())
	assert.Contains(t, e.log.String(), `level=INFO msg="the key server has the key" site=a.test`)
	assert.Regexp(t, `level=WARN msg="the key server does not serve the key.*site=b.test .*reason="spki not found"`, e.log.String())
}

// A policy can grant a key for some handshakes and not for others.
func TestProbeOfEachKindOfHandshake(t *testing.T) {
	p := newPKI(t)
	denies := map[ski.Protocol]ski.Method{}
	transport := ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
		if method, ok := denies[req.Protocol]; ok && method == req.Method {
			return &ski.Response{Error: ski.RequestDenied}, nil
		}
		return p.transport().RoundTrip(ctx, req)
	})
	e := start(t, Config{Sites: []Site{
		{Names: []string{"both.test"}, Certificates: []string{p.ecdsa(t, "both.test")}, Static: p.dir},
		{Names: []string{"new.test"}, Certificates: []string{p.ecdsa(t, "new.test")}, Static: p.dir, Versions: []string{"TLS 1.3"}},
		{Names: []string{"old.test"}, Certificates: []string{p.rsa(t, "old.test")}, Static: p.dir, Versions: []string{"TLS 1.2"}, StaticRSA: true},
	}}, transport)
	const has, not = `level=INFO msg="the key server has the key" site=`, `level=WARN msg="the key server does not serve the key: handshakes will fail" site=`
	for _, tt := range []struct {
		protocol ski.Protocol
		method   ski.Method
		sites    []string // to which it makes a difference
	}{
		{ski.TLS12, ski.MethodECDHE, []string{"both.test", "old.test"}},
		{ski.TLS12, ski.MethodRSA, []string{"old.test"}},
		{ski.TLS13, ski.MethodECDHE, []string{"both.test", "new.test"}},
		{ski.TLS12, ski.MethodDHE, nil},
	} {
		clear(denies)
		denies[tt.protocol] = tt.method
		before := e.log.String()
		e.Probe(t.Context())
		log := strings.TrimPrefix(e.log.String(), before)
		for _, site := range []string{"both.test", "new.test", "old.test"} {
			denied := slices.Contains(tt.sites, site)
			assert.Equal(t, !denied, strings.Contains(log, has+site), "%s %s\n%s", tt.protocol, tt.method, log)
			assert.Equal(t, denied, strings.Contains(log, not+site), "%s %s\n%s", tt.protocol, tt.method, log)
		}
		assert.Equal(t, len(tt.sites), strings.Count(log, fmt.Sprintf("protocol=%q method=%s reason=denied", string(tt.protocol), tt.method)), log)
	}
}

// Each of several key servers is asked: one that lacks a key fails the handshakes
// that come to it.
func TestProbeOfSeveralKeyServers(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	cfg := Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir}}}
	e := start(t, cfg, &ski.Client{Transports: []ski.Transport{p.transport(), other.transport()}})
	e.Probe(t.Context())
	assert.Regexp(t, `level=INFO msg="the key server has the key" site=a.test .*keyserver=0`, e.log.String())
	assert.Regexp(t, `level=WARN msg="the key server does not serve the key.*keyserver=1 .*reason="spki not found"`, e.log.String())
}
