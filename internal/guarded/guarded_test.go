package guarded

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// ownedBy is a file as it would look to be another user's.
type ownedBy struct {
	fs.FileInfo
	uid uint32
}

func (o ownedBy) Sys() any { return &syscall.Stat_t{Uid: o.uid} }

func TestWhatBelongsToAnotherUserIsRefused(t *testing.T) {
	info, err := os.Stat(t.TempDir())
	require.NoError(t, err)
	for _, uid := range []uint32{0, uint32(os.Geteuid())} {
		require.NoError(t, checkOwner("a", ownedBy{info, uid}))
		require.NoError(t, checkDirInfo("a", ownedBy{info, uid}))
	}
	stranger := ownedBy{info, uint32(os.Geteuid()) + 1}
	require.ErrorContains(t, checkOwner("a", stranger), "a: it belongs to another user (uid ")
	require.ErrorContains(t, checkRights("a", stranger, Secret), "a: it belongs to another user (uid ")
	require.ErrorContains(t, checkDirInfo("a", stranger), "a: it belongs to another user (uid ")
}

func TestReadRefusesWhatOthersCanReadOrWrite(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("secret"), 0o600))
	data, err := Read(file, Secret, 6)
	require.NoError(t, err)
	require.Equal(t, "secret", string(data))
	_, err = Read(file, Secret, 5)
	require.ErrorContains(t, err, "it has more than 5 bytes")
	_, err = Read(dir, Secret, 5)
	require.ErrorContains(t, err, "not a regular file")
	for _, tc := range []struct {
		mode, forbidden fs.FileMode
		want            string
	}{
		{0o640, Secret, "group or others have rights to it (mode 0640): chmod 600"},
		{0o640, Trusted, ""},
		{0o440, Credential, ""},
		{0o460, Credential, "group or others have rights to it (mode 0460): chmod 600"},
		{0o602, Trusted, "group or others can write it (mode 0602): chmod go-w"},
	} {
		require.NoError(t, os.Chmod(file, tc.mode))
		_, err := Read(file, tc.forbidden, 6)
		if tc.want == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, file+": "+tc.want)
		}
	}
	require.NoError(t, os.Chmod(file, 0o600))
	for _, mode := range []fs.FileMode{0o770, 0o707, 0o777 | os.ModeSticky} {
		require.NoError(t, os.Chmod(dir, mode))
		_, err = Read(file, Secret, 6)
		require.ErrorContains(t, err, dir+": group or others can write the folder")
	}
}
