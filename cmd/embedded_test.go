package cmd_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
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
)

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// embeddedSetup is a folder with all that an edge server with an embedded key
// server needs, as docs/embedded.md makes it: the keys of ec.test and rsa.test
// are on a token.
type embeddedSetup struct {
	t   *testing.T
	dir string
}

const (
	embeddedKeyServerYAML = `hsm: {keys: [{uri: "URI"}], require_non_extractable: true, require_generated: true}
policy: policy.yaml
audit: {file: audit.log, required: true}
`
	embeddedPolicyYAML = `edges: [{name: edge-1, uri: ["tlsski:embedded"]}]
rules:
  - {edges: [edge-1], keys: [ec.test, rsa.test], methods: [ECDHE]}
  - {edges: [edge-1], keys: [rsa.test], methods: [RSA]}
`
	embeddedEdgeYAML = `listen: ["127.0.0.1:0"]
keyserver: embedded
embedded: keyserver.yaml
sites:
  - {names: [ec.test], certificates: [ec.test.pem], proxy: "ORIGIN"}
  - {names: [rsa.test], certificates: [rsa.test.pem], proxy: "ORIGIN", static_rsa: true}
metrics: 127.0.0.1:0
`
)

func newEmbedded(t *testing.T) *embeddedSetup {
	t.Helper()
	e := &embeddedSetup{t: t, dir: t.TempDir()}
	require.NoError(t, os.Chmod(e.dir, 0o700))
	require.NoError(t, os.Mkdir(e.at("tokens"), 0o700))
	e.write("softhsm2.conf", "directories.tokendir = "+e.at("tokens")+"\n")
	t.Setenv("SOFTHSM2_CONF", e.at("softhsm2.conf"))
	e.write("pin", "12345678\n")
	e.must("softhsm2-util", "--init-token", "--free", "--label", "site-keys", "--pin", "12345678", "--so-pin", "87654321")
	e.must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", e.at("ca.key"), "-out", e.at("ca.pem"), "-subj", "/CN=Test CA")
	for name, kind := range map[string]string{"ec.test": "ec-p256", "rsa.test": "rsa-2048"} {
		uri := e.uri(";object=" + name)
		e.must(filepath.Join(bin, "skictl"), "key", "generate", "--uri", uri, "--type", kind, "--usage",
			map[string]string{"ec.test": "sign", "rsa.test": "sign,decrypt"}[name])
		e.must(filepath.Join(bin, "skictl"), "key", "csr", "--uri", uri, "--dns", name, "--out", e.at(name+".csr"))
		e.must("openssl", "x509", "-req", "-in", e.at(name+".csr"), "-CA", e.at("ca.pem"), "-CAkey", e.at("ca.key"),
			"-copy_extensions", "copy", "-out", e.at(name+".pem"))
	}
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "the origin of", r.Host)
	}))
	t.Cleanup(origin.Close)
	e.write("keyserver.yaml", strings.Replace(embeddedKeyServerYAML, "URI", e.uri(""), 1))
	e.write("policy.yaml", embeddedPolicyYAML)
	e.write("edge.yaml", strings.ReplaceAll(embeddedEdgeYAML, "ORIGIN", origin.URL))
	return e
}

func (e *embeddedSetup) at(name string) string { return filepath.Join(e.dir, name) }

func (e *embeddedSetup) uri(attributes string) string {
	return "pkcs11:token=site-keys" + attributes + "?module-path=" + softHSM + "&pin-source=file:" + e.at("pin")
}

// write puts a file in the place of another.
func (e *embeddedSetup) write(name, content string) {
	e.t.Helper()
	require.NoError(e.t, os.WriteFile(e.at(name+".new"), []byte(content), 0o600))
	require.NoError(e.t, os.Rename(e.at(name+".new"), e.at(name)))
}

func (e *embeddedSetup) must(name string, args ...string) string {
	e.t.Helper()
	_, all, status := run(e.t, "", name, args...)
	require.Zero(e.t, status, "%s: %s", name, all)
	return all
}

