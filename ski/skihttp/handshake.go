package skihttp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/turn"
)

// begin is called for a new connection.
func (s *Server) begin(raw net.Conn) {
	now := time.Now()
	turns := turn.New(raw, now)
	c := &conn{Conn: turns, turn: turns, addr: addrPort(raw.RemoteAddr())}
	s.mu.Lock()
	var oldest *conn
	if len(s.handshakes) >= s.cfg.MaxHandshakes {
		s.givenUp.Add(1)
		if oldest = s.yielding(c, now); oldest == nil {
			s.mu.Unlock()
			s.refused(c, errHandshakes)
			_ = raw.Close()
			return
		}
		delete(s.handshakes, oldest)
	}
	s.handshakes[c] = struct{}{}
	s.mu.Unlock()
	if oldest != nil {
		oldest.fail(errHandshakes)
	}
	if !s.goRun(func() { s.open(c) }) {
		_ = raw.Close()
	}
}

// handshakeGrace is how long a handshake keeps its place when others want it, from
// when it is the peer's turn: longer than most round trips.
const handshakeGrace = 500 * time.Millisecond

// Handshakes returns 0, for cookies that only CoAP over DTLS has, and how many
// handshakes were given up because there were too many.
func (s *Server) Handshakes() (cookies, givenUp uint64) { return 0, s.givenUp.Load() }

// yielding returns the connection that gives way to a newcomer when there are
// too many: the oldest of the address that has the most. It does so at once if
// that has more than the newcomer's will have, so that nobody alone keeps others
// out, and otherwise when it has had its time; nil until then. It is called with
// s.mu held.
func (s *Server) yielding(newcomer *conn, now time.Time) (oldest *conn) {
	count, most := make(map[netip.Addr]int), 0
	for c := range s.handshakes {
		from := origin(c.addr.Addr())
		count[from]++
		most = max(most, count[from])
	}
	var since time.Time
	for c := range s.handshakes {
		if count[origin(c.addr.Addr())] != most {
			continue
		}
		if t := c.turn.Since(); oldest == nil || t.Before(since) {
			oldest, since = c, t
		}
	}
	if most <= count[origin(newcomer.addr.Addr())]+1 && now.Sub(since) < handshakeGrace {
		return nil
	}
	return oldest
}

// origin is what somebody has one of: an IPv4 address, or the /64 of an IPv6 one.
func origin(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		p, _ := a.WithZone("").Prefix(64)
		return p.Addr()
	}
	return a
}

// open takes a connection through the handshake and gives it to net/http.
func (s *Server) open(c *conn) {
	tc, peer, err := s.handshake(c)
	if err != nil {
		s.refused(c, err)
		c.farewell(s.ctx, s.cfg.HandshakeTimeout)
	}
	s.mu.Lock()
	delete(s.handshakes, c)
	s.mu.Unlock()
	if err == nil {
		c.session = &session{server: s, conn: c, peer: peer, share: new(share)}
		if err = s.add(c.session); err != nil {
			s.refused(c, err)
		}
	}
	if err != nil {
		_ = c.Conn.Close()
		return
	}
	c.session.start(tc)
	select {
	case s.ready.conns <- tc:
	case <-s.ready.closed:
		_ = c.Close()
	}
}

// refused logs why a connection has become no session.
func (s *Server) refused(c *conn, err error) {
	if s.ctx.Err() == nil {
		s.warn("handshake failed", "peer", c.addr, "err", c.failure(err))
	}
}

var (
	errExpired    = errors.New("the peer's certificate has expired")
	errCrowded    = errors.New("the peer has made too many other sessions")
	errSessions   = errors.New("too many sessions")
	errHandshakes = errors.New("too many handshakes at once")
)

// handshake returns the TLS connection and who is at its other end. Who is not
// admitted learns that by an alert.
func (s *Server) handshake(c *conn) (*tls.Conn, ski.Peer, error) {
	var peer ski.Peer
	config := s.tls.Clone()
	config.VerifyConnection = func(state tls.ConnectionState) error {
		cert := state.PeerCertificates[0]
		if err := checkUsage(cert, x509.ExtKeyUsageClientAuth); err != nil {
			return err
		}
		peer = ski.PeerFromCertificate(c.addr, cert)
		if s.cfg.Admit != nil {
			return s.cfg.Admit(peer)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.HandshakeTimeout)
	defer cancel()
	tc := tls.Server(c, config)
	return tc, peer, errOf(tc.HandshakeContext(ctx))
}

// errOf names what crypto/tls only calls the end of input.
func errOf(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the peer has closed the connection before the handshake was done")
	}
	return err
}

// readyConns is the listener that net/http knows: what comes out of it has been
// authenticated.
type readyConns struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *readyConns) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *readyConns) Addr() net.Addr { return l.addr }

func (l *readyConns) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}
