package cmd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The commands of docs/edge.md, as they are printed there, serve a site.
func TestTheFiveCommandsOfTheEdgePageServeASite(t *testing.T) {
	page, err := os.ReadFile("../docs/edge.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(page, -1)
	require.Len(t, blocks, 2, "the certificates for a try, and the five commands")
	commands := string(blocks[1][1])
	assert.Equal(t, 5, strings.Count(commands, "\n"))

	// Both servers are the shell's children, and have ended when it has.
	script := "set -e\ntrap 'kill $(jobs -p); wait' EXIT\n" + string(blocks[0][1]) + commands +
		"openssl s_client -connect 127.0.0.1:8443 -servername www.example.com -CAfile ca.pem -verify_return_error -brief </dev/null\n"
	dir := t.TempDir()
	cmd := exec.Command("timeout", "300", "sh", "-c", inANetworkOfItsOwn, script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))

	all := string(out)
	assert.Equal(t, 2, strings.Count(all, "Hello, world!"), all)
	assert.Contains(t, all, "Protocol version: TLSv1.3")
	assert.Contains(t, all, "Verification: OK")

	// What the page says of the folders.
	audit, err := os.ReadFile(filepath.Join(dir, "www/keyserver/audit.log"))
	require.NoError(t, err)
	for _, handshake := range []string{
		`"key_name":"www.example.com-ecdsa","protocol":"TLS 1.3","method":"ECDHE"`,
		`"key_name":"www.example.com-rsa","protocol":"TLS 1.2","method":"ECDHE"`,
	} {
		assert.Contains(t, string(audit), handshake)
	}
	require.NoError(t, filepath.Walk(filepath.Join(dir, "www/edge"), func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() && filepath.Base(path) != "edge.key" {
			data, err := os.ReadFile(path)
			assert.NoError(t, err)
			assert.NotContains(t, string(data), "PRIVATE KEY", path)
		}
		return err
	}))
}

// inANetworkOfItsOwn runs a script where the ports that it uses are free, unless
// there is no right to that, as in most containers.
const inANetworkOfItsOwn = `
for flags in --net "--map-root-user --net"; do
	if unshare $flags ip link set lo up 2>/dev/null; then
		exec unshare $flags sh -c 'ip link set lo up && exec bash -c "$0"' "$0"
	fi
done
exec bash -c "$0"`
