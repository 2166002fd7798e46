// Package cmd_test runs the three commands as an operator would, against the
// real openssl and curl.
package cmd_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// bin is the folder with the commands.
var bin string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tlsski-bin-")
	if err != nil {
		panic(err)
	}
	bin = dir
	// skictl starts the edge server as another user.
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	code := 1
	if build("-o", bin+"/", "./ski-keyserver", "./ski-edgeserver", "./skictl") == nil &&
		build("-tags", "embedded", "-o", filepath.Join(bin, "ski-edgeserver-embedded"), "./ski-edgeserver") == nil {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func build(args ...string) error {
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

// devSetup is a running `skictl dev`.
type devSetup struct {
	t         *testing.T
	dir       string
	printed   []string // the lines on its standard output
	endpoints struct {
		KeyServer struct {
			CoAPS, HTTPS string
			CoAPSTCP     string `json:"coaps+tcp"`
		}
		Edge        struct{ HTTPS string }
		CA          string
		EdgeCert    string `json:"edge_cert"`
		EdgeKey     string `json:"edge_key"`
		KeyServerCA string `json:"keyserver_ca"`
		EdgePSK     string `json:"edge_psk"`
		Sites       []struct {
			Name, Cert string
			SPKI       ski.KeyID
		}
		PIDs struct{ KeyServer, Edge int }
	}
}

// startDev starts `skictl dev` and ends it with the test.
func startDev(t *testing.T) *devSetup {
	t.Helper()
	d := &devSetup{t: t, dir: filepath.Join(t.TempDir(), "dev")}
	cmd := exec.Command(filepath.Join(bin, "skictl"), "dev", "--dir", d.dir)
	var stderr bytes.Buffer // to be read once the process has ended
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(stdout)
	running := false
	for !running && lines.Scan() {
		d.printed = append(d.printed, lines.Text())
		running = strings.HasPrefix(lines.Text(), "running")
	}
	if !running {
		_ = cmd.Wait()
		t.Fatalf("skictl dev: %s", stderr.String())
	}
	t.Cleanup(func() {
		assert.NoError(t, cmd.Process.Signal(os.Interrupt))
		assert.NoError(t, cmd.Wait(), stderr.String())
		if t.Failed() {
			for _, log := range []string{"keyserver/keyserver.log", "edge/edge.log"} {
				data, _ := os.ReadFile(filepath.Join(d.dir, log))
				t.Logf("%s:\n%s", log, tail(string(data), 40))
			}
		}
	})
	data, err := os.ReadFile(filepath.Join(d.dir, "endpoints.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &d.endpoints))
	// At its start the edge asks for each site's key, and each question is in
	// the audit log.
	require.Eventually(t, func() bool {
		return strings.Count(d.read("edge/edge.log"), "the key server has the key") == 2*len(d.endpoints.Sites) // with either engine
	}, time.Minute, 10*time.Millisecond)
	return d
}

func tail(s string, lines int) string {
	all := strings.Split(s, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (d *devSetup) edgeAddr() string { return strings.TrimPrefix(d.endpoints.Edge.HTTPS, "https://") }

func (d *devSetup) keyServerAddr() string {
	addr, _, _ := strings.Cut(strings.TrimPrefix(d.endpoints.KeyServer.CoAPS, "coaps://"), "/")
	return addr
}

func (d *devSetup) read(name string) string {
	d.t.Helper()
	data, err := os.ReadFile(filepath.Join(d.dir, name))
	require.NoError(d.t, err)
	return string(data)
}

// run runs a program and returns its standard output, both outputs, and the
// exit status.
func run(t *testing.T, stdin, name string, args ...string) (stdout, all string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	all = errOut.String() + out.String()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return out.String(), all, exit.ExitCode()
	}
	require.NoError(t, err, all)
	return out.String(), all, 0
}

// requests returns the lines of the audit log that are of a request.
func (d *devSetup) requests() []string {
	return slices.DeleteFunc(strings.Split(d.read("keyserver/audit.log"), "\n"), func(line string) bool {
		return !strings.Contains(line, `"event":"request"`)
	})
}

func (d *devSetup) skictl(args ...string) (stdout, all string, status int) {
	d.t.Helper()
	return run(d.t, "", filepath.Join(bin, "skictl"), args...)
}

func TestOpenSSLCompletesEachKindOfHandshake(t *testing.T) {
	d := startDev(t)
	for _, tc := range []struct {
		site           string
		flags          []string
		protocol       string
		suite          string
		method, scheme string // in the audit log
	}{
		{"ecdsa.localhost", []string{"-tls1_2"}, "TLSv1.2", "ECDHE-ECDSA-AES", "ECDHE", "SHA-"},
		{"rsa.localhost", []string{"-tls1_2"}, "TLSv1.2", "ECDHE-RSA-AES", "ECDHE", ""},
		{"rsa.localhost", []string{"-tls1_2", "-sigalgs", "RSA+SHA256"}, "TLSv1.2", "ECDHE-RSA-AES", "ECDHE", "SHA-256"},
		{"rsa.localhost", []string{"-tls1_2", "-cipher", "AES128-GCM-SHA256"}, "TLSv1.2", "AES128-GCM-SHA256", "RSA", ""},
		{"rsa.localhost", []string{"-tls1_2", "-cipher", "AES256-GCM-SHA384"}, "TLSv1.2", "AES256-GCM-SHA384", "RSA", ""},
		{"ecdsa.localhost", []string{"-tls1_3"}, "TLSv1.3", "TLS_", "ECDHE", ""},
		{"rsa.localhost", []string{"-tls1_3"}, "TLSv1.3", "TLS_", "ECDHE", ""},
		{"rsa.localhost", []string{"-tls1_2", "-groups", "P-256"}, "TLSv1.2", "ECDHE-RSA", "ECDHE", ""},
		{"rsa.localhost", []string{"-tls1_2", "-groups", "P-384"}, "TLSv1.2", "ECDHE-RSA", "ECDHE", ""},
		{"rsa.localhost", []string{"-tls1_2", "-groups", "P-521"}, "TLSv1.2", "AES", "RSA", ""}, // It has no group of the site's.
		{"rsa.localhost", []string{"-tls1_2", "-groups", "X25519"}, "TLSv1.2", "ECDHE-RSA", "ECDHE", ""},
	} {
		t.Run(tc.site+strings.Join(tc.flags, " "), func(t *testing.T) {
			before := len(d.requests())
			_, out, status := run(t, "GET / HTTP/1.0\r\nHost: "+tc.site+"\r\n\r\n", "openssl", append([]string{
				"s_client", "-connect", d.edgeAddr(), "-servername", tc.site, "-CAfile", d.endpoints.CA,
				"-verify_return_error", "-verify_hostname", tc.site, "-brief", "-ign_eof",
			}, tc.flags...)...)
			require.Zero(t, status, out)
			assert.Contains(t, out, "Protocol version: "+tc.protocol)
			assert.Contains(t, out, "Ciphersuite: "+tc.suite)
			assert.Contains(t, out, "Verification: OK")
			assert.Contains(t, out, "<h1>"+tc.site+"</h1>", "the page of the site")

			records := d.requests()[before:]
			require.Len(t, records, 1, "one question to the key server, one record")
			assert.Contains(t, records[0], `"method":"`+tc.method+`"`)
			assert.Contains(t, records[0], tc.site)
			assert.Contains(t, records[0], tc.scheme)
		})
	}
}

func TestCurlFetchesAPageOverEachHTTPVersion(t *testing.T) {
	d := startDev(t)
	_, port, err := net.SplitHostPort(d.edgeAddr())
	require.NoError(t, err)
	for _, site := range d.endpoints.Sites {
		for _, tc := range []struct{ flag, tlsMax, version string }{
			{"--http1.1", "1.2", "1.1"}, {"--http1.1", "1.3", "1.1"}, {"--http2", "1.2", "2"}, {"--http2", "1.3", "2"},
		} {
			t.Run(site.Name+tc.flag+" TLS "+tc.tlsMax, func(t *testing.T) {
				out, all, status := run(t, "", "curl", "--silent", "--show-error", "--fail", tc.flag, "--tls-max", tc.tlsMax,
					"--cacert", d.endpoints.CA, "--resolve", site.Name+":"+port+":127.0.0.1",
					"--write-out", "version=%{http_version}", "https://"+site.Name+":"+port+"/")
				require.Zero(t, status, all)
				assert.Contains(t, out, "<h1>"+site.Name+"</h1>")
				assert.Contains(t, out, "version="+tc.version)
			})
		}
	}
}

func TestTheCommandsThatDevPrintsWork(t *testing.T) {
	d := startDev(t)
	commands := 0
	for _, line := range d.printed {
		program, _, _ := strings.Cut(line, " ")
		switch filepath.Base(program) {
		case "curl", "openssl":
			out, all, status := run(t, "", "sh", "-c", line)
			assert.Zero(t, status, "%s\n%s", line, all)
			if program == "curl" {
				assert.Contains(t, out, "<h1>", line)
			} else {
				assert.Contains(t, all, "Verification: OK", line)
			}
		case "skictl":
			out, all, status := run(t, "", "sh", "-c", line)
			assert.Zero(t, status, "%s\n%s", line, all)
			assert.Contains(t, out, `{"output":"30`, "a signature")
		default:
			continue
		}
		commands++
	}
	assert.Equal(t, 8, commands, d.printed)
}

func TestDemoShowsEveryHandshakeAndFindsNoKeyAtTheEdge(t *testing.T) {
	out, all, status := run(t, "", filepath.Join(bin, "skictl"), "demo")
	require.Zero(t, status, all)
	for _, row := range []string{
		"TLS 1.2 TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 ecdsa.localhost ECDHE",
		"TLS 1.2 TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 rsa.localhost ECDHE",
		"TLS 1.2 TLS_RSA_WITH_AES_128_GCM_SHA256 rsa.localhost RSA",
		"TLS 1.2 TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 split.ecdsa.localhost ECDHE-PMS",
		"TLS 1.2 TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 split.rsa.localhost ECDHE-PMS",
		"TLS 1.2 TLS_RSA_WITH_AES_128_GCM_SHA256 split.rsa.localhost RSA",
		"TLS 1.2 TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 split.ecdsa.localhost ECDHE-PMS",
		"TLS 1.2 TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 split.rsa.localhost ECDHE-PMS",
		"TLS 1.2 TLS_RSA_WITH_AES_128_GCM_SHA256 split.rsa.localhost RSA",
		"the same in the key logs of both ends yes, 14 of 14",
		"TLS 1.3 TLS_AES_128_GCM_SHA256 ecdsa.localhost ECDHE",
		"TLS 1.3 TLS_AES_128_GCM_SHA256 rsa.localhost ECDHE",
	} {
		assert.Contains(t, strings.Join(strings.Fields(out), " "), row)
	}
	assert.Regexp(t, `the same in the key logs of both ends +yes, (\d+) of `, out)
	assert.NotContains(t, out, "FOUND")
	if os.Geteuid() == 0 {
		assert.Contains(t, out, "found, as it must be", "the search of a process's memory works")
		assert.NotContains(t, out, "not checked")
	}
}

// With the sites' keys on a token that does not give them away, and the key
// server in its sandbox.
func TestDemoWithKeysOnAToken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	out, all, status := run(t, "", filepath.Join(bin, "skictl"), "demo", "--hsm", "--dir", dir)
	require.Zero(t, status, all)
	assert.NotContains(t, out, "FAILED")
	for _, method := range []string{" ECDHE ", " RSA ", "TLS 1.3 "} {
		assert.Contains(t, out, method)
	}
	assert.Equal(t, 2, strings.Count(out, "never was and cannot be taken off the token"), out)
	keys, err := os.ReadDir(filepath.Join(dir, "keyserver", "keys"))
	require.NoError(t, err)
	assert.Empty(t, keys)
	log, err := os.ReadFile(filepath.Join(dir, "keyserver", "keyserver.log"))
	require.NoError(t, err)
	assert.NotContains(t, string(log), "level=ERROR")
	assert.Contains(t, string(log), "sandbox")
	audit, err := os.ReadFile(filepath.Join(dir, "keyserver", "audit.log"))
	require.NoError(t, err)
	assert.Contains(t, string(audit), `"premaster_secret":"correct"`)
}

// client is a TLS client that never resumes: each connection needs the key
// server.
func (d *devSetup) handshake(ctx context.Context, site string) error {
	ca, err := os.ReadFile(d.endpoints.CA)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: site}}
	conn, err := dialer.DialContext(ctx, "tcp", d.edgeAddr())
	if err != nil {
		return err
	}
	return conn.Close()
}

func TestConcurrentHandshakesShareOneDTLSSession(t *testing.T) {
	d := startDev(t)
	const n = 200
	before := len(d.requests())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- d.handshake(ctx, d.endpoints.Sites[i%2].Name) }()
	}
	for range n {
		require.NoError(t, <-errs)
	}
	assert.Equal(t, 1, strings.Count(d.read("keyserver/keyserver.log"), `msg="session begins"`))
	assert.Equal(t, n, len(d.requests())-before, "a record for each")
}

