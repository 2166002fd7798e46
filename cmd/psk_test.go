package cmd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAnEdgeServerWithAPreSharedKeyIsServed(t *testing.T) {
	d := startDev(t)
	config := d.read("edge/edge.yaml")
	config = strings.NewReplacer("  certificate: edge.pem\n", "  psk: "+d.endpoints.EdgePSK+"\n", "  key: edge.key\n", "", "  ca: ca.pem\n", "",
		d.edgeAddr(), "127.0.0.1:0").Replace(config)
	file := filepath.Join(d.dir, "edge", "psk.yaml")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o644))
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer log.Close()
	edge := exec.Command(filepath.Join(bin, "ski-edgeserver"), "-config", file)
	edge.Stderr = log
	require.NoError(t, edge.Start())
	defer func() {
		assert.NoError(t, edge.Process.Signal(os.Interrupt))
		assert.NoError(t, edge.Wait())
	}()
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(log.Name())
		require.NoError(t, err)
		return strings.Count(string(data), "the key server has the key") == 2*len(d.endpoints.Sites) // with either engine
	}, time.Minute, 10*time.Millisecond)
	assert.Contains(t, d.read("keyserver/audit.log"), `"peer":"psk:edge.ski.internal"`)
}

func TestSkictlRequestTakesAPreSharedKey(t *testing.T) {
	d := startDev(t)
	ask := func(flags ...string) (stdout, all string, status int) {
		return d.skictl(append([]string{"request", "--endpoint", d.endpoints.KeyServer.CoAPS, "--protocol", "TLS 1.2", "--hash", "SHA-256",
			"--spki", "@" + d.endpoints.Sites[0].Cert, "--input", ecdheInput}, flags...)...)
	}
	out, all, status := ask("--psk-file", d.endpoints.EdgePSK, "--psk-identity", "edge.ski.internal", "--timeout", "1m")
	require.Zero(t, status, all)
	assert.Contains(t, out, `"output"`)

	other := filepath.Join(t.TempDir(), "other.psk")
	require.NoError(t, os.WriteFile(other, fmt.Appendf(nil, "edge-1:%032x\nedge-2:%032x\n", 1, 2), 0o600))
	for _, tc := range []struct {
		flags []string
		want  string
	}{
		{[]string{"--psk-file", other, "--psk-identity", "edge-1", "--timeout", "2s"}, "deadline exceeded"},
		{[]string{"--psk-file", other}, "say which with --psk-identity"},
		{[]string{"--psk-file", other, "--psk-identity", "edge-3"}, "no key of the identity"},
		{[]string{"--psk-file", other, "--cert", d.endpoints.EdgeCert, "--key", d.endpoints.EdgeKey, "--ca", d.endpoints.KeyServerCA}, "[cert psk-file]"},
		{nil, "[cert psk-file]"},
	} {
		_, all, status := ask(tc.flags...)
		assert.Equal(t, 1, status)
		assert.Contains(t, all, tc.want)
	}
}
