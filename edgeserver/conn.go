package edgeserver

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// conn is the TCP connection below a TLS connection, and what is known of it.
// All of it but answering is written during the handshake, by the goroutine that does
// it.
type conn struct {
	net.Conn
	gen        *generation
	bounds     *bounds
	client     netip.Prefix     // it counts for; invalid: for nobody yet
	handshakes bool             // it counts as a handshake
	ended      sync.Once        // it counts no more
	deadline   atomic.Bool      // one is set for Write
	replay     []byte           // what has been read already, and is to be read again
	serverName string           // in the ClientHello
	site       *site            // the site it is bound to
	unknown    bool             // no site has serverName
	engine     string           // that speaks TLS on it
	chosen     *tls.Certificate // by configFor, for the standard engine; nil: none
	asked      question
	state      tls.ConnectionState // once the handshake is done
	answering  atomic.Bool         // a request in HTTP/1.1

	remote, local net.Addr // of the client's connection to a load balancer; nil without
}

// RemoteAddr returns the client's address.
func (c *conn) RemoteAddr() net.Addr {
	if c.remote != nil {
		return c.remote
	}
	return c.Conn.RemoteAddr()
}

// LocalAddr returns the address that the client has connected to.
func (c *conn) LocalAddr() net.Addr {
	if c.local != nil {
		return c.local
	}
	return c.Conn.LocalAddr()
}

// newConn returns the conn for a TCP connection, which b counts, of the generation
// that is current, whose it stays until it is closed.
func newConn(raw net.Conn, g *generation, b *bounds) *conn {
	g.acquire() // The caller is one of its users, so it is there.
	return &conn{Conn: raw, gen: g, bounds: b}
}

// Close closes it.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.ended.Do(func() {
		c.bounds.leave(c.client)
		c.gen.release()
	})
	return err
}

// admit counts it for its client, who can have no more than so many.
func (c *conn) admit() error {
	client := clientOf(c.RemoteAddr())
	if !client.IsValid() {
		return nil
	}
	if err := c.bounds.admit(client, c.gen.cfg.Limits.ConnectionsPerAddress); err != nil {
		return err
	}
	c.client = client
	return nil
}

// begin is called once the ClientHello is there, from which on a handshake counts.
func (c *conn) begin() error {
	c.Conn.SetReadDeadline(time.Time{}) // That of the ClientHello; the context has that of the rest.
	if err := c.bounds.begin(c.gen.cfg.Limits.Handshakes); err != nil {
		return err
	}
	c.handshakes = true
	return nil
}

// begun says that the handshake is done, or has failed.
func (c *conn) begun() {
	if c.handshakes {
		c.handshakes = false
		c.bounds.end()
	}
}

// SetDeadline sets the deadlines of Read and Write.
func (c *conn) SetDeadline(t time.Time) error {
	c.deadline.Store(!t.IsZero())
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline sets that of Write, which else has one of its own.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.deadline.Store(!t.IsZero())
	return c.Conn.SetWriteDeadline(t)
}

// Read reads.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.replay) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.replay)
	if c.replay = c.replay[n:]; len(c.replay) == 0 {
		c.replay = nil // or its memory would stay as long as the connection
	}
	return n, nil
}

// question is a connection's question to the key server; ECDHE-PMS has two, which
// are one here.
type question struct {
	method ski.Method
	took   time.Duration
	err    error // why the handshake cannot go on, or nil
}

type connKey struct{}

// withConn returns a context that belongs to c: of its handshake, of a question
// to the key server within that, or of a request.
func withConn(ctx context.Context, c *conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// connFrom returns the conn that ctx belongs to, or nil.
func connFrom(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// The ends of the TLS 1.2 records with which crypto/tls closes a handshake in
// which the key server did not help: a fatal alert (RFC 5246, Sections 6.2.1
// and 7.2).
const (
	alertRecord   = "\x15\x03\x03\x00\x02\x02" // alert, TLS 1.2, length 2, fatal
	internalError = 80
)

// Write makes the alert of a handshake that failed for want of the key server
// an internal_error, as it is in TLS 1.3. In TLS 1.2 crypto/tls takes every
// failure of the key exchange for the client's and sends handshake_failure or
// illegal_parameter, for which clients look at their own settings.
//
// Once the key server has failed there is nothing left to write but the
// records that wait in the buffer, with the alert at their end.
func (c *conn) Write(b []byte) (int, error) {
	at := len(b) - 1
	if c.asked.err != nil && at >= len(alertRecord) && string(b[at-len(alertRecord):at]) == alertRecord {
		b = append(append(make([]byte, 0, len(b)), b[:at]...), internalError)
	}
	if !c.deadline.Load() {
		c.Conn.SetWriteDeadline(time.Now().Add(c.gen.cfg.Limits.WriteTimeout))
	}
	return c.Conn.Write(b)
}
