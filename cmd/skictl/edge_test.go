package main

import (
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
)

// An edge is suspended, listed and resumed on a key server that has no edge's
// session at the moment.
func TestEdge(t *testing.T) {
	keys := new(keyserver.MemoryStore)
	policy, err := keyserver.ParsePolicy("policy.yaml", []byte("edges: [{name: edge-1, dns: [edge-1.example.net]}]\n"), keys)
	require.NoError(t, err)
	server, err := keyserver.New(keyserver.Options{
		Keys: keys, Policy: policy, Audit: keyserver.NewAuditLog(io.Discard), Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	socket := filepath.Join(t.TempDir(), "admin.sock")
	listener, err := keyserver.ListenAdmin(socket)
	require.NoError(t, err)
	defer listener.Close()
	go server.ServeAdmin(listener)

	status, out, _ := skictl(t, "", "edge", "list", "--socket", socket)
	require.Zero(t, status)
	require.Regexp(t, `(?m)^edge-1 +0 +- +0 +0 +- +-$`, out)

	status, out, stderr := skictl(t, "", "edge", "suspend", "edge-1", "--reason", "stolen", "--socket", socket)
	require.Zero(t, status, stderr)
	require.Equal(t, "edge-1 is suspended, 0 sessions closed\n", out)
	require.Contains(t, stderr, "no state file is configured")
	_, out, _ = skictl(t, "", "edge", "list", "--socket", socket)
	require.Regexp(t, `(?m)^edge-1 .* at 20\S+ by .*: stolen$`, out)
	_, out, _ = skictl(t, "", "edge", "list", "--json", "--socket", socket)
	require.Contains(t, out, `"reason":"stolen"`)

	status, out, _ = skictl(t, "", "edge", "resume", "edge-1", "--socket", socket)
	require.Zero(t, status)
	require.Equal(t, "edge-1 is resumed\n", out)
	status, _, stderr = skictl(t, "", "edge", "resume", "edge-1", "--socket", socket)
	require.Equal(t, 1, status)
	require.Equal(t, "skictl: the edge is not suspended: \"edge-1\"\n", stderr)
	status, _, stderr = skictl(t, "", "edge", "suspend", "edge-2", "--socket", socket)
	require.Equal(t, 1, status)
	require.Contains(t, stderr, `nor psk:IDENTITY: "edge-2"`)

	status, _, stderr = skictl(t, "", "edge", "list", "--socket", socket+"x")
	require.Equal(t, 1, status)
	require.Regexp(t, `^skictl: admin socket: dial unix .*no such file or directory\n$`, stderr)
}
