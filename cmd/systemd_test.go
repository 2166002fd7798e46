package cmd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	edgeServer, err := os.ReadFile("../docs/systemd/ski-edgeserver.service")
	require.NoError(t, err)
	require.Contains(t, string(edgeServer), "\nType=notify\n", "READY=1 comes when it listens")
	require.Contains(t, string(edgeServer), "\nExecReload=/bin/kill -HUP $MAINPID\n")
	require.NotContains(t, string(edgeServer), "\nProcSubset=", "it takes /proc/sys away, and with it the length of the queue of a listener")
	keyServer, err := os.ReadFile("../docs/systemd/ski-keyserver.service")
	require.NoError(t, err)
	require.Contains(t, string(keyServer), "\nRestartPreventExitStatus=3\n", "each start is an attempt with a token's PIN")
	require.Contains(t, string(keyServer), "\nExecReload=/bin/kill -HUP $MAINPID\n")
}

// The witness starts ssh, and writes to one file.
func TestTheSystemdUnitOfTheWitness(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	data, err := os.ReadFile("../docs/systemd/ski-witness.service")
	require.NoError(t, err)
	unit := string(data)
	require.Contains(t, unit, "\nExecStart=/usr/local/bin/skictl audit witness --key ")
	file := filepath.Join(t.TempDir(), "ski-witness.service")
	unit = strings.ReplaceAll(unit, "ExecStart=/usr/local/bin/skictl", "ExecStart="+self)
	require.NoError(t, os.WriteFile(file, []byte(unit), 0o644))
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
	out, err = exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=20", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// The socket belongs to the edge server's unit, and has the name that the
// configuration in its comment uses.
func TestTheSystemdSocket(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	service, err := os.ReadFile("../docs/systemd/ski-edgeserver.service")
	require.NoError(t, err)
	socket, err := os.ReadFile("../docs/systemd/ski-edgeserver.socket")
	require.NoError(t, err)
	require.Contains(t, string(socket), "\nFileDescriptorName=https\n")
	require.Contains(t, string(socket), `listen: ["systemd:https"]`)
	verify := func(socket string) string {
		dir := t.TempDir()
		file := filepath.Join(dir, "ski-edgeserver.socket")
		require.NoError(t, os.WriteFile(file, []byte(socket), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "ski-edgeserver.service"),
			[]byte(strings.ReplaceAll(string(service), "ExecStart=/usr/local/bin/ski-edgeserver", "ExecStart="+self)), 0o644))
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	require.Empty(t, verify(string(socket)))
	require.Contains(t, verify(strings.Replace(string(socket), "[Install]", "NoSuchThing=1\n[Install]", 1)), "NoSuchThing", "it is read")
}

// The drop-in for tokens, as it stands and with all that is commented out in it.
func TestTheSystemdDropInForTokens(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	unit, err := os.ReadFile("../docs/systemd/ski-keyserver.service")
	require.NoError(t, err)
	dropIn, err := os.ReadFile("../docs/systemd/ski-keyserver.service.d/hsm.conf")
	require.NoError(t, err)
	verify := func(dropIn string) string {
		dir := t.TempDir()
		file := filepath.Join(dir, "ski-keyserver.service")
		require.NoError(t, os.Mkdir(file+".d", 0o755))
		require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(unit), "ExecStart=/usr/local/bin/ski-keyserver", "ExecStart="+self)), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(file+".d", "hsm.conf"), []byte(dropIn), 0o644))
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	require.Empty(t, verify(string(dropIn)))
	require.Empty(t, verify(regexp.MustCompile(`(?m)^#([A-Z][A-Za-z]+=)`).ReplaceAllString(string(dropIn), "$1")))
	require.Contains(t, verify(string(dropIn)+"NoSuchThing=1\n"), "NoSuchThing", "it is read")
}
