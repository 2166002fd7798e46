package main

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/edgeserver"
)

// replace puts data in the place of a file, as a renewal of certificates does.
func replace(t *testing.T, file string, data []byte) {
	require.NoError(t, os.WriteFile(file+".new", data, 0o600))
	require.NoError(t, os.Rename(file+".new", file))
}

// request asks for / over a new connection, and returns the certificate and the
// answer.
func request(t *testing.T, addr, name string) (*x509.Certificate, string) {
	c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprint(c, "GET /site.txt HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	return c.ConnectionState().PeerCertificates[0], string(answer)
}

// A process gets another certificate, which it notices, a configuration with a
// fault, which it refuses, another identity on the SKI channel, and another site.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "site.txt"), []byte("hello"), 0o644))
	p := startProcess(t, dir, startKeyServer(t, dir), staticSite)
	addr := p.until(t, `msg=listening addr=(127\.0\.0\.1:\d+)`)[1]
	p.until(t, `msg="the key server has the key" site=site.test`)
	first, answer := request(t, addr, "site.test")
	assert.Contains(t, answer, "hello")
	open, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "site.test", InsecureSkipVerify: true})
	require.NoError(t, err)
	defer open.Close()

	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "site.pem"), filepath.Join(dir, "site.key"))
	require.NoError(t, err)
	renewed, err := certificate(pair.PrivateKey.(*ecdsa.PrivateKey), "site.test")
	require.NoError(t, err)
	replace(t, filepath.Join(dir, "site.pem"), renewed)
	p.until(t, `msg="configuration loaded"`)
	second, _ := request(t, addr, "site.test")
	assert.NotEqual(t, first.Raw, second.Raw)
	block, _ := pem.Decode(renewed)
	assert.Equal(t, block.Bytes, second.Raw)

	config := filepath.Join(dir, "edge.yaml")
	good, err := os.ReadFile(config)
	require.NoError(t, err)
	replace(t, config, []byte(strings.Replace(string(good), "site.pem", "none.pem", 1)))
	p.until(t, `level=ERROR msg="configuration refused, the one before stays" error="\S+edge.yaml:3:\d+: sites\[0\].certificates\[0\]: .*none.pem: no such file`)
	replace(t, config, []byte(string(good)+"log: [\n"))
	require.NoError(t, p.Process.Signal(syscall.SIGHUP))
	p.until(t, `msg="configuration refused, the one before stays" error="\S+edge.yaml:4:`)
	_, answer = request(t, addr, "site.test")
	assert.Contains(t, answer, "hello")

	// The key server takes no other identity: the new client is asked.
	stranger := t.TempDir()
	require.NoError(t, writePKI(stranger))
	for _, name := range []string{"edge.pem", "edge.key"} {
		data, err := os.ReadFile(filepath.Join(stranger, name))
		require.NoError(t, err)
		replace(t, filepath.Join(dir, name), data)
	}
	replace(t, config, []byte(strings.Replace(string(good), "names: [site.test]", "default: true", 1)))
	p.until(t, `msg="configuration loaded"(?s:.*)msg="configuration loaded"`)
	p.until(t, `level=WARN msg="the key server does not serve the key: handshakes will fail" site=\(default\)`)

	// The connection of the beginning goes on.
	fmt.Fprint(open, "GET /site.txt HTTP/1.0\r\n\r\n")
	rest, err := io.ReadAll(open)
	require.NoError(t, err)
	assert.Contains(t, string(rest), "hello")

	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, 0, p.end())
}

