package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/hsm"
	"github.com/tlsski/tlsski/ski"
)

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// newToken makes a SoftHSM token in a folder and returns its one key.
func newToken(t *testing.T, dir string) hsm.KeyInfo {
	tokens := filepath.Join(dir, "tokens")
	require.NoError(t, os.MkdirAll(tokens, 0o700))
	conf := filepath.Join(dir, "softhsm2.conf")
	require.NoError(t, os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "pin"), []byte("user-1234"), 0o600))
	t.Setenv("SOFTHSM2_CONF", conf)
	out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "sites", "--pin", "user-1234", "--so-pin", "officer-1").CombinedOutput()
	require.NoError(t, err, "%s", out)
	key, err := hsm.Generate(t.Context(), hsm.Config{Dir: dir, Keys: []hsm.Key{{
		URI: "pkcs11:token=sites;object=token.test?pin-source=file:pin&module-path=" + softHSM,
	}}}, hsm.Template{Type: "ec-p256", Sign: true})
	require.NoError(t, err)
	return key
}

const tokenYAML = `audit: {file: audit.log}
hsm:
  keys:
    - uri: "pkcs11:token=sites?pin-source=file:pin&module-path=` + softHSM + `"
  max_sessions: 2
  folders: [%q]
`

// The token goes and comes back, and the module is ended and started again, all
// within the sandbox and its own folders.
func TestATokenHealsInTheSandbox(t *testing.T) {
	dir, module := t.TempDir(), t.TempDir()
	key := newToken(t, module)
	require.NoError(t, os.Rename(filepath.Join(module, "pin"), filepath.Join(dir, "pin"))) // which it reads at the start only
	d := startDaemon(t, dir, fmt.Sprintf(tokenYAML, module), nil)
	d.logged("msg=sandbox")
	d.req.SPKI = key.ID
	require.Empty(t, d.ask().Error)

	tokens, away := filepath.Join(module, "tokens"), filepath.Join(module, "away")
	require.NoError(t, os.Rename(tokens, away))
	require.Eventually(t, func() bool { return d.ask().Error == ski.UnspecifiedError }, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, os.Rename(away, tokens))
	require.Eventually(t, func() bool { return d.ask().Error == "" }, 60*time.Second, 50*time.Millisecond)
	d.logged("an HSM works again")

	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// A service manager must not try a wrong PIN again.
func TestAWrongPINHasAnExitStatusOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeFiles(dir))
	newToken(t, dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "pin"), []byte("wrong-9999"), 0o600))
	config := filepath.Join(dir, "config.yaml")
	text := configYAML[:len(configYAML)-len("audit: {file: audit.log}\n")] + fmt.Sprintf(tokenYAML, dir)
	require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	for _, args := range [][]string{{"-config", config}, {"-config", config, "-check"}} {
		command, err := exec.LookPath("ski-keyserver")
		require.NoError(t, err)
		cmd := exec.Command(command, args...)
		out, err := cmd.CombinedOutput()
		require.Error(t, err)
		require.Equal(t, 3, cmd.ProcessState.ExitCode(), "%s", out)
		require.Contains(t, string(out), "does not take the PIN")
		require.NotContains(t, string(out), "wrong-9999")
	}
}
