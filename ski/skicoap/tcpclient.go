package skicoap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/source"
)

// connectTCP makes a session over TLS. It has come about when the key server
// has sent its CSM: then it has taken our certificate.
func (c *Client) connectTCP(ctx context.Context) (clientSide, error) {
	var d net.Dialer
	began := time.Now()
	conn, err := d.DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return nil, err
	}
	roundTrip := time.Since(began) // and the look-up
	secure := tls.Client(unspoken{conn}, &tls.Config{
		Certificates: []tls.Certificate{c.cfg.Certificate},
		RootCAs:      c.cfg.RootCAs,
		ServerName:   c.cfg.ServerName,
		MinVersion:   tls.VersionTLS12,
		CipherSuites: tcpSuites,
		NextProtos:   []string{alpn},
		VerifyConnection: func(state tls.ConnectionState) error {
			if err := checkUsage(state.PeerCertificates[0], x509.ExtKeyUsageServerAuth); err != nil {
				return &untrustedError{err}
			}
			return nil
		},
	})
	ctx, cancel := source.Context(ctx, conn.LocalAddr())
	defer cancel()
	began = time.Now()
	err = secure.HandshakeContext(ctx)
	roundTrip = min(roundTrip, time.Since(began)) // of the two, one may have lost something
	untrusted := (*tls.CertificateVerificationError)(nil)
	if errors.As(err, &untrusted) {
		err = &untrustedError{untrusted.Err}
	}
	if err != nil {
		_ = conn.Close()
		if verified(secure) && endedByPeer(err) {
			err = &refusedError{err}
		}
		return nil, source.Cause(ctx, err)
	}
	s := &tcpClientSession{
		link:      newTCPLink(secure),
		deadAfter: c.cfg.DeadAfter,
		silence:   max(c.cfg.DeadAfter, longPath*roundTrip),
		outgoing:  make(chan []byte),
		calls:     make(map[uint32]chan outcome),
		watches:   make(map[uint32]*watch),
		nextToken: rand.Uint32(),
		heard:     time.Now(),
		looked:    time.Now(),
	}
	deadline, _ := ctx.Deadline()
	stop := context.AfterFunc(ctx, func() { s.link.close(context.Cause(ctx)) })
	defer stop()
	if err := s.link.open(deadline); err != nil {
		if endedByPeer(err) {
			err = &refusedError{err}
		}
		return nil, err
	}
	return s, nil
}

// errCut is the end of a TCP connection without close_notify.
var errCut = errors.New("the connection was closed without a goodbye")

// unspoken is a TCP connection whose end is not taken for close_notify, as
// crypto/tls takes it: anybody on the path can make it.
type unspoken struct{ net.Conn }

func (c unspoken) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	return n, err
}

// longPath is after how many round trips a key server is silent where that is longer
// than DeadAfter: the kernel sends what was lost again after up to three, and the
// answer takes one more.
const longPath = 5

// tcpClientSession is the client's side of one TLS connection.
type tcpClientSession struct {
	link      *tcpLink
	deadAfter time.Duration
	silence   time.Duration // that is too long
	outgoing  chan []byte   // to the writer, so that nobody else waits for the peer to read

	mu        sync.Mutex
	calls     map[uint32]chan outcome // by token; each of capacity 1
	watches   map[uint32]*watch
	nextToken uint32
	released  bool // the key server wants no more requests
	heard     time.Time
	looked    time.Time // when look was last called
}

func (s *tcpClientSession) close(cause error) { s.link.close(cause) }

func (s *tcpClientSession) local() net.Addr { return s.link.conn.LocalAddr() }

func (s *tcpClientSession) alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.link.done:
		return false
	default:
		return !s.released
	}
}