func (e *embeddedSetup) check(program string) (all string, status int) {
	e.t.Helper()
	_, all, status = run(e.t, "", filepath.Join(bin, program), "-config", e.at("edge.yaml"), "-check")
	return all, status
}

// audit returns the requests of the audit log.
func (e *embeddedSetup) audit(file string) []map[string]any {
	e.t.Helper()
	data, err := os.ReadFile(e.at(file))
	require.NoError(e.t, err)
	var requests []map[string]any
	for line := range strings.Lines(string(data)) {
		var fields map[string]any
		require.NoError(e.t, json.Unmarshal([]byte(line), &fields))
		if fields["event"] == "request" {
			requests = append(requests, fields)
		}
	}
	return requests
}

// embeddedEdge is the process.
type embeddedEdge struct {
	*embeddedSetup
	cmd  *exec.Cmd
	log  *bufio.Reader
	seen strings.Builder
	addr string
}

func (e *embeddedSetup) start() *embeddedEdge {
	e.t.Helper()
	p := &embeddedEdge{embeddedSetup: e, cmd: exec.Command(filepath.Join(bin, "ski-edgeserver-embedded"), "-config", e.at("edge.yaml"))}
	stderr, err := p.cmd.StderrPipe()
	require.NoError(e.t, err)
	p.log = bufio.NewReader(stderr)
	require.NoError(e.t, p.cmd.Start())
	hung := time.AfterFunc(3*time.Minute, func() { _ = p.cmd.Process.Kill() }) // or until would wait for ever
	e.t.Cleanup(func() { hung.Stop(); _ = p.cmd.Process.Kill() })
	p.addr = p.until(`msg=listening addr=(\S+)`)[1]
	for _, site := range []string{"ec.test", "rsa.test"} { // which is in the audit log too
		p.until(`the key server has the key" site=` + site)
	}
	return p
}

// until returns the submatches of the first line of the log that matches.
func (p *embeddedEdge) until(pattern string) []string {
	p.t.Helper()
	expression := regexp.MustCompile(pattern)
	for {
		if match := expression.FindStringSubmatch(p.seen.String()); match != nil {
			return match
		}
		line, err := p.log.ReadString('\n')
		require.NoError(p.t, err, "no line matches %s:\n%s", pattern, &p.seen)
		p.seen.WriteString(line)
	}
}

func (p *embeddedEdge) signal(s os.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(s))
}

