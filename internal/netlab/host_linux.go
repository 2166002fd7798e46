package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Host is a machine of the network: a network namespace that has nothing but a
// loopback device and a TUN device, and a mount namespace in which names are the
// network's.
type Host struct {
	Name    string
	network *Network
	tun     *os.File
	net     *os.File // the network namespace
	mount   *os.File // the mount namespace
	names   net.PacketConn
	nat     *NAT // guarded by the network's mutex

	mu     sync.Mutex
	addrs  []address
	down   bool
	parted bool // its routes are withdrawn
}

// Host adds a host with these addresses, or with a new IPv4 address if there are
// none. It has a default route for each family.
func (n *Network) Host(name string, addrs ...netip.Addr) (*Host, error) {
	h := &Host{Name: name, network: n}
	if err := onNewThread(h.make); err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	if len(addrs) == 0 {
		addrs = []netip.Addr{n.NewAddr()}
	}
	n.mu.Lock()
	n.hosts = append(n.hosts, h)
	n.mu.Unlock()
	n.reading.Go(func() { n.carry(h) })
	for _, args := range [][]string{{"lo", "up"}, {device, "txqueuelen", strconv.Itoa(queueLen)}} {
		if _, err := h.IP(append([]string{"link", "set"}, args...)...); err != nil {
			return nil, err
		}
	}
	var err error
	if h.names, err = h.ListenPacket("udp", "127.0.0.1:53"); err != nil {
		return nil, err
	}
	n.reading.Go(func() { n.serveNames(h.names) })
	if err := h.Up(); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if err := h.AddAddr(a); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// onNewThread runs f on a thread that ends with it. It is not the process's first
// thread, whose namespaces others take for the process's, and which cannot end.
func onNewThread(f func() error) error {
	done := make(chan error)
	var start func()
	start = func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return // still locked
		}
		again := make(chan struct{})
		go func() {
			defer close(again)
			start()
		}()
		<-again
		runtime.UnlockOSThread()
	}
	go start()
	return <-done
}

// make takes the thread into new namespaces and keeps hold of them.
func (h *Host) make() (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new namespaces (which need root): %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("a private mount namespace: %w", err)
	}
	if err := emptyFile("/etc/resolv.conf"); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	h.tun = os.NewFile(uintptr(fd), device)
	if h.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	h.mount, err = os.Open("/proc/thread-self/ns/mnt")
	return err
}

// emptyFile puts an empty file over a file, in the thread's mount namespace. It is
// in a file system without a name.
func emptyFile(name string) error {
	dir := os.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("a file system for %s: %w", name, err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		return err
	}
	if err := unix.Mount(empty, name, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("over %s: %w", name, err)
	}
	return nil
}

func (h *Host) close() {
	h.tun.Close()
	h.net.Close()
	h.mount.Close()
	if h.names != nil {
		h.names.Close()
	}
}

// Enter returns the first words of the command that runs a program on the host.
func (h *Host) Enter() []string {
	of := func(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
	return []string{"nsenter", "--net=" + of(h.net), "--mount=" + of(h.mount), "--"}
}

// Command returns the command that runs a program on the host. Its process is the
// program's own: signals reach it. Like exec.Command's, it has the working
// directory and the environment of the caller unless Dir and Env say otherwise.
func (h *Host) Command(program string, args ...string) *exec.Cmd {
	// To enter a mount namespace is to leave the working directory.
	script := strings.Join(append([]string{"exec"}, h.Enter()...), " ") + ` env -C "$(pwd)" "$@"`
	return exec.Command("sh", append([]string{"-c", script, "sh", program}, args...)...)
}

// IP runs the command ip on the host and returns what it prints.
func (h *Host) IP(args ...string) (string, error) {
	out, err := h.Command("ip", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("host %s: ip %s: %w: %s", h.Name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Do runs f on the host: sockets that it opens are there, and stay there. Those
// that goroutines open which f starts are not.
func (h *Host) Do(f func() error) error {
	runtime.LockOSThread()
	before, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer before.Close()
	if err := unix.Setns(int(h.net.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	defer func() {
		// A thread that cannot go back ends with its goroutine.
		if unix.Setns(int(before.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// DialContext connects this process from the host, as net.Dialer's does. The
// address is an IP address with a port.
func (h *Host) DialContext(ctx context.Context, network, addr string) (c net.Conn, err error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, err
	}
	err = h.Do(func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Listen listens on the host, as net.Listen does.
func (h *Host) Listen(network, addr string) (l net.Listener, err error) {
	err = h.Do(func() error {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

// ListenPacket listens on the host, as net.ListenPacket does.
func (h *Host) ListenPacket(network, addr string) (c net.PacketConn, err error) {
	err = h.Do(func() error {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	return c, err
}
