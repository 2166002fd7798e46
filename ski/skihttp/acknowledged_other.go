//go:build !linux

package skihttp

import (
	"net"
	"time"
)

// acknowledgedWithin leaves it to the kernel for how long it sends in vain.
func acknowledgedWithin(net.Conn, time.Duration) {}
