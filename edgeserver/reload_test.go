package edgeserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func over(t ski.Transport) map[string]ski.Transport { return map[string]ski.Transport{"": t} }

// slowOrigin sends "begin", and "end" once told.
func slowOrigin(t *testing.T) (url string, proceed chan struct{}) {
	proceed = make(chan struct{})
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begin ")
		w.(http.Flusher).Flush()
		select {
		case <-proceed:
			io.WriteString(w, "end")
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(origin.Close)
	return origin.URL, proceed
}

// What was begun before a reload ends as it was, with either engine and version
// of HTTP; what begins afterwards has the new certificate, key server, names and
// origin.
func TestReloadWhileADownloadGoesOn(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s HTTP/2 %v", engine, http2), func(t *testing.T) {
				p, other := newPKI(t), newPKI(t)
				url, proceed := slowOrigin(t)
				e := start(t, Config{Sites: []Site{
					{Names: []string{"a.test"}, Engine: engine, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: url},
				}}, p.transport())
				before := e.client(t, p)
				before.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
				resp, err := before.Get("https://a.test/")
				require.NoError(t, err)
				defer resp.Body.Close()
				if http2 {
					assert.Equal(t, 2, resp.ProtoMajor)
				}
				p.keys.Forget()

				ended, err := e.Reload(Config{Sites: []Site{
					{Names: []string{"a.test", "b.test"}, Engine: engine, Certificates: []string{other.ecdsa(t, "a.test", "b.test")}, Static: htdocs(t, "new")},
				}}, over(other.transport()))
				require.NoError(t, err)
				after := e.client(t, other)
				for _, name := range []string{"a.test", "b.test"} {
					_, body := get(t, after, "https://"+name+"/")
					assert.Equal(t, "new", body)
				}
				assert.Empty(t, p.keys.Forget(), "the key server of before is asked")
				assert.NotEmpty(t, other.keys.Forget())

				assert.False(t, isClosed(ended), "the download's connection is there")
				close(proceed)
				body, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				assert.Equal(t, "begin end", string(body))
				assert.False(t, isClosed(ended), "its connection is kept for another request")
				require.Eventually(t, func() bool {
					before.CloseIdleConnections()
					return isClosed(ended)
				}, time.Minute, time.Millisecond)
			})
		}
	}
}

// A connection that is idle when the configuration changes is not cut off: it
// takes another request, whose answer ends it.
func TestReloadEndsAnOldConnectionWithItsNextAnswer(t *testing.T) {
	p := newPKI(t)
	cfg := Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "old")},
	}}
	e := start(t, cfg, p.transport())
	for _, http2 := range []bool{false, true} {
		client := e.client(t, p)
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
		_, body := get(t, client, "https://a.test/")
		assert.Equal(t, "old", body)
		changed := cfg
		changed.Sites = []Site{cfg.Sites[0]}
		changed.Sites[0].Static = htdocs(t, "new")
		ended, err := e.Reload(changed, over(p.transport()))
		require.NoError(t, err)
		_, body = get(t, client, "https://a.test/")
		assert.Equal(t, "old", body)
		<-ended // though the client has closed nothing
		_, body = get(t, client, "https://a.test/")
		assert.Equal(t, "new", body)
		_, err = e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
	}
}

// An upgraded connection goes on, and holds what it was made with.
func TestReloadWhileAnUpgradedConnectionGoesOn(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(c, rw)
	}))
	defer origin.Close()
	p := newPKI(t)
	cfg := Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL}}}
	e := start(t, cfg, p.transport())
	idle, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer idle.Close()
	ended, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)

	// It is upgraded only now.
	fmt.Fprint(idle, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(idle)
	resp, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	assert.Equal(t, []string{"Upgrade"}, resp.Header["Connection"])
	_, err = e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	fmt.Fprint(idle, "ping")
	echo := make([]byte, 4)
	_, err = io.ReadFull(r, echo)
	require.NoError(t, err)
	assert.Equal(t, "ping", string(echo))
	assert.False(t, isClosed(ended))
	idle.Close()
	<-ended
}

// waiting is a key server that answers once told.
type waiting struct {
	ski.Transport
	asked, answer chan struct{}
}