// stop ends the process and returns the exit status.
func (p *embeddedEdge) stop() int {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	p.until("msg=stopped")
	_, err := p.log.WriteTo(&p.seen)
	require.NoError(p.t, err)
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

// curl fetches a site's page over one version of TLS.
func (p *embeddedEdge) curl(site, version string) (all string, status int) {
	p.t.Helper()
	_, port, _ := strings.Cut(p.addr, ":")
	_, all, status = run(p.t, "", "curl", "-sS", "--cacert", p.at("ca.pem"), "--tlsv"+version, "--tls-max", version,
		"--resolve", site+":"+port+":127.0.0.1", "https://"+site+":"+port+"/")
	return all, status
}

func TestAnEdgeServerWithItsOwnKeyServerServesFromAToken(t *testing.T) {
	e := newEmbedded(t)
	assert.Regexp(t, `ec\.test +ec-p256 +sign +never `, e.must(filepath.Join(bin, "skictl"), "key", "list", "--uri", e.uri("")))
	p := e.start()
	for _, site := range []string{"ec.test", "rsa.test"} {
		for _, version := range []string{"1.2", "1.3"} {
			all, status := p.curl(site, version)
			assert.Zero(t, status, all)
			assert.Contains(t, all, "the origin of "+site)
		}
	}
	all := e.must("openssl", "s_client", "-connect", p.addr, "-servername", "rsa.test", "-CAfile", e.at("ca.pem"),
		"-verify_return_error", "-tls1_2", "-cipher", "AES128-GCM-SHA256", "-brief")
	assert.Contains(t, all, "Ciphersuite: AES128-GCM-SHA256")

	// Its key server is counted with it.
	metrics, addr := "", p.until(`msg=metrics addr=(\S+)`)[1]
	require.Eventually(t, func() bool { // A handshake is counted after the client's end.
		_, metrics, _ = run(t, "", "curl", "-sS", "http://"+addr+"/metrics")
		return strings.Contains(metrics, `ski_edgeserver_handshakes_total{cipher_suite="TLS_RSA_WITH_AES_128_GCM_SHA256"`)
	}, time.Minute, 10*time.Millisecond)
	assert.Contains(t, metrics, `ski_keyserver_requests_total{edge="edge-1",key="rsa.test",method="RSA",outcome="output"} 1`)
	assert.Contains(t, metrics, `ski_keyserver_token_up{`)
	assert.Contains(t, metrics, `ski_edgeserver_handshakes_total{cipher_suite="TLS_RSA_WITH_AES_128_GCM_SHA256",outcome="ok",resumed="false",site="rsa.test",version="TLS 1.2"} 1`)

	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.cmd.Process.Pid))
	require.NoError(t, err)
	assert.Regexp(t, `Max core file size +0 +0 `, string(limits))
	assert.Contains(t, p.seen.String(), "memory closed to other processes")

	// The audit log is moved away, as logrotate does, and goes on.
	require.NoError(t, os.Rename(e.at("audit.log"), e.at("audit.log.1")))
	p.signal(syscall.SIGHUP)
	p.until("audit log reopened")
	_, status := p.curl("ec.test", "1.3")
	assert.Zero(t, status)
	require.Zero(t, p.stop(), &p.seen)
	assert.NotContains(t, p.seen.String(), "level=ERROR")

	outputs := func(file string) (outputs []string) { // and not the probes that the configuration begins with
		for _, r := range e.audit(file) {
			assert.Equal(t, "edge-1", r["edge"])
			assert.NotContains(t, r, "address")
			if r["outcome"] == "output" {
				outputs = append(outputs, fmt.Sprint(r["key_name"], " ", r["protocol"], " ", r["method"]))
			}
		}
		return outputs
	}
	assert.ElementsMatch(t, []string{"ec.test TLS 1.2 ECDHE", "ec.test TLS 1.3 ECDHE", "rsa.test TLS 1.2 ECDHE",
		"rsa.test TLS 1.3 ECDHE", "rsa.test TLS 1.2 RSA"}, outputs("audit.log.1"))
	assert.Equal(t, []string{"ec.test TLS 1.3 ECDHE"}, outputs("audit.log"))
	assert.Contains(t, e.must(filepath.Join(bin, "skictl"), "audit", "verify", e.at("audit.log.1"), e.at("audit.log")), "nothing is missing or changed")
}

// A load balancer asks elsewhere while the token is away.
func TestAnEdgeServerIsNotReadyWhileItsTokenIsAway(t *testing.T) {
	e := newEmbedded(t)
	p := e.start()
	url := "http://" + p.until(`msg=metrics addr=(\S+)`)[1] + "/readyz"
	ready := func() string {
		resp, err := http.Get(url)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return fmt.Sprint(resp.StatusCode, " ", string(body))
	}
	require.Equal(t, "200 ok\n", ready())
	require.NoError(t, os.Rename(e.at("tokens"), e.at("away")))
	require.Eventually(t, func() bool {
		_, status := p.curl("ec.test", "1.3")
		return status != 0
	}, time.Minute, 10*time.Millisecond)
	require.Contains(t, ready(), "503 the embedded key server: no private key can be used: token ")
	require.NoError(t, os.Rename(e.at("away"), e.at("tokens")))
	require.Eventually(t, func() bool { return ready() == "200 ok\n" }, time.Minute, 20*time.Millisecond)
	all, status := p.curl("ec.test", "1.3")
	require.Zero(t, status, all)
	require.Zero(t, p.stop())
	require.Equal(t, 1, strings.Count(p.seen.String(), "an HSM does not work"), p.seen.String())
	require.Equal(t, 1, strings.Count(p.seen.String(), "an HSM works again"))
	require.NotContains(t, p.seen.String(), "operation failed")
}

