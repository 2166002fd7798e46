package edgeserver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tcpOrigin starts a TCP server that handles each connection with serve, and
// closes it then.
func tcpOrigin(t *testing.T, serve func(c *net.TCPConn)) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(time.Minute))
			wg.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// dialTCP connects to the site a.test.
func (e *edge) dialTCP(t *testing.T, p *testPKI, protocols ...string) *tls.Conn {
	c, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: protocols})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// TestTCPCarriesBothWays: the server speaks first, and either side can go on after
// the other has said all.
func TestTCPCarriesBothWays(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	addr := tcpOrigin(t, func(c *net.TCPConn) {
		io.WriteString(c, "welcome\n")
		all, err := io.ReadAll(c) // to the client's end
		if err == nil {
			fmt.Fprintf(c, "%d\n", len(all))
			c.Write(all)
		}
	})
	withEachEngine(t, Site{TCP: addr}, func(t *testing.T, p *testPKI, e *edge) {
		c := e.dialTCP(t, p)
		from := bufio.NewReader(c)
		greeting, err := from.ReadString('\n')
		require.NoError(t, err)
		assert.Equal(t, "welcome\n", greeting)
		_, err = c.Write(large)
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		rest, err := io.ReadAll(from)
		require.NoError(t, err)
		assert.True(t, string(rest) == fmt.Sprintf("%d\n%s", len(large), large))
		require.Eventually(t, func() bool {
			return strings.Contains(e.log.String(), fmt.Sprintf("received=%d sent=%d", len(large), len(rest)+len(greeting)))
		}, time.Minute, time.Millisecond)
	})
}

// TestTCPAfterTheOriginsEnd is the other half.
func TestTCPAfterTheOriginsEnd(t *testing.T) {
	got := make(chan string, 1)
	addr := tcpOrigin(t, func(c *net.TCPConn) {
		io.WriteString(c, "that is all")
		c.CloseWrite()
		all, _ := io.ReadAll(c)
		got <- string(all)
	})
	withEachEngine(t, Site{TCP: addr}, func(t *testing.T, p *testPKI, e *edge) {
		c := e.dialTCP(t, p)
		all, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, "that is all", string(all))
		for range 3 {
			_, err = io.WriteString(c, "not here. ")
			require.NoError(t, err)
		}
		c.Close()
		assert.Equal(t, "not here. not here. not here. ", <-got)
	})
}

// TestTCPBreaks: where one side breaks, the other does not see an end that was
// meant.
func TestTCPBreaks(t *testing.T) {
	t.Run("the origin", func(t *testing.T) {
		addr := tcpOrigin(t, func(c *net.TCPConn) {
			io.WriteString(c, "half an ans")
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		})
		withEachEngine(t, Site{TCP: addr}, func(t *testing.T, p *testPKI, e *edge) {
			c := e.dialTCP(t, p)
			_, err := io.ReadFull(c, make([]byte, 11))
			require.NoError(t, err)
			io.WriteString(c, ".")
			_, err = c.Read(make([]byte, 1))
			assert.ErrorIs(t, err, syscall.ECONNRESET)
		})
	})
	t.Run("the client", func(t *testing.T) {
		got := make(chan error, 1)
		addr := tcpOrigin(t, func(c *net.TCPConn) {
			_, err := io.Copy(io.Discard, c)
			got <- err
		})
		withEachEngine(t, Site{TCP: addr}, func(t *testing.T, p *testPKI, e *edge) {
			c := e.dialTCP(t, p)
			io.WriteString(c, "half a quest")
			// A record that nobody with the keys has made.
			c.NetConn().Write(record(applicationData, make([]byte, 32)))
			assert.ErrorIs(t, <-got, syscall.ECONNRESET)
		})
	})
}

func TestTCPOriginDown(t *testing.T) {
	withEachEngine(t, Site{TCP: nowhere}, func(t *testing.T, p *testPKI, e *edge) {
		c := e.dialTCP(t, p)
		_, err := c.Read(make([]byte, 1))
		require.Error(t, err)
		assert.NotErrorIs(t, err, io.EOF)
		require.Eventually(t, func() bool {
			return strings.Contains(e.log.String(), `level=WARN msg="the origin failed" site=a.test remote=127.0.0.1:`)
		}, time.Minute, time.Millisecond)
	})
}

