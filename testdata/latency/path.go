package main

import (
	"net"
	"time"

	"github.com/tlsski/tlsski/internal/netlab"
	"github.com/tlsski/tlsski/testdata/internal/lab"
)

// path is between two hosts.
type path struct {
	from, to  *netlab.Host
	roundTrip time.Duration // as the network makes it, at least
	measured  []float64
}

// newPath returns the path between two hosts and gives it its round-trip time.
func newPath(n *netlab.Network, from, to *netlab.Host, roundTrip time.Duration) *path {
	n.Between(from, to).Set(netlab.Conditions{Delay: roundTrip / 2})
	return &path{from: from, to: to, roundTrip: roundTrip}
}

// echoPort is where hosts accept connections that say nothing.
const echoPort = "7"

// listen accepts such connections until the listener is closed.
func listen(h *netlab.Host) (net.Listener, error) {
	l, err := h.Listen("tcp", ":"+echoPort)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return l, nil
}

// measure measures the round trip: it is how long connect takes.
func (p *path) measure() error {
	for range 3 {
		err := p.from.Do(func() error {
			start := time.Now()
			c, err := net.Dial("tcp", net.JoinHostPort(p.to.Addr().String(), echoPort))
			if err != nil {
				return err
			}
			p.measured = append(p.measured, float64(time.Since(start)))
			return c.Close()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *path) median() time.Duration { return time.Duration(lab.Median(p.measured)) }
