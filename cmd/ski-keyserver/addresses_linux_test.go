package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// From where edges have been authenticated is kept beside the state file, also
// by a key server that is confined, and for whoever else may be on the machine
// it is nothing.
func TestAddressesOfEdgesAreKeptOverARestart(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "state.json.addresses")
	require.NoError(t, os.WriteFile(file, []byte("192.0.2.7\n"), 0o600))
	d := startDaemon(t, dir, "state: state.json", nil)
	d.ask()
	d.signal(syscall.SIGTERM)
	assert.Zero(t, d.end())
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "192.0.2.7\n127.0.0.1\n", string(data), "the one from before, and this one")
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
}

func TestAFileOfAddressesThatIsBrokenKeepsNothingFromWorking(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "state.json.addresses")
	require.NoError(t, os.WriteFile(file, []byte("127.0.0.1\n\x00\x00\x00"), 0o600))
	d := startDaemon(t, dir, "state: state.json", nil)
	d.ask()
	d.signal(syscall.SIGTERM)
	assert.Zero(t, d.end())
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "127.0.0.1\n", string(data), "it is made anew")
}

func TestWithoutAStateFileNoAddressesAreKept(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "", nil)
	d.ask()
	d.signal(syscall.SIGTERM)
	assert.Zero(t, d.end())
	left, err := filepath.Glob(filepath.Join(dir, "*.addresses"))
	require.NoError(t, err)
	assert.Empty(t, left)
}
