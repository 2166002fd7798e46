package keyserver

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAddressesAreKeptInAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.addresses")
	all := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::")}
	for _, all := range [][]netip.Addr{all, all[1:], nil} {
		require.NoError(t, WriteAddresses(file, all))
		read, err := ReadAddresses(file)
		require.NoError(t, err)
		assert.Equal(t, all, read)
		info, err := os.Stat(file)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode())
	}
}

func TestAFileOfAddressesThatIsNotOne(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.addresses")
	require.NoError(t, os.WriteFile(file, []byte("192.0.2.1\nhello\n"), 0o600))
	_, err := ReadAddresses(file)
	assert.ErrorContains(t, err, "line 2")
	require.NoError(t, os.WriteFile(file, []byte("192.0.2.1\n"), 0o600))
	require.NoError(t, os.Chmod(file, 0o644))
	_, err = ReadAddresses(file)
	assert.ErrorContains(t, err, "chmod")
}
