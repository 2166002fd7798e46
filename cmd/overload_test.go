package cmd_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
	"github.com/tlsski/tlsski/ski/skihttp"
)

// startDaemon starts a program with a configuration and returns what the patterns
// find in its log, once each does, and the log as it is then. The program is killed
// with the test.
func startDaemon(t *testing.T, program, config string, patterns ...string) (found []string, log func() string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "log")
	stderr, err := os.Create(file)
	require.NoError(t, err)
	defer stderr.Close()
	cmd := exec.Command(filepath.Join(bin, program), "-config", config)
	cmd.Stderr = stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { // It may have a thousand requests that it would answer first.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	log = func() string {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		return string(data)
	}
	for _, pattern := range patterns {
		require.Eventually(t, func() bool {
			m := regexp.MustCompile(pattern).FindStringSubmatch(log())
			if m != nil {
				found = append(found, m[1])
			}
			return m != nil
		}, time.Minute, 5*time.Millisecond, pattern)
	}
	return found, log
}

// startSecondKeyServer starts a key server beside that of skictl dev, with the same
// keys, these lines in its configuration and a policy of its own, and returns its
// URLs.
func (d *devSetup) startSecondKeyServer(lines, policy string) (coaps, coapsTCP, https string) {
	d.t.Helper()
	config := regexp.MustCompile(`(?m)^(listen|coaps_tcp|https): .*$`).ReplaceAllString(d.read("keyserver/keyserver.yaml"), `$1: "127.0.0.1:0"`)
	config = strings.NewReplacer("audit.log", "second.log", "policy.yaml", "second-policy.yaml").Replace(config)
	file := filepath.Join(d.dir, "keyserver", "second.yaml")
	require.NoError(d.t, os.WriteFile(file, []byte(config+lines), 0o600))
	require.NoError(d.t, os.WriteFile(filepath.Join(d.dir, "keyserver", "second-policy.yaml"), []byte(policy), 0o600))
	addrs, _ := startDaemon(d.t, "ski-keyserver", file, `msg=listening addr=(\S+)`, `msg="listening for CoAP over TLS" addr=(\S+)`, `msg="listening over HTTPS" addr=(\S+)`)
	return "coaps://" + addrs[0] + "/ski", "coaps+tcp://" + addrs[1] + "/ski", "https://" + addrs[2] + "/ski"
}

// A burst of handshakes is served whole, whatever their number, if it can be in the
// time that the edge gives a request: with a key server that may take as long as
// that, on the slowest machine.
func TestABurstOfRSAHandshakesIsServedWhole(t *testing.T) {
	d := startDev(t)
	coaps, coapsTCP, https := d.startSecondKeyServer("max_wait: 2m\nrsa_workers: 1\n", d.read("keyserver/policy.yaml"))
	for _, url := range []string{coaps, coapsTCP, https} {
		assert.Zero(t, d.burst(d.startEdge("url: "+url+"\n  timeout: 2m"), 500), url)
	}
}

// The embedded key server has no other beside it, and the same queue. The bursts are
// smaller, since its edge gives a request 5 s whatever the machine: one that takes a
// busy machine longer says nothing.
func TestABurstOfRSAHandshakesIsServedByAnEmbeddedKeyServer(t *testing.T) {
	d := startDev(t)
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(d.dir, "edge", name), []byte(text), 0o600))
	}
	write("policy.yaml", regexp.MustCompile(`(?m)^    dns: .*\n    psk: .*$`).ReplaceAllString(d.read("keyserver/policy.yaml"), `    uri: ["tlsski:embedded"]`))
	write("embedded.yaml", "keys: ../keyserver/keys\npolicy: policy.yaml\naudit: {file: embedded.log}\nmax_wait: 2m\nrsa_workers: 1\n")
	config := regexp.MustCompile(`(?m)^keyserver:\n(  .*\n)+`).ReplaceAllString(d.read("edge/edge.yaml"), "keyserver: embedded\nembedded: embedded.yaml\n")
	write("own.yaml", strings.ReplaceAll(config, d.edgeAddr(), "127.0.0.1:0"))
	addrs, _ := startDaemon(t, "ski-edgeserver-embedded", filepath.Join(d.dir, "edge", "own.yaml"), `msg=listening addr=(\S+)`)
	failed, took := int64(1), ski.DefaultTimeout
	for range 10 {
		if failed == 0 || took < ski.DefaultTimeout {
			break
		}
		began := time.Now()
		failed = d.burst(addrs[0], 200)
		took = time.Since(began)
	}
	assert.Zero(t, failed, took)
}

