package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tlsski/tlsski/testdata/internal/lab"
)

// host is a machine of the experiment: a network namespace that has nothing but
// a TUN device, whose packets the network carries. The namespace ends with the
// processes and the thread that are in it.
type host struct {
	name string
	addr string
	tun  *os.File
	todo chan func()
}

// newHost makes a host and its thread.
func newHost(name, addr string) (*host, error) {
	h := &host{name: name, addr: addr, todo: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never again another's: the thread ends with this goroutine
		made <- h.enter()
		for f := range h.todo {
			f()
		}
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return h, nil
}

// enter takes the thread into a namespace of its own.
func (h *host) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("a network namespace (which needs root): %w", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq("tun0")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	h.tun = os.NewFile(uintptr(fd), "tun0")
	for _, args := range [][]string{
		{"link", "set", "lo", "up"}, {"address", "add", h.addr + "/24", "dev", "tun0"}, {"link", "set", "tun0", "up"},
	} {
		if _, err := lab.Run("ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// do runs f on the host: sockets that it opens and processes that it starts are
// there.
func (h *host) do(f func() error) error {
	done := make(chan error)
	h.todo <- func() { done <- f() }
	if err := <-done; err != nil {
		return fmt.Errorf("on %s: %w", h.name, err)
	}
	return nil
}

// start starts a daemon on the host.
func (h *host) start(until []string, program string, args ...string) (p *lab.Process, err error) {
	err = h.do(func() error {
		p, err = lab.Start(until, program, args...)
		return err
	})
	return p, err
}

// echoPort is where hosts accept connections that say nothing.
const echoPort = "7"

// listen accepts such connections until ctx ends.
func (h *host) listen(ctx context.Context) error {
	return h.do(func() error {
		l, err := net.Listen("tcp", net.JoinHostPort(h.addr, echoPort))
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		return nil
	})
}

// path is between two hosts.
type path struct {
	from, to  *host
	roundTrip time.Duration // as the network makes it, at least
	measured  []float64
}

// measure measures the round trip: it is how long connect takes.
func (p *path) measure() error {
	return p.from.do(func() error {
		for range 3 {
			start := time.Now()
			c, err := net.Dial("tcp", net.JoinHostPort(p.to.addr, echoPort))
			if err != nil {
				return err
			}
			p.measured = append(p.measured, float64(time.Since(start)))
			c.Close()
		}
		return nil
	})
}

func (p *path) median() time.Duration { return time.Duration(lab.Median(p.measured)) }