func TestAKilledKeyServerCostsHandshakesOnlyWhileItIsGone(t *testing.T) {
	d := startDev(t)
	var succeeded, failed atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				if err := d.handshake(context.Background(), "ecdsa.localhost"); err != nil {
					assert.ErrorContains(t, err, "remote error: tls:", "an alert, and not the end of the handshake's time")
					failed.Add(1)
				} else {
					succeeded.Add(1)
				}
			}
		})
	}
	reached := func(n int64) {
		t.Helper()
		require.Eventually(t, func() bool { return succeeded.Load() >= n }, time.Minute, 10*time.Millisecond)
	}
	reached(50)
	require.NoError(t, syscall.Kill(d.endpoints.PIDs.KeyServer, syscall.SIGKILL))
	require.Eventually(t, func() bool { return failed.Load() > 0 }, time.Minute, time.Millisecond)

	keyServer := exec.Command(filepath.Join(bin, "ski-keyserver"), "-config", filepath.Join(d.dir, "keyserver/keyserver.yaml"))
	stderr, err := keyServer.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, keyServer.Start())
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "msg=listening ") {
	}
	go func() { _, _ = io.Copy(io.Discard, stderr) }()
	reached(succeeded.Load() + 1)
	reached(succeeded.Load() + 50)
	cancel()
	load.Wait()
	require.NoError(t, keyServer.Process.Signal(os.Interrupt))
	require.NoError(t, keyServer.Wait())
}

