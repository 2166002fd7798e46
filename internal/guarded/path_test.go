package guarded

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLinks(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.MkdirAll(at("real/deep"), 0o700))
	for link, target := range map[string]string{
		"folder":         "real",
		"real/up":        "../file",
		"absolute":       at("folder/deep"),
		"loop":           "loop",
		"real/deep/next": "./there",
	} {
		require.NoError(t, os.Symlink(target, at(link)))
	}
	for name, want := range map[string][]string{
		"file":              {"file"},
		"real/deep/missing": {"real/deep/missing"},
		"folder/x":          {"folder", "real/x"},
		"folder/up":         {"folder", "real/up", "file"},
		"folder/deep/../up": {"folder", "real/up", "file"},
		"absolute/next":     {"absolute", "folder", "real/deep/next", "real/deep/there"},
	} {
		for i := range want {
			want[i] = at(want[i])
		}
		names, err := Links(at(name))
		require.NoError(t, err)
		require.Equal(t, want, names, name)
	}
	names, err := Links(at("loop"))
	require.NoError(t, err)
	require.Len(t, names, maxLinks+1)
}

// A library is loaded by its name: whoever can change anything on the way to it
// has their code in the process.
func TestCheckPathRefusesWhatOthersCouldReplace(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	at := func(name string) string { return filepath.Join(top, name) }
	require.NoError(t, os.MkdirAll(at("opt/vendor/lib"), 0o755))
	require.NoError(t, os.WriteFile(at("opt/vendor/lib/m.so"), nil, 0o755))
	require.NoError(t, os.MkdirAll(at("links"), 0o755))
	require.NoError(t, os.Symlink(at("opt/vendor"), at("links/vendor")))
	require.NoError(t, os.Symlink("vendor/lib/m.so", at("links/m.so")))
	require.NoError(t, os.Symlink("missing", at("links/dangling")))
	require.NoError(t, os.Symlink("loop", at("links/loop")))
	check := func(name string) error {
		target, err := CheckPath(at(name))
		if err == nil {
			require.Equal(t, at("opt/vendor/lib/m.so"), target)
		}
		return err
	}
	names := []string{"opt/vendor/lib/m.so", "links/vendor/lib/m.so", "links/m.so", "links/../opt/vendor/lib/m.so"}
	for _, name := range names {
		require.NoError(t, check(name), name)
	}
	for _, tc := range []struct {
		name, changed string
		mode          fs.FileMode
		want          string // "" for none
	}{
		{"links/m.so", "opt/vendor/lib/m.so", 0o775, "group or others can write it (mode 0775): chmod go-w"},
		{"links/m.so", "opt/vendor/lib", 0o757, "group or others can write the folder (mode 0757): chmod go-w"},
		{"links/m.so", "opt/vendor", 0o777, "group or others can write the folder (mode 0777): chmod go-w"},
		{"links/m.so", "opt", 0o775, "group or others can write the folder (mode 0775): chmod go-w"},
		{"links/m.so", "links", 0o777, "group or others can write the folder (mode 0777): chmod go-w"},
		{"opt/vendor/lib/m.so", "links", 0o777, ""},
		// As /tmp: a directory in it is safe, a file or a link is not.
		{"opt/vendor/lib/m.so", "opt", 0o777 | fs.ModeSticky, ""},
		{"opt/vendor/lib/m.so", "opt/vendor/lib", 0o777 | fs.ModeSticky, "group or others can write the folder (mode 0777): chmod go-w"},
		{"links/vendor/lib/m.so", "links", 0o777 | fs.ModeSticky, "group or others can write the folder (mode 0777): chmod go-w"},
	} {
		require.NoError(t, os.Chmod(at(tc.changed), tc.mode))
		err := check(tc.name)
		if tc.want == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, at(tc.changed)+": "+tc.want)
		}
		require.NoError(t, os.Chmod(at(tc.changed), 0o755))
	}
	require.ErrorContains(t, check("opt/vendor"), "it is not a regular file")
	require.ErrorIs(t, check("links/dangling"), fs.ErrNotExist)
	require.ErrorContains(t, check("links/loop"), "it is not a regular file")
	if os.Geteuid() != 0 {
		return // Only root can give files away.
	}
	for _, owned := range []string{"opt/vendor/lib/m.so", "opt/vendor/lib", "opt/vendor", "opt"} {
		require.NoError(t, os.Chown(at(owned), 12345, -1))
		require.ErrorContains(t, check("links/m.so"), at(owned)+": it belongs to another user (uid 12345)")
		require.NoError(t, os.Chown(at(owned), 0, -1))
	}
}
