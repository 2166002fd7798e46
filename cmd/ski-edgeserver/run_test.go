package main

import (
	"bufio"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski/skicoap"
	"github.com/tlsski/tlsski/ski/skitest"
)

// process is the command as a process of its own.
type process struct {
	*exec.Cmd
	stderr *bufio.Reader
	seen   strings.Builder
}

// startProcess starts the command in a folder that writePKI has filled, on a
// free port. lines are the rest of the configuration.
func startProcess(t *testing.T, dir, keyserver, lines string) *process {
	p := prepareProcess(t, dir, keyserver, `listen: ["127.0.0.1:0"]`, lines)
	p.start(t)
	return p
}

// prepareProcess is startProcess with another line for the addresses, for a
// process that is not started yet.
func prepareProcess(t *testing.T, dir, keyserver, listen, lines string) *process {
	file, timeout := filepath.Join(dir, "edge.yaml"), "30s"
	if keyserver == nobody {
		timeout = "2s"
	}
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `%s
keyserver: {url: "coaps://%s/ski", certificate: edge.pem, key: edge.key, ca: ca.pem, server_name: edge.test, timeout: %s}
%s`, listen, keyserver, timeout, lines), 0o600))
	command, err := exec.LookPath("ski-edgeserver") // put there by testscript.Main
	require.NoError(t, err)
	return &process{Cmd: exec.Command(command, "-config", file)}
}

func (p *process) start(t *testing.T) {
	stderr, err := p.StderrPipe()
	require.NoError(t, err)
	p.stderr = bufio.NewReader(stderr)
	require.NoError(t, p.Start())
	hung := time.AfterFunc(3*time.Minute, func() { p.Process.Kill() }) // or until would wait for ever
	t.Cleanup(func() { hung.Stop(); p.Process.Kill() })
}

// until returns the submatches of the first line of the log that matches. It
// reads on until there is one: what happens at once is logged in any order.
func (p *process) until(t *testing.T, pattern string) []string {
	t.Helper()
	expression := regexp.MustCompile(pattern)
	for {
		if match := expression.FindStringSubmatch(p.seen.String()); match != nil {
			return match
		}
		line, err := p.stderr.ReadString('\n')
		require.NoError(t, err, "no line matches %s:\n%s", pattern, &p.seen)
		p.seen.WriteString(line)
	}
}

// end reads the rest of the log and returns the exit status.
func (p *process) end() int {
	io.Copy(&p.seen, p.stderr)
	p.Wait()
	return p.ProcessState.ExitCode()
}

// startKeyServer serves the key of site.test, to everyone that ca.pem vouches
// for, and returns its address.
func startKeyServer(t *testing.T, dir string) string {
	site, err := tls.LoadX509KeyPair(filepath.Join(dir, "site.pem"), filepath.Join(dir, "site.key"))
	require.NoError(t, err)
	identity, err := tls.LoadX509KeyPair(filepath.Join(dir, "edge.pem"), filepath.Join(dir, "edge.key"))
	require.NoError(t, err)
	clients := x509.NewCertPool()
	clients.AddCert(identity.Leaf)
	srv, err := skicoap.Listen("127.0.0.1:0", skicoap.ServerConfig{
		Handler:     skitest.NewKeyServer(site.PrivateKey.(crypto.Signer)),
		Certificate: identity,
		ClientCAs:   clients,
		Logger:      slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	go srv.Serve()
	t.Cleanup(func() { srv.Close() })
	return srv.Addr().String()
}

// nobody is where no key server is, and is not waited for for long.
const nobody = "127.0.0.1:1"

const staticSite = "sites: [{names: [site.test], certificates: [site.pem], static: .}]\n"

func TestStartsWithoutKeyServer(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	p := startProcess(t, dir, nobody, staticSite)
	addr := p.until(t, `msg=listening addr=(127\.0\.0\.1:\d+) url=https://site\.test:\d+\n`)[1]
	assert.Contains(t, p.seen.String(), "keyserver=coaps://127.0.0.1:1/ski")
	p.until(t, `level=WARN msg="the key server does not serve the key.*reason=(unreachable|timeout)`)

	_, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "site.test", InsecureSkipVerify: true})
	assert.EqualError(t, err, "remote error: tls: internal error")
	p.until(t, `level=WARN msg="handshake failed.*reason=(unreachable|timeout)`)

	require.NoError(t, p.Process.Signal(os.Interrupt))
	assert.Equal(t, 0, p.end())
	assert.Contains(t, p.seen.String(), "msg=stopping signal=interrupt")
	assert.Contains(t, p.seen.String(), "msg=stopped")
}