func TestTCPIdle(t *testing.T) {
	ended := make(chan struct{}, 1)
	addr := tcpOrigin(t, func(c *net.TCPConn) {
		io.Copy(c, c)
		ended <- struct{}{}
	})
	withEachEngine(t, Site{TCP: addr, IdleTimeout: 2 * time.Second}, func(t *testing.T, p *testPKI, e *edge) {
		c := e.dialTCP(t, p)
		fmt.Fprint(c, "ping")
		_, err := io.ReadFull(c, make([]byte, 4))
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 1))
		assert.ErrorIs(t, err, io.EOF)
		<-ended
		require.Eventually(t, func() bool { return strings.Contains(e.log.String(), "idle for too long") }, time.Minute, time.Millisecond)
	})
}

// TestTCPClientThatDoesNotRead does not keep its connection longer than one that
// is silent.
func TestTCPClientThatDoesNotRead(t *testing.T) {
	ended := make(chan error, 1)
	addr := tcpOrigin(t, func(c *net.TCPConn) {
		_, err := io.Copy(c, endless{})
		ended <- err
	})
	withEachEngine(t, Site{TCP: addr, IdleTimeout: 100 * time.Millisecond}, func(t *testing.T, p *testPKI, e *edge) {
		e.dialTCP(t, p)
		err := <-ended
		assert.False(t, errors.Is(err, os.ErrDeadlineExceeded), err)
	})
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// faulty is a connection in which reading panics.
type faulty struct{ net.Conn }

func (faulty) Read([]byte) (int, error) { panic("a fault") }
func (faulty) CloseWrite() error        { return nil }

// TestTCPPanic: one connection has ended, and it is in the log; others go on.
func TestTCPPanic(t *testing.T) {
	edge, client := net.Pipe()
	toOrigin, origin := net.Pipe()
	var log bytes.Buffer
	tunnel := &tunnel{client: tls.Server(edge, &tls.Config{}), origin: faulty{toOrigin}, idle: time.Minute,
		log: slog.New(slog.NewTextHandler(&log, nil))}
	assert.ErrorIs(t, tunnel.run(t.Context()), errPanic)
	assert.Contains(t, log.String(), `level=ERROR msg="panic in a tcp connection" panic="a fault"`)
	for _, c := range []net.Conn{client, origin} {
		_, err := c.Read(make([]byte, 1))
		assert.ErrorIs(t, err, io.EOF, "it is closed")
	}
}

func TestTCPApplicationProtocol(t *testing.T) {
	addr := tcpOrigin(t, func(c *net.TCPConn) { io.WriteString(c, "hello") })
	withEachEngine(t, Site{TCP: addr, ALPN: []string{"mqtt", "x-amzn-mqtt-ca"}}, func(t *testing.T, p *testPKI, e *edge) {
		for offered, agreed := range map[string]string{"": "", "mqtt": "mqtt", "h2 x-amzn-mqtt-ca": "x-amzn-mqtt-ca", "x-amzn-mqtt-ca mqtt": "mqtt"} {
			c := e.dialTCP(t, p, strings.Fields(offered)...)
			assert.Equal(t, agreed, c.ConnectionState().NegotiatedProtocol)
			all, err := io.ReadAll(c)
			require.NoError(t, err)
			assert.Equal(t, "hello", string(all))
		}
		_, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: []string{"h2"}})
		assertAlert(t, 120, err) // no_application_protocol
	})
}

// TestTCPIsNotForClientsOfHTTP: a site that serves any protocol has none of a
// browser that has been led there.
func TestTCPIsNotForClientsOfHTTP(t *testing.T) {
	addr := tcpOrigin(t, func(c *net.TCPConn) { io.WriteString(c, "hello") })
	withEachEngine(t, Site{TCP: addr}, func(t *testing.T, p *testPKI, e *edge) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if e.Server.current().sites.all[0].Engine == EngineSplit && version == tls.VersionTLS13 {
				continue
			}
			for _, offered := range []string{"h2 http/1.1", "http/1.1", "h2"} {
				_, err := e.dial(p, &tls.Config{ServerName: "a.test", MaxVersion: version, NextProtos: strings.Fields(offered)})
				assertAlert(t, 120, err) // no_application_protocol
			}
		}
		for _, offered := range []string{"", "mqtt", "mqtt http/1.1"} {
			c := e.dialTCP(t, p, strings.Fields(offered)...)
			all, err := io.ReadAll(c)
			require.NoError(t, err)
			assert.Equal(t, "hello", string(all))
			assert.Empty(t, c.ConnectionState().NegotiatedProtocol)
		}
	})
}

