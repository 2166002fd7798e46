package cmd_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fleet is two key servers with the same keys and an edge server that asks them
// in turn.
type fleet struct {
	*devSetup
	keyServers [2]*exec.Cmd
	addrs      [2]string
	edge       *exec.Cmd
	edgeLog    string
	edgeAt     string
	roots      *x509.CertPool
}

// startFleet makes one of what skictl dev leaves behind. lines go into the edge's
// keyserver.
func startFleet(t *testing.T, lines string) *fleet {
	f := &fleet{devSetup: startDev(t), edgeLog: "edge/fleet.log", roots: x509.NewCertPool()}
	ca, err := os.ReadFile(f.endpoints.CA)
	require.NoError(t, err)
	f.roots.AppendCertsFromPEM(ca)
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	require.NoError(t, os.WriteFile(filepath.Join(f.dir, "keyserver/state.key"), secret, 0o600))
	for i := range f.keyServers {
		f.startKeyServer(i)
	}
	config := regexp.MustCompile(`(?m)^  url: .*$`).ReplaceAllString(f.read("edge/edge.yaml"),
		fmt.Sprintf("  urls: [coaps://%s/ski, coaps://%s/ski]\n  server_name: 127.0.0.1\n%s", f.addrs[0], f.addrs[1], lines))
	config = strings.ReplaceAll(config, f.edgeAddr(), "127.0.0.1:0")
	file := filepath.Join(f.dir, "edge/fleet.yaml")
	require.NoError(t, os.WriteFile(file, []byte(config+"metrics: 127.0.0.1:0\n"), 0o600))
	f.edge = exec.Command(filepath.Join(bin, "ski-edgeserver"), "-config", file)
	log, err := os.Create(filepath.Join(f.dir, f.edgeLog))
	require.NoError(t, err)
	defer log.Close()
	f.edge.Stderr = log
	require.NoError(t, f.edge.Start())
	t.Cleanup(func() {
		assert.NoError(t, f.edge.Process.Signal(os.Interrupt))
		assert.NoError(t, f.edge.Wait(), "the edge server has been up to the end")
		if t.Failed() {
			t.Log(tail(f.read(f.edgeLog), 40))
		}
	})
	f.logged(`the key server has the key`, 2*2*len(f.endpoints.Sites)) // with either engine, at both
	f.edgeAt = regexp.MustCompile(`msg=listening addr=(\S+)`).FindStringSubmatch(f.read(f.edgeLog))[1]
	return f
}

// startKeyServer starts one of the two, at its address if it has had one.
func (f *fleet) startKeyServer(i int) {
	config := f.read("keyserver/keyserver.yaml")
	addr := f.addrs[i]
	if addr == "" {
		addr = "127.0.0.2:0" // whose ports no client's socket takes while it is gone
	}
	config = regexp.MustCompile(`(?m)^(coaps_tcp|https): .*\n`).ReplaceAllString(config, "")
	config = regexp.MustCompile(`(?m)^listen: .*$`).ReplaceAllString(config, "listen: "+addr+"\nstate_key_file: state.key")
	config = strings.Replace(config, "file: audit.log", fmt.Sprintf("file: audit-%d.log", i), 1)
	file := filepath.Join(f.dir, fmt.Sprintf("keyserver/fleet-%d.yaml", i))
	require.NoError(f.t, os.WriteFile(file, []byte(config), 0o600))
	cmd := exec.Command(filepath.Join(bin, "ski-keyserver"), "-config", file)
	stderr, err := cmd.StderrPipe()
	require.NoError(f.t, err)
	require.NoError(f.t, cmd.Start())
	f.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	f.keyServers[i] = cmd
	lines, listening := bufio.NewReader(stderr), regexp.MustCompile(`msg=listening addr=(\S+)`)
	var seen bytes.Buffer
	for {
		line, err := lines.ReadString('\n')
		seen.WriteString(line)
		require.NoError(f.t, err, seen.String())
		if m := listening.FindStringSubmatch(line); m != nil {
			f.addrs[i] = m[1]
			break
		}
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
}

func (f *fleet) kill(i int) {
	require.NoError(f.t, f.keyServers[i].Process.Signal(syscall.SIGKILL))
	_ = f.keyServers[i].Wait()
}

// logged waits until the edge's log has a text n times.
func (f *fleet) logged(text string, n int) {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return strings.Count(f.read(f.edgeLog), text) >= n }, time.Minute, 10*time.Millisecond, text)
}

