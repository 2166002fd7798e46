package skihttp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"
)

// refusedError is an alert that a key server has answered the handshake with after
// its certificate was verified. In TLS 1.3 it comes in the place of an answer.
type refusedError struct{ error }

func (e *refusedError) Unwrap() error { return e.error }

// isAlert reports whether the peer has ended a connection with an alert.
func isAlert(err error) bool {
	remote := (*net.OpError)(nil)
	return errors.As(err, &remote) && remote.Op == "remote error" // of crypto/tls
}

// linkOf returns what is beneath a connection of net/http's.
func linkOf(conn net.Conn) *clientConn {
	if secure, ok := conn.(*tls.Conn); ok {
		link, _ := secure.NetConn().(*clientConn)
		return link
	}
	return nil
}

// answered notes that a connection has had an answer.
func (c *Client) answered(link *clientConn) {
	if link != nil && !link.answered.Swap(true) {
		c.refusals.Answered()
	}
}

// judge takes in why there was no answer on a connection, where there was one.
func (c *Client) judge(ctx context.Context, conn net.Conn, err error) {
	link := linkOf(conn)
	if link == nil || link.answered.Load() || ctx.Err() != nil {
		return
	}
	if !isAlert(err) {
		err = lastWord(ctx, conn, link)
	}
	if isAlert(err) {
		_ = c.refusals.Refused(link.began, err)
		return
	}
	select {
	case <-link.done:
		c.refusals.Retry() // It has not said anything.
	default:
	}
}

// lastWord returns what reading a connection ended with, which net/http does not
// always pass on: crypto/tls keeps it.
func lastWord(ctx context.Context, conn net.Conn, link *clientConn) error {
	const soon = time.Second // net/http closes what it cannot use
	timer := time.NewTimer(soon)
	defer timer.Stop()
	select {
	case <-link.done:
		_, err := conn.Read(make([]byte, 1))
		return err
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// Retry has a key server that refuses this edge asked at once, and not when its
// time has come.
func (c *Client) Retry() { c.refusals.Retry() }
