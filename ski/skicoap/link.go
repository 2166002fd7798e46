package skicoap

import (
	"errors"
	"maps"
	"sync"
	"syscall"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

const (
	// maxDatagram is the largest datagram read. It leaves room for a message
	// over ski.MaxMessageSize, which deserves an answer that says so.
	maxDatagram = 8192
	// maxOptions is how many options a message can have; one with more cannot
	// be parsed. A request to a long path has ten.
	maxOptions = 32
)

// link is one DTLS session as a CoAP endpoint. Both sides use it.
type link struct {
	conn *dtls.Conn

	closing sync.Once
	cause   error         // why the link was closed; set before done is closed
	done    chan struct{} // closed when the link is no longer to be used
}

func newLink(conn *dtls.Conn) *link {
	return &link{conn: conn, done: make(chan struct{})}
}

// run calls receive for each message until the session ends, and returns the
// reason. A message and what it refers to are only valid during the call.
//
// It answers pings, and ignores what cannot be parsed (RFC 7252, Section 4.2
// and 4.3): the session is worth more than a message.
func (l *link) run(receive func(m *message.Message)) error {
	buf := make([]byte, maxDatagram)
	options := make(message.Options, 0, maxOptions)
	for {
		n, err := l.conn.Read(buf)
		if err != nil {
			if passing(err) {
				continue
			}
			l.close(err)
			return l.cause
		}
		m := message.Message{Options: options}
		if decode(buf[:n], &m) != nil {
			continue
		}
		receive(&m)
		if m.Code == codes.Empty && m.Type == message.Confirmable { // a ping (RFC 7252, Section 4.3)
			l.sendEmpty(message.Reset, m.MessageID)
		}
		clear(buf[:n]) // it may have held a PreMasterSecret
	}
}

// close ends the session with a close_notify. The first cause is kept.
func (l *link) close(cause error) {
	l.closing.Do(func() {
		l.cause = cause
		close(l.done)
		_ = l.conn.Close()
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
// (RFC 7252, Section 4.1).
func (l *link) sendEmpty(t message.Type, mid int32) {
	datagram, err := encode(message.Message{Type: t, Code: codes.Empty, MessageID: mid})
	if err == nil {
		_ = l.write(datagram) // like any datagram, it may be lost
	}
}

// optionDefs are go-coap's without the block options: it passes over an option
// of the wrong length, and a part of a message would be taken for all of it.
var optionDefs = func() map[message.OptionID]message.OptionDef {
	defs := maps.Clone(message.CoapOptionDefs)
	delete(defs, message.Block1)
	delete(defs, message.Block2)
	return defs
}()

func decode(datagram []byte, m *message.Message) error {
	options := m.Options
	if _, err := coder.DefaultCoder.Decode(datagram, m); err != nil {
		return err
	}
	const headerLen = 4 // RFC 7252, Section 3
	m.Options = options[:0]
	_, err := m.Options.Unmarshal(datagram[headerLen+len(m.Token):], optionDefs)
	return err
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

// passing reports whether an error of the reader concerns one datagram only, or
// is an alert that is no more than a warning (RFC 5246, Section 7.2).
func passing(err error) bool {
	var alert interface{ IsFatalOrCloseNotify() bool }
	if errors.As(err, &alert) {
		return !alert.IsFatalOrCloseNotify()
	}
	temporary := (*dtls.TemporaryError)(nil)
	return errors.As(err, &temporary) && !refused(err)
}

// refused reports whether the peer's machine answered that nobody listens.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

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