// visit fetches a page over a new connection.
func (f *fleet) visit(c *tls.Config) (resumed bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c.RootCAs = f.roots
	conn, err := (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", f.edgeAt)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	_, _ = fmt.Fprintf(conn, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", c.ServerName)
	page, err := io.ReadAll(conn) // and a ticket of TLS 1.3
	if err == nil && !bytes.Contains(page, []byte("<h1>")) {
		err = fmt.Errorf("not the page of the site: %q", page)
	}
	return conn.(*tls.Conn).ConnectionState().DidResume, err
}

// everyKind has a client for each kind of handshake, ECDHE-PMS included, which
// asks a key server twice.
func everyKind() []*tls.Config {
	return []*tls.Config{
		{ServerName: "ecdsa.localhost"},
		{ServerName: "rsa.localhost", MaxVersion: tls.VersionTLS12},
		{ServerName: "rsa.localhost", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
		{ServerName: "split.ecdsa.localhost", MaxVersion: tls.VersionTLS12},
	}
}

func TestOneOfTwoKeyServersKilledUnderLoadCostsNoHandshake(t *testing.T) {
	for _, balance := range []string{"failover", "round-robin", "least-latency"} {
		t.Run(balance, func(t *testing.T) {
			f := startFleet(t, "  balance: "+balance+"\n  hedge: {max_extra: 0.05}\n")
			more := f.load()
			more(100)
			f.kill(0)
			more(200)
			f.logged(`level=WARN msg="the key server does not answer" keyserver=coaps://`+f.addrs[0], 1)
			f.startKeyServer(0)
			f.logged(`msg="the key server answers again" keyserver=coaps://`+f.addrs[0], 1)
			more(50)
			f.kill(1)
			more(100)
		})
	}
}

// A key server that hangs, unlike one that is gone, leaves nobody to say that
// nobody listens.
func TestOneOfTwoKeyServersThatHangsUnderLoadCostsNoHandshake(t *testing.T) {
	f := startFleet(t, "")
	more := f.load()
	more(50)
	hold(t, f.keyServers[0].Process.Pid)
	more(100)
	require.NoError(t, f.keyServers[0].Process.Signal(syscall.SIGCONT))
	f.logged(`msg="the key server answers again" keyserver=coaps://`+f.addrs[0], 1)
	more(50)
}

// load has clients of each kind do handshakes until the test ends, none of which
// may fail. It returns what waits for n more.
func (f *fleet) load() (more func(n int64)) {
	var done atomic.Int64
	ctx, stop := context.WithCancel(f.t.Context())
	var load sync.WaitGroup
	for _, kind := range append(everyKind(), everyKind()...) {
		load.Go(func() {
			for ctx.Err() == nil {
				if _, err := f.visit(kind.Clone()); ctx.Err() == nil && assert.NoError(f.t, err, kind.ServerName) {
					done.Add(1)
				}
			}
		})
	}
	f.t.Cleanup(func() { stop(); load.Wait() })
	return func(n int64) {
		f.t.Helper()
		want := done.Load() + n
		require.Eventually(f.t, func() bool { return done.Load() >= want }, 2*time.Minute, 10*time.Millisecond)
	}
}

func TestAllKeyServersKilledLeaveResumedSessionsWorking(t *testing.T) {
	f := startFleet(t, "  balance: round-robin\n")
	resuming := everyKind()
	for _, c := range resuming {
		c.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		_, err := f.visit(c)
		require.NoError(t, err)
	}
	f.kill(0)
	f.kill(1)

	var all sync.WaitGroup
	for _, c := range everyKind() {
		all.Go(func() {
			_, err := f.visit(c)
			assert.ErrorContains(t, err, "remote error: tls: internal error", c.ServerName)
		})
	}
	for _, c := range resuming {
		for range 3 {
			resumed, err := f.visit(c)
			assert.NoError(t, err, c.ServerName)
			assert.True(t, resumed, c.ServerName)
		}
	}
	all.Wait()

	f.startKeyServer(1)
	for _, c := range everyKind() {
		require.Eventually(t, func() bool { _, err := f.visit(c.Clone()); return err == nil }, time.Minute, 10*time.Millisecond, c.ServerName)
	}
}
