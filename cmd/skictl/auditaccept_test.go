package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
)

// A log was deleted while the key server was stopped. What an operator says of
// that stands in the log, and audit verify repeats it.
func TestAuditAccept(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	in := func(name string) string { return filepath.Join(dir, name) }
	status, _, stderr := skictl(t, "", "audit", "keygen", in("audit"))
	require.Zero(t, status, stderr)
	config := "certificate: c.pem\nkey: c.key\nclient_ca: ca.pem\nkeys: keys\npolicy: policy.yaml\nstate: state.json\n" +
		"audit: {file: audit.log, key: audit.key, required: true}\n"
	require.NoError(t, os.WriteFile(in("keyserver.yaml"), []byte(config), 0o600))
	cfg, err := keyserver.LoadConfig(in("keyserver.yaml"))
	require.NoError(t, err)
	run := func() error {
		o, err := cfg.AuditOptions()
		require.NoError(t, err)
		o.Logger = slog.New(slog.DiscardHandler)
		log, err := keyserver.OpenAuditLog(o)
		if err != nil {
			return err
		}
		require.NoError(t, log.Audit(context.Background(), &keyserver.Record{Time: time.Now(), Edge: "edge-1", Outcome: "output"}))
		return log.Close()
	}
	accept := func(more ...string) (int, string, string) {
		return skictl(t, "", append([]string{"audit", "accept", "--config", in("keyserver.yaml")}, more...)...)
	}
	require.NoError(t, run())

	status, _, stderr = accept("--reason", "nothing")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "there is nothing to accept: the log is as the key server left it")
	require.NoError(t, os.Remove(in("audit.log")))
	require.Error(t, run())
	status, _, stderr = accept()
	require.NotZero(t, status)
	require.Contains(t, stderr, `"reason" not set`)
	status, _, stderr = accept("--reason", " ")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "the reason is empty")
	status, out, stderr := accept("--reason", "I deleted it", "--by", "alice")
	require.Zero(t, status, stderr)
	require.Contains(t, out, "it is missing or empty, but")
	require.Contains(t, out, "accepted by alice\n")
	require.NoError(t, run())

	status, out, _ = skictl(t, "", "audit", "verify", "--key", in("audit.pub"), in("audit.log"))
	require.Zero(t, status, out)
	require.Regexp(t, `(?m)^note: \S+audit.log:1: the log was not as the key server had left it: it is missing .*; accepted at 20\S+ by alice: I deleted it$`, out)
	require.NoFileExists(t, in("state.json.audit.accept"))
}
