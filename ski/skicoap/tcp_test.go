package skicoap

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
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

// serveTCP starts a key server on TCP and stops it with the test.
func serveTCP(t *testing.T, ca *testCA, change ...func(*ServerConfig)) *Server {
	t.Helper()
	cfg := ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), Logger: quiet}
	for _, c := range change {
		c(&cfg)
	}
	s, err := ListenTCP("127.0.0.1:0", cfg)
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		assert.NoError(t, s.Close())
		assert.NoError(t, <-served)
	})
	return s
}

func dialTCP(t *testing.T, s *Server, ca *testCA, change ...func(*ClientConfig)) *Client {
	t.Helper()
	cfg := ca.client()
	for _, c := range change {
		c(&cfg)
	}
	c, err := NewClient(fmt.Sprintf("coaps+tcp://%s/ski", s.Addr()), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return c
}

func logTo(log *logBuffer) func(*ServerConfig) {
	return func(cfg *ServerConfig) { cfg.Logger = slog.New(slog.NewTextHandler(log, nil)) }
}

// tcpPeer speaks CoAP message by message, as any implementation might.
type tcpPeer struct {
	t      *testing.T
	conn   *tls.Conn
	frames *frameReader
}

// newTCPPeer connects and, unless it is to be silent, exchanges CSMs.
func newTCPPeer(t *testing.T, s *Server, ca *testCA, silent bool, change ...func(*tls.Config)) *tcpPeer {
	t.Helper()
	cfg := &tls.Config{Certificates: []tls.Certificate{ca.edge()}, RootCAs: ca.pool, ServerName: "localhost", NextProtos: []string{"coap"}}
	for _, c := range change {
		c(cfg)
	}
	conn, err := tls.Dial("tcp", s.Addr().String(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	p := &tcpPeer{t, conn, newFrameReader(conn)}
	if !silent {
		p.send(message.Message{Code: codes.CSM})
		assert.Equal(t, codes.CSM, p.receive().Code)
	}
	return p
}

func (p *tcpPeer) send(m message.Message) {
	p.t.Helper()
	frame, err := encodeFrame(m)
	require.NoError(p.t, err)
	_, err = p.conn.Write(frame)
	require.NoError(p.t, err)
}

func (p *tcpPeer) receive() message.Message {
	p.t.Helper()
	m, err := p.frames.read(func() {})
	require.NoError(p.t, err)
	return m
}

func TestARequestOverTCPIsAnsweredToAnAuthenticatedPeer(t *testing.T) {
	ca := newTestCA(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		peers := make(chan ski.Peer, 1)
		s := serveTCP(t, ca, func(cfg *ServerConfig) {
			cfg.Handler = ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
				peers <- p
				return echo(ctx, p, req)
			})
		})
		s.tcp.config.MaxVersion = version
		edge := ca.edge()
		require.NoError(t, ask(t.Context(), dialTCP(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate = edge }), 1))
		leaf, err := x509.ParseCertificate(edge.Certificate[0])
		require.NoError(t, err)
		p := <-peers
		assert.Equal(t, ski.CertificateKeyID(leaf), p.SPKI)
		assert.Equal(t, "127.0.0.1", p.Addr.Addr().String())
	}
}

func TestAPeerThatIsNotAuthenticatedGetsNoSessionOverTCP(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	unnamed := func(c *x509.Certificate) { c.ExtKeyUsage = nil }
	for _, tc := range []struct {
		name string
		edge tls.Certificate
		why  string
	}{
		{"of another authority", other.edge(), "unknown authority"},
		{"expired", ca.issue(x509.ExtKeyUsageClientAuth, expired), "expired"},
		{"of a key server", ca.keyServer(), "incompatible key usage"},
		{"that does not say its use", ca.issue(x509.ExtKeyUsageClientAuth, unnamed), "lacks the extended key usage"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log logBuffer
			s := serveTCP(t, ca, logTo(&log), func(cfg *ServerConfig) {
				cfg.Handler = ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
					t.Error("a request reached the handler")
					return ski.Failed(ski.UnspecifiedError)
				})
			})
			_, err := dialTCP(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate = tc.edge }).RoundTrip(t.Context(), request(1))
			var te *ski.TransportError
			require.ErrorAs(t, err, &te)
			assert.Equal(t, "dial", te.Op, "in TLS 1.3 too the client waits until it is let in")
			require.Eventually(t, func() bool { return strings.Contains(log.String(), tc.why) }, time.Minute, 10*time.Millisecond)
			assert.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
		})
	}
}

