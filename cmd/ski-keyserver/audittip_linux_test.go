package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

// requiredAudit is a log that is required, with a tip and a key.
const requiredAudit = "state: state.json\nmetrics: 127.0.0.1:0\naudit: {file: log/audit.log, required: true, key: audit.key}"

// auditFolder makes what requiredAudit names, and returns the public key.
func auditFolder(t *testing.T) (dir string, public ed25519.PublicKey) {
	t.Helper()
	dir = t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "log"), 0o700))
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "audit.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	return dir, public
}

func verifyAudit(t *testing.T, public ed25519.PublicKey, files ...string) *keyserver.AuditVerifier {
	t.Helper()
	v := &keyserver.AuditVerifier{Keys: []ed25519.PublicKey{public}}
	for _, file := range files {
		f, err := os.Open(file)
		require.NoError(t, err)
		require.NoError(t, v.File(file, f))
		require.NoError(t, f.Close())
	}
	v.End(false)
	return v
}

// refusedStart runs a key server that does not start, and returns what it says.
func refusedStart(t *testing.T, dir string, args ...string) string {
	t.Helper()
	command, err := exec.LookPath("ski-keyserver")
	require.NoError(t, err)
	out, err := exec.Command(command, append([]string{"-config", filepath.Join(dir, "config.yaml")}, args...)...).CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 1, err.(*exec.ExitError).ExitCode())
	return string(out)
}

// The log goes back to what it was before a request, while the key server is
// stopped: it does not start until an operator has seen that.
func TestALogThatIsRolledBackOverARestartEndsTheStart(t *testing.T) {
	dir, public := auditFolder(t)
	file := filepath.Join(dir, "log", "audit.log")
	run := func(requests int) {
		d := startDaemon(t, dir, requiredAudit, nil)
		for range requests {
			require.Empty(t, d.ask().Error)
		}
		d.signal(syscall.SIGTERM)
		require.Zero(t, d.end())
	}
	run(1)
	monday, err := os.ReadFile(file)
	require.NoError(t, err)
	run(2)
	require.Empty(t, verifyAudit(t, public, file).Faults)
	require.NoError(t, os.WriteFile(file, monday, 0o600))

	for _, args := range [][]string{nil, {"-check"}, nil} {
		said := refusedStart(t, dir, args...)
		require.Contains(t, said, "it ends with line 3, but")
		require.Contains(t, said, "knows line 7")
		require.Contains(t, said, "skictl audit accept")
	}
	after, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, monday, after, "a start that is refused changes nothing")

	cfg, err := keyserver.LoadConfig(filepath.Join(dir, "config.yaml"))
	require.NoError(t, err)
	o, err := cfg.AuditOptions()
	require.NoError(t, err)
	o.Suspensions, err = keyserver.OpenSuspensions(cfg.State)
	require.NoError(t, err)
	_, err = keyserver.AcceptAudit(o, "root", "a disk broke")
	require.NoError(t, err)
	run(1)
	v := verifyAudit(t, public, file)
	require.Empty(t, v.Faults)
	require.Len(t, v.Notes, 1)
	require.Contains(t, v.Notes[0].What, "by root: a disk broke")

	// Another one is not accepted with it.
	require.NoError(t, os.WriteFile(file, monday, 0o600))
	require.Contains(t, refusedStart(t, dir), "it ends with line 3, but")
}

// The file goes while the key server runs: health says so before a request is
// refused, and SIGHUP mends it.
func TestALogThatIsRemovedWhileTheKeyServerRunsStopsIt(t *testing.T) {
	dir, public := auditFolder(t)
	file := filepath.Join(dir, "log", "audit.log")
	d := startDaemon(t, dir, requiredAudit, nil)
	addr := regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(d.logged("msg=metrics"))[1]
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + addr + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	healthy := func(want int) func() bool {
		return func() bool { status, _ := get("/healthz"); return status == want }
	}
	require.Empty(t, d.ask().Error)
	require.True(t, healthy(200)())
	require.NoError(t, os.Remove(file))
	require.Eventually(t, healthy(503), time.Minute, 10*time.Millisecond)
	_, body := get("/healthz")
	require.Equal(t, "the audit log: its file was removed while the key server wrote to it\n", body)
	require.Equal(t, ski.UnspecifiedError, d.ask().Error)
	require.Contains(t, d.logged("no request is answered"), "until SIGHUP begins a new file")
	_, body = get("/metrics")
	require.Contains(t, body, "ski_keyserver_audit_file_lost 1\n")

	d.signal(syscall.SIGHUP)
	d.logged("audit log reopened")
	require.Empty(t, d.ask().Error)
	_, body = get("/metrics")
	require.Contains(t, body, "ski_keyserver_audit_file_lost 0\n")
	require.Contains(t, body, "ski_keyserver_audit_discontinuities 1\n")
	require.Contains(t, body, "ski_keyserver_audit_tip_waits_seconds ")
	require.True(t, healthy(200)())
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())

	v := verifyAudit(t, public, file)
	require.Len(t, v.Faults, 1)
	require.Contains(t, v.Faults[0].What, "its file was removed while the key server wrote to it")
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, 1, bytes.Count(data, []byte(`"event":"request"`)))
}
