package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// The policy of a process that runs, in its sandbox: replaced, spoilt, and read
// again by a signal.
func TestPolicyIsReloaded(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	require.NoError(t, d.ask().Err())
	file := filepath.Join(dir, "policy.yaml")
	replace := func(text string) {
		require.NoError(t, os.WriteFile(file+".new", []byte(text), 0o600))
		require.NoError(t, os.Rename(file+".new", file))
	}

	replace(strings.Replace(policyYAML, "[ECDHE]", "[RSA]", 1))
	d.logged(`msg="policy loaded"`)
	require.Equal(t, ski.RequestDenied, d.ask().Error)

	replace(strings.Replace(policyYAML, "[edge-1]", "[edge-2]", 1))
	require.Contains(t, d.logged(`msg="policy refused, the one before stays"`), `policy.yaml:5:13: there is no edge called \"edge-2\"`)
	require.Equal(t, ski.RequestDenied, d.ask().Error)

	d.signal(syscall.SIGHUP)
	d.logged(`msg="policy refused, the one before stays"`) // It says so to whoever asks.

	replace(policyYAML)
	d.logged(`msg="policy loaded"`)
	require.NoError(t, d.ask().Err())

	d.signal(syscall.SIGHUP)
	d.logged(`msg="policy loaded"`)
	require.NoError(t, d.ask().Err())

	// Whom the policy does not know any more has no session.
	replace(strings.Replace(policyYAML, "edge.test", "other.test", 1))
	d.logged(`msg="sessions closed"`)

	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}
