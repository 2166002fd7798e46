package cmd_test

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// unread is a daemon whose standard error is a pipe that is read only now and
// then. The test's process has the other end open, so that nothing breaks.
type unread struct {
	t       *testing.T
	cmd     *exec.Cmd
	pipe    *os.File
	log     *bufio.Reader
	seen    []string
	metrics string
	prefix  string // of the metrics
}

// startUnread starts a program of bin and reads its log until it says where the
// metrics are. A nil stdout is /dev/null.
func startUnread(t *testing.T, program, config string, stdout *os.File) *unread {
	t.Helper()
	r, w := smallPipe(t)
	u := &unread{t: t, cmd: exec.Command(filepath.Join(bin, program), "-config", config), pipe: r, log: bufio.NewReaderSize(r, 1<<12)}
	u.prefix = "ski_" + strings.TrimSuffix(strings.TrimPrefix(program, "ski-"), "-embedded") + "_"
	u.cmd.Stderr = w
	if stdout != nil {
		u.cmd.Stdout = stdout
	}
	require.NoError(t, u.cmd.Start())
	require.NoError(t, w.Close())
	hung := time.AfterFunc(5*time.Minute, func() { _ = u.cmd.Process.Kill() }) // or until would wait for ever
	t.Cleanup(func() {
		hung.Stop()
		_ = u.cmd.Process.Kill()
		if t.Failed() {
			t.Log(strings.Join(u.seen[max(0, len(u.seen)-40):], ""))
		}
	})
	u.metrics = u.until(`msg=metrics addr=(\S+)`)[1]
	return u
}

// smallPipe returns a pipe that a page fills.
func smallPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	_, _, errno := syscall.Syscall(syscall.SYS_FCNTL, w.Fd(), syscall.F_SETPIPE_SZ, 4096)
	require.Zero(t, errno)
	return r, w
}

// until returns the submatches of the first line of the log that matches. It reads
// on until there is one.
func (u *unread) until(pattern string) []string {
	u.t.Helper()
	expression := regexp.MustCompile(pattern)
	for _, line := range u.seen {
		if match := expression.FindStringSubmatch(line); match != nil {
			return match
		}
	}
	for {
		line, err := u.log.ReadString('\n')
		require.NoError(u.t, err, "no line matches %s", pattern)
		u.seen = append(u.seen, line)
		if match := expression.FindStringSubmatch(line); match != nil {
			return match
		}
	}
}

