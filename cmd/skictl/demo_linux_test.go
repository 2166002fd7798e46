package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// demoSetup is what the demo searches: a folder for each server, and in the
// place of each a process that holds what it is fed in its memory.
type demoSetup struct {
	*dev
	key []byte // as it is in a key server's memory
}

func newDemoSetup(t *testing.T) *demoSetup {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	site := devSite{Name: "ecdsa.localhost", key: key}
	s := &demoSetup{dev: &dev{dir: t.TempDir(), sites: []devSite{site}, user: &unprivileged{uid: 1}}}
	s.key = site.secrets()["ecdsa.localhost: private scalar"]
	require.NotEmpty(t, s.key)
	require.NoError(t, os.Mkdir(s.path("edge"), 0o755))
	require.NoError(t, os.Mkdir(s.path("keyserver"), 0o700))
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	s.write(t, "keyserver/key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	s.edge, s.keyServer = holding(t, []byte("nothing")), holding(t, s.key)
	return s
}

func (s *demoSetup) write(t *testing.T, name string, data []byte, mode os.FileMode) {
	require.NoError(t, os.WriteFile(s.path(name), data, mode))
}

// holding returns a process that has data in its memory.
func holding(t *testing.T, data []byte) *process {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		assert.NoError(t, stdin.Close())
		assert.NoError(t, cmd.Wait())
	})
	_, err = stdin.Write(data)
	require.NoError(t, err)
	_, err = io.ReadFull(stdout, make([]byte, len(data))) // it has read them
	require.NoError(t, err)
	return &process{cmd: cmd}
}

func TestDemoFindsAKeyWhereverItIs(t *testing.T) {
	for name, tc := range map[string]struct {
		plant func(t *testing.T, s *demoSetup)
		want  string
	}{
		"nowhere": {func(*testing.T, *demoSetup) {}, ""},
		"as PEM in the edge's folder": {func(t *testing.T, s *demoSetup) {
			data, err := os.ReadFile(s.path("keyserver/key.pem"))
			require.NoError(t, err)
			s.write(t, "edge/edge.yaml", append([]byte("# a comment\n"), data...), 0o600)
		}, "FOUND: ecdsa.localhost: private scalar (" + filepath.Join("edge", "edge.yaml")},
		"as bytes in the edge's folder": {func(t *testing.T, s *demoSetup) {
			s.write(t, "edge/edge.bin", append([]byte{1, 2, 3}, s.key...), 0o600)
		}, "FOUND: ecdsa.localhost: private scalar ("},
		"in a file that the edge can read": {func(t *testing.T, s *demoSetup) {
			require.NoError(t, os.Chmod(s.path("keyserver"), 0o711))
			require.NoError(t, os.Chmod(s.path("keyserver/key.pem"), 0o644))
		}, "FOUND: keyserver/key.pem"},
		"in the edge's memory": {func(t *testing.T, s *demoSetup) {
			s.edge = holding(t, s.key)
		}, "FOUND: ecdsa.localhost: private scalar\n"},
		"not where the search must find it": {func(t *testing.T, s *demoSetup) {
			s.keyServer = s.edge
		}, "NONE: the search is blind"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newDemoSetup(t)
			tc.plant(t, s)
			var out bytes.Buffer
			good := s.lookForKeys(&out)
			said := strings.ReplaceAll(out.String(), s.dir+string(filepath.Separator), "")
			assert.Contains(t, said, tc.want)
			if tc.want == "" {
				assert.True(t, good, said)
				assert.NotContains(t, said, "FOUND")
				assert.NotContains(t, said, "not checked")
			} else {
				assert.False(t, good, said)
			}
		})
	}
}

func TestDemoFailsWithItsHandshakes(t *testing.T) {
	s := newDemoSetup(t)
	s.endpoints.CA = s.path("ca.pem")
	s.endpoints.Edge.HTTPS = "https://127.0.0.1:1" // where nobody listens
	s.write(t, "ca.pem", nil, 0o600)
	var out bytes.Buffer
	assert.ErrorContains(t, s.demo(t.Context(), &out), "the demo has failed")
	assert.Equal(t, len(demoHandshakes), strings.Count(out.String(), "FAILED: dial tcp 127.0.0.1:1"), out.String())
}
