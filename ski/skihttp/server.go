package skihttp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/tlsski/tlsski/ski"
)

// ServerConfig says how to serve. Handler, Certificate and ClientCAs are
// required.
type ServerConfig struct {
	// Handler answers the requests, each in a goroutine of its own.
	Handler ski.Handler
	// Path is the resource. Default: "/ski".
	Path string
	// Certificate is the key server's own, with its key.
	Certificate tls.Certificate
	// GetCertificate returns the certificate for a handshake that begins, in the
	// place of Certificate, which is needed all the same. Sessions that stand keep
	// theirs. It is called by many goroutines at once. nil means Certificate.
	GetCertificate func() *tls.Certificate
	// ClientCAs are the authorities that edge servers' certificates come from.
	// They should sign nothing else.
	ClientCAs *x509.CertPool
	// Admit is asked about each peer that the handshake has authenticated. An
	// error refuses the session and is logged. nil admits all.
	Admit func(peer ski.Peer) error
	// MaxSessions bounds the sessions, which are connections. Beyond it none is
	// made. Default: 1024.
	MaxSessions int
	// MaxPeerSessions bounds the sessions of one certificate's key. One more
	// ends the one that has been quiet the longest. Default: 16.
	MaxPeerSessions int
	// MaxHandshakes bounds the connections whose peer is not authenticated yet.
	// One more ends the oldest of the address that has the most; where none has
	// more than another, only if the oldest has had 500 ms, and is itself closed
	// otherwise. Default: 128.
	MaxHandshakes int
	// MaxInFlight bounds the requests that are being worked on, over all
	// sessions, and one session to an eighth and one peer to a quarter of it, and to
	// as many as are free. Those whose answer the peer does not take count too. A
	// request beyond is answered with 503. Default: 8192.
	MaxInFlight int
	// HandshakeTimeout is how long a peer may take for the TLS handshake.
	// Default: 10 s.
	HandshakeTimeout time.Duration
	// RequestTimeout is how long a peer may take to send a request once it has
	// begun to, and to take its answer. Default: 10 s.
	RequestTimeout time.Duration
	// IdleTimeout is how long a session is kept that has no request. Default: 5
	// minutes.
	IdleTimeout time.Duration
	// Logger gets a line for each session that begins, ends or is refused, and
	// for requests that are none. Default: slog.Default().
	Logger *slog.Logger
}

// The bounds of one session that need no configuration.
const (
	// maxHeader is the largest header of a request, in bytes.
	maxHeader = 8 << 10
	// maxStreams is how many requests a session may have at once in HTTP/2.
	// net/http ends one that resets more than four times as many while they
	// are worked on (CVE-2023-44487).
	maxStreams = 256
	// After these without a frame, a session of HTTP/2 is asked for a sign of
	// life, and ended without one.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
)

// certificate returns that of a handshake that begins.
func (c *ServerConfig) certificate() *tls.Certificate {
	if c.GetCertificate != nil {
		return c.GetCertificate()
	}
	return &c.Certificate
}

func (c ServerConfig) withDefaults() (ServerConfig, error) {
	if c.Handler == nil || c.ClientCAs == nil {
		return c, errors.New("skihttp: a server needs a Handler and ClientCAs")
	}
	if err := checkIdentity(c.Certificate); err != nil {
		return c, err
	}
	if min(c.MaxSessions, c.MaxPeerSessions, c.MaxHandshakes, c.MaxInFlight) < 0 ||
		min(c.HandshakeTimeout, c.RequestTimeout, c.IdleTimeout) < 0 {
		return c, errors.New("skihttp: a limit is negative")
	}
	defaults(&c.Path, "/ski")
	if !strings.HasPrefix(c.Path, "/") {
		return c, fmt.Errorf("skihttp: the path %q does not begin with a slash", c.Path)
	}
	defaults(&c.MaxSessions, 1024)
	defaults(&c.MaxPeerSessions, 16)
	defaults(&c.MaxHandshakes, 128)
	defaults(&c.MaxInFlight, 8192)
	defaults(&c.HandshakeTimeout, 10*time.Second)
	defaults(&c.RequestTimeout, 10*time.Second)
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

// Server is a key server's HTTPS endpoint.
type Server struct {
	cfg      ServerConfig
	tls      *tls.Config
	listener net.Listener
	http     *http.Server
	ready    *readyConns
	log      *slog.Logger

	ctx    context.Context // ends when the server stops: the requests' parent
	cancel context.CancelFunc

	mu         sync.Mutex
	handshakes map[*conn]struct{}
	sessions   map[*session]struct{}
	draining   bool           // no new sessions, no new requests
	inFlight   sync.WaitGroup // requests; Add only under mu and before draining
	running    sync.WaitGroup // goroutines and sessions; likewise

	working  atomic.Int64  // requests, for MaxInFlight
	givenUp  atomic.Uint64 // handshakes that gave way
	refusals *rate.Limiter // of log lines
	unlogged atomic.Uint64 // refusals without one
}

// Listen opens the TCP address (host:port, or :port for all; port 0 takes a
// free one). Peers are answered once Serve is called.
func Listen(addr string, cfg ServerConfig) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:        cfg,
		tls:        serverTLS(&cfg),
		log:        cfg.Logger,
		handshakes: make(map[*conn]struct{}),
		sessions:   make(map[*session]struct{}),
		refusals:   rate.NewLimiter(10, 20),
	}
	if s.listener, err = net.Listen("tcp", addr); err != nil {
		return nil, fmt.Errorf("skihttp: %w", err)
	}
	s.ready = &readyConns{addr: s.listener.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.http = s.newHTTP()
	return s, nil
}

