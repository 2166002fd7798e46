package skicoap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/message"
	"golang.org/x/time/rate"

	"github.com/tlsski/tlsski/ski"
)

// ServerConfig says how to serve. Handler, Certificate and ClientCAs are
// required.
type ServerConfig struct {
	// Handler answers the requests, each in a goroutine of its own. It has to
	// bound the processors it takes: a ping is answered beside it, and a peer
	// that gets no answer to pings takes the server for dead. Where it is a
	// ski.TicketHandler, ticket keys are the resource Path/tickets.
	Handler ski.Handler
	// Path is the resource. Default: "/ski".
	Path string
	// Certificate is the key server's own, with its key: ECDSA or RSA.
	Certificate tls.Certificate
	// GetCertificate returns the certificate for a handshake that begins, in the
	// place of Certificate, which is needed all the same. Sessions that stand keep
	// theirs. It is called by many goroutines at once. nil means Certificate.
	GetCertificate func() *tls.Certificate
	// ClientCAs are the authorities that edge servers' certificates come from.
	// They should sign nothing else.
	ClientCAs *x509.CertPool
	// PSK returns the pre-shared key of an identity, or nil where there is
	// none: peers can then have one instead of a certificate. It is called in
	// each of their handshakes, and once more when that is done. nil means
	// certificates only.
	PSK func(identity string) []byte
	// PSKWithoutForwardSecrecy lets peers use the cipher suites
	// TLS_PSK_WITH_AES_128_GCM_SHA256, _CCM and _CCM_8 with their pre-shared
	// keys: who learns a key reads what was recorded before.
	PSKWithoutForwardSecrecy bool
	// Admit is asked about each peer that the handshake has authenticated. An
	// error refuses the session and is logged. nil admits all.
	Admit func(peer ski.Peer) error
	// MaxSessions bounds the sessions. Beyond it none is made. Default: 1024.
	MaxSessions int
	// MaxPeerSessions bounds the sessions of one certificate's or pre-shared
	// key. One more
	// ends the one that has been quiet the longest: its peer may have been
	// restarted without a goodbye. Default: 16.
	MaxPeerSessions int
	// MaxInFlight bounds the requests that are being worked on, over all
	// sessions, and one session to an eighth and one peer to a quarter of it, and to
	// as many as are free. Those whose answer the peer does not take count too. Over
	// DTLS a request beyond is dropped: its sender sends it again. Over TLS it is
	// answered with 5.03. Default: 8192.
	MaxInFlight int
	// HandshakeTimeout is how long a peer may take for the DTLS handshake.
	// Default: 10 s.
	HandshakeTimeout time.Duration
	// IdleTimeout is how long a session is kept on which nothing comes in.
	// Default: 5 minutes.
	IdleTimeout time.Duration
	// MTU is the longest IP packet that the paths to all peers carry, in bytes:
	// what is sent to them fits, in blocks where it is longer. It is ski.MinMTU to
	// ski.MaxMTU; more than 1280 is as good as 1280. Default: 1280, and less to a
	// peer to which longer packets prove to be lost. Over TCP it means nothing.
	MTU int
	// KnownAddresses are addresses from which peers have been authenticated, as
	// Server.KnownAddresses has returned them before a restart. Handshakes from
	// them have places of their own when there are too many. It is a hint: an
	// address that is missing or wrong does no harm.
	KnownAddresses []netip.Addr
	// Logger gets a line for each session that begins, ends or is refused.
	// Default: slog.Default().
	Logger *slog.Logger
}

// certificate returns that of a handshake that begins.
func (c *ServerConfig) certificate() *tls.Certificate {
	if c.GetCertificate != nil {
		return c.GetCertificate()
	}
	return &c.Certificate
}

func (c ServerConfig) withDefaults() (ServerConfig, error) {
	if c.Handler == nil || c.ClientCAs == nil {
		return c, errors.New("skicoap: a server needs a Handler and ClientCAs")
	}
	if err := checkIdentity(c.Certificate); err != nil {
		return c, err
	}
	if min(c.MaxSessions, c.MaxPeerSessions, c.MaxInFlight) < 0 || min(c.HandshakeTimeout, c.IdleTimeout) < 0 {
		return c, errors.New("skicoap: a limit is negative")
	}
	defaults(&c.Path, "/ski")
	if err := checkPath(c.Path); err != nil {
		return c, err
	}
	if _, err := configuredMTU(c.MTU); err != nil {
		return c, err
	}
	defaults(&c.MaxSessions, 1024)
	defaults(&c.MaxPeerSessions, 16)
	defaults(&c.MaxInFlight, 8192)
	defaults(&c.HandshakeTimeout, 10*time.Second)
	defaults(&c.IdleTimeout, 5*time.Minute)
	defaults(&c.Logger, slog.Default())
	return c, nil
}

