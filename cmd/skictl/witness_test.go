package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
)

// witnessed is a key server with an audit log, an admin socket, and a witness's
// file elsewhere.
type witnessed struct {
	t                         *testing.T
	dir, socket, pub, witness string
	options                   keyserver.AuditOptions
	audit                     *keyserver.AuditLog
	server                    *keyserver.Server
	admin                     net.Listener
}

func newWitnessed(t *testing.T) *witnessed {
	w := &witnessed{t: t, dir: t.TempDir()}
	w.socket = filepath.Join(w.dir, "admin.sock")
	w.witness = filepath.Join(t.TempDir(), "ks-1.witness")
	status, _, stderr := skictl(t, "", "audit", "keygen", filepath.Join(w.dir, "audit"))
	require.Zero(t, status, stderr)
	w.pub = filepath.Join(w.dir, "audit.pub")
	key, err := keyserver.LoadAuditKey(filepath.Join(w.dir, "audit.key"))
	require.NoError(t, err)
	w.options = keyserver.AuditOptions{
		File: filepath.Join(w.dir, "audit.log"), Tip: filepath.Join(w.dir, "state.json.audit"), Key: key, Logger: slog.New(slog.DiscardHandler),
	}
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *witnessed) start() {
	var err error
	w.audit, err = keyserver.OpenAuditLog(w.options)
	require.NoError(w.t, err)
	keys := new(keyserver.MemoryStore)
	policy, err := keyserver.ParsePolicy("policy.yaml", []byte("edges: [{name: edge-1, dns: [edge-1.example.net]}]\n"), keys)
	require.NoError(w.t, err)
	w.server, err = keyserver.New(keyserver.Options{Keys: keys, Policy: policy, Audit: w.audit, Logger: w.options.Logger})
	require.NoError(w.t, err)
	w.admin, err = keyserver.ListenAdmin(w.socket)
	require.NoError(w.t, err)
	go w.server.ServeAdmin(w.admin)
}

func (w *witnessed) stop() {
	_ = w.admin.Close()
	w.server.Close()
	_ = w.audit.Close()
}

// record has lines written.
func (w *witnessed) record(n int) {
	for range n {
		require.NoError(w.t, w.audit.Audit(w.t.Context(), &keyserver.Record{Time: time.Now(), Edge: "edge-1"}))
	}
}

func (w *witnessed) entries() int {
	data, err := os.ReadFile(w.witness)
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(w.t, err)
	return bytes.Count(data, []byte{'\n'})
}

func (w *witnessed) once(args ...string) (status int, stderr string) {
	status, _, stderr = skictl(w.t, "", append([]string{"audit", "witness", "--socket", w.socket, "--key", w.pub, "--to", w.witness, "--once"}, args...)...)
	return status, stderr
}

func (w *witnessed) verify() (status int, out string) {
	status, out, _ = skictl(w.t, "", "audit", "verify", "--key", w.pub, "--witness", w.witness, w.options.File)
	return status, out
}

func TestAuditWitness(t *testing.T) {
	w := newWitnessed(t)
	w.record(3)
	status, stderr := w.once()
	require.Zero(t, status, stderr)
	require.Equal(t, 1, w.entries())
	status, stderr = w.once()
	require.Zero(t, status, stderr)
	require.Equal(t, 1, w.entries(), "there was nothing new")
	before := make(map[string][]byte)
	for _, file := range []string{w.options.File, w.options.Tip, w.options.Tip + ".witness"} {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		before[file] = data
	}
	w.record(3)
	status, stderr = w.once()
	require.Zero(t, status, stderr)
	require.Equal(t, 2, w.entries())
	w.stop()
	status, out := w.verify()
	require.Zero(t, status, out)
	require.Contains(t, out, "2 entries agree with the log")

	// Log, tip and state are replaced together.
	for file, data := range before {
		require.NoError(t, os.WriteFile(file, data, 0o600))
	}
	status, out = w.verify()
	require.Equal(t, 1, status)
	require.Contains(t, out, w.witness+":2: the witness has line ")
	w.start()
	status, stderr = w.once()
	require.Equal(t, 1, status)
	require.Regexp(t, `^skictl: the key server refuses what .*ks-1.witness has: audit log .* it is not as the key server left it: .*its witness has`, stderr)
	status, stderr = w.once()
	require.Zero(t, status, "it is recorded: %s", stderr)
	w.stop()
	status, out = w.verify()
	require.Equal(t, 1, status)
	require.Contains(t, out, "the log was not as the key server had left it")
	w.start()
}

