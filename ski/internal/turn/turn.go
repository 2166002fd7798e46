// Package turn knows whose turn it is in a TLS handshake, so that a server that
// is short of places takes one away from a peer that does not go on, and not from
// a peer that waits for the server.
package turn

import (
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// Conn is a server's connection whose handshake has begun. It is what
// tls.Server is given, with a configuration that has [Heard].
type Conn struct {
	net.Conn

	mu    sync.Mutex
	ours  bool      // the ClientHello is there, and not answered yet
	since time.Time // the peer's turn
}

// New returns the Conn of a connection that was accepted at the time now.
func New(conn net.Conn, now time.Time) *Conn { return &Conn{Conn: conn, since: now} }

// Heard is a tls.Config.GetConfigForClient that changes nothing, and notes that
// it is the server's turn. unwrap returns the Conn of the connection that
// tls.Server was given.
func Heard(unwrap func(net.Conn) *Conn) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := unwrap(hello.Conn)
		c.mu.Lock()
		c.ours = true
		c.mu.Unlock()
		return nil, nil
	}
}

// Write notes that it is the peer's turn.
func (c *Conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	if c.ours {
		c.ours, c.since = false, time.Now()
	}
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// Since returns when the peer's turn began. While it is the server's, that is
// now.
func (c *Conn) Since() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ours {
		return time.Now()
	}
	return c.since
}