func defaults[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Server is a key server's CoAP endpoint.
type Server struct {
	cfg   ServerConfig
	mux   *mux         // of the UDP socket, or nil
	tcp   *tcpListener // or nil
	mtu   mtu
	links *resource
	log   *slog.Logger

	workers *workers // for the requests

	ctx    context.Context // ends when the server stops: the requests' parent
	cancel context.CancelFunc

	mu       sync.Mutex
	sessions map[*session]struct{}
	draining bool           // no new sessions, no new requests
	inFlight sync.WaitGroup // requests; Add only under mu and before draining
	running  sync.WaitGroup // goroutines of the server; likewise

	working          atomic.Int64  // requests, for MaxInFlight
	refusals         *rate.Limiter // of log lines
	badRequests      *rate.Limiter // likewise
	transfers        atomic.Int64  // block-wise, of all sessions
	observations     atomic.Int64  // of all sessions
	ackTimeout       time.Duration // of notifications
	farewell         time.Duration // how long revoke waits
	unlogged         atomic.Uint64 // handshakes that failed without one
	unloggedRequests atomic.Uint64
	flood            flood // of tidy
}

// Listen opens the UDP address (host:port, or :port for all; port 0 takes a
// free one). Peers are answered once Serve is called.
func Listen(addr string, cfg ServerConfig) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkPion(); err != nil {
		return nil, err
	}
	udp, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, fmt.Errorf("skicoap: listen: %w", err)
	}
	conn, err := net.ListenUDP("udp", udp)
	if err != nil {
		return nil, fmt.Errorf("skicoap: %w", err)
	}
	s := newServer(cfg)
	s.mtu, _ = configuredMTU(cfg.MTU) // checked
	// Room for a burst; the kernel gives what it allows.
	_ = conn.SetReadBuffer(4 << 20)
	s.mux = newMux(conn, cfg.KnownAddresses, s.begin)
	return s, nil
}

