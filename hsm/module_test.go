//go:build cgo

package hsm

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A module is code in the process with the keys. It is not loaded where another
// user could have put it.
func TestAModuleThatOthersCouldChangeIsNotLoaded(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	token.generate(t, "ec", "ec-p256", Template{Sign: true})
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	vendor := filepath.Join(dir, "vendor")
	require.NoError(t, os.Mkdir(vendor, 0o755))
	file, link := filepath.Join(vendor, "m.so"), filepath.Join(dir, "link.so")
	data, err := os.ReadFile(softHSM)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, data, 0o644))
	require.NoError(t, os.Symlink("vendor/m.so", link))
	loaded := false
	open := func(path string) error {
		store, err := open(t.Context(), Config{Keys: []Key{{
			URI: "pkcs11:token=site-keys?module-path=" + path + "&pin-source=file:" + token.pin,
		}}, MaxSessions: 1}, func(file string) (module, error) { loaded = true; return loadModule(file) }, false)
		if err == nil {
			err = store.Close()
		}
		return err
	}
	for _, tc := range []struct {
		changed string
		mode    os.FileMode
		want    string
	}{
		{file, 0o666, "vendor/m.so: group or others can write it (mode 0666): chmod go-w"},
		{vendor, 0o777, "vendor: group or others can write the folder (mode 0777): chmod go-w"},
		{dir, 0o777, ": group or others can write the folder (mode 0777): chmod go-w"},
	} {
		require.NoError(t, os.Chmod(tc.changed, tc.mode))
		for _, path := range []string{file, link} {
			require.ErrorContains(t, open(path), "the module cannot be loaded: "+dir)
			require.ErrorContains(t, open(path), tc.want)
		}
		require.NoError(t, os.Chmod(tc.changed, tc.mode&^0o022))
	}
	require.False(t, loaded)
	if os.Geteuid() == 0 { // Only root can give files away.
		require.NoError(t, os.Chown(vendor, 12345, -1))
		require.ErrorContains(t, open(link), vendor+": it belongs to another user (uid 12345)")
		require.NoError(t, os.Chown(vendor, 0, -1))
	}
	require.False(t, loaded)
	require.NoError(t, os.Chmod(vendor, 0o755))
	require.NoError(t, os.Chmod(file, 0o644))
	require.NoError(t, open(link))
	require.True(t, loaded)
}

// What was to look for a token and begins when Open has given up, calls nothing.
func TestASearchThatComesTooLateCallsNoModule(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	cfg := &Config{Keys: []Key{{URI: token.uri("")}}}
	target, err := newTarget(cfg, cfg.Keys[0])
	require.NoError(t, err)
	store := new(Store)
	mod, err := store.module(t.Context(), target.uri.ModulePath, loadModule)
	require.NoError(t, err)
	require.NoError(t, store.Close())
	ctx, giveUp := context.WithCancel(t.Context())
	giveUp()
	_, _, err = slotOf(ctx, mod, target.uri)
	require.ErrorIs(t, err, context.Canceled)
}