func TestAnEdgeDoesNotTalkToAnImpostorOverTCP(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	for name, cert := range map[string]tls.Certificate{
		"of another authority": other.keyServer(),
		"of an edge":           ca.edge(),
		"of another name": ca.issue(x509.ExtKeyUsageServerAuth, func(c *x509.Certificate) {
			c.DNSNames, c.IPAddresses = []string{"elsewhere.example"}, nil
		}),
		"that does not say its use": ca.issue(x509.ExtKeyUsageServerAuth, func(c *x509.Certificate) { c.ExtKeyUsage = nil }),
	} {
		t.Run(name, func(t *testing.T) {
			s := serveTCP(t, ca, func(cfg *ServerConfig) { cfg.Certificate = cert })
			_, err := dialTCP(t, s, ca).RoundTrip(t.Context(), request(1))
			require.ErrorContains(t, err, "x509")
			var te *ski.TransportError
			require.ErrorAs(t, err, &te)
			assert.True(t, te.Permanent)
		})
	}
}

func TestRequestsShareATCPConnectionWithoutWaitingForEachOther(t *testing.T) {
	ca := newTestCA(t)
	const n = 100
	arrived, release := make(chan struct{}, n), make(chan struct{})
	var peers sync.Map
	s := serveTCP(t, ca, func(cfg *ServerConfig) {
		cfg.Handler = ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			peers.Store(p.Addr, true)
			arrived <- struct{}{}
			<-release // no answer before all requests are here
			return echo(ctx, p, req)
		})
	})
	c := dialTCP(t, s, ca)
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

func TestADeadlineEndsARequestOverTCPAtOnce(t *testing.T) {
	ca := newTestCA(t)
	hang := make(chan struct{})
	s := serveTCP(t, ca, func(cfg *ServerConfig) {
		cfg.Handler = ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			if string(req.Input) != "request 0" {
				<-hang
			}
			return echo(ctx, p, req)
		})
	})
	c := dialTCP(t, s, ca)
	require.NoError(t, ask(t.Context(), c, 0))
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 50)
	for i := range 50 {
		go func() { errs <- ask(ctx, c, i+1) }()
	}
	require.Eventually(t, func() bool { return s.InFlight() == 50 }, time.Minute, time.Millisecond)
	cancel()
	for range 50 {
		require.ErrorIs(t, <-errs, context.Canceled)
	}
	session := c.current.clientSide.(*tcpClientSession)
	session.mu.Lock()
	assert.Empty(t, session.calls)
	session.mu.Unlock()
	close(hang)
	require.NoError(t, ask(t.Context(), c, 0), "the session goes on")
}

func TestATCPConnectionIsMadeAgainAfterTheKeyServerRestarted(t *testing.T) {
	ca := newTestCA(t)
	cfg := ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), Logger: quiet}
	s, err := ListenTCP("127.0.0.2:0", cfg) // whose ports no client's socket takes while it is gone
	require.NoError(t, err)
	go func() { _ = s.Serve() }()
	c := dialTCP(t, s, ca)
	require.NoError(t, ask(t.Context(), c, 1))
	addr := s.Addr().String()
	require.NoError(t, s.Close())
	_, err = c.RoundTrip(t.Context(), request(2))
	require.Error(t, err, "nobody listens")

	s, err = ListenTCP(addr, cfg)
	require.NoError(t, err)
	go func() { _ = s.Serve() }()
	defer s.Close()
	client := &ski.Client{Transports: []ski.Transport{c}, Timeout: time.Minute}
	require.NoError(t, ask(t.Context(), client, 3))
}

// A connection through a relay that stops to pass anything on.
func TestASilentKeyServerIsNoticedOverTCP(t *testing.T) {
	ca := newTestCA(t)
	s := serveTCP(t, ca)
	front, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer front.Close()
	stop := make(chan struct{})
	go func() {
		for {
			in, err := front.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(in, out) }()
			go func() {
				buf := make([]byte, 4096)
				for {
					n, err := in.Read(buf)
					if err != nil {
						return
					}
					select {
					case <-stop:
					default:
						_, _ = out.Write(buf[:n])
					}
				}
			}()
		}
	}()
	c, err := NewClient("coaps+tcp://"+front.Addr().String(), ClientConfig{
		Certificate: ca.edge(), RootCAs: ca.pool, Logger: quiet, DeadAfter: 200 * time.Millisecond,
	})
	require.NoError(t, err)
	defer c.Close()
	patient := &ski.Client{Transports: []ski.Transport{c}, Timeout: time.Minute} // which asks again where it is this machine that is silent
	require.NoError(t, ask(t.Context(), patient, 1))
	close(stop)
	_, err = c.RoundTrip(t.Context(), request(2))
	require.ErrorIs(t, err, errSilent)
}

