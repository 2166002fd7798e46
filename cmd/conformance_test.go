package cmd_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski/skitest"
)

// conformanceSetup is a folder with what both roles need.
type conformanceSetup struct {
	t   *testing.T
	dir string
}

func newConformanceSetup(t *testing.T) *conformanceSetup {
	c := &conformanceSetup{t, t.TempDir()}
	skictl := filepath.Join(bin, "skictl")
	c.must(skictl, "pki", "init", c.path("pki"))
	c.must(skictl, "pki", "issue", "--ca", c.path("pki"), "--role", "keyserver", "--name", "ks", "--ip", "127.0.0.1", "--out", c.path("ks"))
	c.must(skictl, "pki", "issue", "--ca", c.path("pki"), "--role", "edge", "--name", "edge", "--dns", "edge.test", "--out", c.path("edge"))
	require.NoError(t, os.Mkdir(c.path("keys"), 0o700))
	for name, algorithm := range map[string][]string{
		"ecdsa":   {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
		"rsa":     {"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"},
		"ed25519": {"-algorithm", "ED25519"},
		"denied":  {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
	} {
		key := c.path("keys/" + name + ".pem")
		c.must("openssl", append([]string{"genpkey", "-out", key}, algorithm...)...)
		require.NoError(t, os.Chmod(key, 0o600))
		c.must("openssl", "req", "-x509", "-new", "-key", key, "-subj", "/CN="+name+".test",
			"-addext", "subjectAltName=DNS:"+name+".test", "-days", "2", "-out", c.path(name+".crt"))
	}
	c.write("policy.yaml", `
edges:
  - {name: edge, dns: [edge.test], psk: [edge.psk.test]}
rules:
  - {edges: [edge], keys: [ecdsa, ed25519], methods: [ECDHE, ECDHE-PMS], groups: [secp256r1, secp384r1, secp521r1, x25519]}
  - {edges: [edge], keys: [rsa], methods: [ECDHE, ECDHE-PMS, DHE, RSA],
     groups: [secp256r1, secp384r1, secp521r1, x25519, ffdhe2048, ffdhe4096, modp_2048]}
`)
	c.must(skictl, "psk", "generate", "edge.psk.test", "--out", c.path("edge.psk"))
	return c
}

func (c *conformanceSetup) path(name string) string { return filepath.Join(c.dir, name) }

func (c *conformanceSetup) write(name, text string) {
	c.t.Helper()
	require.NoError(c.t, os.WriteFile(c.path(name), []byte(text), 0o600))
}

func (c *conformanceSetup) must(name string, args ...string) {
	c.t.Helper()
	_, all, status := run(c.t, "", name, args...)
	require.Zero(c.t, status, all)
}

// start starts a program, and returns the address after word on the first line
// of its standard error that has it, and a channel with that output's end.
func (c *conformanceSetup) start(word, program string, args ...string) (cmd *exec.Cmd, addr string) {
	c.t.Helper()
	cmd = exec.Command(filepath.Join(bin, program), args...)
	stderr, err := cmd.StderrPipe()
	require.NoError(c.t, err)
	require.NoError(c.t, cmd.Start())
	lines := bufio.NewScanner(stderr)
	var seen []string
	for addr == "" && lines.Scan() {
		seen = append(seen, lines.Text())
		if _, after, ok := strings.Cut(lines.Text(), word); ok {
			addr, _, _ = strings.Cut(after, " ")
		}
	}
	require.NotEmpty(c.t, addr, strings.Join(seen, "\n"))
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for lines.Scan() {
		}
	}()
	c.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Signal(os.Interrupt)
		}
		<-drained
		_ = cmd.Wait()
	})
	return cmd, addr
}

func (c *conformanceSetup) channel(who string) []string {
	return []string{"--cert", c.path(who + ".pem"), "--key", c.path(who + ".key"), "--ca", c.path("pki/ca.pem")}
}

type conformanceReport struct {
	Passed, Failed, Skipped int
	Results                 []struct{ Name, Outcome, Reason, Section, Rule string }
}

