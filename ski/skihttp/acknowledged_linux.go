package skihttp

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// acknowledgedWithin has the kernel end a connection whose peer has not
// acknowledged within some d what was sent (RFC 5482; without it, Linux goes on
// sending for a quarter of an hour). Linux counts from when it sends again for the
// first time, 0.2 to 0.4 s later. It is for a connection that is made: before, a
// single SYN that is lost would be the end of it. Where the system cannot, the
// request's own time has to do.
func acknowledgedWithin(conn net.Conn, d time.Duration) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int((d * 2 / 3).Milliseconds()))
	})
}