func TestASlowOperationOverTCPIsWaitedFor(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	release := make(chan struct{})
	s := serveTCP(t, ca, func(cfg *ServerConfig) {
		cfg.Handler = ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			<-release
			return echo(ctx, p, req)
		})
	})
	c := dialTCP(t, s, ca, func(cfg *ClientConfig) { cfg.DeadAfter = 2 * time.Second })
	time.AfterFunc(8*time.Second, func() { close(release) })
	require.NoError(t, ask(t.Context(), c, 1), "the answers to pings are the signs of life")
}

func TestShutdownAnswersWhatIsInFlightOverTCP(t *testing.T) {
	ca := newTestCA(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	s := serveTCP(t, ca, func(cfg *ServerConfig) {
		cfg.Handler = ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			close(arrived)
			<-release
			return echo(ctx, p, req)
		})
	})
	c := dialTCP(t, s, ca)
	answered := make(chan error, 1)
	go func() { answered <- ask(t.Context(), c, 1) }()
	<-arrived
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(t.Context()) }()
	require.Eventually(t, s.stopping, time.Minute, time.Millisecond)
	var te *ski.TransportError
	_, err := c.RoundTrip(t.Context(), request(2))
	require.ErrorAs(t, err, &te)
	assert.Contains(t, err.Error(), "5.03")
	assert.False(t, te.Permanent, "another key server may have a place, or this one later")
	close(release)
	require.NoError(t, <-answered)
	require.NoError(t, <-stopped)
}

func TestEachCoAPRequestOverTCPGetsTheCodeThatFits(t *testing.T) {
	ca := newTestCA(t)
	p := newTCPPeer(t, serveTCP(t, ca), ca, false)
	body, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)
	tooLong := bytes.Repeat([]byte{0}, ski.MaxMessageSize+1)
	for i, tc := range []struct {
		code    codes.Code
		options message.Options
		payload []byte
		want    codes.Code
	}{
		{codes.POST, with(), body, codes.Changed},
		{codes.POST, with(), nil, codes.BadRequest},
		{codes.POST, with(), tooLong, codes.RequestEntityTooLarge},
		{codes.POST, with(message.Option{ID: 9, Value: []byte{1}}), body, codes.BadOption}, // OSCORE
		{codes.POST, with(message.Option{ID: message.ContentFormat}), body, codes.UnsupportedMediaType},
		{codes.GET, with(), nil, codes.MethodNotAllowed},
		{codes.POST, message.Options{{ID: message.URIPath, Value: []byte("other")}}, body, codes.NotFound},
		{codes.GET, message.Options{{ID: message.URIPath, Value: []byte(".well-known")}, {ID: message.URIPath, Value: []byte("core")}}, nil, codes.Content},
	} {
		token := []byte{byte(i), 1}
		p.send(message.Message{Code: tc.code, Token: token, Options: tc.options, Payload: tc.payload})
		got := p.receive()
		assert.Equal(t, tc.want, got.Code, "%d", i)
		assert.Equal(t, token, []byte(got.Token))
	}
}

func TestSignalsAreUnderstood(t *testing.T) {
	ca := newTestCA(t)
	s := serveTCP(t, ca)
	p := newTCPPeer(t, s, ca, false)
	p.send(message.Message{Code: codes.Ping, Token: []byte{1, 2}})
	got := p.receive()
	assert.Equal(t, codes.Pong, got.Code)
	assert.Equal(t, []byte{1, 2}, []byte(got.Token))

	p.send(message.Message{Code: codes.Empty}) // RFC 8323, Section 3.4
	p.send(message.Message{Code: codes.CSM, Options: message.Options{{ID: 2000, Value: []byte{1}}}})
	p.send(message.Message{Code: codes.Ping})
	assert.Equal(t, codes.Pong, p.receive().Code, "an empty message and elective options do not count")

	p.send(message.Message{Code: codes.Release})
	got = p.receive()
	assert.Equal(t, codes.Abort, got.Code)
	_, err := p.frames.read(func() {})
	require.ErrorIs(t, err, io.EOF)
	require.Eventually(t, func() bool { return len(s.Peers()) == 0 }, time.Minute, time.Millisecond)
}

