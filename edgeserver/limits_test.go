package edgeserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
)

// limited is an edge server with one site, a.test, and limits.
func limited(t *testing.T, p *testPKI, engine string, l Limits) *edge {
	return start(t, limitedConfig(t, p, engine, l), p.transport())
}

func limitedConfig(t *testing.T, p *testPKI, engine string, l Limits) Config {
	return Config{Limits: l, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "hello"), Engine: engine},
	}}
}

// ended waits until the server closes a connection, and returns what it sent.
func ended(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	answer, err := io.ReadAll(c)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection is not closed")
	return string(answer)
}

func (e *edge) tcp(t *testing.T) net.Conn {
	c, err := net.Dial("tcp", e.addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// Connections beyond the limit wait, until others have ended or a reload has
// raised it.
func TestLimitOfConnections(t *testing.T) {
	p := newPKI(t)
	cfg := limitedConfig(t, p, "", Limits{Connections: 2})
	begin := time.Now()
	e := start(t, cfg, p.transport())
	client := func() *tls.Conn {
		c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
		require.NoError(t, err)
		return c
	}
	waiting := func() chan error {
		done := make(chan error, 1)
		before := e.Usage().ConnectionsDelayed
		go func() {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
			if err == nil {
				defer c.Close()
			}
			done <- err
		}()
		require.Eventually(t, func() bool { return e.Usage().ConnectionsDelayed > before }, time.Minute, time.Millisecond)
		return done
	}
	first, second := client(), client()
	defer second.Close()
	assert.Equal(t, 2, e.Usage().Connections)
	third := waiting()
	assert.Empty(t, third)
	first.Close()
	require.NoError(t, <-third)
	assert.Contains(t, e.log.String(), `msg="limits.connections is reached`)

	require.Eventually(t, func() bool { return e.Usage().Connections == 1 }, time.Minute, time.Millisecond)
	defer client().Close()
	fourth := waiting()
	cfg.Limits.Connections = 3
	_, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	require.NoError(t, <-fourth)
	assert.LessOrEqual(t, strings.Count(e.log.String(), `msg="limits.connections is reached`), 1+int(time.Since(begin)/sayEvery), "it is said once")
}

func TestLimitOfConnectionsPerAddress(t *testing.T) {
	p := newPKI(t)
	e := limited(t, p, "", Limits{ConnectionsPerAddress: 1})
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	ended(t, e.tcp(t))
	assert.Equal(t, uint64(1), e.Usage().ConnectionsRefused)
	assert.Contains(t, e.log.String(), `msg="limits.connections_per_address is reached: connections are closed" remote=127.0.0.1 `)

	other, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", e.addr)
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, tls.Client(other, &tls.Config{ServerName: "a.test", RootCAs: p.roots}).Handshake())

	c.Close()
	require.Eventually(t, func() bool { return e.Usage().Connections == 1 }, time.Minute, time.Millisecond)
	c, err = e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	c.Close()
}

// Behind a load balancer it is the clients that are counted.
func TestLimitOfConnectionsPerAddressBehindALoadBalancer(t *testing.T) {
	p := newPKI(t)
	cfg := limitedConfig(t, p, "", Limits{ConnectionsPerAddress: 1})
	cfg.ProxyProtocol.From = []string{"127.0.0.1"}
	e := start(t, cfg, p.transport())
	for _, tt := range []struct {
		client string
		served bool
	}{{"192.0.2.1", true}, {"192.0.2.2", true}, {"192.0.2.1", false}} {
		c := e.tcp(t)
		require.NoError(t, sendProxyHeader(c, &net.TCPAddr{IP: net.ParseIP(tt.client), Port: 1}, &net.TCPAddr{IP: net.ParseIP("192.0.2.9"), Port: 443}))
		err := tls.Client(c, &tls.Config{ServerName: "a.test", RootCAs: p.roots}).Handshake()
		assert.Equal(t, tt.served, err == nil, "%s: %v", tt.client, err)
	}
	assert.Contains(t, e.log.String(), `msg="limits.connections_per_address is reached: connections are closed" remote=192.0.2.1 `)
}

func TestWhichAddressesAreOneClient(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.1": "192.0.2.1/32", "2001:db8:0:1:2::3": "2001:db8:0:1::/64",
	} {
		assert.Equal(t, want, clientOf(&net.TCPAddr{IP: net.ParseIP(addr), Port: 1}).String())
	}
	assert.False(t, clientOf(&net.UnixAddr{}).IsValid())
}