func (w *waiting) RoundTrip(ctx context.Context, req *ski.Request) (*ski.Response, error) {
	w.asked <- struct{}{}
	select {
	case <-w.answer:
		return w.Transport.RoundTrip(ctx, req)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A handshake that waits for the key server when the configuration changes is
// ended by that key server, with the certificate that it began with.
func TestReloadDuringAHandshake(t *testing.T) {
	p := newPKI(t)
	slow := &waiting{p.transport(), make(chan struct{}), make(chan struct{})}
	cfg := Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir}}}
	e := start(t, cfg, slow)
	type result struct {
		c   *tls.Conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
		done <- result{c, err}
	}()
	<-slow.asked
	other := newPKI(t)
	ended, err := e.Reload(Config{Sites: []Site{
		{Names: []string{"b.test"}, Certificates: []string{other.ecdsa(t, "b.test")}, Static: p.dir},
	}}, over(other.transport()))
	require.NoError(t, err)
	assert.False(t, isClosed(ended))
	close(slow.answer)
	r := <-done
	require.NoError(t, r.err)
	r.c.Close()
	<-ended
	_, err = e.dial(p, &tls.Config{ServerName: "a.test"})
	assert.ErrorContains(t, err, "unrecognized name", "the site is gone")
}

func TestSessionsSurviveAReload(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if engine == EngineSplit && version == tls.VersionTLS13 {
				continue
			}
			t.Run(engine+" "+tls.VersionName(version), func(t *testing.T) {
				p := newPKI(t)
				site := func(names ...string) Site {
					return Site{Names: names, Certificates: []string{p.ecdsa(t, names...)}, Static: htdocs(t, names[0]), Engine: engine}
				}
				e := start(t, Config{Sites: []Site{site("a.test"), site("b.test")}}, p.transport())
				caches := map[string]tls.ClientSessionCache{}
				resumed := func(name string) bool {
					if caches[name] == nil {
						caches[name] = tls.NewLRUClientSessionCache(1)
					}
					c, err := e.dial(p, &tls.Config{ServerName: name, MaxVersion: version, ClientSessionCache: caches[name]})
					require.NoError(t, err)
					defer c.Close()
					fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n") // A ticket of TLS 1.3 comes after the handshake.
					answer, err := io.ReadAll(c)
					require.NoError(t, err)
					assert.Contains(t, string(answer), " 200 OK")
					return c.ConnectionState().DidResume
				}
				assert.False(t, resumed("a.test"))
				assert.False(t, resumed("b.test"))

				// a.test has another certificate and another name, b.test goes over
				// to another site.
				_, err := e.Reload(Config{Sites: []Site{site("c.test", "b.test"), site("a.test", "d.test")}}, over(p.transport()))
				require.NoError(t, err)
				assert.True(t, resumed("a.test"))
				assert.False(t, resumed("b.test"), "a ticket is good at another site")
			})
		}
	}
}

func TestBadConfigurationChangesNothing(t *testing.T) {
	p := newPKI(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	good := Config{Listen: []string{"127.0.0.1:0"}, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
	}}
	e := listenAndServe(t, good, p.transport())
	for name, tt := range map[string]struct {
		change     func(*Config)
		transports map[string]ski.Transport
		want       string
	}{
		"no site":               {func(c *Config) { c.Sites = nil }, over(p.transport()), "edgeserver: sites: there must be at least one site"},
		"no certificate":        {func(c *Config) { c.Sites[0].Certificates = []string{"none.pem"} }, over(p.transport()), "edgeserver: sites[0].certificates[0]: "},
		"no folder":             {func(c *Config) { c.Sites[0].Static = "/none" }, over(p.transport()), "edgeserver: sites[0].static: "},
		"no Transport":          {func(*Config) {}, nil, "edgeserver: sites[0].keyserver: there is no Transport for it"},
		"an address that fails": {func(c *Config) { c.Listen = []string{"127.0.0.1:0", "127.0.0.2:0", taken.Addr().String()} }, over(p.transport()), "edgeserver: listen[2]: "},
	} {
		cfg := good
		cfg.Sites = []Site{good.Sites[0]}
		tt.change(&cfg)
		ended, err := e.Reload(cfg, tt.transports)
		assert.ErrorContains(t, err, tt.want, name)
		assert.Nil(t, ended)
		_, body := get(t, e.client(t, p), "https://a.test/")
		assert.Equal(t, "this is a", body)
	}
	assert.Equal(t, 1, strings.Count(e.log.String(), "msg=listening"))
	assert.Len(t, e.living, 1)
}