// hold stops a process, and returns when none of its threads runs any more: on a
// busy machine they do for a moment.
func hold(t *testing.T, pid int) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	require.Eventually(t, func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		require.NoError(t, err)
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			if _, state, _ := strings.Cut(string(stat), ") "); err != nil || !strings.HasPrefix(state, "T") {
				return false
			}
		}
		return len(threads) > 0
	}, time.Minute, time.Millisecond)
}

// A key server that hangs, unlike one that is gone, leaves nobody to say that
// nobody listens.
func TestASilentKeyServerCostsHandshakesOnlyWhileItIsSilent(t *testing.T) {
	d := startDev(t)
	require.NoError(t, d.handshake(t.Context(), "rsa.localhost"))
	t.Cleanup(func() { _ = syscall.Kill(d.endpoints.PIDs.KeyServer, syscall.SIGCONT) }) // or it would not stop
	hold(t, d.endpoints.PIDs.KeyServer)
	assert.ErrorContains(t, d.handshake(t.Context(), "rsa.localhost"), "remote error: tls: internal error")
	require.NoError(t, syscall.Kill(d.endpoints.PIDs.KeyServer, syscall.SIGCONT))
	require.Eventually(t, func() bool { return d.handshake(t.Context(), "rsa.localhost") == nil }, time.Minute, 50*time.Millisecond)
}