// TestAWebSiteIsForHTTPAlone is the reverse.
func TestAWebSiteIsForHTTPAlone(t *testing.T) {
	withEachEngine(t, Site{Static: t.TempDir()}, func(t *testing.T, p *testPKI, e *edge) {
		for _, offered := range []string{"mqtt", "imap pop3", "h3"} {
			_, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: strings.Fields(offered)})
			assertAlert(t, 120, err) // no_application_protocol
		}
	})
}

// TestTCPBesideHTTP: a request of HTTP for the tcp site does not get there by the
// connection of another, and what is sent to the tcp site is no request.
func TestTCPBesideHTTP(t *testing.T) {
	addr := tcpOrigin(t, func(c *net.TCPConn) { io.Copy(c, c) })
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, TCP: addr},
		{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: htdocs(t, "this is b")},
	}}, p.transport())
	assert.Equal(t, "tls://a.test:1", e.url(&net.TCPAddr{Port: 1}))
	const request = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
	for site, answer := range map[string]string{"a.test": request, "b.test": "HTTP/1.1 421 "} {
		c, err := e.dial(p, &tls.Config{ServerName: site})
		require.NoError(t, err)
		io.WriteString(c, request)
		require.NoError(t, c.CloseWrite())
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.True(t, strings.HasPrefix(string(got), answer), string(got))
		c.Close()
	}
}

func TestTCPShutdown(t *testing.T) {
	addr := tcpOrigin(t, func(c *net.TCPConn) { io.Copy(c, c) })
	ping := func(t *testing.T, c *tls.Conn) {
		fmt.Fprint(c, "ping")
		_, err := io.ReadFull(c, make([]byte, 4))
		require.NoError(t, err)
	}
	withEachEngine(t, Site{TCP: addr}, func(t *testing.T, p *testPKI, e *edge) {
		c := e.dialTCP(t, p)
		ping(t, c)
		stopped := make(chan error, 1)
		go func() { stopped <- e.Shutdown(t.Context()) }()
		require.Eventually(t, func() bool {
			_, err := net.DialTimeout("tcp", e.addr, time.Second)
			return err != nil
		}, time.Minute, 5*time.Millisecond)
		ping(t, c)
		c.Close()
		assert.NoError(t, <-stopped)
	})
	t.Run("deadline", func(t *testing.T) {
		withEachEngine(t, Site{TCP: addr}, func(t *testing.T, p *testPKI, e *edge) {
			c := e.dialTCP(t, p)
			ping(t, c)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			assert.NoError(t, e.Shutdown(ctx), "it has cut no request short")
			_, err := c.Read(make([]byte, 1))
			assert.ErrorIs(t, err, io.EOF)
		})
	})
}

// TestMQTT has a real broker behind the edge, and real clients before it.
func TestMQTT(t *testing.T) {
	dir := t.TempDir()
	socket, err := net.Listen("tcp", "127.0.0.2:0") // whose ports no client's socket takes meanwhile
	require.NoError(t, err)
	addr := socket.Addr().String()
	socket.Close()
	conf := filepath.Join(dir, "mosquitto.conf")
	_, port, _ := net.SplitHostPort(addr)
	require.NoError(t, os.WriteFile(conf, []byte("listener "+port+" 127.0.0.2\nallow_anonymous true\n"), 0o600))
	broker := exec.Command("/usr/sbin/mosquitto", "-c", conf)
	require.NoError(t, broker.Start())
	defer broker.Wait()
	defer broker.Process.Kill()
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, time.Minute, 5*time.Millisecond)

	p := newPKI(t)
	for _, engine := range []string{EngineStandard, EngineSplit} {
		// The clients of Debian take the name to connect to for that of the
		// certificate.
		e := start(t, Config{Sites: []Site{
			{Names: []string{"localhost"}, Certificates: []string{p.ecdsa(t, "localhost")}, TCP: addr, ALPN: []string{"mqtt"}, Engine: engine},
		}}, p.transport())
		args := []string{"-h", "localhost", "-p", e.port(t), "--cafile", e.Sites()[0].Certificates[0], "--tls-alpn", "mqtt", "-t", "sensors/" + engine, "-q", "1"}
		large := strings.Repeat("measured ", 10_000)
		publish := exec.Command("mosquitto_pub", append(args, "--retain", "--stdin-file")...)
		publish.Stdin = strings.NewReader(large)
		said, err := publish.CombinedOutput()
		require.NoError(t, err, string(said))
		got, err := exec.Command("mosquitto_sub", append(args, "-C", "1", "-W", "60")...).Output()
		require.NoError(t, err)
		assert.True(t, large+"\n" == string(got))
	}
}