// run reads answers until the session ends, fails the requests that still wait
// and returns the reason.
func (s *tcpClientSession) run() error {
	var others sync.WaitGroup
	others.Go(s.writeAll)
	others.Go(func() { every(max(s.deadAfter/4, tick), s.link.done, s.look) })
	others.Go(func() { every(time.Second, s.link.done, s.attend) })
	others.Go(func() {
		source.Watch(s.local(), s.link.done, func() { s.link.close(source.ErrGone) })
	})
	err := s.link.run(s.receive, s.release)
	others.Wait()
	return err
}

func (s *tcpClientSession) writeAll() {
	for {
		select {
		case frame := <-s.outgoing:
			if s.link.write(frame) != nil {
				return // the link has ended
			}
		case <-s.link.done:
			return
		}
	}
}

// exchange sends a request and waits for its answer, the context or the end of
// the session. Whichever comes, nothing is left behind.
func (s *tcpClientSession) exchange(ctx context.Context, path string, f ski.Format, body []byte) (*answer, error) {
	m := message.Message{Code: codes.POST, Payload: body}
	for segment := range strings.SplitSeq(path[1:], "/") {
		m.Options = append(m.Options, message.Option{ID: message.URIPath, Value: []byte(segment)})
	}
	m.Options = append(m.Options, contentFormat(f.ContentFormat())...)
	s.mu.Lock()
	token := s.freeToken()
	s.mu.Unlock()
	return s.askAs(ctx, token, m)
}

// askAs is exchange for any request and with a given token.
func (s *tcpClientSession) askAs(ctx context.Context, token uint32, m message.Message) (*answer, error) {
	done := s.begin(token)
	defer s.end(token)
	m.Token = tokenBytes(token)
	frame, err := encodeFrame(m)
	if err != nil {
		return nil, err
	}
	if most := s.link.peerMax.Load(); len(frame) > int(most) {
		return nil, fmt.Errorf("the request has %d bytes, and the key server takes %d", len(frame), most)
	}
	outgoing := s.outgoing
	for {
		select {
		case outgoing <- frame:
			outgoing = nil
		case out := <-done:
			return out.answer, out.err
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.link.done:
			return nil, fmt.Errorf("%w: %w", errEnded, s.link.cause)
		}
	}
}

// begin registers a request under a token.
func (s *tcpClientSession) begin(token uint32) (done chan outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	done = make(chan outcome, 1)
	if len(s.calls) == 0 {
		s.heard = time.Now() // silence counts from here
	}
	s.calls[token] = done
	return done
}

func (s *tcpClientSession) end(token uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.calls, token)
}

// receive is called by the link's reader.
func (s *tcpClientSession) receive(m *message.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = time.Now()
	if m.Code < 64 || m.Code >= codes.CSM && m.Code != codes.Pong || len(m.Token) != 4 {
		return // no answer
	}
	token := binary.BigEndian.Uint32(m.Token)
	if done := s.calls[token]; done != nil {
		delete(s.calls, token)
		if w := s.watches[token]; w != nil {
			w.drop()
		}
		a, err := newAnswer(m)
		done <- outcome{a, err}
	} else if w := s.watches[token]; w != nil {
		if a, err := newAnswer(m); err == nil { // They come in their order.
			w.deliver(a)
		}
	}
}

// release is called when the key server wants no more requests on this
// connection. Those on their way it answers.
func (s *tcpClientSession) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = true
}

// look asks a key server for a sign of life that is silent while requests wait,
// and ends the session of one that stays so.
func (s *tcpClientSession) look(now time.Time) {
	s.mu.Lock()
	if now.Sub(s.looked) > s.deadAfter/2 {
		s.heard = now // It was this process that was silent: ask first.
	}
	s.looked = now
	waiting, silence := len(s.calls) > 0, now.Sub(s.heard)
	s.mu.Unlock()
	switch {
	case !waiting || silence <= s.deadAfter/4:
	case silence > s.silence:
		s.link.close(errSilent)
	default:
		frame, err := encodeFrame(message.Message{Code: codes.Ping})
		if err != nil {
			return
		}
		select {
		case s.outgoing <- frame:
		default: // It does not read, so that it cannot answer.
		}
	}
}