func TestLimitOfHandshakes(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		t.Run(engine, func(t *testing.T) {
			p := newPKI(t)
			slow := &waiting{p.transport(), make(chan struct{}), make(chan struct{})}
			e := start(t, limitedConfig(t, p, engine, Limits{Handshakes: 1}), slow)
			first := make(chan error, 1)
			go func() {
				c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
				if err == nil {
					c.Close()
				}
				first <- err
			}()
			<-slow.asked
			e.tcp(t) // Whoever sends nothing has no handshake.
			_, err := e.dial(p, &tls.Config{ServerName: "a.test"})
			assert.ErrorContains(t, err, "internal error")
			assert.Equal(t, uint64(1), e.Usage().HandshakesRefused)
			assert.Equal(t, 1, e.Usage().Handshakes)
			close(slow.answer)
			require.NoError(t, <-first)
			require.Eventually(t, func() bool { return e.Usage().Handshakes == 0 }, time.Minute, time.Millisecond)
			go func() { <-slow.asked }()
			c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
			require.NoError(t, err)
			c.Close()
		})
	}
}

// Who sends no ClientHello, or only a byte of it now and then, is closed in time,
// whatever reads it.
func TestClientWithoutClientHello(t *testing.T) {
	p := newPKI(t)
	sites := func(engines ...string) Config {
		cfg := Config{Limits: Limits{HandshakeTimeout: 100 * time.Millisecond}, KeyServer: KeyServer{Timeout: time.Hour}}
		for i, engine := range engines {
			name := fmt.Sprintf("%d.test", i)
			cfg.Sites = append(cfg.Sites, Site{Names: []string{name}, Certificates: []string{p.ecdsa(t, name)}, Static: p.dir, Engine: engine})
		}
		return cfg
	}
	for name, cfg := range map[string]Config{
		"standard": sites(EngineStandard), "split": sites(EngineSplit), "both": sites(EngineStandard, EngineSplit),
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, cfg, p.transport())
			silent, slow := e.tcp(t), e.tcp(t)
			go func() { // the beginning of a ClientHello
				for _, b := range []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00", 500)) {
					if _, err := slow.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			}()
			ended(t, silent)
			ended(t, slow)
			require.Eventually(t, func() bool { return e.Usage() == Usage{} }, time.Minute, time.Millisecond)
		})
	}
}

func TestTimeoutsOfRequests(t *testing.T) {
	p := newPKI(t)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	defer origin.Close()
	// Each has the one limit that it is to meet.
	header, request, idle := Limits{HeaderTimeout: 500 * time.Millisecond}, Limits{RequestTimeout: time.Second}, Limits{IdleTimeout: 500 * time.Millisecond}
	cfg := limitedConfig(t, p, "", Limits{})
	cfg.Sites[0].Static, cfg.Sites[0].Proxy = "", origin.URL
	var all sync.WaitGroup
	for name, tt := range map[string]struct {
		limits     Limits
		send, want string
	}{
		"nothing":        {header, "", ""},
		"half a header":  {header, "GET / HTTP/1.1\r\nHost: a.t", ""},
		"half a body":    {request, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n12345", ""},
		"then nothing":   {idle, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "HTTP/1.1 200 OK"},
		"a large header": {Limits{HeaderBytes: 1024}, "GET / HTTP/1.1\r\nHost: a.test\r\nX: " + strings.Repeat("x", 8<<10) + "\r\n\r\n", "HTTP/1.1 431 "},
	} {
		cfg.Limits = tt.limits
		e := start(t, cfg, p.transport())
		all.Go(func() {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
			if !assert.NoError(t, err) {
				return
			}
			defer c.Close()
			io.WriteString(c, tt.send)
			c.SetReadDeadline(time.Now().Add(time.Minute))
			answer, err := io.ReadAll(c)
			assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, name)
			if tt.want == "" {
				assert.NotContains(t, string(answer), " 200 OK", name)
			} else {
				assert.Contains(t, string(answer), tt.want, name)
			}
		})
	}
	all.Wait()
}