// TestWhatAnOriginSendsUnaskedIsNotLogged: net/http quotes it to the standard
// library's log.
func TestWhatAnOriginSendsUnaskedIsNotLogged(t *testing.T) {
	for level, logged := range map[string]bool{"info": false, "debug": true} {
		t.Run(level, func(t *testing.T) {
			origin, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer origin.Close()
			ended := make(chan error, 1)
			go func() {
				c, err := origin.Accept()
				if err == nil {
					_, err = http.ReadRequest(bufio.NewReader(c))
				}
				if err == nil {
					_, err = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nX: of another client\r\n\r\n")
				}
				if err == nil {
					_, err = io.Copy(io.Discard, c) // The connection is closed once it is logged.
				}
				ended <- err
			}()
			dir := t.TempDir()
			require.NoError(t, writePKI(dir))
			p := startProcess(t, dir, startKeyServer(t, dir),
				fmt.Sprintf("sites: [{names: [site.test], certificates: [site.pem], proxy: \"http://%s\"}]\nlog: {level: %s}\n", origin.Addr(), level))
			c, err := tls.Dial("tcp", p.until(t, `msg=listening addr=(\S+)`)[1], &tls.Config{ServerName: "site.test", InsecureSkipVerify: true})
			require.NoError(t, err)
			defer c.Close()
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n")
			require.NoError(t, err)
			require.NoError(t, <-ended)
			require.NoError(t, p.Process.Signal(os.Interrupt))
			require.Equal(t, 0, p.end())
			assert.Equal(t, logged, strings.Contains(p.seen.String(), "of another client"), p.seen.String())
		})
	}
}

// TestSignals has a request in flight when the first signal comes, which
// finishes or, with a second signal, does not.
func TestSignals(t *testing.T) {
	for _, second := range []bool{false, true} {
		t.Run(fmt.Sprintf("second=%v", second), func(t *testing.T) {
			entered, proceed := make(chan struct{}), make(chan struct{})
			origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(entered)
				select {
				case <-proceed:
				case <-r.Context().Done():
				}
				io.WriteString(w, "hello")
			}))
			defer origin.Close()
			dir := t.TempDir()
			require.NoError(t, writePKI(dir))
			p := startProcess(t, dir, startKeyServer(t, dir),
				"sites: [{names: [site.test], certificates: [site.pem], proxy: \""+origin.URL+"\"}]\n")
			addr := p.until(t, `msg=listening addr=(127\.0\.0\.1:\d+)`)[1]
			p.until(t, `msg="the key server has the key" site=site.test`)

			c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "site.test", InsecureSkipVerify: true})
			require.NoError(t, err)
			defer c.Close()
			fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
			<-entered
			require.NoError(t, p.Process.Signal(syscall.SIGTERM))
			p.until(t, "msg=stopping signal=terminated")
			if second {
				require.NoError(t, p.Process.Signal(syscall.SIGTERM))
				assert.Equal(t, 1, p.end())
				assert.Contains(t, p.seen.String(), "requests were cut short")
				return
			}
			close(proceed)
			answer, err := io.ReadAll(c)
			require.NoError(t, err)
			assert.Contains(t, string(answer), "hello")
			assert.Equal(t, 0, p.end())
		})
	}
}

// During shutdown_delay it goes on, but sends clients away; a second signal ends
// that too.
func TestShutdownDelay(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	p := startProcess(t, dir, startKeyServer(t, dir), staticSite+"shutdown_delay: 1h\n")
	addr := p.until(t, `msg=listening addr=(127\.0\.0\.1:\d+)`)[1]
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	p.until(t, "msg=stopping signal=terminated delay=1h0m0s timeout=10s")
	require.Eventually(t, func() bool {
		c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "site.test", InsecureSkipVerify: true})
		require.NoError(t, err)
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		resp.Body.Close()
		return resp.Close
	}, time.Minute, time.Millisecond)
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, 1, p.end())
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	file := filepath.Join(dir, "edge.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `listen: [%q]
keyserver: {url: "coaps://127.0.0.1:1/ski", certificate: edge.pem, key: edge.key, ca: ca.pem}
`+staticSite, l.Addr()), 0o600))
	var stdout, stderr strings.Builder
	assert.Equal(t, 1, run([]string{"-config", file}, &stdout, &stderr))
	assert.Contains(t, stderr.String(), "address already in use")
}

// Who wants more connections than there can be files is told so before they come.
func TestMoreConnectionsThanFiles(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	p := prepareProcess(t, dir, nobody, `listen: ["127.0.0.1:0"]`, staticSite+"limits: {connections: 100}\n")
	p.Args = append([]string{"sh", "-c", `ulimit -n 150; exec "$0" "$@"`}, p.Args...)
	p.Path = "/bin/sh"
	p.start(t)
	p.until(t, `level=WARN msg="limits.connections: .*" connections=100 open_files=150`)
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, 0, p.end())
}
