package keyserver

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// kill leaves the log as a key server that is killed.
func (a *attacked) kill(log *AuditLog) {
	a.t.Helper()
	files := a.files()
	require.NoError(a.t, log.Close())
	for name, data := range files {
		a.put(name, data)
	}
}

func TestACheckBesideAKeyServerThatWritesFindsNothing(t *testing.T) {
	a, _ := newAttacked(t)
	a.options.MaxSize = 200_000
	log := openAudit(t, a.options)
	stop, written := make(chan struct{}), make(chan struct{}, 1)
	var writing sync.WaitGroup
	writing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := log.Audit(t.Context(), &Record{Time: time.Now(), Edge: "edge", Outcome: outcomeOutput}); err != nil {
				t.Error(err)
				return
			}
			select {
			case written <- struct{}{}:
			default:
			}
		}
	})
	for range 50 {
		<-written
		differs, err := CheckAuditLog(a.options)
		require.NoError(t, err)
		require.Empty(t, differs)
	}
	close(stop)
	writing.Wait()
	require.NoError(t, log.Close())
}

// What stands beside a log can be its own compressed files, of any length.
func TestAStartDoesNotReadWhatIsNoLog(t *testing.T) {
	a, _ := newAttacked(t)
	require.NoError(t, os.Remove(a.options.File))
	for _, name := range []string{"-20261128.gz", ".1.zst"} {
		f, err := os.Create(a.options.File + name)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(1<<30))
		require.NoError(t, f.Close())
	}
	allocated := func(do func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		do()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	require.Less(t, allocated(func() {
		differs, err := CheckAuditLog(a.options)
		require.NoError(t, err)
		require.Contains(t, strings.Join(differs, "; "), "it is missing or empty")
	}), uint64(10<<20))

	f, err := os.Create(a.options.File)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(1<<30))
	require.NoError(t, f.Close())
	require.Less(t, allocated(func() {
		_, err := CheckAuditLog(a.options)
		require.ErrorContains(t, err, "it is not an audit log: move it away")
	}), uint64(4*maxTail))
}

// A log whose numbers were used up by somebody else would have none for itself.
func TestALogDoesNotGoOnAfterANumberThatNoLogReaches(t *testing.T) {
	for _, number := range []string{"18446744073709551615", "4503599627370496"} {
		a, _ := newAttacked(t)
		whole, err := os.ReadFile(a.options.File)
		require.NoError(t, err)
		forged := `{"seq":` + number + `,"time":"2026-11-29T10:00:01Z","event":"request","chain":"` + strings.Repeat("ab", 32) + `"}` + "\n"
		a.put(a.options.File, append(bytes.Clone(whole), forged...))
		require.ErrorContains(t, a.run("edge", 1), "its last line has the number "+number+", which no key server has given it")
		a.put(a.options.File, whole)
		require.NoError(t, a.run("edge", 1))
	}
}

// Whoever has no key can add lines to what a key server has left that was killed,
// and can put back the state file: that resumes nobody, and accepts nothing.
func TestForgedLinesResumeNobodyAndAcceptNothing(t *testing.T) {
	for name, forged := range map[string]auditLine{
		"open":       {Event: eventOpen, Cause: causeRestart, Tip: new(uint64)},
		"checkpoint": {Event: eventCheckpoint, Cause: causeInterval, Tip: new(uint64)},
		"resume":     {Event: EventResume, Edge: "stolen"},
		"accept":     {Event: eventAccept, By: "nobody", Reason: "none"},
	} {
		a, _ := newAttacked(t)
		a.cut(2)
		require.NoError(t, a.run("edge", 1)) // records a discontinuity
		state := filepath.Join(filepath.Dir(a.options.Tip), "state.json")
		a.put(state, []byte(`{"suspended":[{"edge":"stolen","by":"a test","since":"2026-11-29T10:00:00Z"}]}`))
		a.options.Suspensions = openSuspensions(t, state)
		log := openAudit(t, a.options)
		write(t, log, "edge")
		unaccepted := log.unaccepted
		require.Len(t, unaccepted, 1)
		a.kill(log)

		f, err := os.OpenFile(a.options.File, os.O_APPEND|os.O_RDWR, 0)
		require.NoError(t, err)
		end, err := readEnd(f)
		require.NoError(t, err)
		forged.Time, forged.Accepts = auditTime(time.Now()), unaccepted
		if forged.Event != eventAccept {
			forged.Accepts = nil
		}
		c := chainWriter{w: f, tip: end.tip, size: end.size, now: time.Now}
		require.NoError(t, c.append(forged.encode()))
		require.NoError(t, f.Close())

		a.put(state, []byte(`{"suspended":[]}`))
		a.options.Suspensions = openSuspensions(t, state)
		log = openAudit(t, a.options)
		require.True(t, a.options.Suspensions.has("stolen"), name)
		require.Contains(t, log.unaccepted, unaccepted[0], name)
		require.NoError(t, log.Close())
	}
}

// After a kill at any moment of a resumption, nothing differs.
func TestAKillWhileAnEdgeIsResumedIsNoDiscontinuity(t *testing.T) {
	a, _ := newAttacked(t)
	state := filepath.Join(filepath.Dir(a.options.Tip), "state.json")
	a.options.Suspensions = openSuspensions(t, state)
	_ = a.options.Suspensions.Suspend(Suspension{Edge: "edge", By: "a test"})
	var left []map[string][]byte
	o := a.options
	o.step = func() { left = append(left, a.files()) }
	log := openAudit(t, o)
	server := newTestServer(t, testKeys(), func(so *Options) { so.Audit, so.Suspensions = log, o.Suspensions })
	require.NoError(t, server.Resume("edge", "a test"))
	left = append(left, a.files())
	require.NoError(t, log.Close())
	for _, files := range left {
		a.putBack(files)
		a.options.Suspensions = openSuspensions(t, state)
		differs, err := CheckAuditLog(a.options)
		require.NoError(t, err)
		require.Empty(t, differs)
	}
}

func TestAChangeOfTheKeyIsAcceptedOnce(t *testing.T) {
	a, _, _ := newAsked(t)
	a.options.Key = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize))
	a.options.Required = true
	require.ErrorContains(t, a.run("edge", 1), "it is not signed by the key of the log")
	_, err := AcceptAudit(a.options, "a test", "a new key")
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, a.run("edge", 1))
	}
}

func TestAKillWhileAKeyIsAddedIsNoDiscontinuity(t *testing.T) {
	a, _ := newAttacked(t)
	require.NoError(t, os.Remove(a.options.File))
	require.NoError(t, os.Remove(a.options.Tip))
	a.options.Key = nil
	require.NoError(t, a.run("edge", 3))
	a.options.Key = auditKey
	var left []map[string][]byte
	o := a.options
	o.step = func() { left = append(left, a.files()) }
	log := openAudit(t, o)
	left = append(left, a.files())
	require.NoError(t, log.Close())
	for _, files := range left {
		a.putBack(files)
		differs, err := CheckAuditLog(a.options)
		require.NoError(t, err)
		require.Empty(t, differs)
	}
}

func TestWhatAKillLeavesInTheStateDirectoryGoes(t *testing.T) {
	a, _ := newAttacked(t)
	left := filepath.Join(filepath.Dir(a.options.Tip), "."+filepath.Base(a.options.Tip)+"123456")
	a.put(left, []byte("{"))
	require.NoError(t, a.run("edge", 1))
	require.NoFileExists(t, left)
}