func TestTheEmbeddedKeyServerObeysItsPolicy(t *testing.T) {
	e := newEmbedded(t)
	p := e.start()
	e.write("policy.yaml", strings.Replace(embeddedPolicyYAML, "[ec.test, rsa.test]", "[rsa.test]", 1))
	p.until(`msg="policy loaded"`)
	_, status := p.curl("ec.test", "1.3")
	assert.Equal(t, 35, status, "curl's code for a handshake that fails")
	p.until(`msg="handshake failed.*reason=denied`)
	_, status = p.curl("rsa.test", "1.3")
	assert.Zero(t, status)
	last := e.audit("audit.log")
	denied := last[len(last)-2]
	assert.Equal(t, "request denied", denied["outcome"])
	assert.Equal(t, "no rule grants the key", denied["reason"])

	// A policy with a fault in it changes nothing.
	e.write("policy.yaml", "rules: {}\n")
	p.until("policy refused, the one before stays")
	e.write("policy.yaml", embeddedPolicyYAML)
	p.signal(syscall.SIGHUP)
	p.until(`(?s)policy refused.*msg="policy loaded"`)
	all, status := p.curl("ec.test", "1.2")
	assert.Zero(t, status, all)
	require.Zero(t, p.stop(), &p.seen)
}

func TestTheEmbeddedKeyServerAnswersNothingThatItCannotRecord(t *testing.T) {
	e := newEmbedded(t)
	p := e.start()
	// The log's disk is full from now on.
	require.NoError(t, os.Remove(e.at("audit.log")))
	require.NoError(t, os.Symlink("/dev/full", e.at("audit.log")))
	p.signal(syscall.SIGHUP)
	p.until("msg=reload .*no space left on device")
	_, status := p.curl("ec.test", "1.3")
	assert.Equal(t, 35, status)
	p.until(`msg="handshake failed.*reason="unspecified error"`)
	assert.Zero(t, p.stop())
}

// The log is deleted while the process is stopped: it does not start before an
// operator has accepted that.
func TestTheEmbeddedKeyServerRefusesALogThatIsNotAsItWasLeft(t *testing.T) {
	e := newEmbedded(t)
	e.must(filepath.Join(bin, "skictl"), "audit", "keygen", e.at("audit"))
	config, err := os.ReadFile(e.at("keyserver.yaml"))
	require.NoError(t, err)
	e.write("keyserver.yaml", strings.Replace(string(config), "file: audit.log", "file: audit.log, key: audit.key", 1)+"\nstate: state.json\n")
	require.Zero(t, e.start().stop())
	require.NoError(t, os.Remove(e.at("audit.log")))
	for _, args := range [][]string{{"-check"}, nil} {
		_, all, status := run(t, "", filepath.Join(bin, "ski-edgeserver-embedded"), append([]string{"-config", e.at("edge.yaml")}, args...)...)
		assert.Equal(t, 1, status)
		assert.Contains(t, all, "it is missing or empty, but")
		assert.Contains(t, all, "skictl audit accept")
	}
	e.must(filepath.Join(bin, "skictl"), "audit", "accept", "--config", e.at("keyserver.yaml"), "--reason", "a test", "--by", "alice")
	require.Zero(t, e.start().stop())
	assert.Contains(t, e.must(filepath.Join(bin, "skictl"), "audit", "verify", "--key", e.at("audit.pub"), e.at("audit.log")), "by alice: a test")
}

func TestCheckShowsWhatTheEmbeddedKeyServerGrants(t *testing.T) {
	e := newEmbedded(t)
	all, status := e.check("ski-edgeserver-embedded")
	require.Zero(t, status, all)
	for _, line := range []string{
		`keyserver  embedded`,
		`embedded   .*keyserver\.yaml`,
		`token      site-keys, serial \w+, 16 sessions, .*libsofthsm2\.so`,
		`audit      .*audit\.log`,
		`edge-1  ec\.test +ECDSA P-256 +ECDHE +`,
		`edge-1  rsa\.test +RSA 2048 +RSA +`,
	} {
		assert.Regexp(t, `(?m)^`+line, all)
	}
	assert.NoFileExists(t, e.at("audit.log"))

	e.write("ec.test.pem", e.must("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", e.at("other.key"),
		"-subj", "/CN=other", "-addext", "subjectAltName=DNS:ec.test"))
	data, err := os.ReadFile(e.at("ec.test.pem"))
	require.NoError(t, err)
	e.write("ec.test.pem", string(data[strings.Index(string(data), "-----BEGIN CERT"):]))
	all, status = e.check("ski-edgeserver-embedded")
	require.Zero(t, status, all)
	assert.Regexp(t, `(?m)^warning    .*ec\.test\.pem: the embedded key server does not have its private key`, all)
}

