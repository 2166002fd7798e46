package skihttp

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// acknowledgedWithin has the kernel end a connection whose peer has not
// acknowledged within some d what was sent (RFC 5482; without it, Linux goes on
// sending for a quarter of an hour). Linux counts from when it sends again for the
// first time, 0.2 to 0.4 s later.
func acknowledgedWithin(d time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		failed := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int((d * 2 / 3).Milliseconds()))
		})
		if failed != nil {
			return failed
		}
		return err
	}
}
