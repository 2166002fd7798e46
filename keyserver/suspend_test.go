package keyserver

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func openSuspensions(t *testing.T, file string) *Suspensions {
	t.Helper()
	s, err := OpenSuspensions(file)
	require.NoError(t, err)
	return s
}

// stateFolder is one that a state file may be in, whatever the umask is.
func stateFolder(t *testing.T) string {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	return dir
}

// An edge that has another name in a new policy is in again by it: that is said.
func TestASuspendedEdgeThatThePolicyCallsOtherwise(t *testing.T) {
	keys := testKeys()
	var log bytes.Buffer
	s := newTestServer(t, keys, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	for _, edge := range []string{"edge", "legacy", ski.KeyID{1}.String()} {
		_, err := s.Suspend(Suspension{Edge: edge, By: "a test"})
		require.NoError(t, err)
	}
	log.Reset()
	s.SetPolicy(parsePolicy(t, strings.NewReplacer("name: edge", "name: renamed", "[edge, legacy]", "[renamed, legacy]").Replace(testPolicy)))
	require.Equal(t, 1, strings.Count(log.String(), "the policy has no edge of the name that is suspended"))
	require.Contains(t, log.String(), "edge=edge ")
}

func TestSuspensionsOutlastARestart(t *testing.T) {
	file := filepath.Join(stateFolder(t), "state.json")
	id := ski.KeyID{0xaa}
	named := Suspension{Edge: "edge-1", Reason: "stolen", By: "uid 7", Since: time.Unix(1_800_000_000, 0).UTC()}
	keyed := Suspension{Edge: id.String(), By: "uid 8", Since: time.Unix(1_800_000_001, 0).UTC()}

	s := openSuspensions(t, file)
	require.Empty(t, s.All())
	require.NoError(t, s.Suspend(named))
	require.NoError(t, s.Suspend(keyed))
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	s = openSuspensions(t, file)
	require.Equal(t, []Suspension{keyed, named}, s.All())
	found, ok := s.find(ski.Peer{SPKI: id}, nil)
	require.True(t, ok)
	require.Equal(t, keyed, found)
	found, ok = s.find(ski.Peer{}, []*edge{{name: "edge-0"}, {name: "edge-1"}})
	require.True(t, ok)
	require.Equal(t, "suspended at 2027-01-15T08:00:00Z by uid 7: stolen", found.String())
	_, ok = s.find(ski.Peer{SPKI: ski.KeyID{0xab}}, []*edge{{name: "edge-10"}})
	require.False(t, ok)

	resumed, err := s.Resume("edge-1")
	require.NoError(t, err)
	require.True(t, resumed)
	resumed, err = s.Resume("edge-1")
	require.NoError(t, err)
	require.False(t, resumed)
	require.Equal(t, []Suspension{keyed}, openSuspensions(t, file).All())
}

// What cannot be kept is in effect all the same, and what is kept is not undone
// where that cannot be kept.
func TestSuspensionsWithoutAPlaceToKeepThem(t *testing.T) {
	dir := filepath.Join(stateFolder(t), "state")
	require.NoError(t, os.Mkdir(dir, 0o700))
	s := openSuspensions(t, filepath.Join(dir, "state.json"))
	require.NoError(t, s.Suspend(Suspension{Edge: "before"}))
	require.NoError(t, os.RemoveAll(dir))

	require.ErrorIs(t, s.Suspend(Suspension{Edge: "after"}), os.ErrNotExist)
	_, ok := s.find(ski.Peer{}, []*edge{{name: "after"}})
	require.True(t, ok)
	resumed, err := s.Resume("before")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.False(t, resumed)
	_, ok = s.find(ski.Peer{}, []*edge{{name: "before"}})
	require.True(t, ok)
}

func TestStateFileIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"empty":          {"", 0o600, "EOF"},
		"cut short":      {`{"suspended":[{"edge":"a"`, 0o600, "unexpected EOF"},
		"unknown key":    {`{"suspend":[]}`, 0o600, `unknown field "suspend"`},
		"nobody":         {`{"suspended":[{"by":"x"}]}`, 0o600, "names no edge"},
		"two documents":  {`{"suspended":[]}{}`, 0o600, "more than one document"},
		"others' rights": {`{"suspended":[]}`, 0o620, "chmod 600"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(stateFolder(t), "state.json")
			require.NoError(t, os.WriteFile(file, []byte(c.text), 0o600))
			require.NoError(t, os.Chmod(file, c.mode))
			_, err := OpenSuspensions(file)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, file)
		})
	}
}

// A disk that was full when an edge was suspended does not make the edge come back
// with the next restart.
func TestASuspensionThatCouldNotBeKeptIsKeptLater(t *testing.T) {
	dir := stateFolder(t)
	file := filepath.Join(dir, "state", "state.json")
	var log bytes.Buffer
	suspensions := openSuspensions(t, file)
	s := newTestServer(t, testKeys(), func(o *Options) {
		o.Suspensions, o.Logger = suspensions, slog.New(slog.NewTextHandler(&log, nil))
	})
	_, err := s.Suspend(Suspension{Edge: "edge", By: "a test"})
	require.Error(t, err, "the directory is not there")
	require.Len(t, suspensions.All(), 1)

	ctx, cancel := context.WithCancel(t.Context())
	tick, done := make(chan time.Time), make(chan struct{})
	go func() { s.keepSuspensions(ctx, tick); close(done) }()
	tick <- time.Now()
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o700))
	tick <- time.Now()
	tick <- time.Now() // The one before has been dealt with.
	cancel()
	<-done
	require.Len(t, openSuspensions(t, file).All(), 1)
	require.Equal(t, 1, strings.Count(log.String(), "the state file has the suspensions again"))
}
