// Package source notices that this machine no longer has the address that a
// connection was made from. Such a connection never recovers, and nobody says so:
// TCP sends into the void for minutes, and a connected UDP socket keeps its
// address for ever. The clients of the bindings share it.
package source

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// Interval is how often Watch looks: a socket that is bound and closed, and no
// packet.
const Interval = 500 * time.Millisecond

// ErrGone is why a connection is given up whose local address is gone.
var ErrGone = errors.New("this machine no longer has the address that the session was made from")

// Gone reports whether the machine no longer has a local address, of UDP or TCP.
// An interface that is down keeps its IPv4 addresses.
func Gone(local net.Addr) bool {
	var at net.UDPAddr // without a port
	switch a := local.(type) {
	case *net.UDPAddr:
		at.IP, at.Zone = a.IP, a.Zone
	case *net.TCPAddr:
		at.IP, at.Zone = a.IP, a.Zone
	default:
		return false
	}
	c, err := net.ListenUDP("udp", &at)
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, syscall.EADDRNOTAVAIL)
}

// Watch calls gone as soon as the address is, and returns then or when done is
// closed.
func Watch(local net.Addr, done <-chan struct{}, gone func()) {
	t := time.NewTicker(Interval)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
			if Gone(local) {
				gone()
				return
			}
		}
	}
}

// Context returns a context for a handshake over a connection with a local
// address. Its cause is ErrGone when the address is.
func Context(parent context.Context, local net.Addr) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	go Watch(local, ctx.Done(), func() { cancel(ErrGone) })
	return ctx, func() { cancel(nil) }
}

// Cause returns err, or ErrGone where that is why a context ended.
func Cause(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), ErrGone) {
		return ErrGone
	}
	return err
}