// listenAndServe is start with the addresses of cfg.Listen; addr is the first.
func listenAndServe(t *testing.T, cfg Config, transport ski.Transport) *edge {
	e := &edge{log: new(logBuffer)}
	var err error
	e.Server, err = New(cfg, transport, slog.New(slog.NewTextHandler(e.log, nil)))
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- e.ListenAndServe() }()
	t.Cleanup(func() {
		e.Close()
		assert.NoError(t, <-ended)
	})
	e.addr = e.listening(t, len(cfg.Listen))[0]
	return e
}

// listening returns the addresses of the listeners, in the order of Config.Listen,
// when there are n.
func (e *edge) listening(t *testing.T, n int) (addrs []string) {
	require.Eventually(t, func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		addrs = nil
		for _, l := range e.listeners {
			addrs = append(addrs, l.sockets[0].Addr().String())
		}
		return len(addrs) == n
	}, time.Minute, time.Millisecond)
	return addrs
}

func TestReloadChangesTheListeners(t *testing.T) {
	p := newPKI(t)
	cfg := Config{Listen: []string{"127.0.0.1:0", "127.0.0.2:0"}, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
	}}
	e := listenAndServe(t, cfg, p.transport())
	before := e.listening(t, 2)
	c, err := tls.Dial("tcp", before[1], &tls.Config{ServerName: "a.test", RootCAs: p.roots})
	require.NoError(t, err)
	defer c.Close()

	cfg.Listen = []string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.3:0"}
	_, err = e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	after := e.listening(t, 3)
	assert.Equal(t, before[0], after[0], "it is kept")
	assert.NotContains(t, after, before[1])
	require.Eventually(t, func() bool {
		_, err := net.DialTimeout("tcp", before[1], time.Second)
		return err != nil
	}, time.Minute, time.Millisecond, "it is gone")
	for _, addr := range after {
		e.addr = addr
		_, body := get(t, e.client(t, p), "https://a.test/")
		assert.Equal(t, "this is a", body)
	}

	// The connection of the one that is gone goes on.
	fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Contains(t, string(answer), "this is a")
	require.Eventually(t, func() bool {
		return strings.Contains(e.log.String(), `msg="not listening any more" addr=`+before[1])
	}, time.Minute, time.Millisecond)
}

// Clients visit while the configuration changes all the time: nobody notices.
func TestManyReloadsUnderLoad(t *testing.T) {
	p := newPKI(t)
	var cfgs []Config
	for i := range 2 {
		engine := []string{EngineStandard, EngineSplit}[i]
		cfgs = append(cfgs, Config{Sites: []Site{
			{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "hello"), Engine: engine},
		}})
	}
	e := start(t, cfgs[0], p.transport())
	stop := make(chan struct{})
	var visits atomic.Int64
	var visitors sync.WaitGroup
	var clients []*http.Client
	for i := range 4 {
		client := e.client(t, p)
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = i%2 == 0
		clients = append(clients, client)
		visitors.Go(func() {
			for !isClosed(stop) {
				resp, err := client.Get("https://a.test/")
				if !assert.NoError(t, err) {
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				assert.NoError(t, err)
				assert.Equal(t, "hello", string(body))
				visits.Add(1)
			}
		})
	}
	var all []<-chan struct{}
	for i := range 20 {
		ended, err := e.Reload(cfgs[(i+1)%2], over(p.transport()))
		require.NoError(t, err)
		all = append(all, ended)
		seen := visits.Load()
		require.Eventually(t, func() bool { return visits.Load() > seen+3 }, time.Minute, time.Millisecond)
	}
	close(stop)
	visitors.Wait()
	require.Eventually(t, func() bool {
		for _, c := range clients {
			c.CloseIdleConnections()
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.living) == 1
	}, time.Minute, time.Millisecond)
	for _, ended := range all {
		assert.True(t, isClosed(ended))
	}
}

// Close ends the connections of all configurations, and all that was open for them.
func TestCloseAfterAReload(t *testing.T) {
	p := newPKI(t)
	cfg := Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir}}}
	e := start(t, cfg, p.transport())
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	ended, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	require.NoError(t, e.Close())
	<-ended
	c.SetReadDeadline(time.Now().Add(time.Minute))
	_, err = c.Read(make([]byte, 1))
	assert.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	_, err = e.Reload(cfg, over(p.transport()))
	assert.ErrorIs(t, err, http.ErrServerClosed)
}