func TestTimeoutOfARequestOverHTTP2(t *testing.T) {
	p := newPKI(t)
	origin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
	}))
	defer origin.Close()
	cfg := limitedConfig(t, p, "", Limits{RequestTimeout: 500 * time.Millisecond})
	cfg.Sites[0].Static, cfg.Sites[0].Proxy = "", origin.URL
	e := start(t, cfg, p.transport())
	body, w := io.Pipe()
	defer w.Close()
	go io.WriteString(w, "half")
	resp, err := e.client(t, p).Post("https://a.test/", "text/plain", body)
	require.NoError(t, err)
	defer resp.Body.Close()
	assert.Equal(t, 2, resp.ProtoMajor)
	assert.Equal(t, http.StatusRequestTimeout, resp.StatusCode)
}

// A client that does not take its answer is given up, and the request to the
// origin too, over either version of HTTP and with either engine.
func TestClientThatTakesNothing(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s HTTP/2 %v", engine, http2), func(t *testing.T) {
				t.Parallel()
				p := newPKI(t)
				gone := make(chan struct{})
				origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					defer close(gone)
					piece := bytes.Repeat([]byte("x"), 64<<10)
					for {
						if _, err := w.Write(piece); err != nil {
							return
						}
					}
				}))
				defer origin.Close()
				cfg := limitedConfig(t, p, engine, Limits{WriteTimeout: time.Second})
				cfg.Sites[0].Static, cfg.Sites[0].Proxy = "", origin.URL
				e := start(t, cfg, p.transport())
				client := e.client(t, p)
				client.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
				resp, err := client.Get("https://a.test/")
				require.NoError(t, err)
				defer resp.Body.Close()
				select {
				case <-gone:
				case <-time.After(time.Minute):
					t.Fatal("the origin still sends")
				}
				_, err = io.Copy(io.Discard, resp.Body)
				assert.Error(t, err, "it is not taken for the whole answer")
			})
		}
	}
}

// An answer that comes in pieces, with longer pauses than a client may take to
// read one, is no stall.
func TestSlowOriginIsNoSlowClient(t *testing.T) {
	p := newPKI(t)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "piece ")
		w.(http.Flusher).Flush()
		time.Sleep(3 * time.Second)
		io.WriteString(w, "by piece")
	}))
	defer origin.Close()
	cfg := limitedConfig(t, p, "", Limits{WriteTimeout: 1500 * time.Millisecond})
	cfg.Sites[0].Static, cfg.Sites[0].Proxy = "", origin.URL
	e := start(t, cfg, p.transport())
	var all sync.WaitGroup
	for _, http2 := range []bool{false, true} {
		client := e.client(t, p)
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
		all.Go(func() {
			resp, err := client.Get("https://a.test/")
			if !assert.NoError(t, err) {
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			assert.NoError(t, err)
			assert.Equal(t, "piece by piece", string(body))
		})
	}
	all.Wait()
}

// halfOpenMemory is what a connection may hold of memory, in bytes, that has sent
// nothing, or the beginning of a ClientHello; the client's end of it included.
const halfOpenMemory = 16 << 10

func TestHalfOpenClientsHoldLittleMemory(t *testing.T) {
	const clients = 2000
	p := newPKI(t)
	used := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	for _, engine := range []string{EngineStandard, EngineSplit} {
		for _, begin := range []string{"", "\x16\x03\x01\x02\x00\x01"} {
			e := limited(t, p, engine, Limits{ConnectionsPerAddress: clients, HandshakeTimeout: time.Minute})
			before := used()
			var all []net.Conn
			for range clients {
				c, err := net.Dial("tcp", e.addr)
				require.NoError(t, err)
				io.WriteString(c, begin)
				all = append(all, c)
			}
			require.Eventually(t, func() bool { return e.Usage().Connections == clients }, time.Minute, time.Millisecond)
			each := (used() - before) / clients
			t.Logf("%s, %d bytes sent: %d bytes each", engine, len(begin), each)
			assert.Less(t, each, int64(halfOpenMemory), "%s, %d bytes sent", engine, len(begin))
			for _, c := range all {
				c.Close()
			}
			require.Eventually(t, func() bool { return e.Usage().Connections == 0 }, time.Minute, time.Millisecond)
		}
	}
}

