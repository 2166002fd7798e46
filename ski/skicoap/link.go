package skicoap

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/dtls/server"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/udp/client"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

// maxDatagram is the largest datagram read. It leaves room for a message over
// ski.MaxMessageSize, which deserves an answer that says so.
const maxDatagram = 8192

// link is one DTLS session as a CoAP endpoint. Both sides use it.
type link struct {
	conn *dtls.Conn
	coap *client.Conn

	closing sync.Once
	cause   error         // why the link was closed; set before done is closed
	done    chan struct{} // closed when the link is no longer to be used
}

// receive is called by the link's reader for every message. The message is
// only valid during the call. What it does not take is go-coap's to answer.
type receive func(m *pool.Message) (taken bool)

func newLink(conn *dtls.Conn, messages *pool.Pool, onMessage receive) *link {
	l := &link{conn: conn, done: make(chan struct{})}
	session := server.NewSession(context.Background(), coapnet.NewConn(steady{conn}), maxDatagram, maxDatagram, true)
	cfg := client.DefaultConfig
	cfg.MessagePool = messages
	cfg.BlockwiseEnable = false
	cfg.Errors = func(error) {} // what ends the session, run returns
	cfg.ReceivedMessageQueueSize = 1
	l.coap = client.NewConnWithOpts(session, &cfg, client.WithRequestMonitor(
		func(_ *client.Conn, m *pool.Message) (bool, error) { return onMessage(m), nil },
	))
	return l
}

// run reads messages until the session ends and returns the reason.
func (l *link) run() error {
	l.close(l.coap.Run())
	return l.cause
}

// close ends the session with a close_notify. The first cause is kept.
func (l *link) close(cause error) {
	l.closing.Do(func() {
		l.cause = cause
		close(l.done)
		_ = l.coap.Close()
	})
}

// write sends one encoded message.
func (l *link) write(datagram []byte) error {
	_, err := l.conn.Write(datagram)
	if refused(err) { // the reader may not get to see it
		l.close(err)
	}
	return err
}

// sendEmpty sends an empty message that refers to the given message ID
// (RFC 7252, Section 4.2).
func (l *link) sendEmpty(t message.Type, mid int32) {
	datagram, err := encode(message.Message{Type: t, Code: codes.Empty, MessageID: mid})
	if err == nil {
		_ = l.write(datagram) // like any datagram, it may be lost
	}
}

func encode(m message.Message) ([]byte, error) {
	size, err := coder.DefaultCoder.Size(m)
	if err != nil {
		return nil, err
	}
	datagram := make([]byte, size)
	n, err := coder.DefaultCoder.Encode(m, datagram)
	if err != nil {
		return nil, err
	}
	return datagram[:n], nil
}

// steady is a DTLS connection whose Read does not fail for a datagram that
// anybody could have sent: pion reports a forged record of epoch 0 as a
// temporary error, and go-coap would end the session for it.
type steady struct{ *dtls.Conn }

func (s steady) Read(b []byte) (int, error) {
	for {
		n, err := s.Conn.Read(b)
		if temporary := (*dtls.TemporaryError)(nil); errors.As(err, &temporary) && !refused(err) {
			continue
		}
		return n, err
	}
}

// HandshakeContext hides pion's: go-coap would take its lock for every message.
func (s steady) HandshakeContext(context.Context) error { return nil }

// refused reports whether the peer's machine answered that nobody listens.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

var _ net.Conn = steady{}

// every calls f in each interval until done is closed.
func every(interval time.Duration, done <-chan struct{}, f func(now time.Time)) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case now := <-t.C:
			f(now)
		}
	}
}