// The files that docs/embedded.md shows are what -check says there.
func TestTheFilesOfTheEmbeddedDocumentAreValid(t *testing.T) {
	e := newEmbedded(t)
	document, err := os.ReadFile("../docs/embedded.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(document, -1)
	require.Len(t, blocks, 3)
	require.NoError(t, os.Mkdir(e.at("htdocs"), 0o755))
	for i, name := range []string{"edge.yaml", "keyserver.yaml", "policy.yaml"} {
		e.write(name, strings.NewReplacer("www.example.com", "ec.test", "www.pem", "ec.test.pem").Replace(string(blocks[i][1])))
	}
	all, status := e.check("ski-edgeserver-embedded")
	assert.Zero(t, status, all)
	assert.NotContains(t, all, "warning")
	assert.Regexp(t, `(?m)^edge-1  ec\.test +ECDSA P-256  ECDHE    TLS 1\.2, TLS 1\.3, DTLS 1\.2, DTLS 1\.3  any +secp256r1, secp384r1, x25519 +ec\.test +any +always  -$`, all)
}

func TestMistakesOfAnEmbeddedKeyServer(t *testing.T) {
	e := newEmbedded(t)
	all, status := e.check("ski-edgeserver")
	assert.Equal(t, 1, status)
	assert.Contains(t, all, "edge.yaml:2:12: keyserver: this ski-edgeserver was built without an embedded key server: use ski-edgeserver-embedded")

	edge, err := os.ReadFile(e.at("edge.yaml"))
	require.NoError(t, err)
	e.write("edge.yaml", string(edge)+"access_log: {file: \"-\"}\n")
	good := map[string]string{}
	for _, name := range []string{"keyserver.yaml", "policy.yaml", "ec.test.pem", "ca.key"} {
		data, err := os.ReadFile(e.at(name))
		require.NoError(t, err)
		good[name] = string(data)
	}
	key := good["ca.key"] // any will do
	for name, tc := range map[string]struct{ file, old, new, want string }{
		"a network":   {"keyserver.yaml", "policy: policy.yaml", "policy: policy.yaml\nlisten: \":5684\"", `keyserver.yaml:3:9: an embedded key server has no "listen": nobody reaches it over a network`},
		"two logs":    {"keyserver.yaml", "audit: {file: audit.log, required: true}", "audit: {required: true}", "edge.yaml:8:20: access_log.file: standard output has the audit log of the embedded key server"},
		"a stranger":  {"policy.yaml", "tlsski:embedded", "spiffe://example.net/edge-1", `policy.yaml: it knows no edge with uri: ["tlsski:embedded"]`},
		"no token":    {"keyserver.yaml", "token=site-keys", "token=other", `no token fits: the module has "site-keys"`},
		"no PIN":      {"keyserver.yaml", e.at("pin"), e.at("none"), "none: no such file or directory"},
		"extractable": {"keyserver.yaml", "policy: policy.yaml", "policy: policy.yaml\nkeys: keys", "can be copied: leave 'keys' out"},
		"a site key":  {"ec.test.pem", "-----BEGIN", key + "-----BEGIN", "ec.test.pem contains a private key: an edge server must not have it"},
		"no log":      {"keyserver.yaml", "file: audit.log", "file: none/audit.log", "none: no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			e.write(tc.file, strings.Replace(good[tc.file], tc.old, tc.new, 1))
			defer e.write(tc.file, good[tc.file])
			all, status := e.check("ski-edgeserver-embedded")
			assert.Equal(t, 1, status)
			assert.Contains(t, all, tc.want)
			assert.Equal(t, 1, strings.Count(all, "\n"), all)
		})
	}
}

