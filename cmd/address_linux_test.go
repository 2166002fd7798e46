package cmd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/internal/netlab"
)

// mobile is a machine with an edge server for each binding, and over IPv4 and IPv6,
// and a key server on another machine of a virtual network.
type mobile struct {
	*devSetup
	network         *netlab.Network
	machine, server *netlab.Host
	edges           []*mobileEdge
	roots           *x509.CertPool
}

// mobileEdge is one of the edge servers.
type mobileEdge struct {
	*mobile
	name string // and of its log
	url  string
	at   string // where it listens, on its machine alone
}

// mobileBindings are the URLs of the key server. The last is of one that has no
// HTTP/2, and so needs several connections.
var mobileBindings = map[string]string{
	"coaps":     "coaps://%s:5684/ski",
	"coaps-tcp": "coaps+tcp://%s:5684/ski",
	"https":     "https://%s:8443/ski",
	"https-1":   "https://%s:8444/ski",
}

// startMobile starts the key server, with ticket keys for those who can have them.
func startMobile(t *testing.T) *mobile {
	m := &mobile{devSetup: startDev(t), network: netlab.New(), roots: x509.NewCertPool()}
	t.Cleanup(m.network.Close)
	ca, err := os.ReadFile(m.endpoints.CA)
	require.NoError(t, err)
	m.roots.AppendCertsFromPEM(ca)
	m.server, err = m.network.Host("keyserver", m.network.NewAddr(), m.network.NewAddr6())
	require.NoError(t, err)
	m.machine, err = m.network.Host("edge", m.network.NewAddr(), m.network.NewAddr6())
	require.NoError(t, err)

	config := regexp.MustCompile(`(?m)^(listen|coaps_tcp|https): .*\n`).ReplaceAllString(m.read("keyserver/keyserver.yaml"), "")
	config = strings.ReplaceAll(config, "audit.log", "mobile-audit.log")
	config = strings.ReplaceAll(config, "policy.yaml", "mobile-policy.yaml")
	m.write("keyserver/mobile.yaml", "listen: \":5684\"\ncoaps_tcp: \":5684\"\nhttps: \":8443\"\n"+config)
	m.setTickets(0)
	m.start(m.server, "ski-keyserver", "keyserver/mobile")
	m.logged("keyserver/mobile", "msg=sandbox", 1)
	m.serveHTTP1()
	return m
}

// serveHTTP1 passes on to the key server what is asked over HTTP/1.1.
func (m *mobile) serveHTTP1() {
	pair := func(name string) tls.Certificate {
		pair, err := tls.LoadX509KeyPair(filepath.Join(m.dir, name+".pem"), filepath.Join(m.dir, name+".key"))
		require.NoError(m.t, err)
		return pair
	}
	listener, err := m.server.Listen("tcp", ":8444")
	require.NoError(m.t, err)
	to := &url.URL{Scheme: "https", Host: "127.0.0.1:8443"}
	keyServer := &http.Transport{
		DialContext:     m.server.DialContext,
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair("edge/edge")}, InsecureSkipVerify: true},
	}
	proxy := &http.Server{
		Handler: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, Transport: keyServer},
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{pair("keyserver/keyserver")}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"http/1.1"},
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	m.t.Cleanup(func() {
		proxy.Close()
		keyServer.CloseIdleConnections()
	})
	go func() { _ = proxy.ServeTLS(listener, "", "") }()
}

func (m *mobile) write(name, text string) {
	require.NoError(m.t, os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o600))
}

// setTickets gives the key server's policy ticket keys of a generation.
func (m *mobile) setTickets(generation int) {
	policy := fmt.Sprintf("%stickets:\n  - {name: shop, edges: [edge], generation: %d}\n", m.read("keyserver/policy.yaml"), generation)
	m.write("keyserver/mobile-next.yaml", policy)
	require.NoError(m.t, os.Rename(filepath.Join(m.dir, "keyserver/mobile-next.yaml"), filepath.Join(m.dir, "keyserver/mobile-policy.yaml")))
}

