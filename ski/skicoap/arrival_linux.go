package skicoap

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// arrivalLen is room for what the kernel says of a datagram: the longer of the two
// control messages.
var arrivalLen = unix.CmsgSpace(unix.SizeofInet6Pktinfo)

// tellArrivals has the kernel say with each datagram to which of the machine's
// addresses it was sent, where a socket is at all of them. It reports whether it
// will: where the system cannot, the routes choose where answers are from.
func tellArrivals(conn *net.UDPConn) (told bool) {
	raw, err := conn.SyscallConn()
	if err != nil || !addrPort(conn.LocalAddr()).Addr().IsUnspecified() {
		return false
	}
	err = raw.Control(func(fd uintptr) {
		family, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		switch {
		case err != nil:
		case family == unix.AF_INET6: // IPv4 arrives there as well, at mapped addresses
			told = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) == nil
		default:
			told = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) == nil
		}
	})
	return told && err == nil
}

// answerArrival makes of what the kernel has said of a datagram what it is told with
// the answers (ip(7), ipv6(7)): that they are from the address that was asked. It
// changes control. The interface is left to the routes, unless the address means
// something on that interface alone.
func answerArrival(control []byte) []byte {
	if len(control) < unix.CmsgLen(0) {
		return nil
	}
	header, info, _, err := unix.ParseOneSocketControlMessage(control)
	switch {
	case err != nil:
		return nil
	case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(info) == unix.SizeofInet6Pktinfo:
		if a := netip.AddrFrom16([16]byte(info)); !a.IsLinkLocalUnicast() {
			clear(info[16:])
		}
	case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(info) == unix.SizeofInet4Pktinfo:
		clear(info[:4])
	default:
		return nil
	}
	return control
}
