package netlab_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/internal/netlab"
)

// hosts returns a network with two hosts, each with an address of either family.
func hosts(t *testing.T) (n *netlab.Network, a, b *netlab.Host) {
	n = netlab.New()
	t.Cleanup(n.Close)
	a, err := n.Host("a", n.NewAddr(), n.NewAddr6())
	require.NoError(t, err)
	b, err = n.Host("b", n.NewAddr(), n.NewAddr6())
	require.NoError(t, err)
	return n, a, b
}

// echo answers each datagram on a host with its first byte and where it came from.
func echo(t *testing.T, h *netlab.Host) (port int) {
	c, err := h.ListenPacket("udp", ":0")
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(append(buffer[:min(n, 1):1], from.String()...), from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).Port
}

func dial(t *testing.T, h *netlab.Host, network string, to netip.AddrPort) net.Conn {
	c, err := h.DialContext(t.Context(), network, to.String())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a datagram of this length until there is an answer, which it returns:
// a datagram may be lost at any time.
func ask(c net.Conn, length int) (answer string, err error) {
	for range 60 {
		if answer, err = askFor(time.Second, c, length); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond) // where it fails at once
	}
	return answer, err
}

// askInVain does not wait for long.
func askInVain(c net.Conn, length int) error {
	_, err := askFor(100*time.Millisecond, c, length)
	return err
}

// asked counts datagrams, so that none is taken for the answer to another that has
// come late.
var asked atomic.Uint32

func askFor(patience time.Duration, c net.Conn, length int) (string, error) {
	datagram := make([]byte, length)
	datagram[0] = byte(asked.Add(1))
	if _, err := c.Write(datagram); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	for buffer := make([]byte, 2048); ; {
		n, err := c.Read(buffer)
		if err != nil {
			return "", err
		}
		if n > 0 && buffer[0] == datagram[0] {
			return string(buffer[1:n]), nil
		}
	}
}

func addrPort(a netip.Addr, port int) netip.AddrPort { return netip.AddrPortFrom(a, uint16(port)) }

func TestHostsReachEachOtherOverBothFamilies(t *testing.T) {
	t.Parallel()
	_, a, b := hosts(t)
	port := echo(t, b)
	for _, to := range b.Addrs() {
		c := dial(t, a, "udp", addrPort(to, port))
		answer, err := ask(c, 1)
		require.NoError(t, err)
		assert.Equal(t, c.LocalAddr().String(), answer)
	}
}

func TestAProgramOnAHostIsThereAndIsKilledThere(t *testing.T) {
	t.Parallel()
	_, a, b := hosts(t)
	out, err := a.Command("sh", "-c", `ip -o address show dev tun0`).Output()
	require.NoError(t, err)
	assert.Contains(t, string(out), a.Addr().String()+"/32")
	assert.NotContains(t, string(out), b.Addr().String()+"/32")
	cmd := a.Command("pwd")
	cmd.Dir = "/usr"
	out, err = cmd.Output()
	require.NoError(t, err)
	assert.Equal(t, "/usr\n", string(out))

	cmd = a.Command("sh", "-c", "echo begun; exec sleep 1000")
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(stdout, make([]byte, len("begun\n")))
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	assert.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal())
}

func TestANameMoves(t *testing.T) {
	t.Parallel()
	n, a, _ := hosts(t)
	for _, addr := range []netip.Addr{n.NewAddr(), n.NewAddr6(), n.NewAddr()} {
		n.SetName("keyserver.example", addr)
		out, err := a.Command("getent", "ahosts", "keyserver.example").Output()
		require.NoError(t, err)
		assert.Equal(t, addr.String(), strings.Fields(string(out))[0])
	}
	n.SetName("keyserver.example")
	assert.Error(t, a.Command("getent", "ahosts", "keyserver.example").Run())
}

func TestAPathDelaysLosesAndSwallows(t *testing.T) {
	t.Parallel()
	n, a, b := hosts(t)
	path := n.Between(a, b)
	c := dial(t, a, "udp", addrPort(b.Addr(), echo(t, b)))

	path.Set(netlab.Conditions{Delay: 20 * time.Millisecond})
	begun := time.Now()
	_, err := ask(c, 1)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, time.Since(begun), 40*time.Millisecond)

	path.Set(netlab.Conditions{MaxPacket: 576})
	_, err = ask(c, 576-20-8)
	require.NoError(t, err)
	err = askInVain(c, 576-20-8+1)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Eventually(t, func() bool { return path.From(a).Counts().TooLarge == 1 }, time.Minute, time.Millisecond)

	path.Set(netlab.Conditions{Cut: true})
	err = askInVain(c, 1)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Eventually(t, func() bool { return path.From(a).Counts().Cut == 1 }, time.Minute, time.Millisecond)

	var seen atomic.Int32
	path.From(a).Set(netlab.Conditions{Drop: func(packet []byte) bool { return seen.Add(1) == 1 && len(packet) == 20+8+3 }})
	path.From(b).Set(netlab.Conditions{})
	err = askInVain(c, 3)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	_, err = ask(c, 3)
	require.NoError(t, err)

	path.Set(netlab.Conditions{Loss: 0.2, Seed: 1})
	before := path.From(a).Counts()
	for sent := uint64(1); sent <= 2000; sent++ {
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		if sent%100 > 0 {
			continue
		}
		// The queue of a device has room for some hundreds.
		require.Eventually(t, func() bool {
			now := path.From(a).Counts()
			return now.Carried+now.Lost-before.Carried-before.Lost == sent
		}, time.Minute, time.Millisecond)
	}
	assert.InDelta(t, 400, path.From(a).Counts().Lost-before.Lost, 80)
}