func newServer(cfg ServerConfig) *Server {
	_, tickets := cfg.Handler.(ski.TicketHandler)
	s := &Server{
		cfg:         cfg,
		links:       newResource(cfg.Path, tickets),
		log:         cfg.Logger,
		sessions:    make(map[*session]struct{}),
		refusals:    rate.NewLimiter(10, 20),
		badRequests: rate.NewLimiter(10, 20),
		ackTimeout:  ackTimeout,
		farewell:    farewellTimeout,
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.workers = newWorkers(s.ctx.Done())
	return s
}

// Addr returns the address that is listened on.
func (s *Server) Addr() netip.AddrPort {
	if s.tcp != nil {
		return addrPort(s.tcp.listener.Addr())
	}
	return addrPort(s.mux.conn.LocalAddr())
}

// Serve answers until Shutdown or Close is called, and then returns nil.
func (s *Server) Serve() error {
	if !s.goRun(func() { every(10*time.Second, s.ctx.Done(), s.tidy) }) {
		return nil
	}
	run := s.runTCP
	if s.mux != nil {
		run = s.mux.run
	}
	if err := run(); err != nil {
		s.cancel()
		return fmt.Errorf("skicoap: %w", err)
	}
	return nil
}

// goRun runs f in a goroutine that Shutdown waits for. It reports false if the
// server stops.
func (s *Server) goRun(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.draining {
		s.running.Go(f)
	}
	return !s.draining
}

// begin is called by the mux for a new flow.
func (s *Server) begin(f *flow) {
	if !s.goRun(func() { s.serve(f) }) {
		f.end(net.ErrClosed)
	}
}

// serve runs one session from its handshake to its end.
func (s *Server) serve(f *flow) {
	defer f.Close()
	if cause := f.fate(); cause != nil { // it has given way already
		s.refused(f, cause)
		return
	}
	psk := &pskLookup{find: s.cfg.PSK}
	peer, conn, err := s.handshake(f, psk)
	if err != nil {
		s.refused(f, err)
		return
	}
	sess := newDTLSSession(s, conn, peer)
	defer sess.end()
	if err := s.add(sess.session); err != nil {
		sess.link.close(err)
		s.refused(f, err)
		return
	}
	defer s.remove(sess.session)
	if err := stillThere(f, psk); err != nil {
		sess.link.close(err)
		s.refused(f, err)
		return
	}
	f.pace.Follow(&sess.share.pace)
	log := s.begins(peer)
	defer expires(peer, sess.link.close)()
	settled := false
	err = sess.link.run(func(m *message.Message) {
		if !settled {
			settled = true
			f.settle()
		}
		sess.receive(m)
	})
	if cause := f.fate(); errors.Is(cause, errReplaced) {
		err = cause
	}
	log.Info("session ends", "reason", err)
}

var (
	errExpired  = errors.New("the peer's certificate has expired")
	errIdle     = errors.New("idle")
	errCrowded  = errors.New("the peer has made too many other sessions")
	errSessions = errors.New("too many sessions")
	errGone     = errors.New("the peer left as soon as its handshake was done")
	errOtherKey = errors.New("the peer's pre-shared key was changed during the handshake")
)

// stillThere makes the flow that of its address, unless something has happened
// since the handshake. It comes when the session can be found: who takes a key
// away later closes it.
func stillThere(f *flow, psk *pskLookup) error {
	switch {
	case !psk.current():
		return errOtherKey
	case !f.establish():
		return errGone
	}
	return nil
}

// begins logs that a session does, and returns the logger for the rest of it.
func (s *Server) begins(peer ski.Peer) *slog.Logger {
	log := s.log.With("peer", peer.Addr, "id", peer.ID())
	if peer.Certificate != nil {
		log.Info("session begins", "subject", peer.Certificate.Subject)
	} else {
		log.Info("session begins")
	}
	return log
}

// expires has a session closed when the certificate that it was made with
// expires. The returned function calls that off.
func expires(peer ski.Peer, close func(error)) (stop func()) {
	if peer.Certificate == nil {
		return func() {}
	}
	t := time.AfterFunc(time.Until(peer.Certificate.NotAfter), func() { close(errExpired) })
	return func() { t.Stop() }
}

// handshake returns the DTLS connection of a flow and who is at its other end.
func (s *Server) handshake(f *flow, psk *pskLookup) (ski.Peer, *dtls.Conn, error) {
	remote := net.UDPAddrFromAddrPort(f.addr)
	conn, err := dtls.ServerWithOptions(f, remote, serverOptions(&s.cfg, s.mtu, f.connectionID, psk)...)
	if err != nil {
		return ski.Peer{}, nil, err
	}
	f.conn = conn
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.HandshakeTimeout)
	defer cancel()
	var peer ski.Peer
	err = conn.HandshakeContext(ctx)
	f.openGate()
	if err != nil {
		err = psk.explain(err)
	} else {
		peer, err = peerOf(conn, psk, addrPort(remote))
	}
	if err == nil && s.cfg.Admit != nil {
		err = s.cfg.Admit(peer)
	}
	if err != nil {
		_ = conn.Close()
		return ski.Peer{}, nil, err
	}
	return peer, conn, nil
}

// refused logs a handshake that came to nothing. Of more than a few, and of
// those that gave way to others, tidy logs the number.
func (s *Server) refused(f *flow, err error) {
	if cause := f.fate(); cause != nil && !errors.Is(cause, net.ErrClosed) {
		err = cause
	}
	s.logRefusal(f.addr, err)
}

func (s *Server) logRefusal(addr netip.AddrPort, err error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	switch {
	case s.ctx.Err() != nil:
	case errors.Is(err, errFlood) || !s.refusals.Allow():
		s.unlogged.Add(1)
		s.log.Debug("handshake failed", "peer", addr, "err", err)
	default:
		s.log.Warn("handshake failed", "peer", addr, "err", err)
	}
}

// peerOf returns who the handshake authenticated.
func peerOf(conn *dtls.Conn, psk *pskLookup, addr netip.AddrPort) (ski.Peer, error) {
	state, ok := conn.ConnectionState()
	if ok && isPSK(state.CipherSuiteID) {
		identity, ok := psk.peer(&state)
		if !ok {
			return ski.Peer{}, errors.New("the peer has no pre-shared key")
		}
		return ski.Peer{Addr: addr, PSK: identity}, nil
	}
	if !ok || len(state.PeerCertificates) == 0 {
		return ski.Peer{}, errors.New("the peer has no certificate")
	}
	return peerWith(state.PeerCertificates[0], addr)
}

// peerWith returns the peer that has shown to have the key of a certificate.
func peerWith(der []byte, addr netip.AddrPort) (ski.Peer, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return ski.Peer{}, fmt.Errorf("the peer's certificate: %w", err)
	}
	if err := checkUsage(cert, x509.ExtKeyUsageClientAuth); err != nil {
		return ski.Peer{}, err
	}
	return ski.PeerFromCertificate(addr, cert), nil
}

