package skicoap

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

const (
	// frameTimeout is how long a message may take from its first byte to its
	// last, and a peer to take what is written to it.
	frameTimeout = 10 * time.Second
	// farewellTimeout is how long the last message may take.
	farewellTimeout = 200 * time.Millisecond
	// alpn is the protocol's name in TLS (RFC 8323, Section 8.2).
	alpn = "coap"
)

var (
	errNoCSM    = errors.New("the first message is not a CSM")
	errReleased = errors.New("the peer has released the connection")
)

// tcpSuites are those of TLS 1.2; TLS 1.3 has no others. crypto/tls has no CCM.
var tcpSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
}

// tcpLink is one TLS connection as a CoAP endpoint (RFC 8323). Both sides use
// it.
type tcpLink struct {
	conn    *tls.Conn
	frames  *frameReader
	peerMax atomic.Uint32 // Max-Message-Size of the peer
	writing sync.Mutex    // so that each write has its own deadline

	closing sync.Once
	cause   error         // why the link was closed; set before done is closed
	done    chan struct{} // closed when the link is no longer to be used
}

func newTCPLink(conn *tls.Conn) *tcpLink {
	l := &tcpLink{conn: conn, frames: newFrameReader(conn), done: make(chan struct{})}
	l.peerMax.Store(baseMaxFrame)
	return l
}

// open exchanges the capabilities (RFC 8323, Section 5.3). The peer's CSM has
// to come until the deadline. A peer that has refused our certificate does not
// send one: in TLS 1.3 that is how it shows.
func (l *tcpLink) open(deadline time.Time) error {
	if err := l.conn.SetDeadline(deadline); err != nil {
		return err
	}
	err := l.send(message.Message{Code: codes.CSM, Options: message.Options{
		{ID: message.TCPMaxMessageSize, Value: uintValue(maxFrame)},
	}})
	if err != nil {
		return err
	}
	m, err := l.frames.read(func() {})
	if err == nil && m.Code != codes.CSM && m.Code != codes.Abort {
		err = &frameError{errNoCSM.Error()}
	}
	if err == nil {
		err = l.signal(&m)
	}
	if err != nil {
		l.close(err)
		return l.cause
	}
	return l.conn.SetDeadline(time.Time{})
}

// run calls receive for each message until the link ends, and returns the
// reason. Signals it has handled before. A message and what it refers to are only valid during
// the call. released is called when the peer wants no more requests.
func (l *tcpLink) run(receive func(m *message.Message), released func()) error {
	for {
		timed := false
		m, err := l.frames.read(func() {
			timed = true
			_ = l.conn.SetReadDeadline(time.Now().Add(frameTimeout))
		})
		if timed && err == nil {
			err = l.conn.SetReadDeadline(time.Time{})
		}
		switch {
		case err != nil:
		case m.Code == codes.Release:
			released()
		case m.Code >= codes.CSM:
			err = l.signal(&m)
		}
		if err == nil {
			receive(&m)
		}
		l.frames.clear()
		if err != nil {
			l.close(err)
			return l.cause
		}
	}
}

// signal handles a message of class 7 (RFC 8323, Section 5).
func (l *tcpLink) signal(m *message.Message) error {
	for _, o := range m.Options {
		if o.ID&1 == 1 { // critical, and none is defined (Section 5.2)
			return &frameError{fmt.Sprintf("option %d in %s", o.ID, codeText(m.Code))}
		}
	}
	switch m.Code {
	case codes.CSM:
		if size, err := m.Options.GetUint32(message.TCPMaxMessageSize); err == nil {
			l.peerMax.Store(size)
		}
	case codes.Ping:
		return l.send(message.Message{Code: codes.Pong, Token: m.Token})
	case codes.Abort:
		return fmt.Errorf("%w: %s", errAborted, printable(m.Payload))
	}
	return nil
}

// send writes a message that is small.
func (l *tcpLink) send(m message.Message) error {
	frame, err := encodeFrame(m)
	if err != nil {
		return err
	}
	return l.write(frame)
}

// write writes one encoded message. The link ends where that fails.
func (l *tcpLink) write(frame []byte) error {
	if len(frame) > int(l.peerMax.Load()) {
		return fmt.Errorf("the peer takes messages of %d bytes, and not of %d", l.peerMax.Load(), len(frame))
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	_ = l.conn.SetWriteDeadline(time.Now().Add(frameTimeout))
	_, err := l.conn.Write(frame)
	if err != nil {
		l.close(err)
	}
	return err
}

// close ends the link. The peer is told so: with Abort where it has broken the
// protocol or is cut off, otherwise with Release (RFC 8323, Section 5.5 and
// 5.6). The first cause is kept. Who does not read is not waited for.
func (l *tcpLink) close(cause error) {
	l.closing.Do(func() {
		l.cause = cause
		close(l.done)
		var farewell message.Message
		broken := (*frameError)(nil)
		switch {
		case errors.As(cause, &broken):
			farewell = message.Message{Code: codes.Abort, Payload: []byte(broken.reason)}
		case errors.Is(cause, net.ErrClosed), errors.Is(cause, errIdle):
			farewell = message.Message{Code: codes.Release}
		default:
			farewell = message.Message{Code: codes.Abort}
		}
		// This ends a write that hangs, too.
		_ = l.conn.NetConn().SetWriteDeadline(time.Now().Add(farewellTimeout))
		frame, err := encodeFrame(farewell)
		if err == nil && !errors.Is(cause, io.EOF) {
			_, err = l.conn.Write(frame)
		}
		if err == nil {
			_ = l.conn.Close() // with close_notify
		}
		_ = l.conn.NetConn().Close()
	})
}

// printable returns a peer's text for the log.
func printable(text []byte) string { return fmt.Sprintf("%.100q", text) }
