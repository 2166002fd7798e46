package skicoap

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
)

// errAborted is the end of a connection with Abort (RFC 8323, Section 5.6).
var errAborted = errors.New("the peer has aborted the connection")

// refusedError is an alert, or another end, that a key server has put to the making
// of a session after its certificate was verified.
type refusedError struct{ error }

func (e *refusedError) Unwrap() error { return e.error }

// endedByPeer reports whether a session has ended because the peer has said so: by
// an alert, close_notify included, or with Abort. A TCP connection that ends
// without is none of it: anybody on the path can end that.
func endedByPeer(err error) bool {
	var alert interface{ IsFatalOrCloseNotify() bool } // of pion
	remote := (*net.OpError)(nil)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, errAborted):
		return true
	case errors.As(err, &remote):
		return remote.Op == "remote error" // of crypto/tls: an alert
	}
	return errors.As(err, &alert) && alert.IsFatalOrCloseNotify()
}

// verified reports whether the handshake of a connection, which need not have come
// to its end, has verified the peer's certificate.
func verified(conn *tls.Conn) bool { return len(conn.ConnectionState().VerifiedChains) > 0 }

// answered notes that a session has had an answer.
func (c *Client) answered(s *held) {
	if !s.answered.Swap(true) {
		c.refusals.Answered()
	}
}

// judge takes in how a session has ended.
func (c *Client) judge(s *held) {
	select {
	case <-s.ended():
	default: // It is only that it takes no more requests.
		return
	}
	switch cause := s.reason(); {
	case s.answered.Load():
	case endedByPeer(cause):
		_ = c.refusals.Refused(s.began, cause)
	default:
		c.refusals.Retry() // It has not said anything.
	}
}

// Retry has a key server that refuses this edge asked at once, and not when its
// time has come.
func (c *Client) Retry() { c.refusals.Retry() }

func (s *clientSession) reason() error { return s.link.cause }

func (s *tcpClientSession) reason() error { return s.link.cause }
