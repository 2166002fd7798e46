//go:build cgo

package hsm

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	softHSM = "/usr/lib/softhsm/libsofthsm2.so"
	userPIN = "user-1234"
	soPIN   = "officer-1234"
)

// softToken is a SoftHSM token in a folder of its own.
type softToken struct {
	dir   string
	label string
	pin   string // the file with the PIN
}

// newSoftHSM makes SoftHSM use a new folder, with a token for each label. It
// reads its configuration when it is initialized, so all stores of a test share
// it, and tests cannot run in parallel.
func newSoftHSM(t testing.TB, labels ...string) []*softToken {
	t.Helper()
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	require.NoError(t, os.Mkdir(tokens, 0o700))
	conf := filepath.Join(dir, "softhsm2.conf")
	require.NoError(t, os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600))
	setenv(t, "SOFTHSM2_CONF", conf)
	pin := filepath.Join(dir, "pin")
	require.NoError(t, os.WriteFile(pin, []byte(userPIN+"\n"), 0o600))
	var all []*softToken
	for _, label := range labels {
		command(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", userPIN, "--so-pin", soPIN)
		all = append(all, &softToken{dir: tokens, label: label, pin: pin})
	}
	return all
}

func setenv(t testing.TB, name, value string) {
	t.Helper()
	before, had := os.LookupEnv(name)
	require.NoError(t, os.Setenv(name, value))
	t.Cleanup(func() {
		if had {
			os.Setenv(name, before)
		} else {
			os.Unsetenv(name)
		}
	})
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s: %s", name, out)
	return string(out)
}

// uri returns a URI of the token, with path attributes added.
func (s *softToken) uri(attributes string) string {
	return fmt.Sprintf("pkcs11:token=%s%s?module-path=%s&pin-source=file:%s", s.label, attributes, softHSM, s.pin)
}

// generate makes a key pair called label.
func (s *softToken) generate(t testing.TB, label, kind string, template Template) KeyInfo {
	t.Helper()
	template.Type = kind
	info, err := Generate(t.Context(), Config{Keys: []Key{{URI: s.uri(";object=" + label)}}}, template)
	require.NoError(t, err)
	return info
}

// tool runs pkcs11-tool logged in to the token.
func (s *softToken) tool(t testing.TB, args ...string) string {
	t.Helper()
	return command(t, "pkcs11-tool", append([]string{"--module", softHSM, "--token-label", s.label, "--login", "--pin", userPIN}, args...)...)
}

// openStore opens a store that the test closes.
func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	return openStoreWith(t, cfg, loadModule)
}

func openStoreWith(t testing.TB, cfg Config, load loader) *Store {
	t.Helper()
	s, err := open(t.Context(), cfg, load, false)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	require.NoError(t, err)
	return b
}
