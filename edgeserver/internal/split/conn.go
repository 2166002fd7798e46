package split

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// maxUseless is how many records may come in a row that bring nothing forward:
// empty ones, warnings, attempts to renegotiate.
const maxUseless = 16

// closeTime bounds the sending of the last alert.
const closeTime = 5 * time.Second

// GetConfig returns the Config for the connection that begins with a
// ClientHello, or nil where no site has the server name: the client then gets
// unrecognized_name (RFC 6066, Section 3).
type GetConfig func(context.Context, *ClientHello) (*Config, error)

// Conn is a TLS connection, a net.Conn. As with crypto/tls, Read and Write do
// the handshake if it has not been done; Read may be called beside Write.
type Conn struct {
	conn      net.Conn
	getConfig GetConfig

	handshakeMu  sync.Mutex
	handshakeErr error
	connected    atomic.Bool
	machine      *Machine // by the handshake, then by Read

	// Of the handshake.
	key        crypto.MessageSigner // the site's private key for this connection
	ephemeral  *ecdh.PrivateKey
	keyServers *Ephemeral // of ECDHE-PMS

	readMu   sync.Mutex
	in       recordReader
	messages collector
	pending  []byte // application data that Read has not returned
	useless  int
	readErr  error

	writeMu     sync.Mutex
	out         recordWriter
	writeClosed bool
	closeOnce   sync.Once
	closeErr    error
}

var _ net.Conn = (*Conn)(nil)

// Server returns the server's side of a TLS connection over conn.
func Server(conn net.Conn, getConfig GetConfig) *Conn {
	return &Conn{
		conn: conn, getConfig: getConfig, machine: NewMachine(),
		in:  recordReader{conn: conn, limit: maxPlaintext, first: true},
		out: recordWriter{conn: conn, limit: maxPlaintext},
	}
}

// NetConn returns the connection below. What is written to or read from it
// breaks this one.
func (c *Conn) NetConn() net.Conn { return c.conn }

// LocalAddr returns that of the connection below.
func (c *Conn) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// RemoteAddr returns that of the connection below.
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// SetDeadline sets those of Read and Write.
func (c *Conn) SetDeadline(t time.Time) error { return c.conn.SetDeadline(t) }

// SetReadDeadline sets that of Read, which can be called again after it.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// SetWriteDeadline sets that of Write. A Write that it ends is the last: part of
// a record may have been sent.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// Read reads application data. It returns io.EOF after the client's
// close_notify and, as crypto/tls does, after an end without one between two
// records: whether what came is whole is for the protocol above to say.
func (c *Conn) Read(b []byte) (int, error) {
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return 0, nil
	}
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for len(c.pending) == 0 {
		if c.readErr != nil {
			return 0, c.readErr
		}
		if err := c.readRecord(context.Background()); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.pending)
	c.pending = c.pending[n:]
	return n, nil
}

// Write writes application data, in records as long as the client takes them.
func (c *Conn) Write(b []byte) (int, error) {
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.writeClosed {
		return 0, net.ErrClosed
	}
	written := 0
	for len(b) > 0 {
		n := min(len(b), c.out.limit)
		if err := c.out.addRecord(recordApplicationData, b[:n]); err != nil {
			return written, err
		}
		if err := c.out.flush(); err != nil {
			return written, err
		}
		written += n
		b = b[n:]
	}
	return written, nil
}

// CloseWrite sends close_notify: the client gets no more, but may send.
func (c *Conn) CloseWrite() error {
	if !c.connected.Load() {
		return errors.New("split: CloseWrite before the handshake")
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.closeNotify()
}

// closeNotify sends the alert, once. writeMu is held.
func (c *Conn) closeNotify() error {
	if c.writeClosed {
		return nil
	}
	c.writeClosed = true
	c.conn.SetWriteDeadline(time.Now().Add(closeTime))
	err := c.sendAlert(alertWarning, CloseNotify)
	// A Write to come fails, rather than to send in the clear behind it.
	c.conn.SetWriteDeadline(time.Now())
	return err
}

// Close sends close_notify, unless a Write is under way, and closes the
// connection below, which ends that and Read.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		if c.connected.Load() && c.writeMu.TryLock() {
			c.closeErr = c.closeNotify()
			c.writeMu.Unlock()
		}
		if err := c.conn.Close(); err != nil {
			c.closeErr = err
		}
	})
	return c.closeErr
}

// sendAlert sends an alert. writeMu is held.
func (c *Conn) sendAlert(level uint8, a Alert) error {
	if err := c.out.add(recordAlert, []byte{level, byte(a)}); err != nil {
		return err
	}
	return c.out.flush()
}