func TestTCPConfiguration(t *testing.T) {
	site := func(lines ...string) string {
		return keyserverYAML + "sites:\n  - names: [a.test]\n    certificates: [a.pem]\n    " + strings.Join(lines, "\n    ") + "\n"
	}
	cfg, _, err := load(t, site("tcp: '[2001:db8::1]:https'", "alpn: [mqtt]", "idle_timeout: 1h", "proxy_protocol: true")+"proxy_protocol: {from: [192.0.2.1, '2001:db8::/32']}\n")
	require.NoError(t, err)
	assert.Equal(t, []string{"192.0.2.1", "2001:db8::/32"}, cfg.ProxyProtocol.From)
	for name, tt := range map[string]struct{ yaml, want string }{
		"both contents":         {site("static: .", "tcp: 127.0.0.1:1883"), ":10:10: sites[0].tcp: a site has one of proxy, static and tcp"},
		"no port":               {site("tcp: 127.0.0.1"), ":9:10: sites[0].tcp: '127.0.0.1' is not an address such as 127.0.0.1:1883"},
		"no host":               {site("tcp: ':1883'"), ":9:10: sites[0].tcp: ':1883' is not an address"},
		"a URL":                 {site("tcp: mqtt://a.test"), "is not an address"},
		"port 0":                {site("tcp: 127.0.0.1:0"), "is not an address"},
		"alpn without tcp":      {site("static: .", "alpn: [mqtt]"), ":10:11: sites[0].alpn: is for sites with tcp"},
		"idle without tcp":      {site("static: .", "idle_timeout: 1m"), ":10:19: sites[0].idle_timeout: is for sites with tcp"},
		"header without tcp":    {site("static: .", "proxy_protocol: true"), ":10:21: sites[0].proxy_protocol: is for sites with tcp"},
		"an empty protocol":     {site("tcp: 127.0.0.1:1883", "alpn: ['']"), ":10:12: sites[0].alpn[0]: a protocol's name has 1 to 255 bytes"},
		"a protocol twice":      {site("tcp: 127.0.0.1:1883", "alpn: [a, a]"), ":10:15: sites[0].alpn[1]: 'a' is there already"},
		"no time":               {site("tcp: 127.0.0.1:1883", "idle_timeout: 10"), ":10:19: sites[0].idle_timeout: '10' is not a time"},
		"a name for a balancer": {site("static: .") + "proxy_protocol: {from: [a.test]}\n", ":10:25: proxy_protocol.from[0]: 'a.test' is neither a network"},
		"bits too many":         {site("static: .") + "proxy_protocol: {from: [192.0.2.1/24]}\n", "'192.0.2.1/24' has bits beyond its prefix: the network is 192.0.2.0/24"},
		"IPv4 in IPv6":          {site("static: .") + "proxy_protocol: {from: ['::ffff:192.0.2.1']}\n", "'::ffff:192.0.2.1' is neither a network"},
	} {
		_, file, err := load(t, tt.yaml)
		require.Error(t, err, name)
		assert.True(t, strings.HasPrefix(err.Error(), file+":"), err.Error())
		assert.ErrorContains(t, err, tt.want, name)
	}
}

// TestTCPOverAReload: a connection stays with the origin that it has, and holds
// what it was accepted with until it ends.
func TestTCPOverAReload(t *testing.T) {
	says := func(answer string) string {
		return tcpOrigin(t, func(c *net.TCPConn) {
			for {
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					return
				}
				io.WriteString(c, answer)
			}
		})
	}
	before, after := says("a"), says("b")
	withEachEngine(t, Site{TCP: before}, func(t *testing.T, p *testPKI, e *edge) {
		ask := func(c *tls.Conn) string {
			io.WriteString(c, "?")
			answer := make([]byte, 1)
			_, err := io.ReadFull(c, answer)
			require.NoError(t, err)
			return string(answer)
		}
		old := e.dialTCP(t, p)
		assert.Equal(t, "a", ask(old))
		cfg := e.current().cfg
		cfg.Sites = []Site{cfg.Sites[0]}
		cfg.Sites[0].TCP = after
		ended, err := e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
		assert.Equal(t, "b", ask(e.dialTCP(t, p)))
		assert.Equal(t, "a", ask(old))
		assert.False(t, isClosed(ended))
		old.Close()
		<-ended
	})
}