// conformance tests a key server. Without --psk-file it is asked with the edge's
// certificate.
func (c *conformanceSetup) conformance(endpoint string, args ...string) (conformanceReport, int) {
	c.t.Helper()
	args = append([]string{"conformance", "--json", "--endpoint", endpoint}, args...)
	if !slices.Contains(args, "--psk-file") {
		args = append(args, c.channel("edge")...)
	}
	out, all, status := run(c.t, "", filepath.Join(bin, "skictl"), args...)
	var r conformanceReport
	require.NoError(c.t, json.Unmarshal([]byte(out), &r), all)
	return r, status
}

// bindingsUnderTest are those that ski-keyserver speaks: how they are
// configured, what it says when it listens, and how it is reached.
var bindingsUnderTest = []struct{ name, config, listening, url string }{
	{"CoAP over DTLS", "", "msg=listening addr=", "coaps://%s/ski"},
	{"CoAP over DTLS with a pre-shared key", "psk: edge.psk", "msg=listening addr=", "coaps://%s/ski"},
	{"CoAP over TLS", "coaps_tcp: 127.0.0.1:0", `msg="listening for CoAP over TLS" addr=`, "coaps+tcp://%s/ski"},
	{"HTTPS", "https: 127.0.0.1:0", `msg="listening over HTTPS" addr=`, "https://%s/ski"},
}

func TestOurKeyServerConforms(t *testing.T) {
	shared := newConformanceSetup(t)
	for i, b := range bindingsUnderTest {
		for _, failure := range []string{"random", "error"} {
			t.Run(b.name+" rsa_failure "+failure, func(t *testing.T) {
				t.Parallel()
				c := &conformanceSetup{t, shared.dir}
				config := fmt.Sprintf("keyserver-%d-%s.yaml", i, failure)
				c.write(config, `
listen: 127.0.0.1:0
certificate: ks.pem
key: ks.key
client_ca: pki/ca.pem
keys: keys
policy: policy.yaml
audit: {file: audit-`+config+`.log}
rsa_failure: `+failure+"\n"+b.config+"\n")
				_, addr := c.start(b.listening, "ski-keyserver", "-config", c.path(config))
				args := []string{"--rsa-failure", failure, "--denied", c.path("denied.crt"),
					"--keys", strings.Join([]string{c.path("ecdsa.crt"), c.path("rsa.crt"), c.path("ed25519.crt")}, ",")}
				skipped := []string{"rsa_failure", "patience"} // and nothing else is left out
				if strings.HasPrefix(b.config, "psk") {
					args = append(args, "--psk-file", c.path("edge.psk"))
					skipped = append(skipped, "without a certificate")
				}
				if !strings.HasPrefix(b.url, "coaps") {
					skipped = append(skipped, "the CoAP binding")
				}
				r, status := c.conformance(fmt.Sprintf(b.url, addr), args...)
				for _, res := range r.Results {
					assert.NotEqual(t, "fail", res.Outcome, "%s (%s): %s: %s", res.Name, res.Section, res.Rule, res.Reason)
					if res.Outcome == "skip" {
						assert.True(t, slices.ContainsFunc(skipped, func(need string) bool { return strings.Contains(res.Reason, need) }),
							"%s is left out: %s", res.Name, res.Reason)
					}
				}
				assert.Zero(t, status)
				assert.Greater(t, r.Passed, 400)
			})
		}
	}
}

