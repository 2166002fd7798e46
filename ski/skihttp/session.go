package skihttp

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/pace"
	"github.com/tlsski/tlsski/ski/internal/turn"
)

// session is the server's side of one authenticated connection.
type session struct {
	server  *Server
	conn    *conn
	peer    ski.Peer
	state   atomic.Int32 // the last http.ConnState before its end
	working atomic.Int64 // requests that are being worked on
	share   *share       // of the peer, in all its sessions
	expiry  *time.Timer
}

// share is what one peer has in all its sessions.
type share struct {
	working atomic.Int64 // requests that are being worked on
	pace    pace.Pace
}

// sessionKey is where a request's context has its session.
type sessionKey struct{}

// start is called when everything else is ready.
func (s *session) start(tc *tls.Conn) {
	state := tc.ConnectionState()
	s.server.log.Info("session begins", "peer", s.peer.Addr, "spki", s.peer.SPKI, "subject", s.peer.Certificate.Subject,
		"protocol", state.NegotiatedProtocol, "tls", tls.VersionName(state.Version))
	s.conn.unasked.Store(0)
	// A session does not outlive the certificate it was made with.
	s.expiry = time.AfterFunc(time.Until(s.peer.Certificate.NotAfter), func() { s.close(errExpired) })
	s.conn.established.Store(true)
}

// close ends the session with what is in flight.
func (s *session) close(cause error) {
	s.conn.fail(cause)
}

// begin reports whether one more request of this session may be worked on. No
// session, and no peer, gets more than its share, nor more than are free: the
// others would have to wait.
func (s *session) begin() bool {
	most := int64(s.server.cfg.MaxInFlight)
	mine, peers := s.working.Add(1), s.share.working.Add(1)
	share := max(1, min(most/4, most-s.server.working.Load()-1))
	if mine > max(1, most/8) || peers > share || !s.server.start() {
		s.working.Add(-1)
		s.share.working.Add(-1)
		return false
	}
	return true
}

func (s *session) finish() {
	s.working.Add(-1)
	s.share.working.Add(-1)
	s.server.finish()
}

// conn is the TCP connection beneath TLS. It knows when something was last
// heard of the peer, and why it ended.
type conn struct {
	net.Conn
	turn    *turn.Conn // which Conn is
	addr    netip.AddrPort
	session *session // nil before the handshake is done

	established atomic.Bool
	heard       atomic.Int64 // time of the last byte, Unix nanoseconds
	unasked     atomic.Int64 // bytes since the last request that came to its end
	asked       atomic.Bool  // whether there was one
	gate        pace.Gate

	mu     sync.Mutex
	cause  error // why we end it
	last   error // what reading last ended with
	closed sync.Once
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(c.gate.Cut(b))
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
		c.unasked.Add(int64(n))
	}
	c.mu.Lock()
	c.last = err
	c.mu.Unlock()
	if n > 0 {
		c.gate.Wait()
	}
	return n, err
}

// farewell lets the peer read the alert that says why there is no session: what
// it has sent meanwhile would make the kernel throw that away, so it is read
// until the peer closes, or as long again as it had for the handshake: it may be
// slow. Until then the connection is among those whose oldest gives way.
func (c *conn) farewell(ctx context.Context, timeout time.Duration) {
	if tcp, ok := c.turn.Conn.(*net.TCPConn); ok && tcp.CloseWrite() == nil {
		defer context.AfterFunc(ctx, func() { _ = tcp.Close() })()
		_ = tcp.SetReadDeadline(time.Now().Add(timeout))
		_, _ = io.CopyN(io.Discard, tcp, 16<<10)
	}
}

// fail closes the connection for a reason.
func (c *conn) fail(cause error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	c.mu.Unlock()
	_ = c.Close()
}

// failure returns the reason given to fail, or else err.
func (c *conn) failure(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	return err
}

// Close is how net/http, too, ends a session.
func (c *conn) Close() error {
	c.gate.Close()
	err := c.Conn.Close()
	if c.established.Load() {
		c.closed.Do(func() {
			s := c.session
			s.expiry.Stop()
			s.server.log.Info("session ends", "peer", s.peer.Addr, "spki", s.peer.SPKI, "reason", c.failure(c.guess()))
			s.server.remove(s)
		})
	}
	return err
}

var (
	errSlow    = errors.New("the peer has not sent a whole request in time")
	errGarbled = errors.New("the peer has sent what is no request")
	errIdle    = errors.New("idle")
	errLeft    = errors.New("the peer has closed it")
	errEnded   = errors.New("closed")
)

// alertLen is more than what a peer sends to say goodbye, in bytes.
const alertLen = 64

// guess says why net/http has ended the session: it does not.
func (c *conn) guess() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	quiet := time.Since(time.Unix(0, c.heard.Load()))
	begun := http.ConnState(c.session.state.Load()) == http.StateActive
	switch cfg := &c.session.server.cfg; {
	case errors.Is(c.last, io.EOF):
		return errLeft
	case errors.Is(c.last, os.ErrDeadlineExceeded) && (c.unasked.Load() > alertLen || !c.asked.Load()):
		return errSlow
	case quiet >= cfg.IdleTimeout:
		return errIdle
	case c.last == nil && (c.unasked.Load() > alertLen || begun && !c.asked.Load()):
		return errGarbled
	case c.last == nil && c.unasked.Load() > 0:
		return errLeft
	}
	return errEnded
}