// start runs a daemon with NAME.yaml on a host until the test ends. Its log is
// NAME.log.
func (m *mobile) start(on *netlab.Host, program, name string) {
	stderr, err := os.Create(filepath.Join(m.dir, name+".log"))
	require.NoError(m.t, err)
	defer stderr.Close()
	cmd := on.Command(filepath.Join(bin, program), "-config", filepath.Join(m.dir, name+".yaml"))
	cmd.Stderr = stderr
	require.NoError(m.t, cmd.Start())
	m.t.Cleanup(func() { m.stop(cmd, name) })
}

func (m *mobile) stop(cmd *exec.Cmd, name string) {
	assert.NoError(m.t, cmd.Process.Signal(os.Interrupt))
	assert.NoError(m.t, cmd.Wait(), name)
	if m.t.Failed() {
		m.t.Logf("%s:\n%s", name, tail(m.read(name+".log"), 60))
	}
}

// logged waits until a log has a text n times.
func (m *mobile) logged(name, text string, n int) {
	m.t.Helper()
	require.Eventually(m.t, func() bool { return strings.Count(m.read(name+".log"), text) >= n }, time.Minute, 10*time.Millisecond, "%s: %s", name, text)
}

// startEdges starts an edge server for each binding, whose key server is at host.
func (m *mobile) startEdges(suffix, host string) (edges []*mobileEdge) {
	m.t.Helper()
	for name, format := range mobileBindings {
		e := &mobileEdge{mobile: m, name: "edge/" + name + suffix, url: fmt.Sprintf(format, host)}
		config := regexp.MustCompile(`(?m)^listen: .*$`).ReplaceAllString(m.read("edge/edge.yaml"), `listen: ["127.0.0.1:0"]`)
		config = regexp.MustCompile(`(?m)^  url: .*$`).ReplaceAllString(config, "  url: \""+e.url+"\"\n  server_name: 127.0.0.1")
		if e.observes() {
			config = strings.Replace(config, "    static: ecdsa.localhost\n", "    static: ecdsa.localhost\n    tickets: shared\n    ticket_site: shop\n", 1)
		}
		m.write(e.name+".yaml", config)
		m.start(m.machine, "ski-edgeserver", e.name)
		edges = append(edges, e)
	}
	for _, e := range edges {
		m.logged(e.name, "the key server has the key", 2*len(m.endpoints.Sites))
		e.at = regexp.MustCompile(`msg=listening addr=(\S+)`).FindStringSubmatch(m.read(e.name + ".log"))[1]
		if e.observes() {
			m.logged(e.name, `msg="ticket keys"`, 1)
		}
	}
	m.edges = append(m.edges, edges...)
	return edges
}

// observes reports whether the edge server's tickets are shared: over HTTPS nobody
// could say when the keys change.
func (e *mobileEdge) observes() bool { return !strings.HasPrefix(e.url, "https") }

// ticketKeys returns the names of the ticket keys that the edge server has.
func (e *mobileEdge) ticketKeys() (ids string) {
	for _, m := range regexp.MustCompile(`msg="ticket keys".* ids=(\S+)`).FindAllStringSubmatch(e.read(e.name+".log"), -1) {
		ids = m[1]
	}
	return ids
}

// sessions returns how many the edge server has made.
func (e *mobileEdge) sessions() int {
	return strings.Count(e.read(e.name+".log"), `msg="session begins"`)
}

