package keyserver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLinksTo(t *testing.T) {
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
		names, err := linksTo(at(name))
		require.NoError(t, err)
		require.Equal(t, want, names, name)
	}
	names, err := linksTo(at("loop"))
	require.NoError(t, err)
	require.Len(t, names, maxLinks+1)
}