func TestSkictlRequestTellsAnAnswerFromAnError(t *testing.T) {
	d := startDev(t)
	ask := func(args ...string) (string, string, int) {
		return d.skictl(append([]string{
			"request", "--endpoint", d.endpoints.KeyServer.CoAPS,
			"--cert", d.endpoints.EdgeCert, "--key", d.endpoints.EdgeKey, "--ca", d.endpoints.KeyServerCA,
		}, args...)...)
	}
	spki := "@" + d.endpoints.Sites[0].Cert
	input := ecdheInput

	out, all, status := ask("--protocol", "TLS 1.2", "--method", "ECDHE", "--hash", "SHA-256", "--spki", spki, "--input", input)
	require.Zero(t, status, all)
	assert.Contains(t, out, `"output":"30`, "a DER signature in hex")

	_, all, status = ask("--diag", "--protocol", "TLS 1.2", "--hash", "SHA-256", "--spki", spki, "--input", input)
	require.Zero(t, status, all)
	assert.Contains(t, all, `"protocol": "TLS 1.2"`, "diagnostic notation")

	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"unknown key": {[]string{"--protocol", "TLS 1.2", "--hash", "SHA-256", "--spki", strings.Repeat("00", 32), "--input", input}, "spki not found"},
		"not granted": {[]string{"--protocol", "TLS 1.2", "--method", "RSA", "--spki", spki, "--input", input}, "request denied"},
		"cut short":   {[]string{"--protocol", "TLS 1.2", "--hash", "SHA-256", "--spki", spki, "--input", input[:len(input)-2]}, "malformed request"},
		"bare digest": {[]string{"--protocol", "TLS 1.2", "--hash", "SHA-256", "--spki", spki, "--input", strings.Repeat("aa", 32)}, "malformed request"},
	} {
		t.Run(name, func(t *testing.T) {
			out, all, status := ask(tc.args...)
			assert.Equal(t, 3, status, all)
			assert.Contains(t, out, `{"error":"`+tc.want+`"}`)
		})
	}
	// What is too large is audited like anything else that is malformed.
	before := len(d.requests())
	out, all, status = ask("--raw", strings.Repeat("00", ski.MaxMessageSize+1))
	assert.Equal(t, 3, status, all)
	assert.Contains(t, out, `{"error":"malformed request"}`)
	require.Len(t, d.requests(), before+1)
	assert.Contains(t, d.requests()[before], "it has more than 4096 bytes")

	_, all, status = d.skictl("request", "--endpoint", "coaps://127.0.0.1:9/ski",
		"--cert", d.endpoints.EdgeCert, "--key", d.endpoints.EdgeKey, "--ca", d.endpoints.KeyServerCA,
		"--protocol", "TLS 1.2", "--hash", "SHA-256", "--spki", spki, "--input", input, "--timeout", "1s")
	assert.Equal(t, 1, status, all)
}

