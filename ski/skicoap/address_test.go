package skicoap

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/source"
)

// faultySocket is a client's socket whose writes fail with an error while there is
// one.
type faultySocket struct {
	net.PacketConn
	err   atomic.Pointer[syscall.Errno]
	tried atomic.Int64
	local net.Addr // if not nil, in the place of its own
}

func (s *faultySocket) WriteTo(b []byte, to net.Addr) (int, error) {
	if err := s.err.Load(); err != nil {
		s.tried.Add(1)
		return 0, &net.OpError{Op: "write", Net: "udp", Err: os.NewSyscallError("write", *err)}
	}
	return s.PacketConn.WriteTo(b, to)
}

func (s *faultySocket) LocalAddr() net.Addr {
	if s.local != nil {
		return s.local
	}
	return s.PacketConn.LocalAddr()
}

// overFaulty returns a session with s over a faultySocket, and what ends with it.
func overFaulty(t *testing.T, s *Server, ca *testCA, deadAfter time.Duration) (*clientSession, *faultySocket, <-chan error) {
	t.Helper()
	udp, err := net.Dial("udp", s.Addr().String())
	require.NoError(t, err)
	socket := &faultySocket{PacketConn: dtlsnet.PacketConnFromConn(udp)}
	cfg := &ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, ServerName: "localhost", Logger: quiet}
	conn, err := dtls.ClientWithOptions(admitting{socket}, udp.RemoteAddr(), clientOptions(cfg, newVerifier(cfg), maxMTU)...)
	require.NoError(t, err)
	require.NoError(t, conn.HandshakeContext(t.Context()))
	session, ended := newClientSession(conn, deadAfter, &clientPath{mtu: maxMTU, log: quiet}), make(chan error, 1)
	go func() { ended <- session.run() }()
	t.Cleanup(func() { session.close(net.ErrClosed) })
	return session, socket, ended
}

func TestARequestWaitsForANetworkThatIsAway(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	body, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)
	for _, errno := range []syscall.Errno{syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.EPERM, syscall.EINVAL, syscall.ENOBUFS, syscall.ENETDOWN} {
		session, socket, _ := overFaulty(t, s, ca, time.Minute)
		socket.err.Store(&errno)
		answered := make(chan error, 1)
		go func() {
			_, err := session.exchange(t.Context(), "/ski", ski.CBOR, body)
			answered <- err
		}()
		require.Eventually(t, func() bool { return socket.tried.Load() > 1 }, time.Minute, time.Millisecond, "it is sent again")
		socket.err.Store(nil)
		require.NoError(t, <-answered, errno.Error())
		assert.True(t, session.alive())
	}
}

func TestANetworkThatStaysAwayEndsTheSession(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	body, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)
	session, socket, ended := overFaulty(t, s, ca, 200*time.Millisecond)
	errno := syscall.ENETUNREACH
	socket.err.Store(&errno)
	_, err = session.exchange(t.Context(), "/ski", ski.CBOR, body)
	require.ErrorIs(t, err, errSilent)
	require.ErrorIs(t, <-ended, errSilent)
}

// What no path takes does not wait.
func TestADatagramThatIsTooLongIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	body, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)
	session, socket, _ := overFaulty(t, s, ca, time.Minute)
	errno := syscall.EMSGSIZE
	socket.err.Store(&errno)
	_, err = session.exchange(t.Context(), "/ski", ski.CBOR, body)
	require.ErrorIs(t, err, errno)
	assert.True(t, session.alive())
}

func TestASessionWhoseAddressIsGoneEndsByItself(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	udp, err := net.Dial("udp", s.Addr().String())
	require.NoError(t, err)
	socket := &faultySocket{PacketConn: dtlsnet.PacketConnFromConn(udp), local: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}
	cfg := &ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, ServerName: "localhost", Logger: quiet}
	conn, err := dtls.ClientWithOptions(socket, udp.RemoteAddr(), clientOptions(cfg, newVerifier(cfg), maxMTU)...)
	require.NoError(t, err)
	require.NoError(t, conn.HandshakeContext(t.Context()))
	require.ErrorIs(t, newClientSession(conn, time.Minute, &clientPath{mtu: maxMTU, log: quiet}).run(), source.ErrGone)
}