// A certificate file that is written in two steps, or removed, takes nothing away.
func TestABrokenCertificateFileLeavesTheCertificate(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	p := startProcess(t, dir, startKeyServer(t, dir), staticSite)
	addr := p.until(t, `msg=listening addr=(127\.0\.0\.1:\d+)`)[1]
	before, _ := request(t, addr, "site.test")
	file := filepath.Join(dir, "site.pem")
	pair, err := tls.LoadX509KeyPair(file, filepath.Join(dir, "site.key"))
	require.NoError(t, err)
	renewed, err := certificate(pair.PrivateKey.(*ecdsa.PrivateKey), "site.test")
	require.NoError(t, err)

	require.NoError(t, os.Remove(file))
	p.until(t, `level=ERROR msg="a certificate file cannot be used: the certificate before stays" site=site.test error="\S+edge.yaml:3:\d+: sites\[0\].certificates\[0\]: .*no such file(?s:.*)msg="configuration loaded"`)
	require.NoError(t, os.WriteFile(file, renewed[:len(renewed)/2], 0o600))
	p.until(t, `site.pem has no PEM block of type CERTIFICATE"(?s:.*)msg="configuration loaded"`)
	shown, _ := request(t, addr, "site.test")
	assert.Equal(t, before.Raw, shown.Raw)
	require.NoError(t, os.WriteFile(file, renewed, 0o600))
	require.Eventually(t, func() bool {
		shown, _ = request(t, addr, "site.test")
		return string(shown.Raw) != string(before.Raw)
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, 0, p.end())
}

// Configurations come and go, while clients are there: addresses, sites and a key
// server among them. What is left is what there was; a key server that is in all
// of them has kept its session; and at the end nothing is left.
func TestReloadsLeaveNothingBehind(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	keyserver, other := startKeyServer(t, dir), startKeyServer(t, dir)
	file := filepath.Join(dir, "edge.yaml")
	configure := func(i int) {
		listen, sites := `"127.0.0.1:0"`, "- {names: [site.test], certificates: [site.pem], static: .}\n"
		if i%2 == 1 {
			listen += `, "127.0.0.2:0"`
			sites = "- {names: [site.test], certificates: [site.pem], static: ., engine: split, access_log: {file: access.log}}\n" +
				"- {default: true, certificates: [site.pem], tcp: '127.0.0.1:1', keyserver: other, tickets: off}\n"
		}
		replace(t, file, fmt.Appendf(nil, `listen: [%s]
keyserver: {url: "coaps://%s/ski", certificate: edge.pem, key: edge.key, ca: ca.pem, server_name: edge.test}
keyservers: {other: {url: "coaps://%s/ski", server_name: edge.test}}
sites:
%s`, listen, keyserver, other, sites))
	}
	open := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(all)
	}
	goroutines, files := runtime.NumGoroutine(), open()
	const few = 10 // of the runtime, and of the key servers' ends of sessions

	configure(0)
	cfg, err := edgeserver.Load(file)
	require.NoError(t, err)
	log := new(logged)
	d, err := newDaemon(file, cfg, nil, slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	defer d.close()
	require.NoError(t, d.srv.Listen())
	addr := regexp.MustCompile(`msg=listening addr=(127\.0\.0\.1:\d+)`).FindStringSubmatch(log.until(t, "msg=listening"))[1]
	same := d.keyServers[""]
	reload := func(i int) {
		_, answer := request(t, addr, "site.test")
		assert.Contains(t, answer, " 404 ")
		busy, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "site.test", InsecureSkipVerify: true})
		require.NoError(t, err)
		defer busy.Close()
		configure(i)
		d.reload()
		require.Same(t, same, d.keyServers[""], log.String())
		require.Equal(t, i%2 == 1, d.keyServers["other"] != nil, log.String())
	}
	heap := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	settled := func(what func() int, most int, name string) {
		require.Eventually(t, func() bool { return what() <= most }, time.Minute, 10*time.Millisecond, "%s: %d", name, most)
	}
	for i := range 2 {
		reload(i + 1)
	}
	_, _ = request(t, addr, "site.test")
	before, beforeFiles, beforeHeap := runtime.NumGoroutine(), open(), heap()
	for i := range 100 {
		reload(i + 1)
	}
	settled(runtime.NumGoroutine, before+few, "goroutines")
	settled(open, beforeFiles+few, "files")
	const much = 2 << 20 // the log and what the key servers remember included
	settled(heap, beforeHeap+much, "memory")
	assert.NotContains(t, log.String(), "refused")
	d.close()
	settled(runtime.NumGoroutine, goroutines+few, "goroutines")
	settled(open, files+few, "files")
}

// One reload after the other, while the key server is silent, does not make one
// question after the other wait for it.
func TestManyReloadsAskOnce(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	file := filepath.Join(dir, "edge.yaml")
	replace(t, file, fmt.Appendf(nil, `listen: ["127.0.0.1:0"]
keyserver: {url: "coaps://%s/ski", certificate: edge.pem, key: edge.key, ca: ca.pem, timeout: 1h}
%s`, silent.LocalAddr(), staticSite))
	cfg, err := edgeserver.Load(file)
	require.NoError(t, err)
	d, err := newDaemon(file, cfg, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer d.close()
	d.reload()
	before := runtime.NumGoroutine()
	for range 50 {
		d.reload()
	}
	require.Eventually(t, func() bool { return runtime.NumGoroutine() < before+20 }, time.Minute, 10*time.Millisecond, "goroutines")
}

// logged is a log that is read while it is written.
type logged struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

func (l *logged) until(t *testing.T, text string) string {
	require.Eventually(t, func() bool { return strings.Contains(l.String(), text) }, time.Minute, time.Millisecond)
	return l.String()
}

// A signal to reload that comes before there is something to reload is no end: to
// systemd it would be one that was meant.
func TestHangupAtTheStart(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	p := startProcess(t, dir, startKeyServer(t, dir), staticSite)
	p.until(t, `msg=starting`)
	require.NoError(t, p.Process.Signal(syscall.SIGHUP))
	p.until(t, `msg="configuration loaded"`)
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, 0, p.end())
}