// burst has so many clients, of each kind that needs RSA, begin a handshake with an
// edge server at once, and returns for how many it fails.
func (d *devSetup) burst(edge string, clients int) (failed int64) {
	d.t.Helper()
	ca, err := os.ReadFile(d.endpoints.CA)
	require.NoError(d.t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	staticRSA := []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
	kinds := []*tls.Config{
		{ServerName: "rsa.localhost", MaxVersion: tls.VersionTLS12},
		{ServerName: "rsa.localhost"},
		{ServerName: "rsa.localhost", MaxVersion: tls.VersionTLS12, CipherSuites: staticRSA},
		{ServerName: "split.rsa.localhost", MaxVersion: tls.VersionTLS12},
		{ServerName: "split.rsa.localhost", MaxVersion: tls.VersionTLS12, CipherSuites: staticRSA},
	}
	conns := make([]net.Conn, clients)
	for i := range conns {
		conns[i], err = net.Dial("tcp", edge)
		require.NoError(d.t, err)
		defer conns[i].Close()
	}
	begin := make(chan struct{})
	var all sync.WaitGroup
	var failures atomic.Int64
	for i, conn := range conns {
		c := kinds[i%len(kinds)].Clone()
		c.RootCAs = roots
		all.Go(func() {
			<-begin
			if err := tls.Client(conn, c).Handshake(); err != nil && failures.Add(1) < 5 {
				d.t.Logf("%s %v: %v", c.ServerName, c.CipherSuites, err)
			}
		})
	}
	close(begin)
	all.Wait()
	return failures.Load()
}

// decryption asks for a decryption with the RSA key, each of another input.
func (d *devSetup) decryption() *ski.Request {
	input := make([]byte, 256)
	_, _ = rand.Read(input[1:]) // below the modulus
	return &ski.Request{Protocol: ski.TLS12, SPKI: d.endpoints.Sites[1].SPKI, Method: ski.MethodRSA, Input: input}
}

// closingTransport is a client of a binding.
type closingTransport interface {
	ski.Transport
	io.Closer
}

func TestOverloadIsToldOverEachBinding(t *testing.T) {
	d := startDev(t)
	coaps, coapsTCP, https := d.startSecondKeyServer("max_wait: 1ms\nrsa_workers: 1\n", d.read("keyserver/policy.yaml"))
	identity, roots := d.edgeIdentity()
	signature := d.requestsOfAllLengths()["ECDHE with ECDSA"]
	urls := []string{coaps, coapsTCP, https}
	for _, url := range urls {
		var c closingTransport
		var err error
		if url == https {
			c, err = skihttp.NewClient(url, skihttp.ClientConfig{Certificate: identity, RootCAs: roots})
		} else {
			c, err = skicoap.NewClient(url, skicoap.ClientConfig{Certificate: identity, RootCAs: roots})
		}
		require.NoError(t, err)
		defer c.Close()
		var served, overloaded atomic.Int64
		// A burst that a busy machine sends slowly may overload nobody.
		for bursts := 0; bursts < 100 && !t.Failed() && (served.Load() == 0 || overloaded.Load() == 0); bursts++ {
			var all sync.WaitGroup
			for range 100 {
				all.Go(func() {
					resp, err := c.RoundTrip(t.Context(), d.decryption())
					switch {
					case !assert.NoError(t, err):
					case resp.Overloaded:
						assert.Equal(t, ski.Busy(time.Second), resp)
						overloaded.Add(1)
					default:
						assert.Empty(t, resp.Error)
						served.Add(1)
					}
				})
			}
			all.Wait()
		}
		assert.Positive(t, served.Load(), url)
		assert.Positive(t, overloaded.Load(), url)
		// A signature with another key waits for nothing.
		resp, err := c.RoundTrip(t.Context(), signature(1+slices.Index(urls, url)))
		require.NoError(t, err)
		assert.Empty(t, resp.Error)
	}
	require.Eventually(t, func() bool { return strings.Contains(d.read("keyserver/second.log"), `"refused":{"server":`) },
		time.Minute, 10*time.Millisecond, "the audit log has their number")
}

// While one edge's thousands of operations wait, each of another's is the next but
// one.
func TestOneEdgesBurstLeavesAnothersHandshakesAnswered(t *testing.T) {
	d := startDev(t)
	policy := strings.Replace(d.read("keyserver/policy.yaml"), "    psk: [edge.ski.internal]\n", "  - name: modest\n    psk: [edge.ski.internal]\n", 1)
	policy = strings.ReplaceAll(policy, "[edge]", "[edge, modest]") + "limits: {edge: {in_flight: 4000}}\ndetectors: {rsa-failures: {action: off}}\n"
	coaps, _, _ := d.startSecondKeyServer("max_wait: 2m\nrsa_workers: 1\n", policy)
	identity, roots := d.edgeIdentity()
	data, err := os.ReadFile(d.endpoints.EdgePSK)
	require.NoError(t, err)
	psks, err := ski.ParsePSKs(d.endpoints.EdgePSK, data)
	require.NoError(t, err)

	greedy, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer flood.Wait()
	defer stop()
	var served atomic.Int64
	const sessions, each = 4, 512
	for range sessions {
		c, err := skicoap.NewClient(coaps, skicoap.ClientConfig{Certificate: identity, RootCAs: roots})
		require.NoError(t, err)
		defer c.Close()
		for range each {
			flood.Go(func() {
				for greedy.Err() == nil {
					if resp, err := c.RoundTrip(greedy, d.decryption()); err == nil && resp.Error == "" {
						served.Add(1)
					}
				}
			})
		}
	}
	modest, err := skicoap.NewClient(coaps, skicoap.ClientConfig{PSK: &psks[0]})
	require.NoError(t, err)
	defer modest.Close()
	defer stop() // before the others are closed, of which those who ask would take no notice
	require.Eventually(t, func() bool { return served.Load() >= 50 }, time.Minute, time.Millisecond)
	var between []int64
	for range 50 {
		before := served.Load()
		resp, err := modest.RoundTrip(t.Context(), d.decryption())
		require.NoError(t, err)
		require.Empty(t, resp.Error)
		between = append(between, served.Load()-before)
	}
	var sum int64
	for _, n := range between {
		sum += n
	}
	// With one queue for all it would be thousands; some are answered while this
	// process does not get to look.
	assert.Less(t, sum/int64(len(between)), int64(100), fmt.Sprint(between))
}

// The key server that is always overloaded is asked first whenever a second has
// passed, and each time the other has the answer. It is no key server that does not
// answer.
func TestAnOverloadedKeyServerBesideAnotherCostsNoHandshake(t *testing.T) {
	c := newConformanceSetup(t)
	require.NoError(t, os.Mkdir(c.path("site"), 0o755))
	for _, scheme := range []string{"coaps", "https"} {
		urls := ""
		for _, fault := range []string{"overloaded", "none"} {
			_, addr := c.start("listening ", "skictl", append([]string{"conformance", "--listen", scheme + "://127.0.0.1:0",
				"--keys", c.path("keys/ecdsa.pem"), "--fault", fault}, c.channel("ks")...)...)
			urls += fmt.Sprintf("%q, ", scheme+"://"+addr+"/ski")
		}
		c.write("edge.yaml", `
listen: ["127.0.0.1:0"]
metrics: 127.0.0.1:0
keyserver: {urls: [`+urls+`], certificate: edge.pem, key: edge.key, ca: pki/ca.pem}
sites:
  - {names: [ecdsa.test], certificates: [ecdsa.crt], static: site}
`)
		addrs, log := startDaemon(t, "ski-edgeserver", c.path("edge.yaml"), `msg=listening addr=(\S+)`, `msg=metrics addr=(\S+)`)
		pem, err := os.ReadFile(c.path("ecdsa.crt"))
		require.NoError(t, err)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		metrics := func() string {
			_, all, _ := run(t, "", "curl", "-sS", "http://"+addrs[1]+"/metrics")
			return all
		}
		retried := regexp.MustCompile(`ski_attempts_total\{.*kind="retry",outcome="(output|malformed request)"\} ([2-9]|\d\d)`)
		require.Eventually(t, func() bool {
			conn, err := tls.Dial("tcp", addrs[0], &tls.Config{RootCAs: roots, ServerName: "ecdsa.test"})
			if assert.NoError(t, err) {
				conn.Close()
			}
			return t.Failed() || retried.MatchString(metrics())
		}, time.Minute, 20*time.Millisecond)
		assert.Contains(t, metrics(), `kind="first",outcome="overloaded"`)
		assert.NotRegexp(t, `ski_edgeserver_ski_answers\{.*\} 0`, metrics())
		_, ready, _ := run(t, "", "curl", "-sS", "http://"+addrs[1]+"/readyz", "-o", "/dev/null", "-w", "%{http_code}")
		assert.Equal(t, "200", ready)
		assert.NotContains(t, log(), "the key server does not answer")
	}
}
