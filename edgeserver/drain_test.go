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
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// framer is a connection for HTTP/2.
type framer struct {
	*http2.Framer
	*tls.Conn
}

// frames returns one on which nothing has been asked yet.
func frames(t *testing.T, e *edge, p *testPKI, settings ...http2.Setting) framer {
	c, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: []string{"h2"}})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	_, err = io.WriteString(c, http2.ClientPreface)
	require.NoError(t, err)
	f := framer{http2.NewFramer(c, c), c}
	require.NoError(t, f.WriteSettings(settings...))
	return f
}

// ask sends a request for a path on a stream.
func ask(t *testing.T, f framer, stream uint32, path string) {
	var block writer
	e := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "a.test"}, {":path", path}} {
		require.NoError(t, e.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}))
	}
	require.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndStream: true, EndHeaders: true}))
}

type writer []byte

func (w *writer) Write(b []byte) (int, error) { *w = append(*w, b...); return len(b), nil }

// told reads until the stream 1 has ended, and a GOAWAY without an error has come.
func told(t *testing.T, f framer) {
	for goAway, done := false, false; !goAway || !done; {
		frame, err := f.ReadFrame()
		require.NoError(t, err)
		switch frame := frame.(type) {
		case *http2.GoAwayFrame:
			require.Equal(t, http2.ErrCodeNo, frame.ErrCode)
			goAway = true
		case *http2.DataFrame:
			done = done || frame.StreamEnded()
		case *http2.RSTStreamFrame:
			require.Fail(t, "the stream is cut short")
		}
	}
}

// Shutdown lets requests finish, and then ends their connections, in HTTP/2 with a
// GOAWAY.
func TestShutdownEndsConnectionsInGoodOrder(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		t.Run(engine, func(t *testing.T) {
			p := newPKI(t)
			entered, proceed := make(chan struct{}), make(chan struct{})
			e := start(t, Config{Sites: []Site{
				{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir, Engine: engine},
			}}, p.transport())
			e.current().sites.all[0].handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				entered <- struct{}{}
				<-proceed
				io.WriteString(w, "finished")
			})
			two := frames(t, e, p)
			ask(t, two, 1, "/")
			<-entered
			one, err := e.dial(p, &tls.Config{ServerName: "a.test"})
			require.NoError(t, err)
			defer one.Close()
			fmt.Fprint(one, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
			<-entered
			assert.False(t, e.Draining())
			stopped := make(chan error, 1)
			go func() { stopped <- e.Shutdown(t.Context()) }()
			require.Eventually(t, e.Draining, time.Minute, time.Millisecond)
			close(proceed)
			assert.Contains(t, ended(t, one), "finished")
			told(t, two)
			two.Close()
			assert.NoError(t, <-stopped)
		})
	}
}

// After Drain all goes on, but clients are sent away with their next answer.
func TestDrain(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		t.Run(engine, func(t *testing.T) {
			p := newPKI(t)
			e := limited(t, p, engine, Limits{})
			e.Drain()
			assert.True(t, e.Draining())
			two := frames(t, e, p)
			ask(t, two, 1, "/")
			told(t, two)
			one, err := e.dial(p, &tls.Config{ServerName: "a.test"})
			require.NoError(t, err)
			defer one.Close()
			fmt.Fprint(one, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
			answer := ended(t, one)
			assert.Contains(t, answer, "Connection: close")
			assert.Contains(t, answer, "hello")
		})
	}
}

// A request that comes too late is no answered one.
func TestRequestAfterTheLast(t *testing.T) {
	p := newPKI(t)
	e := limited(t, p, "", Limits{})
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	e.requests.release() // as Shutdown does when its time is up, before it closes connections
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	assert.Empty(t, ended(t, c))
}

// Connections of an older configuration are waited for as others are.
func TestShutdownAfterAReload(t *testing.T) {
	p := newPKI(t)
	url, proceed := slowOrigin(t)
	cfg := Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: url}}}
	e := start(t, cfg, p.transport())
	resp, err := e.client(t, p).Get("https://a.test/")
	require.NoError(t, err)
	defer resp.Body.Close()
	_, err = e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	stopped := make(chan error, 1)
	go func() { stopped <- e.Shutdown(context.Background()) }()
	require.Eventually(t, e.Draining, time.Minute, time.Millisecond)
	close(proceed)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, "begin end", string(body))
	assert.NoError(t, <-stopped)
}

// Shutdown ends all that there is when its time is up, of each kind and of older
// configurations too: nothing runs on.
func TestShutdownLeavesNothingBehind(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		t.Run(engine, func(t *testing.T) {
			p := newPKI(t)
			origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") != "" {
					if c, rw, err := w.(http.Hijacker).Hijack(); err == nil {
						defer c.Close()
						io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
						io.Copy(c, rw)
					}
					return
				}
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}))
			defer origin.Close()
			silent := tcpOrigin(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
			cfg := Config{AccessLog: AccessLog{File: filepath.Join(p.dir, "access.log")}, Sites: []Site{
				{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL, Engine: engine},
				{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, TCP: silent, Engine: engine},
			}}
			before := runtime.NumGoroutine()
			s, err := New(cfg, p.transport(), slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			served := make(chan error, 1)
			go func() { served <- s.Serve(l) }()
			e := &edge{Server: s, addr: l.Addr().String()}

			connect := func() (all []net.Conn) {
				dial := func(name string) *tls.Conn {
					c, err := e.dial(p, &tls.Config{ServerName: name})
					require.NoError(t, err)
					all = append(all, c)
					return c
				}
				two := frames(t, e, p)
				ask(t, two, 1, "/")
				for header := false; !header; {
					frame, err := two.ReadFrame()
					require.NoError(t, err)
					_, header = frame.(*http2.HeadersFrame)
				}
				for _, upgrade := range []string{"", "Connection: Upgrade\r\nUpgrade: echo\r\n"} {
					c := dial("a.test")
					fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a.test\r\n%s\r\n", upgrade)
					_, err := c.Read(make([]byte, 1))
					require.NoError(t, err)
				}
				dial("b.test")
				silent, err := net.Dial("tcp", e.addr) // whose handshake does not begin
				require.NoError(t, err)
				return append(all, two, silent)
			}
			all := connect()
			_, err = s.Reload(cfg, over(p.transport()))
			require.NoError(t, err)
			all = append(all, connect()...)

			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			assert.ErrorIs(t, s.Shutdown(ctx), context.DeadlineExceeded)
			assert.NoError(t, <-served)
			for _, c := range all {
				ended(t, c)
				c.Close()
			}
			require.Eventually(t, func() bool { return s.Usage().Connections == 0 }, time.Minute, time.Millisecond)
			origin.CloseClientConnections()
			// Those of the two origins are left, for as long as they hear nothing.
			require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+2 }, time.Minute, time.Millisecond, "goroutines")
			assert.NoError(t, s.Shutdown(t.Context()), "once more")
		})
	}
}
