package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/edgeserver"
	"github.com/tlsski/tlsski/ski"
)

// A key server that is as it was keeps its client, which is closed with the last
// configuration that has it; one that has changed, in whatever way, gets another.
func TestKeyServersAcrossConfigurations(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	base := edgeserver.KeyServer{URL: "coaps://127.0.0.1:1/ski", Certificate: filepath.Join(dir, "edge.pem"),
		Key: filepath.Join(dir, "edge.key"), CA: filepath.Join(dir, "ca.pem")}
	cfg := edgeserver.Config{KeyServer: base, Sites: []edgeserver.Site{{Default: true}}}
	log := slog.New(slog.DiscardHandler)
	open := func(cfg edgeserver.Config, before keyServers) keyServers {
		all, err := openKeyServers(cfg, before, func(string, ski.Attempt) {}, log)
		require.NoError(t, err)
		return all
	}
	closed := func(k *keyServer) bool { return k.users.Load() == 0 }

	first := open(cfg, nil)
	second := open(cfg, first)
	assert.Same(t, first[""], second[""])
	first.Close()
	assert.False(t, closed(second[""]))

	other := cfg
	other.KeyServer.URL = "coaps://127.0.0.1:2/ski"
	third := open(other, second)
	assert.NotSame(t, second[""], third[""])
	second.Close()
	assert.True(t, closed(second[""]))

	data, err := os.ReadFile(base.CA)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(base.CA, append(data, data...), 0o600))
	fourth := open(other, third)
	assert.NotSame(t, third[""], fourth[""], "what is in a file has changed")
	third.Close()

	require.NoError(t, os.WriteFile(base.Key, []byte("no key"), 0o600))
	_, err = openKeyServers(other, fourth, func(string, ski.Attempt) {}, log)
	assert.ErrorContains(t, err, "edge.key")
	assert.False(t, closed(fourth[""]))
	fourth.Close()
}