// Each start is an attempt, and tokens lock themselves: systemd is told not to
// try again by the exit status.
func TestAWrongPINOfAnEmbeddedKeyServerHasAnExitStatusOfItsOwn(t *testing.T) {
	e := newEmbedded(t)
	e.write("wrong.pin", "99999999")
	require.NoError(t, os.Chmod(e.at("wrong.pin"), 0o600))
	config, err := os.ReadFile(e.at("keyserver.yaml"))
	require.NoError(t, err)
	e.write("keyserver.yaml", strings.Replace(string(config), e.at("pin"), e.at("wrong.pin"), 1))
	all, status := e.check("ski-edgeserver-embedded")
	assert.Equal(t, 3, status, all)
	assert.Contains(t, all, "does not take the PIN")
	assert.NotContains(t, all, "99999999")
}

// The tickets of a site are made with keys of the embedded key server, which
// follow its policy.
func TestTheEmbeddedKeyServerHasTicketKeys(t *testing.T) {
	e := newEmbedded(t)
	site := "tickets: [{name: ec.test, edges: [edge-1], generation: %d}]\n"
	e.write("policy.yaml", embeddedPolicyYAML+fmt.Sprintf(site, 0))
	e.write("ticket.secret", strings.Repeat("31", 16))
	config, err := os.ReadFile(e.at("keyserver.yaml"))
	require.NoError(t, err)
	e.write("keyserver.yaml", string(config)+"state: state.json\nticket_secret_file: ticket.secret\n")
	config, err = os.ReadFile(e.at("edge.yaml"))
	require.NoError(t, err)
	e.write("edge.yaml", strings.Replace(string(config), "names: [ec.test]", "names: [ec.test], tickets: shared", 1))
	p := e.start()
	first := p.until(`msg="ticket keys" .*ids=(\S+)`)[1]
	client := func(more ...string) string {
		return e.must("openssl", append([]string{"s_client", "-connect", p.addr, "-servername", "ec.test", "-CAfile", e.at("ca.pem"),
			"-tls1_2", "-verify_return_error"}, more...)...)
	}
	assert.Contains(t, client("-sess_out", e.at("session")), "New, ")
	assert.Contains(t, client("-sess_in", e.at("session")), "Reused, ")

	e.write("policy.yaml", embeddedPolicyYAML+fmt.Sprintf(site, 1))
	p.signal(syscall.SIGHUP)
	for second := first; second == first; {
		all := regexp.MustCompile(`msg="ticket keys" .*ids=(\S+)`).FindAllStringSubmatch(p.seen.String(), -1)
		if second = all[len(all)-1][1]; second == first {
			line, err := p.log.ReadString('\n')
			require.NoError(t, err)
			p.seen.WriteString(line)
		}
	}
	assert.Contains(t, client("-sess_in", e.at("session"), "-sess_out", e.at("session")), "New, ")

	e.write("policy.yaml", embeddedPolicyYAML)
	p.signal(syscall.SIGHUP)
	p.until("denies the site's ticket keys")
	assert.Contains(t, client("-sess_in", e.at("session")), "New, ")
	require.Zero(t, p.stop(), &p.seen)

	// They go on from the file beside the state, without the secret.
	assert.Contains(t, p.seen.String(), "ticket.secret yields all ticket keys of the past")
	require.FileExists(t, e.at("state.json.tickets"))
	require.NoError(t, os.Remove(e.at("ticket.secret")))
	config, err = os.ReadFile(e.at("keyserver.yaml"))
	require.NoError(t, err)
	e.write("keyserver.yaml", strings.Replace(string(config), "ticket_secret_file: ticket.secret\n", "", 1))
	e.write("policy.yaml", embeddedPolicyYAML+fmt.Sprintf(site, 0))
	all, status := e.check("ski-edgeserver-embedded")
	require.Zero(t, status, all)
	assert.Regexp(t, `(?m)^tickets +\S+state\.json\.tickets, which has no key`, all)
	p = e.start()
	again := p.until(`msg="ticket keys" .*ids=(\S+)`)[1]
	assert.Contains(t, again, strings.Split(first, ",")[2])
	require.Zero(t, p.stop(), &p.seen)
}