// abort tells the client why the connection ends, and returns err. Errors that
// are not this side's, those of the connection above all, have no alert. After a
// fatal alert, whoever sent it, nothing more is written (RFC 5246, Section 7.2).
func (c *Conn) abort(err error) error {
	var e *Error
	if !errors.As(err, &e) && !errors.As(err, new(tls.AlertError)) {
		return err
	}
	// Before the lock: a Write to a client that does not read holds it, and ends
	// with that.
	c.conn.SetWriteDeadline(time.Now().Add(closeTime))
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if e == nil {
		c.writeClosed = true
		return err
	}
	level := uint8(alertFatal)
	if e.Alert == CloseNotify {
		level = alertWarning
	}
	if !c.writeClosed {
		c.sendAlert(level, e.Alert)
	}
	c.writeClosed = true
	return err
}

// readRecord reads one record and does what it asks for. Its error is for good,
// but for a deadline's.
func (c *Conn) readRecord(ctx context.Context) error {
	contentType, payload, err := c.in.next()
	if err == nil {
		err = c.handleRecord(ctx, contentType, payload)
	}
	if err == nil {
		return nil
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() && !errors.As(err, new(*Error)) {
		return err
	}
	c.readErr = c.abort(err)
	return c.readErr
}

func (c *Conn) handleRecord(ctx context.Context, contentType uint8, payload []byte) error {
	if contentType != recordHandshake && contentType != recordAlert && !c.messages.empty() {
		return fail(UnexpectedMessage, "a record of type %d within a handshake message", contentType)
	}
	switch contentType {
	case recordHandshake:
		return c.handleHandshake(ctx, payload)
	case recordChangeCipherSpec:
		if len(payload) != 1 || payload[0] != 1 { // RFC 5246, Section 7.1
			return fail(DecodeError, "malformed ChangeCipherSpec")
		}
		events, err := c.machine.ChangeCipherSpec()
		return c.carryOut(ctx, events, err)
	case recordAlert:
		return c.handleAlert(payload)
	}
	if !c.connected.Load() {
		return fail(UnexpectedMessage, "application data during the handshake")
	}
	if len(payload) == 0 {
		return c.countUseless()
	}
	c.useless = 0
	c.pending = payload
	return nil
}

func (c *Conn) countUseless() error {
	if c.useless++; c.useless > maxUseless {
		return fail(UnexpectedMessage, "%d records in a row without use", c.useless)
	}
	return nil
}

// handleAlert ends the connection if the client's alert does (RFC 5246, Section
// 7.2). Its error is no *Error: there is nothing to be said to the client.
func (c *Conn) handleAlert(payload []byte) error {
	if len(payload) != 2 || payload[0] != alertWarning && payload[0] != alertFatal {
		return fail(DecodeError, "malformed alert")
	}
	switch {
	case Alert(payload[1]) == CloseNotify && c.connected.Load():
		return io.EOF
	case payload[0] == alertFatal || Alert(payload[1]) == CloseNotify:
		c.machine.Fail()
		return &net.OpError{Op: "remote error", Err: tls.AlertError(payload[1])}
	}
	return c.countUseless()
}

func (c *Conn) handleHandshake(ctx context.Context, payload []byte) error {
	c.messages.add(payload)
	for {
		t, whole, err := c.messages.next(c.machine.Admit)
		if err != nil || whole == nil {
			return err
		}
		events, err := c.machine.Message(t, whole[messageHeaderLen:], whole)
		if err := c.carryOut(ctx, events, err); err != nil {
			return err
		}
	}
}

// ConnectionState returns what has been negotiated, in the form of crypto/tls.
// Its ExportKeyingMaterial returns an error: there are no exporters.
func (c *Conn) ConnectionState() tls.ConnectionState {
	c.handshakeMu.Lock()
	defer c.handshakeMu.Unlock()
	if !c.connected.Load() {
		return noExporters()
	}
	m := c.machine
	state := noExporters()
	state.Version = tls.VersionTLS12
	state.HandshakeComplete = true
	state.DidResume = m.session != nil
	state.CipherSuite = m.suite.id
	state.NegotiatedProtocol = m.alpn
	state.ServerName = m.hello.ServerName
	state.PeerCertificates = m.peer.parsed
	state.VerifiedChains = m.peer.chains
	if !state.DidResume {
		state.CurveID = m.group
	}
	return state
}

// noExporters returns a ConnectionState whose ExportKeyingMaterial returns an
// error. That of the zero value panics, and only crypto/tls can set what it
// calls: it does so where renegotiation is allowed, for which it has no exporters.
func noExporters() tls.ConnectionState {
	state := tls.Server(nil, &tls.Config{Renegotiation: tls.RenegotiateOnceAsClient}).ConnectionState()
	state.TLSUnique = nil // which would be zeros
	return state
}

// PeerPublicKeyID returns the fingerprint of the client's raw public key; ok is
// false where it has shown none.
func (c *Conn) PeerPublicKeyID() (id ski.KeyID, ok bool) {
	c.handshakeMu.Lock()
	defer c.handshakeMu.Unlock()
	if !c.connected.Load() || !c.machine.peer.raw {
		return ski.KeyID{}, false
	}
	id, err := ski.PublicKeyID(c.machine.peer.key)
	return id, err == nil
}
