package cmd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// systemd itself reads the units: nothing in them may be unknown to it, and
// what it calls the exposure of the service has to stay at 2.0 of 10 or below.
func TestTheSystemdUnits(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	for _, name := range []string{"ski-keyserver", "ski-edgeserver"} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile("../docs/systemd/" + name + ".service")
			require.NoError(t, err)
			unit := string(data)
			require.Contains(t, unit, "\nLimitCORE=0\n")
			require.Contains(t, unit, "\nExecStart=/usr/local/bin/"+name+" -config /etc/"+name+"/")

			// It wants the program to be there.
			file := filepath.Join(t.TempDir(), name+".service")
			unit = strings.ReplaceAll(unit, "ExecStart=/usr/local/bin/"+name, "ExecStart="+self)
			require.NoError(t, os.WriteFile(file, []byte(unit), 0o644))
			out, err := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Empty(t, string(out))
			out, err = exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=20", file).CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
	keyServer, err := os.ReadFile("../docs/systemd/ski-keyserver.service")
	require.NoError(t, err)
	require.Contains(t, string(keyServer), "\nExecReload=/bin/kill -HUP $MAINPID\n")
}
