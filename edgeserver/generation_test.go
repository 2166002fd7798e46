package edgeserver

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
)

// TestNoRequestKeepsAConnectionAtAnOldGeneration: whatever a client asks for, or the
// origin says before its answer, the answer ends the connection.
func TestNoRequestKeepsAConnectionAtAnOldGeneration(t *testing.T) {
	addr := origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "ok")
	})
	withEachEngine(t, Site{Proxy: "http://" + addr}, func(t *testing.T, p *testPKI, e *edge) {
		for _, http2 := range []bool{false, true} {
			for _, fields := range []http.Header{{}, {"Upgrade": {"echo"}, "Connection": {"Upgrade"}}, {"Upgrade": {"echo"}}} {
				if http2 && len(fields) > 0 {
					continue
				}
				client := e.client(t, p)
				client.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
				ask := func() {
					req, err := http.NewRequest("GET", "https://a.test/", nil)
					require.NoError(t, err)
					req.Header = fields
					resp, err := client.Do(req)
					require.NoError(t, err)
					body, err := io.ReadAll(resp.Body)
					require.NoError(t, err)
					resp.Body.Close()
					require.Equal(t, "ok", string(body))
				}
				ask()
				ended, err := e.Reload(e.current().cfg, over(p.transport()))
				require.NoError(t, err)
				ask()
				select {
				case <-ended:
				case <-time.After(time.Minute):
					require.FailNow(t, "the connection does not end", "HTTP/2: %v, %v", http2, fields)
				}
			}
		}
	})
}

// TestNothingIsLeftOfClientsThatLeave: whatever a client has begun, and whether or
// not there has been a reload meanwhile, nothing refers to a generation once it is gone.
func TestNothingIsLeftOfClientsThatLeave(t *testing.T) {
	echo := tcpOrigin(t, func(c *net.TCPConn) { io.Copy(c, c) })
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			c, _, _ := w.(http.Hijacker).Hijack()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			io.Copy(c, c)
			c.Close()
			return
		}
		io.Copy(io.Discard, r.Body)
		for range 100 {
			w.Write(make([]byte, 10_000))
		}
	})
	for _, engine := range []string{EngineStandard, EngineSplit} {
		p := newPKI(t)
		cfg := Config{Sites: []Site{
			{Names: []string{"a.test"}, Default: true, Certificates: []string{p.ecdsa(t, "a.test")}, Engine: engine, Proxy: "http://" + web},
			{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, TCP: echo},
		}}
		e := start(t, cfg, p.transport())
		var generations []*generation
		client := func(n int) {
			raw, err := net.Dial("tcp", e.addr)
			if err != nil {
				return
			}
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(time.Minute))
			switch n % 10 {
			case 0:
				return
			case 1:
				io.WriteString(raw, "GET / HTTP/1.1\r\n\r\n")
				return
			case 2:
				raw.Write([]byte{22, 3, 1, 2, 0, 1})
				return
			}
			name, protocols := "a.test", []string{"http/1.1"}
			switch n % 10 {
			case 3, 4:
				protocols = []string{"h2"}
			case 5:
				name, protocols = "b.test", nil
			}
			c := tls.Client(raw, &tls.Config{RootCAs: p.roots, ServerName: name, NextProtos: protocols})
			if n%10 == 6 {
				time.AfterFunc(time.Duration(rand.N(3_000_000)), func() { raw.Close() })
			}
			if c.Handshake() != nil {
				return
			}
			switch n % 10 {
			case 3:
				rawHTTP2(c, h2Request(), "hi")
			case 4:
				io.WriteString(c, http2.ClientPreface)
			case 5:
				io.WriteString(c, "hello")
				c.Read(make([]byte, 1))
			case 7:
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello")
				c.Read(make([]byte, 1))
			case 8:
				fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\nhello")
			case 9:
				fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
				c.Read(make([]byte, 10))
			}
		}
		for range 2 {
			var wg sync.WaitGroup
			for n := range 30 {
				wg.Go(func() { client(n) })
			}
			generations = append(generations, e.current())
			ended, err := e.Reload(cfg, over(p.transport()))
			require.NoError(t, err)
			wg.Wait()
			select {
			case <-ended:
			case <-time.After(time.Minute):
				require.FailNow(t, "a generation does not end")
			}
		}
		require.Eventually(t, func() bool {
			usage := e.Usage()
			return usage.Connections == 0 && usage.Handshakes == 0
		}, time.Minute, time.Millisecond)
		for _, g := range append(generations, e.current()) {
			want := 0
			if g == e.current() {
				want = 1 // the Server itself
			}
			require.Eventually(t, func() bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				return g.n == want
			}, time.Minute, time.Millisecond)
		}
	}
}