// A transfer over TCP is whole whatever is lost.
func TestTCPGetsThroughLoss(t *testing.T) {
	t.Parallel()
	n, a, b := hosts(t)
	n.SetDefault(netlab.Conditions{Loss: 0.1, Seed: 1})
	l, err := b.Listen("tcp", ":0")
	require.NoError(t, err)
	defer l.Close()
	const size = 100_000
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = c.Write(make([]byte, size))
			c.Close()
		}
	}()
	c := dial(t, a, "tcp", addrPort(b.Addr(), l.Addr().(*net.TCPAddr).Port))
	got, err := io.Copy(io.Discard, c)
	require.NoError(t, err)
	assert.EqualValues(t, size, got)
	assert.NotZero(t, n.Between(a, b).From(b).Counts().Lost)
}

func TestAHostMovesToAnotherAddress(t *testing.T) {
	t.Parallel()
	n, a, b := hosts(t)
	port := echo(t, b)
	for i, next := range []func() netip.Addr{n.NewAddr, n.NewAddr6} {
		old, now, to := a.Addrs()[0], next(), addrPort(b.Addrs()[i], port)
		c := dial(t, a, "udp", to)
		_, err := ask(c, 1)
		require.NoError(t, err)
		require.NoError(t, a.Renumber(now))
		err = askInVain(c, 1)
		require.Error(t, err, "the socket has an address that is gone")
		err = askInVain(dial(t, b, "udp", addrPort(old, port)), 1)
		require.Error(t, err)
		c = dial(t, a, "udp", to)
		answer, err := ask(c, 1)
		require.NoError(t, err)
		assert.Equal(t, now, netip.MustParseAddrPort(answer).Addr())
	}
}

func TestADeviceAndItsRoutesComeBack(t *testing.T) {
	t.Parallel()
	_, a, b := hosts(t)
	port := echo(t, b)
	for _, to := range b.Addrs() {
		c := dial(t, a, "udp", addrPort(to, port))
		for _, fault := range [][2]func() error{{a.Down, a.Up}, {a.WithdrawRoutes, a.RestoreRoutes}, {b.Down, b.Up}} {
			_, err := ask(c, 1)
			require.NoError(t, err)
			require.NoError(t, fault[0]())
			err = askInVain(c, 1)
			require.Error(t, err)
			require.NoError(t, fault[1]())
		}
		_, err := ask(c, 1)
		require.NoError(t, err)
	}
}

func TestNewConnectionsLeaveADeprecatedAddress(t *testing.T) {
	t.Parallel()
	n, a, b := hosts(t)
	old, now := a.Addrs()[1], n.NewAddr6()
	to := addrPort(b.Addrs()[1], echo(t, b))
	before := dial(t, a, "udp", to)
	require.NoError(t, a.Deprecate(old))
	require.NoError(t, a.AddAddr(now))
	after := dial(t, a, "udp", to)
	for c, want := range map[net.Conn]netip.Addr{before: old, after: now} {
		answer, err := ask(c, 1)
		require.NoError(t, err)
		assert.Equal(t, want, netip.MustParseAddrPort(answer).Addr())
	}
}

func TestANATHidesAHostAndRebinds(t *testing.T) {
	t.Parallel()
	n, a, b := hosts(t)
	outside := n.NewAddr()
	nat := a.BehindNAT(outside)
	c := dial(t, a, "udp4", addrPort(b.Addr(), echo(t, b)))
	var last netip.AddrPort
	for range 3 {
		answer, err := ask(c, 11) // an odd length, for the checksum
		require.NoError(t, err)
		seen := netip.MustParseAddrPort(answer)
		assert.Equal(t, outside, seen.Addr())
		assert.NotEqual(t, last, seen)
		last = seen
		nat.Rebind()
	}
	other := n.NewAddr()
	nat.Renumber(other)
	answer, err := ask(c, 1)
	require.NoError(t, err)
	assert.Equal(t, other, netip.MustParseAddrPort(answer).Addr())

	inside := echo(t, a)
	err = askInVain(dial(t, b, "udp4", addrPort(a.Addr(), inside)), 1)
	require.Error(t, err)
	err = askInVain(dial(t, b, "udp4", addrPort(other, inside)), 1)
	require.Error(t, err)
}

func TestTCPThroughANAT(t *testing.T) {
	t.Parallel()
	n, a, b := hosts(t)
	outside := n.NewAddr()
	nat := a.BehindNAT(outside)
	l, err := b.Listen("tcp4", ":0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				fmt.Fprintln(c, c.RemoteAddr())
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}()
		}
	}()
	c := dial(t, a, "tcp", addrPort(b.Addr(), l.Addr().(*net.TCPAddr).Port))
	var seen string
	_, err = fmt.Fscanln(c, &seen)
	require.NoError(t, err)
	assert.Equal(t, outside, netip.MustParseAddrPort(seen).Addr())
	nat.Rebind()
	_, err = c.Write([]byte("x")) // from a port that b knows nothing of: it answers with a reset
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestASocketOfTheTestIsOnTheHostThatItWasMadeOn(t *testing.T) {
	t.Parallel()
	_, a, b := hosts(t)
	for _, h := range []*netlab.Host{a, b} {
		require.NoError(t, h.Do(func() error {
			interfaces, err := net.InterfaceAddrs()
			require.NoError(t, err)
			var has []string
			for _, i := range interfaces {
				has = append(has, i.String())
			}
			assert.Contains(t, has, h.Addr().String()+"/32")
			return nil
		}))
	}
	_, err := a.DialContext(context.Background(), "udp", "name.example:1")
	assert.Error(t, err)
}
