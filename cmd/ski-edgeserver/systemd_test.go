package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// manager is what systemd is to a service with Type=notify (sd_notify(3)).
type manager struct{ *net.UnixConn }

func newManager(t *testing.T) manager {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return manager{c}
}

// until returns when it has been told what matches. It reads over other states:
// the watchdog's, and those of a reload since a file has changed.
func (m manager) until(t *testing.T, pattern string) {
	t.Helper()
	expression := regexp.MustCompile(pattern)
	m.SetReadDeadline(time.Now().Add(time.Minute))
	for b := make([]byte, 1024); ; {
		n, err := m.Read(b)
		require.NoError(t, err, pattern)
		if expression.Match(b[:n]) {
			return
		}
	}
}

// systemd passes two sockets, one of which the configuration uses; a reload gives
// up that one and comes back to it.
func TestUnderSystemd(t *testing.T) {
	var files []*os.File
	var addrs []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		file, err := l.(*net.TCPListener).File()
		require.NoError(t, err)
		l.Close()
		defer file.Close()
		files, addrs = append(files, file), append(addrs, l.Addr().String())
	}
	m := newManager(t)
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	p := prepareProcess(t, dir, startKeyServer(t, dir), `listen: ["systemd:https"]`, staticSite)
	p.Args = append([]string{"sh", "-c", `export LISTEN_PID=$$ WATCHDOG_PID=$$; exec "$0" "$@"`}, p.Args...)
	p.Path = "/bin/sh"
	p.ExtraFiles = files
	p.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=https:other", "NOTIFY_SOCKET="+m.LocalAddr().String(), "WATCHDOG_USEC=100000")
	p.start(t)

	m.until(t, `^READY=1$`)
	m.until(t, `^WATCHDOG=1$`)
	p.until(t, `msg=listening addr=`+addrs[0])
	p.until(t, `level=WARN msg="systemd has passed a socket that is not in listen" name=other listen=systemd:other`)
	p.until(t, `msg="the key server has the key" site=site.test`)
	_, answer := request(t, addrs[0], "site.test")
	assert.Contains(t, answer, " 404 ")

	config := filepath.Join(dir, "edge.yaml")
	good, err := os.ReadFile(config)
	require.NoError(t, err)
	for _, name := range []string{"other", "https", "none"} {
		require.NoError(t, os.WriteFile(config, []byte(strings.Replace(string(good), "systemd:https", "systemd:"+name, 1)), 0o600))
		require.NoError(t, p.Process.Signal(syscall.SIGHUP))
		m.until(t, `^RELOADING=1\nMONOTONIC_USEC=\d+\n?$`)
		m.until(t, `^READY=1$`)
		addr := addrs[0]
		if name == "other" {
			addr = addrs[1]
		}
		request(t, addr, "site.test")
		if name == "none" {
			p.until(t, `msg="configuration refused, the one before stays" error="\S+edge.yaml:1:10: listen\[0\]: systemd has passed no socket named 'none', but https, other"`)
		}
	}

	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	m.until(t, `^STOPPING=1$`)
	assert.Equal(t, 0, p.end())
}

// A socket for datagrams is refused, and a name without a socket.
func TestSocketsThatDoNotFit(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer udp.Close()
	file, err := udp.(*net.UDPConn).File()
	require.NoError(t, err)
	defer file.Close()
	for name, want := range map[string]string{"https": "systemd's socket 'https': ", "none": "systemd has passed no socket named 'none', but https"} {
		p := prepareProcess(t, dir, nobody, fmt.Sprintf(`listen: ["systemd:%s"]`, name), staticSite)
		p.Args = append([]string{"sh", "-c", `export LISTEN_PID=$$; exec "$0" "$@"`}, p.Args...)
		p.Path = "/bin/sh"
		p.ExtraFiles = []*os.File{file}
		p.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=https")
		p.start(t)
		assert.Equal(t, 1, p.end())
		assert.Contains(t, p.seen.String(), want)
	}
}
