package skicoap

import (
	"bytes"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/pace"
	"github.com/tlsski/tlsski/ski/internal/turn"
)

// ListenTCP opens the TCP address (host:port) for CoAP over TLS (RFC 8323),
// coaps+tcp://, with TLS 1.2 or 1.3. Peers are answered once Serve is called.
// There are no pre-shared keys on it.
func ListenTCP(addr string, cfg ServerConfig) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("skicoap: %w", err)
	}
	s := newServer(cfg)
	s.tcp = &tcpListener{
		listener: l,
		config: &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cfg.certificate(), nil },
			ClientAuth:     tls.RequireAndVerifyClientCert,
			ClientCAs:      cfg.ClientCAs,
			MinVersion:     tls.VersionTLS12,
			CipherSuites:   tcpSuites,
			NextProtos:     []string{alpn},
			// A resumed session would be one with a certificate that nobody
			// has looked at again.
			SessionTicketsDisabled: true,
			GetConfigForClient:     turn.Heard(func(c net.Conn) *turn.Conn { return c.(*pace.Conn).Conn.(*turn.Conn) }),
		},
		opening: list.New(),
	}
	return s, nil
}

// tcpListener is the TCP side of a Server.
type tcpListener struct {
	listener net.Listener
	config   *tls.Config
	givenUp  atomic.Uint64 // connections that had no place, or lost it

	mu      sync.Mutex
	opening *list.List // of opening, oldest first
}

// opening is a connection that has not yet shown a certificate.
type opening struct {
	*turn.Conn
	from netip.AddrPort
}

func (o opening) origin() netip.Addr { return origin(o.from.Addr()) }

func (o opening) since() time.Time { return o.Conn.Since() }

func (t *tcpListener) close() { _ = t.listener.Close() }

// begin counts a connection in until opened is called, which reports whether it
// has not had to give way. ok is false where it has no place.
func (t *tcpListener) begin(conn *turn.Conn, now time.Time) (opened func() bool, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := opening{conn, addrPort(conn.RemoteAddr())}
	if t.opening.Len() >= maxHandshakes {
		t.givenUp.Add(1)
		e := yielding(t.opening, o.origin(), now)
		if e == nil {
			return nil, false
		}
		_ = t.opening.Remove(e).(opening).Close()
	}
	e := t.opening.PushBack(o)
	return func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		for at := t.opening.Front(); at != nil; at = at.Next() {
			if at == e {
				t.opening.Remove(e)
				return true
			}
		}
		return false
	}, true
}

// runTCP accepts connections until the listener is closed.
func (s *Server) runTCP() error {
	for {
		conn, err := s.tcp.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			// Too many open files, for one: it passes.
			s.unlogged.Add(1)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-s.ctx.Done():
			}
			continue
		}
		if !s.goRun(func() { s.serveTCP(conn) }) {
			_ = conn.Close()
		}
	}
}

// serveTCP runs one session from its handshake to its end.
func (s *Server) serveTCP(raw net.Conn) {
	now := time.Now()
	turns := turn.New(raw, now)
	conn := &pace.Conn{Conn: turns}
	defer conn.Close()
	addr := addrPort(conn.RemoteAddr())
	opened, ok := s.tcp.begin(turns, now)
	if !ok {
		s.logRefusal(addr, errFlood)
		return
	}
	link, peer, err := s.open(conn)
	if !opened() {
		err = errFlood
	}
	var sess *tcpSession
	if err == nil {
		sess = &tcpSession{session: newSession(s, peer, link.close), link: link}
		sess.notify = sess.notifyOrdered
		defer sess.unobserve(func(string, *observation) bool { return true })
		defer sess.cancel()
		err = s.add(sess.session)
	}
	if err != nil {
		if link != nil {
			link.close(err)
		}
		s.logRefusal(addr, err)
		return
	}
	defer s.remove(sess.session)
	conn.Gate.Follow(&sess.share.pace)
	log := s.begins(peer)
	defer expires(peer, link.close)()
	log.Info("session ends", "reason", link.run(sess.receive, sess.released))
}

// open makes a connection a link to an authenticated peer.
func (s *Server) open(conn net.Conn) (*tcpLink, ski.Peer, error) {
	deadline := time.Now().Add(s.cfg.HandshakeTimeout)
	ctx, cancel := context.WithDeadline(s.ctx, deadline)
	defer cancel()
	secure := tls.Server(conn, s.tcp.config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, ski.Peer{}, err
	}
	link := newTCPLink(secure)
	stop := context.AfterFunc(ctx, func() { link.close(context.Cause(ctx)) })
	defer stop()
	peer, err := peerWith(secure.ConnectionState().PeerCertificates[0].Raw, addrPort(conn.RemoteAddr()))
	if err == nil && s.cfg.Admit != nil {
		err = s.cfg.Admit(peer)
	}
	if err == nil {
		err = link.open(deadline)
	}
	return link, peer, err
}

// tcpSession is the server's side of one TLS connection.
type tcpSession struct {
	*session
	link *tcpLink
}

// receive is called by the link's reader. The work is done elsewhere, so that
// a slow operation holds up nothing that comes after it.
func (s *tcpSession) receive(m *message.Message) {
	s.active.Store(time.Now().UnixNano())
	if m.Code < codes.GET || m.Code > 31 {
		return // no request
	}
	token := bytes.Clone(m.Token)
	if tickets, refused := s.server.links.ticketRequest(m); tickets != nil || refused != nil {
		s.receiveTickets(token, tickets, refused)
		return
	}
	in, out, refused := s.server.links.check(m)
	if refused == nil {
		// Blocks are not announced with the CSM (RFC 8323, Section 5.3.2).
		if b, bad := findBlocks(m.Options); bad != nil {
			refused = bad
		} else if b.isPart() {
			refused = refuse(codes.BadOption, "no block-wise transfer over TCP")
		}
	}
	if refused != nil {
		s.logRefused(refused)
		s.answer(token, refused.code, refused.options, refused.payload)
		return
	}
	if !s.start() {
		if r := s.busy(out); r != nil {
			s.answer(token, r.code, r.options, r.payload)
		} else {
			s.answer(token, codes.ServiceUnavailable, maxAge(time.Second), nil)
		}
		return
	}
	body := bytes.Clone(m.Payload)
	s.server.workers.run(func() {
		defer s.finish()
		r := s.work(in, body, out)
		clear(body)
		s.answer(token, r.code, r.padded(), r.payload)
		clear(r.payload)
	})
}

func (s *tcpSession) answer(token []byte, code codes.Code, options message.Options, payload []byte) {
	frame, err := encodeFrame(message.Message{Token: token, Code: code, Options: options, Payload: payload})
	if err == nil {
		err = s.link.write(frame)
	}
	if err != nil && s.ctx.Err() == nil {
		s.server.log.Debug("answer", "peer", s.peer.Addr, "err", err)
	}
	clear(frame)
}

// released ends the link of a client that has sent its last request, when all
// of them are answered (RFC 8323, Section 5.5).
func (s *tcpSession) released() {
	for s.working.Load() > 0 {
		select {
		case <-time.After(tick):
		case <-s.link.done:
			return
		}
	}
	s.link.close(errReleased)
}