func TestAPeerThatBreaksTheProtocolIsToldAndLogged(t *testing.T) {
	ca := newTestCA(t)
	csm := func(p *tcpPeer) { p.send(message.Message{Code: codes.CSM}); p.receive() }
	for name, tc := range map[string]struct {
		do   func(p *tcpPeer)
		want string
	}{
		"huge length": {func(p *tcpPeer) { csm(p); _, _ = p.conn.Write([]byte("\xf0\x7f\xff\xff\xff\x02")) }, "and 8192 is the most"},
		"no CSM":      {func(p *tcpPeer) { p.send(message.Message{Code: codes.POST, Options: with()}); p.receive() }, "the first message is not a CSM"},
		"token of 9":  {func(p *tcpPeer) { csm(p); _, _ = p.conn.Write([]byte("\x09\x02")) }, "malformed header"},
		"critical option": {func(p *tcpPeer) {
			csm(p)
			p.send(message.Message{Code: codes.Ping, Options: message.Options{{ID: 3}}})
		}, "option 3 in 7.02 Ping"},
		"options": {func(p *tcpPeer) { csm(p); _, _ = p.conn.Write([]byte("\x10\x02\xf0")) }, "malformed options"},
	} {
		t.Run(name, func(t *testing.T) {
			var log logBuffer
			s := serveTCP(t, ca, logTo(&log))
			p := newTCPPeer(t, s, ca, true)
			tc.do(p)
			got := p.receive()
			assert.Equal(t, codes.Abort, got.Code)
			assert.Contains(t, string(got.Payload), tc.want)
			_, err := p.frames.read(func() {})
			require.ErrorIs(t, err, io.EOF)
			require.Eventually(t, func() bool { return strings.Contains(log.String(), tc.want) }, time.Minute, 10*time.Millisecond)
		})
	}
}

func TestASlowSenderDoesNotStay(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	var log logBuffer
	// Whoever is to come further before he is slow has the time for that.
	hasty := serveTCP(t, ca, logTo(&log), func(cfg *ServerConfig) { cfg.HandshakeTimeout = 300 * time.Millisecond })
	s := serveTCP(t, ca, logTo(&log))
	for name, do := range map[string]func(){
		"no TLS": func() {
			s := hasty
			conn, err := net.Dial("tcp", s.Addr().String())
			require.NoError(t, err)
			defer conn.Close()
			_, err = io.ReadAll(conn)
			_ = err // a reset or an end
		},
		"no CSM": func() {
			p := newTCPPeer(t, s, ca, true)
			_, _ = io.ReadAll(p.conn)
		},
		"half a message": func() {
			p := newTCPPeer(t, s, ca, false)
			_, err := p.conn.Write([]byte{0xd0})
			require.NoError(t, err)
			assert.Equal(t, codes.Abort, p.receive().Code)
		},
	} {
		do()
		require.Eventually(t, func() bool { return len(s.Peers()) == 0 }, time.Minute, time.Millisecond, name)
	}
	assert.Eventually(t, func() bool { // The peer sees the end before it is logged.
		return strings.Count(log.String(), "timeout")+strings.Count(log.String(), "deadline exceeded") >= 3
	}, time.Minute, 10*time.Millisecond, "a line for each")
}

func TestAFloodOfConnectionsDoesNotKeepAnEdgeOut(t *testing.T) {
	ca := newTestCA(t)
	s := serveTCP(t, ca)
	before := runtime.NumGoroutine()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range maxHandshakes + 100 {
		c, err := net.Dial("tcp", s.Addr().String())
		require.NoError(t, err)
		conns = append(conns, c)
	}
	client := &ski.Client{Transports: []ski.Transport{dialTCP(t, s, ca)}, Timeout: time.Minute}
	require.NoError(t, ask(t.Context(), client, 1))
	s.tcp.mu.Lock()
	assert.LessOrEqual(t, s.tcp.opening.Len(), maxHandshakes)
	s.tcp.mu.Unlock()
	assert.Less(t, runtime.NumGoroutine(), before+3*maxHandshakes)
}

