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
	"github.com/plgd-dev/go-coap/v3/message/pool"

	"github.com/tlsski/tlsski/ski"
)

// ServerConfig says how to serve. Handler, Certificate and ClientCAs are
// required.
type ServerConfig struct {
	// Handler answers the requests.
	Handler ski.Handler
	// Path is the resource. Default: "/ski".
	Path string
	// Certificate is the key server's own, with its key: ECDSA or RSA.
	Certificate tls.Certificate
	// ClientCAs are the authorities that edge servers' certificates come from.
	// They should sign nothing else.
	ClientCAs *x509.CertPool
	// MaxSessions bounds the DTLS sessions, those in their handshake included.
	// A peer beyond it gets no answer. Default: 1024.
	MaxSessions int
	// MaxInFlight bounds the requests that are being worked on, over all
	// sessions. A request beyond it is dropped: its sender sends it again.
	// Default: 8192.
	MaxInFlight int
	// HandshakeTimeout is how long a peer may take for the DTLS handshake.
	// Default: 10 s.
	HandshakeTimeout time.Duration
	// IdleTimeout is how long a session without requests is kept. Default: 5
	// minutes.
	IdleTimeout time.Duration
	// Logger gets a line for each session that begins, ends or fails to begin.
	// Default: slog.Default().
	Logger *slog.Logger
}

func (c ServerConfig) withDefaults() (ServerConfig, error) {
	if c.Handler == nil || c.ClientCAs == nil {
		return c, errors.New("skicoap: a server needs a Handler and ClientCAs")
	}
	if err := checkIdentity(c.Certificate); err != nil {
		return c, err
	}
	defaults(&c.Path, "/ski")
	if err := checkPath(c.Path); err != nil {
		return c, err
	}
	defaults(&c.MaxSessions, 1024)
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
	cfg      ServerConfig
	listener net.Listener
	messages *pool.Pool
	links    *resource
	log      *slog.Logger

	ctx    context.Context // ends when the server stops: the requests' parent
	cancel context.CancelFunc

	mu       sync.Mutex
	sessions map[*session]struct{}
	draining bool           // no new requests
	inFlight sync.WaitGroup // requests; Add only under mu and before draining

	working atomic.Int64   // requests, for MaxInFlight
	open    atomic.Int64   // sessions and handshakes, for MaxSessions
	running sync.WaitGroup // goroutines of the server
}

// Listen opens the UDP address (host:port, or :port for all; port 0 takes a
// free one). Peers are answered once Serve is called.
func Listen(addr string, cfg ServerConfig) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	l, err := listen(addr, &cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{
		cfg:      cfg,
		listener: l,
		messages: pool.New(1024, 2048),
		links:    newResource(cfg.Path),
		log:      cfg.Logger,
		ctx:      ctx,
		cancel:   cancel,
		sessions: make(map[*session]struct{}),
	}, nil
}

// Addr returns the address that is listened on.
func (s *Server) Addr() netip.AddrPort { return addrPort(s.listener.Addr()) }

// Serve answers until Shutdown or Close is called, and then returns nil.
func (s *Server) Serve() error {
	s.running.Go(func() { every(10*time.Second, s.ctx.Done(), s.tidy) })
	for {
		conn, err := s.listener.Accept()
		switch {
		case s.ctx.Err() != nil || s.stopping():
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case err != nil:
			s.cancel()
			return fmt.Errorf("skicoap: accept: %w", err)
		}
		if s.open.Add(1) > int64(s.cfg.MaxSessions) {
			s.open.Add(-1)
			s.log.Warn("too many sessions", "peer", conn.RemoteAddr(), "max", s.cfg.MaxSessions)
			_ = conn.Close()
			continue
		}
		s.running.Go(func() {
			defer s.open.Add(-1)
			s.serve(conn.(*dtls.Conn))
		})
	}
}

// serve runs one session from its handshake to its end.
func (s *Server) serve(conn *dtls.Conn) {
	addr := addrPort(conn.RemoteAddr())
	if err := handshake(s.ctx, conn, s.cfg.HandshakeTimeout); err != nil {
		if s.ctx.Err() == nil {
			s.log.Warn("handshake failed", "peer", addr, "err", err)
		}
		return
	}
	peer, err := peerOf(conn, addr)
	if err != nil {
		s.log.Warn("handshake failed", "peer", addr, "err", err)
		_ = conn.Close()
		return
	}
	sess := newSession(s, conn, peer)
	if !s.add(sess) {
		sess.link.close(net.ErrClosed)
		return
	}
	log := s.log.With("peer", addr, "spki", peer.SPKI)
	log.Info("session begins", "subject", peer.Certificate.Subject)
	// A session does not outlive the certificate it was made with.
	expiry := time.AfterFunc(time.Until(peer.Certificate.NotAfter), func() { sess.link.close(errExpired) })
	err = sess.link.run()
	expiry.Stop()
	sess.cancel()
	s.remove(sess)
	log.Info("session ends", "reason", err)
}

var (
	errExpired = errors.New("the peer's certificate has expired")
	errIdle    = errors.New("idle")
)

// peerOf returns who the handshake authenticated.
func peerOf(conn *dtls.Conn, addr netip.AddrPort) (ski.Peer, error) {
	state, ok := conn.ConnectionState()
	if !ok || len(state.PeerCertificates) == 0 {
		return ski.Peer{}, errors.New("the peer has no certificate")
	}
	cert, err := x509.ParseCertificate(state.PeerCertificates[0])
	if err != nil {
		return ski.Peer{}, fmt.Errorf("the peer's certificate: %w", err)
	}
	return ski.PeerFromCertificate(addr, cert), nil
}

func (s *Server) add(sess *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return false
	}
	s.sessions[sess] = struct{}{}
	return true
}

func (s *Server) remove(sess *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, sess)
}

func (s *Server) stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
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
		sess.exchanges.expire(now)
		if now.Sub(sess.lastActive()) > s.cfg.IdleTimeout {
			sess.link.close(errIdle)
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

	answered := make(chan struct{})
	go func() { s.inFlight.Wait(); close(answered) }()
	var err error
	select {
	case <-answered:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.cancel()
	for _, sess := range s.all() {
		sess.link.close(net.ErrClosed)
	}
	if e := s.listener.Close(); e != nil && err == nil {
		err = e
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
	if udp, ok := a.(*net.UDPAddr); ok {
		ap := udp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
