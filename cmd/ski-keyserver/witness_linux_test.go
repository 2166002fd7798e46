package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

// snapshot returns the files of the folders that an attacker can put back.
func snapshot(t *testing.T, dirs ...string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			if name := filepath.Join(dir, e.Name()); e.Type().IsRegular() {
				files[name], err = os.ReadFile(name)
				require.NoError(t, err)
			}
		}
	}
	return files
}

func putBack(t *testing.T, files map[string][]byte, dirs ...string) {
	t.Helper()
	for name := range snapshot(t, dirs...) {
		require.NoError(t, os.Remove(name))
	}
	for name, data := range files {
		require.NoError(t, os.WriteFile(name, data, 0o600))
	}
}

// Log, tip and state go back together, as with a virtual machine that is put
// back to a snapshot; the witness is on a disk that is not.
func TestAMachineThatIsPutBackMeetsItsWitness(t *testing.T) {
	dir, public := auditFolder(t)
	elsewhere := t.TempDir()
	logs, states := filepath.Join(dir, "log"), filepath.Join(dir, "state")
	require.NoError(t, os.Mkdir(states, 0o700))
	witness := filepath.Join(elsewhere, "ks.witness")
	config := "state: state/state.json\naudit: {file: log/audit.log, required: true, key: audit.key, witness: " + witness + "}"
	run := func() {
		d := startDaemon(t, dir, config, nil)
		require.Empty(t, d.ask().Error)
		d.signal(syscall.SIGTERM)
		require.Zero(t, d.end())
	}
	run()
	monday := snapshot(t, logs, states)
	run()
	run()
	putBack(t, monday, logs, states)
	for _, args := range [][]string{nil, {"-check"}} {
		said := refusedStart(t, dir, args...)
		require.Contains(t, said, "it ends with line 3, and its witness has line ")
	}
	require.NoError(t, os.Rename(witness, witness+".gone"))
	require.Contains(t, refusedStart(t, dir), "ks.witness is missing or empty, and had line 3")
	require.NoError(t, os.Rename(witness+".gone", witness))

	// A check says so, too.
	v := verifyWithWitness(t, public, witness, filepath.Join(logs, "audit.log"))
	require.Len(t, v.Faults, 1)
	require.Contains(t, v.Faults[0].What, "what came after was removed")
}

func verifyWithWitness(t *testing.T, public ed25519.PublicKey, witness, log string) *keyserver.AuditVerifier {
	t.Helper()
	v := &keyserver.AuditVerifier{Keys: []ed25519.PublicKey{public}}
	w, err := os.Open(witness)
	require.NoError(t, err)
	defer w.Close()
	v.Witness(witness, w)
	f, err := os.Open(log)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, v.File(log, f))
	v.End(false)
	return v
}

// The same, with a witness that comes through the admin socket of a key server in
// its sandbox, after lines that it has are in a file that was rotated.
func TestAMachineThatIsPutBackMeetsAWitnessThatComes(t *testing.T) {
	dir, _ := auditFolder(t)
	logs, states := filepath.Join(dir, "log"), filepath.Join(dir, "state")
	require.NoError(t, os.Mkdir(states, 0o700))
	config := "admin: admin.sock\nstate: state/state.json\naudit: {file: log/audit.log, required: true, key: audit.key}"
	ask := func(last string) (status int, next string) {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "admin.sock"))
		}}}
		resp, err := client.Post("http://keyserver"+keyserver.AdminWitness, "application/json", bytes.NewReader([]byte(last)))
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	d := startDaemon(t, dir, config, nil)
	require.Empty(t, d.ask().Error)
	status, first := ask("")
	require.Equal(t, 200, status, first)
	require.NoError(t, os.Rename(filepath.Join(logs, "audit.log"), filepath.Join(logs, "audit.log-monday")))
	d.signal(syscall.SIGHUP)
	d.logged("audit log reopened")
	require.Empty(t, d.ask().Error)
	status, second := ask(first)
	require.Equal(t, 200, status, second)
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
	monday := snapshot(t, logs, states)

	d = startDaemon(t, dir, config, nil)
	require.Empty(t, d.ask().Error)
	status, last := ask(second)
	require.Equal(t, 200, status, last)
	d.signal(syscall.SIGKILL)
	_ = d.end()
	putBack(t, monday, logs, states)

	d = startDaemon(t, dir, config, nil)
	require.Empty(t, d.ask().Error, "nobody knows yet")
	require.Empty(t, d.ask().Error)
	status, said := ask(last)
	require.Equal(t, 409, status)
	require.Contains(t, said, "its witness has")
	require.Equal(t, ski.UnspecifiedError, d.ask().Error)
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
	require.Contains(t, refusedStart(t, dir), "its witness has")
}
