package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
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
	require.NoError(t, os.Rename(filepath.Join(module, "pin"), filepath.Join(dir, "pin"))) // which is not in the module's own
	d := startDaemon(t, dir, fmt.Sprintf(tokenYAML, module), nil)
	d.logged("msg=sandbox")
	d.req.SPKI = key.ID
	require.Empty(t, d.ask().Error)

	tokens, away := filepath.Join(module, "tokens"), filepath.Join(module, "away")
	require.NoError(t, os.Rename(tokens, away))
	require.Eventually(t, func() bool { return d.ask().Error == ski.UnspecifiedError }, time.Minute, 10*time.Millisecond)
	require.NoError(t, os.Rename(away, tokens))
	require.Eventually(t, func() bool { return d.ask().Error == "" }, time.Minute, 50*time.Millisecond)
	d.logged("an HSM works again")

	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// tokenDaemon is a key server with the keys of a token, which can be taken away.
type tokenDaemon struct {
	*daemon
	key          hsm.KeyInfo
	pin          string // the file
	tokens, away string
	url          string
}

// startTokenDaemon starts one, whose PIN is in a directory of its own. Without
// files, the token has all keys.
func startTokenDaemon(t *testing.T, files bool) *tokenDaemon {
	dir, module, secrets := t.TempDir(), t.TempDir(), t.TempDir()
	d := &tokenDaemon{
		key: newToken(t, module), pin: filepath.Join(secrets, "pin"),
		tokens: filepath.Join(module, "tokens"), away: filepath.Join(module, "away"),
	}
	require.NoError(t, os.Rename(filepath.Join(module, "pin"), d.pin))
	require.NoError(t, writeFiles(dir))
	config := strings.Replace(configYAML, "audit: {file: audit.log}", fmt.Sprintf(tokenYAML, module)+"metrics: 127.0.0.1:0", 1)
	config = strings.Replace(config, "file:pin", "file:"+d.pin, 1)
	if !files {
		config = strings.Replace(config, "keys: keys\n", "", 1)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "policy.yaml"),
			[]byte("edges: [{name: edge-1, dns: [edge.test]}]\nrules: [{edges: [edge-1], keys: [\"*\"], methods: [ECDHE]}]\n"), 0o600))
	}
	d.daemon = startConfigured(t, dir, config, nil)
	d.url = "http://" + regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(d.logged("msg=metrics"))[1]
	d.logged("msg=sandbox")
	d.req.SPKI = d.key.ID
	require.Empty(t, d.ask().Error)
	return d
}

func (d *tokenDaemon) health() string {
	d.t.Helper()
	resp, err := http.Get(d.url + "/healthz")
	require.NoError(d.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(d.t, err)
	return fmt.Sprint(resp.StatusCode, " ", string(body))
}

func (d *tokenDaemon) until(what string, condition func() bool) {
	d.t.Helper()
	require.Eventually(d.t, condition, time.Minute, 20*time.Millisecond, what)
}

// A token goes and comes back: a line in the log for each, however many ask
// meanwhile. A load balancer sees it, and nobody needs to ask for it to heal.
func TestAnOutageOfATokenIsLoggedOnceAndShownByHealth(t *testing.T) {
	for name, files := range map[string]bool{"tokens alone": false, "beside files": true} {
		t.Run(name, func(t *testing.T) {
			d := startTokenDaemon(t, files)
			require.Equal(t, "200 ok\n", d.health())
			require.NoError(t, os.Rename(d.tokens, d.away))
			d.until("an outage", func() bool { return d.ask().Error == ski.UnspecifiedError })
			for range 100 {
				require.Equal(t, ski.UnspecifiedError, d.ask().Error)
			}
			if files { // The other keys can be used.
				require.Equal(t, "200 ok\n", d.health())
				require.NoError(t, os.Rename(d.away, d.tokens))
				d.until("healed", func() bool { return d.ask().Error == "" })
			} else {
				require.Contains(t, d.health(), `503 no private key can be used: token "sites" (serial `)
				require.NoError(t, os.Rename(d.away, d.tokens))
				d.until("healed", func() bool { return d.health() == "200 ok\n" })
			}
			require.Empty(t, d.ask().Error)
			d.signal(syscall.SIGTERM)
			began, ended := 0, 0
			for line := range d.log {
				require.NotContains(t, line, "operation failed")
				began += strings.Count(line, "an HSM does not work")
				ended += strings.Count(line, "an HSM works again")
			}
			require.Equal(t, []int{1, 1}, []int{began, ended})
			require.Zero(t, d.end())
		})
	}
}

// The PIN is changed on the token and in its file. The sandbox lets the key server
// read it for the next login.
func TestANewPINIsReadInTheSandbox(t *testing.T) {
	d := startTokenDaemon(t, false)
	out, err := exec.Command("pkcs11-tool", "--module", softHSM, "--token-label", "sites", "--login", "--pin", "user-1234",
		"--change-pin", "--new-pin", "new-5678").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.WriteFile(d.pin+".next", []byte("new-5678"), 0o600))
	require.NoError(t, os.Rename(d.pin+".next", d.pin))

	// The module is ended and started again, and has forgotten the login.
	require.NoError(t, os.Rename(d.tokens, d.away))
	d.until("a restart", func() bool { _ = d.ask(); return strings.Contains(d.health(), "C_Initialize") })
	require.NoError(t, os.Rename(d.away, d.tokens))
	d.until("healed", func() bool { return d.health() == "200 ok\n" })
	require.Empty(t, d.ask().Error)
	d.signal(syscall.SIGTERM)
	for line := range d.log {
		require.NotContains(t, line, "does not take the PIN")
	}
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