// Somebody who opens connections as fast as he can drives out his own.
func TestAFloodFromOneAddressDoesNotEndHandshakesOfOthers(t *testing.T) {
	ca := newTestCA(t)
	s := serveTCP(t, ca)
	slow, err := net.Dial("tcp", s.Addr().String())
	require.NoError(t, err)
	defer slow.Close()
	opened := func(n int) {
		require.Eventually(t, func() bool {
			s.tcp.mu.Lock()
			defer s.tcp.mu.Unlock()
			return s.tcp.opening.Len() == n
		}, time.Minute, time.Millisecond)
	}
	opened(1)
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range maxHandshakes + 100 {
		c, err := from.Dial("tcp", s.Addr().String())
		require.NoError(t, err)
		defer c.Close()
	}
	opened(maxHandshakes)
	secure := tls.Client(slow, &tls.Config{Certificates: []tls.Certificate{ca.edge()}, RootCAs: ca.pool, ServerName: "localhost"})
	require.NoError(t, secure.HandshakeContext(t.Context()))
	_, err = newFrameReader(secure).read(func() {})
	require.NoError(t, err)
}

// One edge alone does not keep the others out, however many sessions it has: it
// could also simply not take its answers.
func TestOnePeerDoesNotTakeAllPlacesOverTCP(t *testing.T) {
	ca := newTestCA(t)
	proceed := make(chan struct{})
	s := serveTCP(t, ca, func(cfg *ServerConfig) {
		cfg.MaxInFlight = 16
		cfg.Handler = ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			if string(req.Input) == "request 0" {
				<-proceed
			}
			return echo(ctx, p, req)
		})
	})
	edge := ca.edge()
	var answered sync.WaitGroup
	var refusals atomic.Int64
	const sessions, each = 8, 2
	for range sessions {
		c := dialTCP(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate = edge })
		for range each {
			answered.Go(func() {
				if ask(t.Context(), c, 0) != nil {
					refusals.Add(1)
				}
			})
		}
	}
	require.Eventually(t, func() bool { return int(refusals.Load())+s.InFlight() == sessions*each }, time.Minute, time.Millisecond)
	assert.NoError(t, ask(t.Context(), dialTCP(t, s, ca), 1))
	require.Eventually(t, func() bool { return s.InFlight() == 4 }, time.Minute, time.Millisecond)
	close(proceed)
	answered.Wait()
	assert.EqualValues(t, sessions*each-4, refusals.Load())
}

// However many there are that ask for more than their share, one more finds a place.
func TestManyPeersDoNotTakeAllPlacesOverTCP(t *testing.T) {
	ca := newTestCA(t)
	proceed := make(chan struct{})
	s := serveTCP(t, ca, func(cfg *ServerConfig) {
		cfg.MaxInFlight = 64
		cfg.Handler = ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			if string(req.Input) == "request 0" {
				<-proceed
			}
			return echo(ctx, p, req)
		})
	})
	var answered sync.WaitGroup
	var refusals atomic.Int64
	const peers, sessions, each = 5, 4, 8
	for range peers {
		edge := ca.edge()
		for range sessions {
			c := dialTCP(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate = edge })
			for range each {
				answered.Go(func() {
					if ask(t.Context(), c, 0) != nil {
						refusals.Add(1)
					}
				})
			}
		}
	}
	require.Eventually(t, func() bool { return int(refusals.Load())+s.InFlight() == peers*sessions*each }, time.Minute, time.Millisecond)
	assert.NoError(t, ask(t.Context(), dialTCP(t, s, ca), 1))
	close(proceed)
	answered.Wait()
}

// A peer that takes no answers has its places, and no more.
func TestAPeerThatDoesNotReadHoldsUpNobody(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	s := serveTCP(t, ca, func(cfg *ServerConfig) { cfg.MaxInFlight = 64 })
	deaf := newTCPPeer(t, s, ca, false)
	body, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)
	frame, err := encodeFrame(message.Message{Code: codes.POST, Token: []byte{1}, Options: with(), Payload: body})
	require.NoError(t, err)
	require.NoError(t, deaf.conn.SetDeadline(time.Now().Add(2*time.Second)))
	for err == nil { // until nothing more goes in
		_, err = deaf.conn.Write(bytes.Repeat(frame, 100))
	}
	require.NoError(t, ask(t.Context(), dialTCP(t, s, ca), 1))
	// A peer that does not read is not waited for.
	assert.Equal(t, 1, s.CloseSessions(errors.New("cut off"), func(p ski.Peer) bool { return p.Addr.Port() == addrPort(deaf.conn.LocalAddr()).Port() }))
}