// A client with nothing to ask but something to be notified of asks for a sign of
// life, and only then.
func TestAnObserverNoticesThatItsKeyServerIsSilent(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	later := func() time.Time { return time.Now().Add(watchPing + time.Second) }
	session, _, _ := overFaulty(t, s, ca, time.Minute)
	heard := func() time.Time {
		session.mu.Lock()
		defer session.mu.Unlock()
		return session.heard
	}
	before := heard()
	session.attend(later())
	assert.Equal(t, before, heard(), "it observes nothing")
	session.watch("/ski/tickets", "site=shop")
	session.attend(time.Now())
	assert.Equal(t, before, heard(), "it has heard something lately")
	session.attend(later())
	assert.True(t, session.alive())
	assert.True(t, heard().After(before))

	session, socket, ended := overFaulty(t, s, ca, 500*time.Millisecond)
	w := session.watch("/ski/tickets", "site=shop")
	errno := syscall.EPERM
	socket.err.Store(&errno)
	session.attend(later())
	require.ErrorIs(t, <-ended, errSilent)
	session.unwatch(w, nil, false)
}

func TestAnObserverOverTCPAsksForASignOfLife(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	c := dialTCP(t, serveTCP(t, ca), ca)
	require.NoError(t, ask(t.Context(), c, 0))
	session := c.current.clientSide.(*tcpClientSession)
	heard := func() time.Time {
		session.mu.Lock()
		defer session.mu.Unlock()
		return session.heard
	}
	before := heard()
	session.attend(time.Now().Add(watchPing + time.Second))
	assert.Equal(t, before, heard(), "it observes nothing")
	session.watch("/ski/tickets", "site=shop")
	session.attend(time.Now())
	assert.Equal(t, before, heard(), "it has heard something lately")
	asked := time.Now()
	session.attend(asked.Add(watchPing + time.Second)) // returns with the Pong
	assert.True(t, heard().After(asked))
	assert.True(t, session.alive())
	assert.Empty(t, session.calls)
}

// Policy and audit log go by where an edge is, not by where it was.
func TestAPeerThatMovesIsSeenWhereItIs(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	seen := make(chan ski.Peer, 1)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(ctx context.Context, peer ski.Peer, req *ski.Request) *ski.Response {
			seen <- peer
			return echo(ctx, peer, req)
		})})
	c, r := through(t, s, ca)
	at := func() ski.Peer {
		require.NoError(t, ask(t.Context(), c, 0))
		return <-seen
	}
	first := at()
	assert.Equal(t, first, at())
	r.rebind()
	moved := at()
	for moved.Addr == first.Addr { // pion notes the new port after it has handed over what came from there
		moved = at()
	}
	assert.Equal(t, first.ID(), moved.ID())
	assert.Equal(t, moved.Addr, s.Peers()[0].Addr)
	assert.Len(t, s.all(), 1)
}

// elsewhereSocket is a client's socket that can send from an address that is not
// its own, as whoever forges source addresses can. It hears nothing there.
type elsewhereSocket struct {
	net.PacketConn
	forged  *net.UDPConn
	forging atomic.Bool
	sent    atomic.Int64 // with the forged address
}

func (s *elsewhereSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	if s.forging.Load() {
		s.sent.Add(1)
		return s.forged.WriteToUDP(b, to.(*net.UDPAddr))
	}
	return s.PacketConn.WriteTo(b, to)
}