func TestWrongLimits(t *testing.T) {
	p := newPKI(t)
	for want, l := range map[string]Limits{
		"limits.connections: is negative":                   {Connections: -1},
		"limits.connections_per_address: is negative":       {ConnectionsPerAddress: -1},
		"limits.handshakes: is negative":                    {Handshakes: -1},
		"limits.write_timeout: is negative":                 {WriteTimeout: -1},
		"limits.header_bytes: is not from 1024 to 1048576":  {HeaderBytes: 100},
		"limits.header_bytes: is not from 1024 to 1048576 ": {HeaderBytes: 2 << 20},
	} {
		_, err := New(limitedConfig(t, p, "", l), p.transport(), nil)
		assert.EqualError(t, err, "edgeserver: "+strings.TrimSpace(want))
	}
	_, file, err := load(t, keyserverYAML+"limits: {idle_timeout: 5}\n"+siteYAML)
	assert.ErrorContains(t, err, file+":6:24: limits.idle_timeout: '5' is not a time")
	cfg, _, err := load(t, keyserverYAML+"limits: {connections: 10, idle_timeout: 5s}\n"+siteYAML)
	require.NoError(t, err)
	assert.Equal(t, 10, cfg.Limits.Connections)
	assert.Equal(t, 5*time.Second, cfg.Limits.IdleTimeout)
	assert.Equal(t, 1024, cfg.Limits.ConnectionsPerAddress)
}

// A small answer waits whole until its handler is done, and is then given up as a
// large one is; the pages that the edge server answers with itself, too.
func TestClientThatTakesNoSmallAnswer(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		for _, path := range []string{"/", "/nothing"} {
			t.Run(engine+" "+path, func(t *testing.T) {
				t.Parallel()
				p := newPKI(t)
				e := limited(t, p, engine, Limits{WriteTimeout: time.Second})
				f := frames(t, e, p, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
				ask(t, f, 1, path)
				for {
					frame, err := f.ReadFrame()
					require.NoError(t, err)
					if reset, ok := frame.(*http2.RSTStreamFrame); ok {
						assert.EqualValues(t, 1, reset.StreamID)
						return
					}
				}
			})
		}
	}
}

// A client that leaves a handshake half done gives its slot back in time.
func TestHalfAHandshake(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if engine == EngineSplit && version == tls.VersionTLS13 {
				continue
			}
			t.Run(engine+" "+tls.VersionName(version), func(t *testing.T) {
				t.Parallel()
				p := newPKI(t)
				cfg := limitedConfig(t, p, engine, Limits{HandshakeTimeout: 3 * time.Second})
				cfg.KeyServer.Timeout = 200 * time.Millisecond
				e := start(t, cfg, p.transport())
				c := e.tcp(t)
				m := &mangler{Conn: c, mangle: func(c net.Conn, n int, record []byte) {
					if n == 0 { // nothing after the ClientHello
						c.Write(record)
					}
				}}
				go tls.Client(m, &tls.Config{ServerName: "a.test", RootCAs: p.roots, MinVersion: version, MaxVersion: version}).Handshake()
				require.Eventually(t, func() bool { return e.Usage().Handshakes == 1 }, time.Minute, time.Millisecond)
				require.Eventually(t, func() bool { return e.Usage() == Usage{} }, time.Minute, time.Millisecond)
			})
		}
	}
}

// hanging is a log whose reader has stopped reading.
type hanging struct {
	slog.Handler
	hangs chan struct{}
}

func (h hanging) Enabled(context.Context, slog.Level) bool { return true }

func (h hanging) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "limits.") {
		<-h.hangs
	}
	return nil
}

// Who meets a limit while the log hangs keeps no others waiting.
func TestLimitsWhileTheLogHangs(t *testing.T) {
	p := newPKI(t)
	log := hanging{slog.DiscardHandler, make(chan struct{})}
	s, err := New(limitedConfig(t, p, "", Limits{ConnectionsPerAddress: 1}), p.transport(), slog.New(log))
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	e := &edge{Server: s, addr: l.Addr().String()}
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	e.tcp(t)
	require.Eventually(t, func() bool {
		if !e.bounds.mu.TryLock() {
			return false
		}
		defer e.bounds.mu.Unlock()
		return e.bounds.ConnectionsRefused == 1
	}, time.Minute, time.Millisecond)
	close(log.hangs)
	require.NoError(t, s.Close())
	require.NoError(t, <-served)
}