func (s *Server) newHTTP() *http.Server {
	return &http.Server{
		Handler:                      http.HandlerFunc(s.serveHTTP),
		DisableGeneralOptionsHandler: true,
		ReadTimeout:                  s.cfg.RequestTimeout, // of the header and of the whole
		// An answer that nobody takes; the operation before it has time, too.
		WriteTimeout:   s.cfg.RequestTimeout + 20*time.Second,
		IdleTimeout:    s.cfg.IdleTimeout,
		MaxHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: 1 << 16,
			// A client may send as much before it has our settings (RFC 9113,
			// Section 6.9.2), and net/http ends the stream of one that sends more.
			MaxReceiveBufferPerStream: 1 << 16,
			// No dynamic table: the length of an answer's header must not depend
			// on the answers before it. No field fits into one byte.
			MaxEncoderHeaderTableSize: 1,
			SendPingTimeout:           pingAfter,
			PingTimeout:               pingTimeout,
			WriteByteTimeout:          s.cfg.RequestTimeout,
			CountError:                s.countError,
		},
		BaseContext: func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, sessionKey{}, c.(*tls.Conn).NetConn().(*conn).session)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state != http.StateClosed {
				c.(*tls.Conn).NetConn().(*conn).session.state.Store(int32(state))
			}
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// Addr returns the address that is listened on.
func (s *Server) Addr() netip.AddrPort { return addrPort(s.listener.Addr()) }

// Serve answers until Shutdown or Close is called, and then returns nil.
func (s *Server) Serve() error {
	if !s.goRun(s.tidy) || !s.goRun(func() { _ = s.http.Serve(s.ready) }) {
		return nil
	}
	pause := time.Duration(0)
	for {
		raw, err := s.listener.Accept()
		switch {
		case err == nil:
			pause = 0
			s.begin(raw)
		case errors.Is(err, net.ErrClosed):
			return nil
		default: // the peer has gone already, or there are no descriptors left
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Error("accept", "err", err, "again_in", pause)
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
				return nil
			}
		}
	}
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
		if other.peer.SPKI != sess.peer.SPKI {
			continue
		}
		same++
		sess.share = other.share
		if quietest == nil || other.conn.heard.Load() < quietest.conn.heard.Load() {
			quietest = other
		}
	}
	if same >= s.cfg.MaxPeerSessions {
		delete(s.sessions, quietest)
		s.running.Go(func() { quietest.close(errCrowded) })
	}
	sess.conn.gate.Follow(&sess.share.pace)
	s.sessions[sess] = struct{}{}
	s.running.Add(1) // until remove
	return nil
}

// remove is called once for each session that add has taken.
func (s *Server) remove(sess *session) {
	s.mu.Lock()
	delete(s.sessions, sess)
	s.mu.Unlock()
	s.running.Done()
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

// Peers returns the peer of each session there is.
func (s *Server) Peers() []ski.Peer {
	var peers []ski.Peer
	for _, sess := range s.all() {
		peers = append(peers, sess.peer)
	}
	return peers
}

// CloseSessions ends the sessions whose peer matches, their requests in flight
// included, and returns their number. The reason is logged.
func (s *Server) CloseSessions(reason error, match func(ski.Peer) bool) int {
	n := 0
	for _, sess := range s.all() {
		if match(sess.peer) {
			sess.close(reason)
			n++
		}
	}
	return n
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

func (s *Server) stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// warn logs what a peer has done wrong. Of more than a few, tidy logs the
// number: anybody can do any number of wrong things.
func (s *Server) warn(msg string, args ...any) {
	if s.refusals.Allow() {
		s.log.Warn(msg, args...)
		return
	}
	s.unlogged.Add(1)
	s.log.Debug(msg, args...)
}

// countError is told of what peers do wrong in HTTP/2.
func (s *Server) countError(kind string) {
	if kind == "closed" { // a frame that has crossed the end of its stream
		return
	}
	s.warn("HTTP/2 error of a peer", "kind", kind)
}

func (s *Server) tidy() {
	t := time.NewTicker(10 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		if n := s.unlogged.Swap(0); n > 0 {
			s.log.Warn("more handshakes failed, or requests were refused", "count", n)
		}
	}
}

// Shutdown stops taking sessions and requests, answers the requests in flight
// until ctx ends, and closes all sessions. It returns ctx's error if requests
// were left unanswered.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	err := s.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	// net/http would wait for those that have not asked for anything yet.
	for _, sess := range s.all() {
		if http.ConnState(sess.state.Load()) == http.StateNew {
			sess.close(net.ErrClosed)
		}
	}
	answered := make(chan struct{})
	go func() { s.inFlight.Wait(); close(answered) }()
	select {
	case <-answered:
		// So are the answers, once nothing is active any more.
		grace, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
		defer cancel()
		_ = s.http.Shutdown(grace)
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.cancel()
	_ = s.ready.Close()
	_ = s.http.Close()
	for _, sess := range s.all() {
		sess.close(net.ErrClosed)
	}
	s.running.Wait()
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

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