// Whoever has stolen an edge's credentials gets no answer by forging the address
// that the edge may ask from, and hearing the answer at another.
func TestASessionIsGoodForTheAddressThatItWasMadeFrom(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	granted := netip.MustParseAddr("127.0.0.1")
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(ctx context.Context, peer ski.Peer, req *ski.Request) *ski.Response {
			if peer.Addr.Addr() != granted {
				return ski.Failed(ski.RequestDenied)
			}
			return echo(ctx, peer, req)
		})})
	server := s.Addr()
	udp, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}, net.UDPAddrFromAddrPort(server))
	require.NoError(t, err)
	forged, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer forged.Close()
	socket := &elsewhereSocket{PacketConn: dtlsnet.PacketConnFromConn(udp), forged: forged}
	cfg := &ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, ServerName: "localhost", Logger: quiet}
	conn, err := dtls.ClientWithOptions(socket, udp.RemoteAddr(), clientOptions(cfg, newVerifier(cfg), maxMTU)...)
	require.NoError(t, err)
	require.NoError(t, conn.HandshakeContext(t.Context()))
	session := newClientSession(conn, time.Minute, &clientPath{mtu: maxMTU, log: quiet})
	ended := make(chan error, 1)
	go func() { ended <- session.run() }()
	body, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)

	socket.forging.Store(true)
	answered := make(chan *answer, 1)
	go func() {
		a, err := session.exchange(t.Context(), "/ski", ski.CBOR, body)
		assert.NoError(t, err)
		answered <- a
	}()
	require.Eventually(t, func() bool { return socket.sent.Load() > 1 }, time.Minute, time.Millisecond)
	socket.forging.Store(false) // and the request is sent again
	a := <-answered
	resp, err := a.response()
	require.NoError(t, err)
	assert.Equal(t, ski.RequestDenied, resp.Error)
	session.close(net.ErrClosed)
	<-ended
}

// serveWithoutConnectionIDs serves as other implementations do: they know a session
// by its peer's address and port.
func serveWithoutConnectionIDs(t *testing.T, ca *testCA) string {
	t.Helper()
	cfg, err := (ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), Logger: quiet}).withDefaults()
	require.NoError(t, err)
	s := newServer(cfg)
	l, err := dtls.ListenWithOptions("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, dtls.WithCertificates(ca.keyServer()),
		dtls.WithClientAuth(dtls.RequireAndVerifyClientCert), dtls.WithClientCAs(ca.pool))
	require.NoError(t, err)
	var running sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		s.cancel()
		running.Wait()
	})
	running.Go(func() {
		for {
			accepted, err := l.Accept()
			if err != nil {
				return
			}
			conn := accepted.(*dtls.Conn)
			running.Go(func() {
				defer context.AfterFunc(s.ctx, func() { _ = conn.Close() })()
				defer conn.Close()
				if conn.HandshakeContext(s.ctx) != nil {
					return
				}
				peer, err := peerOf(conn, nil, addrPort(conn.RemoteAddr()))
				if assert.NoError(t, err) {
					session := newDTLSSession(s, conn, peer)
					_ = session.link.run(session.receive)
					session.end()
				}
			})
		}
	})
	return l.Addr().String()
}

// Without connection IDs the key server does not know a client that has another
// port, and nothing but its silence tells.
func TestASessionWithoutConnectionIDsIsMadeAnewForANewPort(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	r := newRelay(t, serveWithoutConnectionIDs(t, ca))
	c, err := NewClient("coaps://"+r.addr(), ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, Logger: quiet, DeadAfter: 2 * time.Second, DialTimeout: time.Minute})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	client := &ski.Client{Transports: []ski.Transport{c}, Timeout: time.Minute}
	require.NoError(t, ask(t.Context(), client, 0))
	first := c.current
	require.NoError(t, ask(t.Context(), client, 1))
	require.Same(t, first, c.current)
	for i := range 3 {
		r.rebind()
		require.NoError(t, ask(t.Context(), client, 2+i), "within the request's time")
	}
	assert.NotSame(t, first, c.current)
	assert.EqualValues(t, 4, r.hellos.Load(), "handshakes")
}