func TestAnOpenSSLClientThatIsNotAuthenticatedGetsNoSession(t *testing.T) {
	d := startDev(t)
	devCA, otherCA := filepath.Join(d.dir, "pki/ca"), filepath.Join(t.TempDir(), "pki")
	_, all, status := d.skictl("pki", "init", otherCA)
	require.Zero(t, status, all)
	with := func(file string) []string { return []string{"-cert", file + ".pem", "-key", file + ".key"} }

	logged := func(before int, part string) {
		t.Helper()
		require.Eventually(t, func() bool { return strings.Contains(d.read("keyserver/keyserver.log")[before:], part) }, time.Minute, 10*time.Millisecond, part)
	}
	logged(0, "session begins") // the edge server's own
	for name, tc := range map[string]struct {
		args []string
		why  string
	}{
		"without a certificate": {nil, "required client verification, but got none"},
		"of another authority":  {with(issueEdge(t, filepath.Join(otherCA, "ca"), time.Hour)), "unknown authority"},
		"expired":               {with(issueEdge(t, devCA, -time.Minute)), "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			text := d.read("keyserver/keyserver.log")
			before := strings.Count(text, "\n")
			_, out, status := run(t, "", "openssl", append([]string{
				"s_client", "-dtls1_2", "-connect", d.keyServerAddr(), "-CAfile", d.endpoints.KeyServerCA}, tc.args...)...)
			assert.NotZero(t, status, out)
			logged(len(text), "handshake failed") // which can be after the client's end
			// One that is let in afterwards has its lines after all of the other's.
			_, out, status = d.skictl("request", "--raw", "00", "--endpoint", d.endpoints.KeyServer.CoAPS,
				"--cert", d.endpoints.EdgeCert, "--key", d.endpoints.EdgeKey, "--ca", d.endpoints.KeyServerCA)
			require.Equal(t, 3, status, out)
			var lines []string
			require.Eventually(t, func() bool {
				lines = strings.Split(strings.TrimSpace(d.read("keyserver/keyserver.log")), "\n")[before:]
				return len(lines) > 0 && strings.Contains(lines[len(lines)-1], "session ends")
			}, time.Minute, 10*time.Millisecond)
			require.Len(t, lines, 3, "one line for the refusal, two for the session: %s", lines)
			assert.Contains(t, lines[0], "handshake failed")
			assert.Contains(t, lines[0], tc.why)
		})
	}
}

// issueEdge makes a certificate of the dev set-up's edge by the authority in
// ca.pem and ca.key, which ends after life, and returns its files without
// their endings.
func issueEdge(t *testing.T, ca string, life time.Duration) string {
	t.Helper()
	authority, err := tls.LoadX509KeyPair(ca+".pem", ca+".key")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		DNSNames: []string{"edge.ski.internal"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, authority.Leaf, key.Public(), authority.PrivateKey)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "edge")
	require.NoError(t, os.WriteFile(file+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(file+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return file
}

// The names in endpoints.json are what other programs look for.
func TestEndpointsHaveTheirNames(t *testing.T) {
	d := startDev(t)
	var all map[string]any
	require.NoError(t, json.Unmarshal([]byte(d.read("endpoints.json")), &all))
	var names func(prefix string, v any) []string
	names = func(prefix string, v any) (found []string) {
		switch v := v.(type) {
		case map[string]any:
			for name, v := range v {
				found = append(found, names(prefix+"."+name, v)...)
			}
		case []any:
			return names(prefix+"[]", v[0])
		default:
			return []string{prefix[1:]}
		}
		return found
	}
	assert.ElementsMatch(t, []string{
		"keyserver.coaps", "keyserver.coaps+tcp", "keyserver.https", "edge.https", "ca", "edge_cert", "edge_key", "keyserver_ca", "edge_psk",
		"sites[].name", "sites[].cert", "sites[].spki", "pids.keyserver", "pids.edge",
	}, names("", all))
}