// visit fetches a page from a new connection, whose handshake asks the key server.
// Before the client's second flight, it calls between.
func (e *mobileEdge) visit(config *tls.Config, between func()) error {
	ctx, cancel := context.WithTimeout(e.t.Context(), time.Minute)
	defer cancel()
	conn, err := e.machine.DialContext(ctx, "tcp", e.at)
	if err != nil {
		return err
	}
	defer conn.Close()
	config.RootCAs = e.roots
	secure := tls.Client(&flights{Conn: conn, between: between}, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("%s %s: %w", e.name, config.ServerName, err)
	}
	_, _ = fmt.Fprintf(secure, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", config.ServerName)
	page, err := io.ReadAll(secure)
	if err == nil && !bytes.Contains(page, []byte("<h1>")) {
		err = fmt.Errorf("%s: not the page of the site: %q", e.name, page)
	}
	return err
}

// flights is a client's connection that does something before its second flight.
type flights struct {
	net.Conn
	between func()
	sent    int
}

func (f *flights) Write(b []byte) (int, error) {
	if f.sent++; f.sent == 2 && f.between != nil {
		f.between()
	}
	return f.Conn.Write(b)
}

// asked returns the records of requests in the audit log.
func (m *mobile) asked() []string {
	return regexp.MustCompile(`(?m)^.*"event":"request".*$`).FindAllString(m.read("keyserver/mobile-audit.log"), -1)
}

// everyEdge visits all edge servers at once, with each kind of handshake. The key
// server has to answer within keyserver.timeout, whatever has happened meanwhile.
func (m *mobile) everyEdge(what string, edges []*mobileEdge) {
	m.t.Helper()
	began := time.Now()
	var all sync.WaitGroup
	for _, e := range edges {
		for _, kind := range everyKind() {
			all.Go(func() { assert.NoError(m.t, e.visit(kind, nil), what) })
		}
	}
	all.Wait()
	m.t.Logf("%s: all answered after %v", what, time.Since(began).Round(time.Millisecond))
	require.False(m.t, m.t.Failed())
}

func TestAnEdgeWhoseAddressChangesIsServedOn(t *testing.T) {
	t.Parallel()
	m := startMobile(t)
	addrs := m.server.Addrs()
	m.startEdges("", addrs[0].String())
	m.startEdges("-6", "["+addrs[1].String()+"]")
	m.everyEdge("before", m.edges)

	// renumber gives the machine other addresses of both families.
	renumber := func() {
		require.NoError(t, m.machine.Renumber(m.network.NewAddr()))
		require.NoError(t, m.machine.Renumber(m.network.NewAddr6()))
	}
	renumber()
	m.everyEdge("other addresses", m.edges)

	t.Run("half of an exchange", func(t *testing.T) {
		var halves, ends sync.WaitGroup
		moved := make(chan struct{})
		for _, e := range m.edges {
			halves.Add(1)
			ends.Go(func() {
				half := sync.OnceFunc(halves.Done)
				defer half()
				config := &tls.Config{ServerName: "split.ecdsa.localhost", MaxVersion: tls.VersionTLS12}
				var began time.Time
				assert.NoError(t, e.visit(config, func() { half(); <-moved; began = time.Now() }))
				t.Logf("%s: %v", e.name, time.Since(began).Round(time.Millisecond))
			})
		}
		halves.Wait()
		renumber()
		close(moved)
		ends.Wait()
	})

	t.Run("nothing but an observation", func(t *testing.T) {
		before := map[*mobileEdge]string{}
		for _, e := range m.edges {
			before[e] = e.ticketKeys()
		}
		renumber()
		m.setTickets(1)
		began := time.Now()
		for _, e := range m.edges {
			if e.observes() {
				require.Eventually(t, func() bool { return e.ticketKeys() != before[e] }, time.Minute, 10*time.Millisecond, e.name)
			}
		}
		t.Logf("all have the new ticket keys after %v", time.Since(began).Round(time.Millisecond))
	})

	for name, fault := range map[string]struct{ away, back func() error }{
		"the interface down and up": {m.machine.Down, m.machine.Up},
		"routes withdrawn":          {m.machine.WithdrawRoutes, m.machine.RestoreRoutes},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, fault.away())
			before := make([]int, len(m.edges))
			noticed := func(e *mobileEdge) int { return strings.Count(m.read(e.name+".log"), `msg="no session"`) }
			for i, e := range m.edges {
				before[i] = noticed(e)
			}
			var waiting sync.WaitGroup
			waiting.Go(func() { m.everyEdge(name, m.edges) })
			for i, e := range m.edges {
				require.Eventually(t, func() bool { return noticed(e) > before[i] }, time.Minute, 10*time.Millisecond, e.name)
			}
			require.NoError(t, fault.back())
			waiting.Wait()
		})
	}

	t.Run("IPv6 address deprecated", func(t *testing.T) {
		six := m.edges[len(mobileBindings):]
		old := m.machine.Addrs()
		before := make([]int, len(six))
		for i, e := range six {
			before[i] = e.sessions()
		}
		require.NoError(t, m.machine.AddAddr(m.network.NewAddr6()))
		for _, a := range old {
			if a.Is6() {
				require.NoError(t, m.machine.Deprecate(a))
			}
		}
		m.everyEdge("deprecated", six)
		for i, e := range six {
			if e.observes() {
				assert.Equal(t, before[i], e.sessions(), "%s: the session goes on", e.name)
			}
		}
		for _, a := range old {
			if a.Is6() {
				require.NoError(t, m.machine.RemoveAddr(a))
			}
		}
		m.everyEdge("and removed", six)
	})
}