// A key server with a fault fails the cases that are about it, and no key server
// at all is not a number of failures.
func TestTheConformanceSuiteFindsFaults(t *testing.T) {
	c := newConformanceSetup(t)
	for _, scheme := range []string{"coaps", "coaps+tcp", "https"} {
		for _, tc := range []struct{ fault, name string }{
			{"wrong-signature", "cbor/ecdhe/ecdsa-sha-256"},
			{"truncated-cbor", "cbor/ecdhe/ecdsa-sha-256"},
			{"trailing-byte", "json/attributes/spki-missing"},
			{"output-and-error", "json/attributes/spki-missing"},
			{"error-in-2.04", "cbor/binding/code-not-found"},
			{"none", "cbor/ecdhe/point-off-curve"}, // whose KeyServer checks nothing
		} {
			t.Run(scheme+" "+tc.fault, func(t *testing.T) {
				cc := *c
				cc.t = t
				_, addr := cc.start("listening ", "skictl", append([]string{"conformance", "--listen", scheme + "://127.0.0.1:0",
					"--keys", c.path("keys/ecdsa.pem"), "--fault", tc.fault}, c.channel("ks")...)...)
				r, status := cc.conformance(scheme+"://"+addr, "--keys", c.path("ecdsa.crt"), "--skip", "channel,encoding,tls13")
				outcomes := map[string]string{}
				for _, res := range r.Results {
					outcomes[res.Name] = res.Outcome
				}
				assert.Equal(t, "fail", outcomes[tc.name])
				assert.Equal(t, "skip", outcomes["cbor/tls13/ecdsa"])
				assert.Equal(t, min(r.Failed, 100), status)
				if tc.fault == "none" {
					assert.Equal(t, "pass", outcomes["cbor/ecdhe/ecdsa-sha-256"], "what it does right, passes")
				}
			})
		}
	}
	_, all, status := run(t, "", filepath.Join(bin, "skictl"), append([]string{"conformance", "--endpoint", "coaps://127.0.0.1:1"}, c.channel("edge")...)...)
	assert.Equal(t, 101, status, all)
}

// timeoutWith is what an edge server gives a key server with a fault: no answer ends
// soon, and any other has its time on a busy machine.
func timeoutWith(fault string) string {
	switch fault {
	case "silent", "other-token", "too-large":
		return "5s"
	}
	return "30s"
}

// Our edge server asks as it must, and a fault in an answer ends the handshake
// and not the edge server.
func TestOurEdgeServerConforms(t *testing.T) {
	shared := newConformanceSetup(t)
	require.NoError(t, os.Mkdir(shared.path("site"), 0o755))
	for _, tc := range []struct {
		fault     string
		handshake bool
	}{
		{"none", true},
		{"unknown-attribute", true},
		{"slow", true},
		{"request-denied", false},
		{"error-in-2.04", false},
		{"overloaded", false},
		{"truncated-cbor", false},
		{"trailing-byte", false},
		{"output-and-error", false},
		{"neither", false},
		{"output-twice", false},
		{"unknown-error", false},
		{"other-format", false},
		{"not-ski", false},
		{"empty", false},
		{"code-alone", false},
		{"too-large", false},
		{"wrong-signature", false},
		{"other-answer", false},
		{"other-token", false},
		{"silent", false},
	} {
		t.Run(tc.fault, func(t *testing.T) {
			t.Parallel()
			c := &conformanceSetup{t, shared.dir}
			reportsFile, config := filepath.Join(t.TempDir(), "reports"), "edge-"+tc.fault+".yaml"
			listener := exec.Command(filepath.Join(bin, "skictl"), append([]string{"conformance", "--json", "--listen", "127.0.0.1:0",
				"--keys", c.path("keys/ecdsa.pem"), "--fault", tc.fault, "--delay", "200ms"}, c.channel("ks")...)...)
			out, err := os.Create(reportsFile)
			require.NoError(t, err)
			listener.Stdout = out
			stderr, err := listener.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, listener.Start())
			line, err := bufio.NewReader(stderr).ReadString('\n')
			require.NoError(t, err)
			addr := strings.TrimSpace(strings.TrimPrefix(line, "listening "))

			c.write(config, `
listen: ["127.0.0.1:0"]
keyserver: {url: "coaps://`+addr+`/ski", certificate: edge.pem, key: edge.key, ca: pki/ca.pem, timeout: `+timeoutWith(tc.fault)+`}
sites:
  - {names: [ecdsa.test], certificates: [ecdsa.crt], static: site}
`)
			edge, edgeAddr := c.start("msg=listening addr=", "ski-edgeserver", "-config", c.path(config))
			for _, version := range []string{"-tls1_2", "-tls1_3"} {
				_, all, status := run(t, "", "openssl", "s_client", "-connect", edgeAddr, "-servername", "ecdsa.test", "-CAfile", c.path("ecdsa.crt"),
					"-verify_return_error", "-brief", version)
				assert.Equal(t, tc.handshake, status == 0, "%s: %s", version, all)
			}
			require.NoError(t, edge.Process.Signal(os.Interrupt), "the edge server still runs")
			require.NoError(t, listener.Process.Signal(os.Interrupt))
			assert.NoError(t, listener.Wait(), "no request has a violation")

			reports, err := os.ReadFile(reportsFile)
			require.NoError(t, err)
			lines := strings.Split(strings.TrimSpace(string(reports)), "\n")
			require.GreaterOrEqual(t, len(lines), 2)
			for _, line := range lines {
				var r struct {
					Violations []struct{ Rule, Found string }
					Fault      string
				}
				require.NoError(t, json.Unmarshal([]byte(line), &r))
				assert.Empty(t, r.Violations, line)
				assert.Equal(t, tc.fault, r.Fault)
			}
		})
	}
}