func TestAPeerCanBeRefusedAndCutOffOverTCP(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	var refuse sync.Map
	s := serveTCP(t, ca, logTo(&log), func(cfg *ServerConfig) {
		cfg.Admit = func(p ski.Peer) error {
			if _, ok := refuse.Load(p.SPKI); ok {
				return errors.New("suspended")
			}
			return nil
		}
	})
	edge := ca.edge()
	c := dialTCP(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate = edge })
	require.NoError(t, ask(t.Context(), c, 1))
	refuse.Store(s.Peers()[0].SPKI, true)
	assert.Equal(t, 1, s.CloseSessions(errors.New("cut off"), func(ski.Peer) bool { return true }))
	require.Eventually(t, func() bool { return len(s.Peers()) == 0 }, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool { // the first may still find the old session
		_, err := c.RoundTrip(t.Context(), request(2))
		require.Error(t, err)
		return strings.Contains(log.String(), "suspended")
	}, time.Minute, time.Millisecond)
}

func TestTheLengthOfAnAnswerOverTCPTellsNothing(t *testing.T) {
	ca := newTestCA(t)
	var length int
	s := serveTCP(t, ca, func(cfg *ServerConfig) {
		cfg.Handler = ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
			if length == 0 {
				return &ski.Response{Error: ski.RequestDenied, OutputLen: 72}
			}
			return &ski.Response{Output: bytes.Repeat([]byte{0x30}, length), OutputLen: 72}
		})
	})
	body, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)
	p := newTCPPeer(t, s, ca, false)
	lengths := map[int]bool{}
	for _, length = range []int{72, 71, 70, 60, 0} {
		p.send(message.Message{Code: codes.POST, Token: []byte{1}, Options: with(), Payload: body})
		m := p.receive()
		frame, err := encodeFrame(m)
		require.NoError(t, err)
		lengths[len(frame)] = true
	}
	assert.Len(t, lengths, 1)
}

func TestALargeMessageGoesOnlyToWhoTakesIt(t *testing.T) {
	ca := newTestCA(t)
	s := serveTCP(t, ca)
	c := dialTCP(t, s, ca)
	req := request(1)
	req.Input = make([]byte, 3000)
	_, err := c.RoundTrip(t.Context(), req)
	require.NoError(t, err, "our key server says that it takes them")
	c.current.clientSide.(*tcpClientSession).link.peerMax.Store(baseMaxFrame)
	_, err = c.RoundTrip(t.Context(), req)
	require.ErrorContains(t, err, "the key server takes 1152")
	require.NoError(t, ask(t.Context(), c, 1), "the session goes on")
}

// deadlines is a connection that notes when it is told to give up, and holds a
// write until that is asked for.
type deadlines struct {
	net.Conn
	set    atomic.Int64
	begun  chan struct{}
	finish chan struct{}
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	d.set.Add(1)
	return d.Conn.SetWriteDeadline(t)
}

func (d *deadlines) Write(b []byte) (int, error) {
	if d.begun != nil {
		d.begun <- struct{}{}
		<-d.finish
	}
	return d.Conn.Write(b)
}

// Otherwise a peer that takes nothing, but goes on asking, would never be ended.
func TestAWriteThatHangsIsNotGivenMoreTimeByTheNext(t *testing.T) {
	ca := newTestCA(t)
	s := serveTCP(t, ca)
	raw, err := net.Dial("tcp", s.Addr().String())
	require.NoError(t, err)
	d := &deadlines{Conn: raw, finish: make(chan struct{})}
	conn := tls.Client(d, &tls.Config{Certificates: []tls.Certificate{ca.edge()}, RootCAs: ca.pool, ServerName: "localhost"})
	require.NoError(t, conn.HandshakeContext(t.Context()))
	l := newTCPLink(conn)
	defer l.close(net.ErrClosed)
	require.NoError(t, l.open(time.Now().Add(time.Minute)))
	d.begun = make(chan struct{})
	ping := func() { _ = l.send(message.Message{Code: codes.Ping}) }
	var writing sync.WaitGroup
	writing.Go(ping)
	<-d.begun
	before := d.set.Load()
	for range 10 {
		writing.Go(ping)
	}
	time.Sleep(50 * time.Millisecond) // for them to come as far as they do
	assert.Equal(t, before, d.set.Load())
	go func() {
		for range d.begun {
			d.finish <- struct{}{}
		}
	}()
	d.finish <- struct{}{}
	writing.Wait()
	assert.Equal(t, before+10, d.set.Load())
}