// get returns the status and the body of a page of the metrics' address.
func (u *unread) get(path string) (status int, body string) {
	u.t.Helper()
	client := http.Client{Timeout: time.Minute}
	resp, err := client.Get("http://" + u.metrics + path)
	require.NoError(u.t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	require.NoError(u.t, err)
	return resp.StatusCode, string(data)
}

// value returns a metric by its name and labels, with or without the beginning of the
// program's own.
func (u *unread) value(name string) float64 {
	u.t.Helper()
	if !strings.HasPrefix(name, "ski_") {
		name = u.prefix + name
	}
	_, body := u.get("/metrics")
	match := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(body)
	require.NotNil(u.t, match, "%s: %s", name, body)
	v, err := strconv.ParseFloat(match[1], 64)
	require.NoError(u.t, err)
	return v
}

// fill does what is logged until lines of it are dropped.
func (u *unread) fill(logged func()) {
	u.t.Helper()
	before := u.value("log_lines_dropped_total")
	for i := 0; u.value("log_lines_dropped_total") == before; i++ {
		require.Less(u.t, i, 2000, "no line is dropped")
		logged()
	}
	require.Positive(u.t, u.value("log_waits_seconds"))
}

func (u *unread) signal(s os.Signal) {
	u.t.Helper()
	require.NoError(u.t, u.cmd.Process.Signal(s))
}

// reload has the configuration read until a metric is more than before.
func (u *unread) reload(metric string) {
	u.t.Helper()
	before := u.value(metric)
	u.signal(syscall.SIGHUP)
	require.Eventually(u.t, func() bool { return u.value(metric) > before }, time.Minute, 10*time.Millisecond, metric)
}

// stop ends the process while nobody reads its log.
func (u *unread) stop() {
	u.t.Helper()
	u.signal(syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() { ended <- u.cmd.Wait() }()
	select {
	case err := <-ended:
		assert.NoError(u.t, err)
	case <-time.After(time.Minute):
		assert.Fail(u.t, "it does not end while nobody reads its log")
	}
}

// repeated checks that what matters is read when somebody reads the log again, and
// that it says how much was lost.
func (u *unread) repeated(lines ...string) {
	u.t.Helper()
	match := u.until(`level=WARN msg="log lines were dropped.* lines=(\d+) first=(\S+) last=(\S+) repeated=(\d+)`)
	first, err := time.Parse(time.RFC3339, match[2])
	require.NoError(u.t, err)
	last, err := time.Parse(time.RFC3339, match[3])
	require.NoError(u.t, err)
	for _, line := range lines {
		logged, err := time.Parse(time.RFC3339, u.until(`^time=(\S+) ` + line)[1])
		require.NoError(u.t, err)
		// The record has its time before it is dropped.
		assert.WithinRange(u.t, logged, first.Add(-time.Second), last, line)
	}
}

// warningPolicy is a policy whose loading logs a warning for each of many rules.
func warningPolicy(policy string) string {
	return policy + strings.Repeat("  - edges: [edge]\n    keys: [rsa.localhost]\n    methods: [RSA]\n", 1000)
}

func TestTheKeyServerAnswersWhileNobodyReadsItsLog(t *testing.T) {
	d := startDev(t)
	write := func(name, content string) {
		file := filepath.Join(d.dir, name)
		require.NoError(t, os.WriteFile(file+".new", []byte(content), 0o600))
		require.NoError(t, os.Rename(file+".new", file))
	}
	policy := d.read("keyserver/policy.yaml")
	write("keyserver/unread-policy.yaml", policy)
	config := regexp.MustCompile(`(?m)^(listen|coaps_tcp|https): .*$`).ReplaceAllString(d.read("keyserver/keyserver.yaml"), "$1: 127.0.0.1:0")
	config = strings.NewReplacer("file: audit.log", "file: unread.log", "policy.yaml", "unread-policy.yaml").Replace(config)
	write("keyserver/unread.yaml", config+"metrics: 127.0.0.1:0\nadmin: unread.sock\nstate: unread.json\n")
	u := startUnread(t, "ski-keyserver", filepath.Join(d.dir, "keyserver/unread.yaml"), nil)
	endpoints := []string{
		"coaps://" + u.until(`msg=listening addr=(\S+)`)[1] + "/ski",
		"https://" + u.until(`msg="listening over HTTPS" addr=(\S+)`)[1] + "/ski",
		"coaps+tcp://" + u.until(`msg="listening for CoAP over TLS" addr=(\S+)`)[1] + "/ski",
	}
	request := func() (status []int) {
		for _, endpoint := range endpoints {
			_, _, s := d.skictl("request", "--endpoint", endpoint, "--cert", d.endpoints.EdgeCert, "--key", d.endpoints.EdgeKey, "--ca", d.endpoints.KeyServerCA,
				"--protocol", "TLS 1.2", "--hash", "SHA-256", "--spki", "@"+filepath.Join(d.dir, "edge/sites/ecdsa.localhost.pem"),
				"--input", strings.Repeat("00", 64)+"03001d2009"+strings.Repeat("00", 31))
			status = append(status, s)
		}
		return status
	}
	edge := func(args ...string) {
		_, all, status := d.skictl(append([]string{"edge", "--socket", filepath.Join(d.dir, "keyserver/unread.sock")}, args...)...)
		assert.Zero(t, status, all)
	}
	healthy := func() {
		status, _ := u.get("/healthz")
		assert.Equal(t, http.StatusOK, status)
	}
	require.Equal(t, []int{0, 0, 0}, request())

	const loaded, refused = `policy_loads_total{result="ok"}`, `policy_loads_total{result="failed"}`
	write("keyserver/unread-policy.yaml", warningPolicy(policy))
	fill := func() { u.fill(func() { u.reload(loaded) }) }
	fill()
	assert.Equal(t, []int{0, 0, 0}, request())
	healthy()
	edge("suspend", "edge", "--reason", "while nobody reads")
	assert.NotContains(t, request(), 0, "the suspension is in force")
	write("keyserver/unread-policy.yaml", "no policy")
	u.reload(refused)
	write("keyserver/unread-policy.yaml", warningPolicy(policy))
	u.reload(loaded)
	edge("resume", "edge")
	assert.Equal(t, []int{0, 0, 0}, request())
	healthy()

	u.repeated(
		`level=WARN msg="edge suspended" edge=edge by=".*" reason="while nobody reads"`,
		`level=ERROR msg="policy refused, the one before stays"`,
		`level=WARN msg="edge resumed" edge=edge`,
	)
	fill()
	require.NoError(t, u.pipe.Close())
	assert.Equal(t, []int{0, 0, 0}, request(), "who was to read the log has gone")
	healthy()
	u.stop()
}

// Answers wait for the audit log, and nothing else does.
func TestAnAuditLogThatNobodyReadsKeepsAnswersWaitingAlone(t *testing.T) {
	d := startDev(t)
	config := regexp.MustCompile(`(?m)^(listen|coaps_tcp|https): .*$`).ReplaceAllString(d.read("keyserver/keyserver.yaml"), "$1: 127.0.0.1:0")
	config = strings.Replace(config, "file: audit.log", `file: "-"`, 1) + "metrics: 127.0.0.1:0\nadmin: stuck.sock\nstate: stuck.json\nshutdown_timeout: 1s\n"
	file := filepath.Join(d.dir, "keyserver/stuck.yaml")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	_, stdout := smallPipe(t) // which nobody reads
	u := startUnread(t, "ski-keyserver", file, stdout)
	endpoint := "coaps://" + u.until(`msg=listening addr=(\S+)`)[1] + "/ski"
	answered := true
	for i := 0; answered; i++ {
		require.Less(t, i, 100, "answers are not recorded")
		_, _, status := d.skictl("request", "--timeout", "2s", "--endpoint", endpoint, "--cert", d.endpoints.EdgeCert, "--key", d.endpoints.EdgeKey,
			"--ca", d.endpoints.KeyServerCA, "--protocol", "TLS 1.2", "--hash", "SHA-256", "--spki", "@"+filepath.Join(d.dir, "edge/sites/ecdsa.localhost.pem"),
			"--input", strings.Repeat("00", 64)+"03001d2009"+strings.Repeat("00", 31))
		answered = status == 0 || u.value("audit_waits_seconds") == 0 // A busy machine gives no answer in time, too.
	}
	require.Positive(t, u.value("audit_waits_seconds"))

	admin := func(args ...string) string {
		_, all, status := d.skictl(append([]string{"edge", "--socket", filepath.Join(d.dir, "keyserver/stuck.sock")}, args...)...)
		require.Zero(t, status, all)
		return all
	}
	const other = "psk:other"
	for _, edge := range []string{other, "edge"} {
		assert.Contains(t, admin("suspend", edge, "--reason", "stuck"), "it is in force, and the audit log has not taken its record yet")
	}
	assert.Equal(t, 2, strings.Count(admin("list"), ": stuck"))
	u.until(`msg="edge suspended" edge=edge `)
	status, body := u.get("/healthz")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Contains(t, body, "the audit log has taken nothing for ")

	u.signal(syscall.SIGHUP) // which has the audit log opened anew
	require.Positive(t, u.value("audit_waits_seconds"))
	u.signal(syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() { ended <- u.cmd.Wait() }()
	select {
	case <-ended:
		assert.Equal(t, 1, u.cmd.ProcessState.ExitCode(), "a request was cut short")
	case <-time.After(time.Minute):
		assert.Fail(t, "it does not end while nobody reads its audit log")
	}
}

// clientHello asks for a name that no site has, which makes a long line at the level
// debug.
func clientHello(t *testing.T) []byte {
	ours, theirs := net.Pipe()
	go func() {
		_ = tls.Client(ours, &tls.Config{ServerName: strings.Repeat(strings.Repeat("a", 60)+".", 4) + "test"}).Handshake()
	}()
	defer ours.Close()
	hello := make([]byte, 1<<14)
	n, err := theirs.Read(hello)
	require.NoError(t, err)
	return hello[:n]
}

// refusedHandshakes returns what has an edge server refuse some.
func refusedHandshakes(t *testing.T, addr string) func() {
	hello := clientHello(t)
	return func() {
		for range 100 {
			c, err := net.DialTimeout("tcp", addr, time.Minute)
			require.NoError(t, err)
			_, err = c.Write(hello)
			require.NoError(t, err)
			require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
			answer, err := io.ReadAll(c)
			require.NoError(t, err)
			require.NotEmpty(t, answer, "an alert")
			require.NoError(t, c.Close())
		}
	}
}

func TestTheEdgeServerServesWhileNobodyReadsItsLogs(t *testing.T) {
	d := startDev(t)
	file := filepath.Join(d.dir, "edge/unread.yaml")
	config := strings.ReplaceAll(d.read("edge/edge.yaml"), d.edgeAddr(), "127.0.0.1:0") + "metrics: 127.0.0.1:0\naccess_log: {file: \"-\"}\n"
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	_, stdout := smallPipe(t) // which nobody ever reads
	u := startUnread(t, "ski-edgeserver", file, stdout)
	addr := u.until(`msg=listening addr=(\S+)`)[1]

	refused := refusedHandshakes(t, addr)
	page := func(name, path string) {
		_, port, _ := strings.Cut(addr, ":")
		_, all, status := run(t, "", "curl", "-sS", "--max-time", "50", "--cacert", d.endpoints.CA,
			"--resolve", name+":"+port+":127.0.0.1", "https://"+name+":"+port+path)
		assert.Zero(t, status, all)
	}
	works := func() {
		page("ecdsa.localhost", "/")
		page("split.rsa.localhost", "/")
		for _, path := range []string{"/healthz", "/readyz"} {
			status, body := u.get(path)
			assert.Equal(t, http.StatusOK, status, body)
		}
	}
	u.fill(refused)
	works()
	require.NoError(t, os.WriteFile(file, []byte("no configuration"), 0o600))
	u.reload(`reloads_total{result="failed"}`)
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	u.reload(`reloads_total{result="ok"}`)
	works()
	// Standard output is not read, too: that holds up neither requests nor the log.
	for u.value("access_log_lost_total") == 0 {
		page("ecdsa.localhost", "/[1-50]?"+strings.Repeat("x", 2000))
	}
	works()
	u.repeated(`level=ERROR msg="configuration refused, the one before stays"`, `level=ERROR msg="access log: lines are lost" access_log=-`)

	u.fill(refused)
	u.stop()
}

func TestAnEdgeServerWithItsOwnKeyServerServesWhileNobodyReadsItsLog(t *testing.T) {
	e := newEmbedded(t)
	config, err := os.ReadFile(e.at("edge.yaml"))
	require.NoError(t, err)
	e.write("edge.yaml", string(config)+"log: {level: debug}\n")
	u := startUnread(t, "ski-edgeserver-embedded", e.at("edge.yaml"), nil)
	p := &embeddedEdge{embeddedSetup: e, addr: u.until(`msg=listening addr=(\S+)`)[1]}
	refused := refusedHandshakes(t, p.addr)
	works := func() {
		for _, site := range []string{"ec.test", "rsa.test"} {
			all, status := p.curl(site, "1.3")
			assert.Zero(t, status, all)
		}
		status, body := u.get("/readyz")
		assert.Equal(t, http.StatusOK, status, body)
	}
	u.fill(refused)
	works()
	e.write("policy.yaml", "no policy")
	u.reload(`ski_keyserver_policy_loads_total{result="failed"}`)
	e.write("policy.yaml", embeddedPolicyYAML)
	u.reload(`ski_keyserver_policy_loads_total{result="ok"}`)
	works()
	u.repeated(`level=ERROR msg="policy refused, the one before stays" keyserver=embedded`)
	u.stop()
}

// Why a start fails is the last line of the log, and no reader is waited for.
func TestAStartThatFailsSaysWhyAndEndsWhereNobodyReads(t *testing.T) {
	d := startDev(t)
	used, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer used.Close()
	for program, file := range map[string]string{"ski-keyserver": "keyserver/keyserver.yaml", "ski-edgeserver": "edge/edge.yaml"} {
		config := filepath.Join(d.dir, strings.Replace(file, ".yaml", ".failing.yaml", 1))
		text := regexp.MustCompile(`127\.0\.0\.1:\d+("?\]?)\n`).ReplaceAllString(d.read(file), "127.0.0.1:0$1\n")
		text = strings.Replace(text, "file: audit.log", "file: failing.log", 1) + "metrics: " + used.Addr().String() + "\n"
		require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
		_, all, status := run(t, "", filepath.Join(bin, program), "-config", config)
		assert.Equal(t, 1, status)
		assert.Regexp(t, `level=(INFO|WARN)(.*\n)+`+program+`: metrics: listen tcp .*: address already in use\n$`, all)

		_, w := smallPipe(t)
		_, err := w.Write(make([]byte, 4096))
		require.NoError(t, err)
		cmd := exec.Command(filepath.Join(bin, program), "-config", config)
		cmd.Stderr = w
		hung := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		_ = cmd.Run()
		assert.True(t, hung.Stop(), "it waits for who reads its log")
		assert.Equal(t, 1, cmd.ProcessState.ExitCode())
	}
}

// The witness of an audit log says by its end that something is wrong, whether or
// not somebody reads what.
func TestAWitnessEndsWhereNobodyReads(t *testing.T) {
	full, stuck := smallPipe(t)
	_, err := stuck.Write(make([]byte, 4096))
	require.NoError(t, err)
	defer full.Close()
	gone, broken := smallPipe(t)
	require.NoError(t, gone.Close())
	for what, w := range map[string]*os.File{"nobody reads": stuck, "the reader has gone": broken} {
		cmd := exec.Command(filepath.Join(bin, "skictl"), "audit", "witness", "--key", "missing.pub", "--to", filepath.Join(t.TempDir(), "witness"))
		cmd.Stderr = w
		hung := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		_ = cmd.Run()
		assert.True(t, hung.Stop(), what)
		assert.Equal(t, 1, cmd.ProcessState.ExitCode(), what)
	}
}