// A NAT that forgets the edge's mappings, or has another address itself.
func TestAnEdgeBehindANATThatForgetsItIsServedOn(t *testing.T) {
	t.Parallel()
	m := startMobile(t)
	nat := m.machine.BehindNAT(m.network.NewAddr())
	m.startEdges("", m.server.Addr().String())
	m.everyEdge("before", m.edges)
	before := map[string]int{}
	for _, e := range m.edges {
		before[e.name] = e.sessions()
	}
	nat.Rebind()
	m.everyEdge("rebound", m.edges)
	for _, e := range m.edges {
		if e.name == "edge/coaps" {
			assert.Equal(t, before[e.name], e.sessions(), "a session with a connection ID goes on at another port")
		}
	}
	outside := m.network.NewAddr()
	nat.Renumber(outside)
	known := len(m.asked())
	m.everyEdge("renumbered", m.edges)
	for _, record := range m.asked()[known:] {
		if !strings.Contains(record, `"address":"127.0.0.1:`) { // of serveHTTP1
			assert.Contains(t, record, `"address":"`+outside.String()+":", "where the edge is now")
		}
	}
}

// A key server that listens on all addresses answers from the one that was asked:
// an edge's socket takes nothing from another.
func TestAKeyServerAnswersFromTheAddressThatWasAsked(t *testing.T) {
	t.Parallel()
	m := startMobile(t)
	second, second6 := m.network.NewAddr(), m.network.NewAddr6()
	require.NoError(t, m.server.AddAddr(second))
	require.NoError(t, m.server.AddAddr(second6))
	m.startEdges("", second.String())
	m.startEdges("-6", "["+second6.String()+"]")
	m.everyEdge("at the second addresses", m.edges)
}

// On a long path it takes more than a second until what was lost has been sent again
// and answered. That is no silence.
func TestALossOnALongPathEndsNoSessionOverTCP(t *testing.T) {
	t.Parallel()
	m := startMobile(t)
	var losing atomic.Bool
	m.network.Between(m.machine, m.server).Set(netlab.Conditions{Delay: 250 * time.Millisecond, Drop: func(packet []byte) bool {
		const ip, tcp, headers = 20, 6, 20 + 32
		return packet[0]>>4 == 4 && packet[9] == tcp && len(packet) > headers &&
			binary.BigEndian.Uint16(packet[ip+2:]) == 5684 && losing.CompareAndSwap(true, false)
	}})
	for _, e := range m.startEdges("", m.server.Addr().String()) {
		if e.name != "edge/coaps-tcp" {
			continue
		}
		before := e.sessions()
		for range 3 {
			losing.Store(true)
			require.NoError(t, e.visit(&tls.Config{ServerName: "ecdsa.localhost"}, nil))
			require.False(t, losing.Load(), "a segment was lost")
		}
		assert.Equal(t, before, e.sessions())
	}
}

// The key server moves, and its name with it.
func TestAnEdgeFindsAKeyServerWhoseNameMoves(t *testing.T) {
	t.Parallel()
	m := startMobile(t)
	m.network.SetName("keys.test", m.server.Addr())
	m.startEdges("", "keys.test")
	m.everyEdge("before", m.edges)
	to := m.network.NewAddr()
	require.NoError(t, m.server.Renumber(to))
	m.network.SetName("keys.test", to)
	m.everyEdge("moved", m.edges)
}