// The witness runs on another machine, and asks through a command.
func TestAuditWitnessThroughACommand(t *testing.T) {
	w := newWitnessed(t)
	w.record(3)
	for range 2 {
		status, stderr := w.once("--", "skictl", "audit", "witness", "--relay", "--socket", w.socket)
		require.Zero(t, status, stderr)
		w.record(3)
	}
	require.Equal(t, 2, w.entries())
	for name, tt := range map[string]struct {
		command []string
		says    string
	}{
		"that is not there": {[]string{"no-such-command"}, "no-such-command"},
		"that fails":        {[]string{"sh", "-c", "echo 'Host key verification failed.' >&2; exit 255"}, "exit status 255: Host key verification failed."},
		"without an answer": {[]string{"true"}, "its answer is cut off"},
		"that lies":         {[]string{"echo", "hello"}, "the key server's answer: "},
		"that says much":    {[]string{"sh", "-c", "cat /dev/zero | head -c 1000000; echo"}, "it has more than 1024 bytes"},
	} {
		status, stderr := w.once(append([]string{"--"}, tt.command...)...)
		require.Equal(t, 1, status, name)
		require.Contains(t, stderr, tt.says, name)
	}
	// An older entry is one of a log that has gone back.
	data, err := os.ReadFile(w.witness)
	require.NoError(t, err)
	first, _, _ := bytes.Cut(data, []byte{'\n'})
	status, stderr := w.once("--", "echo", string(first))
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "the key server's log has gone back: it ends with line ")
	require.Equal(t, 2, w.entries())
	// A refusal comes through.
	require.NoError(t, os.WriteFile(w.witness, append(first, '\n'), 0o600))
	w.stop()
	require.NoError(t, os.Remove(w.options.File))
	require.NoError(t, os.Remove(w.options.Tip))
	require.NoError(t, os.Remove(w.options.Tip+".witness"))
	w.start()
	status, stderr = w.once("--", "skictl", "audit", "witness", "--relay", "--socket", w.socket)
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "its witness has")
}

// lockedBuffer is standard error of a command that runs.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// Nobody looks at it for a year.
func TestAuditWitnessGoesOnWhenTheKeyServerIsStartedAgain(t *testing.T) {
	w := newWitnessed(t)
	var stderr lockedBuffer
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"audit", "witness", "--socket", w.socket, "--key", w.pub, "--to", w.witness, "--interval", "10ms", "--patience", "1h"},
			strings.NewReader(""), io.Discard, &stderr)
	}()
	await := func(what string, f func() bool) {
		t.Helper()
		require.Eventually(t, f, time.Minute, 5*time.Millisecond, what)
	}
	await("an entry", func() bool { return w.entries() > 0 })
	w.stop()
	await("it says so", func() bool { return strings.Contains(stderr.String(), "does not answer") })
	w.start()
	await("it says so", func() bool { return strings.Contains(stderr.String(), "answers again") })
	n := w.entries()
	w.record(1)
	await("an entry", func() bool { return w.entries() > n })
	require.Equal(t, 1, strings.Count(stderr.String(), "does not answer"))
	stop()
	require.Zero(t, <-ended)
	w.stop()
	status, out := w.verify()
	require.Zero(t, status, out)
	w.start()

	// It ends where there is nothing that it could do.
	go func() {
		ended <- run(t.Context(), []string{"audit", "witness", "--socket", w.socket, "--key", w.pub, "--to", w.witness, "--interval", "10ms"},
			strings.NewReader(""), io.Discard, &stderr)
	}()
	n = w.entries()
	w.record(1)
	await("an entry", func() bool { return w.entries() > n })
	require.NoError(t, os.Remove(w.witness))
	require.Equal(t, 1, <-ended)
	require.Contains(t, stderr.String(), "ks-1.witness: no such file")
	require.NoFileExists(t, w.witness)

	status, _, said := skictl(t, "", "audit", "witness", "--socket", w.socket+"x", "--key", w.pub, "--to", w.witness, "--interval", "1ms", "--patience", "2ms")
	require.Equal(t, 1, status)
	require.Contains(t, said, "the key server has not answered for 2ms: admin socket: ")
}

func TestAuditWitnessUsage(t *testing.T) {
	w := newWitnessed(t)
	status, _, stderr := skictl(t, "", "audit", "keygen", filepath.Join(w.dir, "other"))
	require.Zero(t, status, stderr)
	for want, args := range map[string][]string{
		"--to and --key are required":                  {"--to", w.witness},
		"--relay takes no file, no key and no command": {"--relay", "--to", w.witness},
		"--interval and --patience are above zero":     {"--to", w.witness, "--key", w.pub, "--interval", "0s"},
		"no such file or directory":                    {"--to", filepath.Join(w.dir, "no", "w"), "--key", w.pub, "--once"},
		"it is not a regular file":                     {"--to", w.dir, "--key", w.pub, "--once"},
		"it is not signed by the key of the audit log": {"--to", w.witness, "--key", filepath.Join(w.dir, "other.pub"), "--once"},
	} {
		status, out, stderr := skictl(t, "", append([]string{"audit", "witness", "--socket", w.socket}, args...)...)
		require.Equal(t, 1, status)
		require.Empty(t, out)
		require.Contains(t, stderr, want)
	}
	status, _, stderr = skictl(t, "", "audit", "verify", "--witness", w.witness, w.options.File)
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "--witness needs --key")

	// A key server that can have no witness says so.
	w.stop()
	w.options.Key = nil
	w.options.File, w.options.Tip = filepath.Join(w.dir, "unsigned.log"), ""
	w.start()
	status, stderr = w.once()
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "the audit log takes no such witness: it is not in a file, or the key server has no audit.key or no state")
}