// With static RSA a TLS client sees the same alert whatever the key server says of
// its plaintext, over either binding and with either engine. Only no answer is
// another.
func TestOurEdgeServerTellsNothingOfAnswersToRSA(t *testing.T) {
	shared := newConformanceSetup(t)
	require.NoError(t, os.Mkdir(shared.path("site"), 0o755))
	shared.must("openssl", "req", "-x509", "-new", "-key", shared.path("keys/rsa.pem"), "-subj", "/CN=split.test",
		"-addext", "subjectAltName=DNS:split.test", "-days", "2", "-out", shared.path("split.crt"))
	faults := map[string]string{
		"none": "", "unknown-attribute": "",
		"silent": "alert internal error",
	}
	for _, fault := range skitest.EdgeFaults() {
		switch fault.Name {
		case "slow", "other-token", "wrong-signature", "other-answer": // as with ECDHE
		default:
			if _, ok := faults[fault.Name]; !ok {
				faults[fault.Name] = "alert bad record mac"
			}
		}
	}
	require.Contains(t, faults, "older-secret")
	for _, scheme := range []string{"coaps", "https"} {
		for fault, want := range faults {
			if scheme == "https" && fault == "silent" { // It resets the stream, which is an answer.
				want = "alert bad record mac"
			}
			t.Run(scheme+" "+fault, func(t *testing.T) {
				t.Parallel()
				c := &conformanceSetup{t, shared.dir}
				_, addr := c.start("listening ", "skictl", append([]string{"conformance", "--listen", scheme + "://127.0.0.1:0",
					"--keys", c.path("keys/rsa.pem"), "--fault", fault}, c.channel("ks")...)...)
				config := "rsa-" + scheme + "-" + fault + ".yaml"
				c.write(config, `
listen: ["127.0.0.1:0"]
keyserver: {url: "`+scheme+`://`+addr+`/ski", certificate: edge.pem, key: edge.key, ca: pki/ca.pem, timeout: `+timeoutWith(fault)+`}
sites:
  - {names: [rsa.test], certificates: [rsa.crt], static: site, static_rsa: true}
  - {names: [split.test], certificates: [split.crt], static: site, static_rsa: true, engine: split}
`)
				_, edge := c.start("msg=listening addr=", "ski-edgeserver", "-config", c.path(config))
				for _, site := range []string{"rsa", "split"} {
					_, all, status := run(t, "", "openssl", "s_client", "-connect", edge, "-servername", site+".test", "-CAfile", c.path(site+".crt"),
						"-verify_return_error", "-brief", "-tls1_2", "-cipher", "AES128-GCM-SHA256")
					if want == "" {
						assert.Zero(t, status, "%s: %s", site, all)
					} else {
						assert.NotZero(t, status, site)
						assert.Contains(t, all, want, site)
					}
				}
			})
		}
	}
}