// add makes a session count, or says why it cannot.
func (s *Server) add(sess *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return net.ErrClosed
	}
	if len(s.sessions) >= s.cfg.MaxSessions {
		return errSessions
	}
	var quietest *session
	same := 0
	for other := range s.sessions {
		if other.peer.ID() != sess.peer.ID() {
			continue
		}
		same++
		sess.share = other.share
		if quietest == nil || other.active.Load() < quietest.active.Load() {
			quietest = other
		}
	}
	if same >= s.cfg.MaxPeerSessions {
		delete(s.sessions, quietest)
		go quietest.close(errCrowded) // it writes, and ends when it has
	}
	s.sessions[sess] = struct{}{}
	return nil
}

func (s *Server) remove(sess *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, sess)
}

func (s *Server) all() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*session, 0, len(s.sessions))
	for sess := range s.sessions {
		all = append(all, sess)
	}
	return all
}

// Peers returns the peer of each session there is, where it is now.
func (s *Server) Peers() []ski.Peer {
	var peers []ski.Peer
	for _, sess := range s.all() {
		peers = append(peers, sess.asker())
	}
	return peers
}

// CloseSessions ends the sessions whose peer matches, their requests in flight
// included, and returns their number. The reason is logged. What they observe is
// taken from them, unless it is net.ErrClosed.
func (s *Server) CloseSessions(reason error, match func(ski.Peer) bool) int {
	n := 0
	var closing sync.WaitGroup // one that takes its time does not hold up the others
	for _, sess := range s.all() {
		if match(sess.peer) {
			closing.Go(func() {
				if !errors.Is(reason, net.ErrClosed) {
					sess.revoke()
				}
				sess.close(reason)
			})
			n++
		}
	}
	closing.Wait()
	return n
}

// KnownAddresses returns addresses from which peers have been authenticated
// lately, at most 4,096, the one seen longest ago first: an IPv6 address as the
// first of its /64. Over TCP there are none.
func (s *Server) KnownAddresses() []netip.Addr {
	if s.mux == nil {
		return nil
	}
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	return s.mux.known.all()
}

// Handshakes returns how many ClientHellos were answered with a cookie and
// nothing more (RFC 6347, Section 4.2.1), which over TCP are none, and how many
// handshakes were given up, or not begun, because there were too many.
func (s *Server) Handshakes() (cookies, givenUp uint64) {
	if s.mux == nil {
		return 0, s.tcp.givenUp.Load()
	}
	return s.mux.asked.Load(), s.mux.givenUp.Load()
}

// InFlight returns how many requests are being worked on.
func (s *Server) InFlight() int { return int(s.working.Load()) }

// start reports whether one more request may be worked on. If so, finish must
// be called at its end.
func (s *Server) start() bool {
	if s.working.Add(1) > int64(s.cfg.MaxInFlight) {
		s.working.Add(-1)
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		s.working.Add(-1)
		return false
	}
	s.inFlight.Add(1)
	return true
}

func (s *Server) finish() {
	s.inFlight.Done()
	s.working.Add(-1)
}

func (s *Server) tidy(now time.Time) {
	for _, sess := range s.all() {
		sess.expire(now)
		if now.Sub(sess.lastActive()) > s.cfg.IdleTimeout {
			sess.close(errIdle)
		}
	}
	if n := s.unloggedRequests.Swap(0); n > 0 {
		s.log.Warn("more requests were refused", "count", n)
	}
	if n := s.unlogged.Swap(0); n > 0 {
		s.log.Warn("more handshakes failed, or were begun and not gone on with", "count", n)
	}
	if s.mux != nil {
		s.flood.look(s.mux.asked.Load(), s.mux.returned.Load(), s.log)
	}
}

// Shutdown stops taking sessions and requests, answers the requests in flight
// until ctx ends, and closes all sessions. It returns ctx's error if requests
// were left unanswered.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()

	answered := make(chan struct{})
	go func() { s.inFlight.Wait(); close(answered) }()
	var err error
	select {
	case <-answered:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.cancel()
	if s.tcp != nil {
		s.tcp.close()
	}
	s.CloseSessions(net.ErrClosed, func(ski.Peer) bool { return true })
	s.running.Wait()
	if s.mux != nil {
		if e := s.mux.conn.Close(); e != nil && !errors.Is(e, net.ErrClosed) && err == nil {
			err = e
		}
	}
	return err
}

// Close is Shutdown without waiting for the requests in flight.
func (s *Server) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (s *Server) stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

func addrPort(a net.Addr) netip.AddrPort {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok { // of UDP or TCP
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
