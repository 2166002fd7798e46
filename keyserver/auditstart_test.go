package keyserver

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// attacked is a log with its state directory, between two runs of the key
// server.
type attacked struct {
	t       *testing.T
	options AuditOptions
}

// newAttacked returns a log that has Monday and Tuesday, signed, and what there
// was before Tuesday.
func newAttacked(t *testing.T) (*attacked, map[string][]byte) {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"log", "state"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o700))
	}
	a := &attacked{t, AuditOptions{
		File: filepath.Join(dir, "log", "audit.log"), Tip: filepath.Join(dir, "state", "state.json.audit"),
		Key: auditKey, CheckpointRecords: 10, Logger: slog.New(slog.DiscardHandler),
	}}
	require.NoError(t, a.run("monday", 50))
	monday := a.files()
	require.NoError(t, a.run("tuesday-the-crime", 50))
	return a, monday
}

// run is the key server from its start to its stop.
func (a *attacked) run(edge string, requests int) error {
	a.t.Helper()
	o := a.options
	if o.Suspensions != nil {
		o.Suspensions = openSuspensions(a.t, o.Suspensions.file)
	}
	log, err := OpenAuditLog(o)
	if err != nil {
		return err
	}
	for range requests {
		write(a.t, log, edge)
	}
	return log.Close()
}

// files returns the content of all files, by name.
func (a *attacked) files() map[string][]byte {
	all := make(map[string][]byte)
	for _, dir := range []string{filepath.Dir(a.options.File), filepath.Dir(a.options.Tip)} {
		entries, err := os.ReadDir(dir)
		require.NoError(a.t, err)
		for _, e := range entries {
			name := filepath.Join(dir, e.Name())
			all[name], err = os.ReadFile(name)
			require.NoError(a.t, err)
		}
	}
	return all
}

func (a *attacked) verify() *AuditVerifier {
	return verifyFiles(a.t, auditPublic, append(rotated(a.t, a.options.File), a.options.File)...)
}

func (a *attacked) put(name string, data []byte) {
	require.NoError(a.t, os.WriteFile(name, data, 0o600))
}

// forge appends lines to the log that are chained, as who has no key can.
func (a *attacked) forge(edges ...string) {
	f, err := os.OpenFile(a.options.File, os.O_APPEND|os.O_RDWR, 0)
	require.NoError(a.t, err)
	defer f.Close()
	end, err := readEnd(f)
	require.NoError(a.t, err)
	c := chainWriter{w: f, tip: end.tip, size: end.size, now: time.Now}
	for _, edge := range edges {
		require.NoError(a.t, c.append((&Record{Time: time.Now(), Edge: edge, KeyName: "bank", Outcome: outcomeOutput}).line().encode()))
	}
}

// cut removes the last lines of the log.
func (a *attacked) cut(lines int) {
	data, err := os.ReadFile(a.options.File)
	require.NoError(a.t, err)
	for range lines {
		data = data[:bytes.LastIndexByte(data[:len(data)-1], '\n')+1]
	}
	a.put(a.options.File, data)
}

// manipulations are what can be done to a log while the key server is stopped,
// without its key.
var manipulations = []struct {
	name string
	do   func(a *attacked, monday map[string][]byte)
	what string // is said of it
}{
	{"a day is removed with its signed checkpoints", func(a *attacked, monday map[string][]byte) {
		a.put(a.options.File, monday[a.options.File])
	}, "ends with line 57, but"},
	{"the last line is removed", func(a *attacked, _ map[string][]byte) { a.cut(1) }, "ends with line 113, but"},
	{"forged lines are appended after a stop", func(a *attacked, _ map[string][]byte) {
		a.forge("framed-edge", "framed-edge")
	}, "2 lines were added after line 114, with which the key server had stopped"},
	{"the log is deleted", func(a *attacked, _ map[string][]byte) {
		require.NoError(a.t, os.Remove(a.options.File))
	}, "it is missing or empty, but"},
	{"the log is emptied", func(a *attacked, _ map[string][]byte) { a.put(a.options.File, nil) }, "it is missing or empty, but"},
	{"the last signed lines are made anew", func(a *attacked, _ map[string][]byte) {
		a.cut(3)
		a.forge("made-up", "made-up", "made-up")
	}, "line 114 is not the one that"},
	{"a line is changed after the last checkpoint but one", func(a *attacked, _ map[string][]byte) {
		a.cut(1) // the tip is of a crash: nothing after it
		data, _ := os.ReadFile(a.options.File)
		at := bytes.LastIndex(data, []byte("tuesday-the-crime"))
		copy(data[at:], "wednesday-nothing")
		a.put(a.options.File, data)
	}, "ends with line 113, but"},
	{"the log is replaced by one that another key signs", func(a *attacked, _ map[string][]byte) {
		require.NoError(a.t, os.Remove(a.options.File))
		_, other, err := ed25519.GenerateKey(nil)
		require.NoError(a.t, err)
		log := openAudit(a.t, AuditOptions{File: a.options.File, Key: other})
		for range 200 {
			write(a.t, log, "invented")
		}
		require.NoError(a.t, log.Close())
	}, "no line of the log is"},
	{"the tip is deleted", func(a *attacked, _ map[string][]byte) {
		require.NoError(a.t, os.Remove(a.options.Tip))
	}, "is missing, and line 114 says that there was one"},
	{"the tip is replaced by an unsigned one", func(a *attacked, _ map[string][]byte) {
		a.cut(1)
		f, err := os.Open(a.options.File)
		require.NoError(a.t, err)
		end, err := readEnd(f)
		require.NoError(a.t, err)
		require.NoError(a.t, f.Close())
		data, err := (&auditTip{Seq: end.tip.seq, Chain: end.tip.hex(), Time: auditTime(time.Now())}).encode(nil)
		require.NoError(a.t, err)
		a.put(a.options.Tip, data)
	}, "is not signed, and line"},
	{"the state file with a suspension is put back", func(a *attacked, monday map[string][]byte) {
		state := filepath.Join(filepath.Dir(a.options.Tip), "state.json")
		a.options.Suspensions = openSuspensions(a.t, state)
		log := openAudit(a.t, a.options)
		require.NoError(a.t, a.options.Suspensions.Suspend(Suspension{Edge: "stolen-edge", By: "a test"}))
		require.NoError(a.t, log.Audit(a.t.Context(), &Record{Time: time.Now(), Event: EventSuspend, Edge: "stolen-edge"}))
		require.NoError(a.t, log.Close())
		require.NoError(a.t, os.Remove(state))
		a.options.Suspensions = openSuspensions(a.t, state)
	}, "1 edges are suspended by the log and not by the state file, which may be an older copy: stolen-edge"},
}

// What was done while the key server was stopped is in the log for ever, signed,
// and audit verify finds it.
func TestAManipulationOverARestartIsFound(t *testing.T) {
	for _, m := range manipulations {
		t.Run(m.name, func(t *testing.T) {
			a, monday := newAttacked(t)
			require.Empty(t, a.verify().Faults)
			m.do(a, monday)
			differs, err := CheckAuditLog(a.options)
			require.NoError(t, err)
			require.Contains(t, strings.Join(differs, "; "), m.what)
			require.NoError(t, a.run("wednesday", 50))
			v := a.verify()
			require.Contains(t, fmt.Sprint(v.Faults), m.what)
			require.NoError(t, a.run("thursday", 50))
			require.Equal(t, v.Faults, a.verify().Faults, "it was recorded once")
		})
	}
}

// With 'required' the key server does not start, and changes nothing.
func TestAManipulationOverARestartIsRefusedWhereTheLogIsRequired(t *testing.T) {
	for _, m := range manipulations {
		t.Run(m.name, func(t *testing.T) {
			a, monday := newAttacked(t)
			m.do(a, monday)
			a.options.Required = true
			before := a.files()
			for range 2 {
				err := a.run("wednesday", 1)
				require.ErrorAs(t, err, new(*DiscontinuityError))
				require.ErrorContains(t, err, m.what)
				require.ErrorContains(t, err, "skictl audit accept")
			}
			_, err := CheckAuditLog(a.options)
			require.ErrorAs(t, err, new(*DiscontinuityError))
			require.Equal(t, before, a.files())
		})
	}
}

// Forged lines after a kill look like what the kill has left: how many they are
// is signed.
func TestLinesAfterTheTipAreCountedAtTheStart(t *testing.T) {
	a, _ := newAttacked(t)
	kill := openAudit(t, a.options)
	write(t, kill, "1", "2", "3")
	copied := a.files()
	require.NoError(t, kill.Close())
	for name, data := range copied {
		a.put(name, data)
	}
	a.forge("framed-edge", "framed-edge")
	a.options.Required = true
	require.NoError(t, a.run("after", 1))
	v := a.verify()
	require.Empty(t, v.Faults)
	require.Len(t, v.Notes, 1)
	require.Contains(t, v.Notes[0].What, "the 5 lines before it were not signed yet, and may be made up")
}

// An upgrade: the log was written without a tip, and says from when on it has
// one. Who deletes the tip does not pass for that.
func TestALogOfAFormerVersionGetsATip(t *testing.T) {
	a, _ := newAttacked(t)
	require.NoError(t, os.Remove(a.options.Tip))
	require.NoError(t, os.Remove(a.options.File))
	tip := a.options.Tip
	a.options.Tip = ""
	require.NoError(t, a.run("former", 15))
	a.options.Tip, a.options.Required = tip, true
	require.NoError(t, a.run("new", 15))
	v := a.verify()
	require.Empty(t, v.Faults)
	require.Len(t, v.Notes, 1)
	require.Contains(t, v.Notes[0].What, "from here on a tip is kept")
	require.NoError(t, os.Remove(tip))
	require.ErrorContains(t, a.run("new", 15), "is missing")

	a.options.Tip, a.options.Required = "", false
	require.NoError(t, a.run("without", 15))
	v = a.verify()
	require.Empty(t, v.Faults)
	require.Contains(t, v.Notes[len(v.Notes)-1].What, "from here on no tip is kept")
}

// A key that is added later signs from then on. What was before is no fault, but
// a log without any signature is.
func TestAKeyThatIsAddedSignsFromThenOn(t *testing.T) {
	for _, kept := range []bool{true, false} {
		a, _ := newAttacked(t)
		require.NoError(t, os.Remove(a.options.Tip))
		require.NoError(t, os.Remove(a.options.File))
		if !kept {
			a.options.Tip = ""
		}
		a.options.Required = true
		a.options.Key = nil
		require.NoError(t, a.run("unsigned", 15))
		require.NoError(t, a.run("unsigned", 15))
		require.NotEmpty(t, a.verify().Faults)
		a.options.Key = auditKey
		require.NoError(t, a.run("signed", 15))
		require.NoError(t, a.run("signed", 15))
		v := a.verify()
		require.Empty(t, v.Faults)
		require.Len(t, v.Notes, 1)
		require.Contains(t, v.Notes[0].What, "signatures begin with this line")
		a.options.Key = nil
		require.NoError(t, a.run("no key any more", 15))
		require.Contains(t, fmt.Sprint(a.verify().Faults), "the checkpoint is not signed")
	}
}

// The log of another key server with the same key is not this one.
func TestATipOfAnotherLogIsADiscontinuity(t *testing.T) {
	a, _ := newAttacked(t)
	b, _ := newAttacked(t)
	require.NoError(t, b.run("longer", 50))
	a.put(a.options.File, b.files()[b.options.File])
	a.options.Required = true
	require.ErrorContains(t, a.run("again", 1), "line 114 is not the one")
}

// Standard output cannot be read back. The chain goes on after a stop, so that
// whoever collects the lines sees that none is missing.
func TestStandardOutputGoesOnAfterAStop(t *testing.T) {
	a, _ := newAttacked(t)
	require.NoError(t, os.Remove(a.options.Tip))
	var all bytes.Buffer
	start := func() *AuditLog {
		o := a.options
		o.File = "-"
		log := newAuditLog(o, &all)
		require.NoError(t, log.start(nil))
		return log
	}
	for range 2 {
		log := start()
		write(t, log, "1", "2")
		require.NoError(t, log.Close())
	}
	v := verifyLines(auditPublic, strings.Split(strings.TrimSuffix(all.String(), "\n"), "\n"))
	require.Empty(t, v.Faults)
	require.Empty(t, v.Notes)
	log := start() // It is killed: nobody knows how many lines it has written.
	write(t, log, "3")
	require.NoError(t, log.saveTip(false))
	write(t, log, "4")
	begin := all.Len()
	require.NoError(t, start().Close())
	require.Contains(t, all.String()[begin:], `"event":"open","cause":"start"`)
}

// logrotate has moved the file, and the key server is started anew instead of
// getting a SIGHUP.
func TestALogThatWasMovedBeforeAStartGoesOn(t *testing.T) {
	for _, name := range []string{".1", "-20261129"} {
		a, _ := newAttacked(t)
		a.options.Required = true
		require.NoError(t, os.Rename(a.options.File, a.options.File+name))
		require.NoError(t, a.run("after", 3))
		v := a.check(10)
		require.Empty(t, v.Faults)
		require.Empty(t, v.Notes)
		require.Equal(t, 103, v.Requests)
		require.NoError(t, os.Rename(a.options.File, filepath.Join(t.TempDir(), "elsewhere")))
		require.ErrorContains(t, a.run("again", 1), "but")
	}
}

// Whoever cannot write the state directory cannot keep the log.
func TestATipThatCannotBeWritten(t *testing.T) {
	a, _ := newAttacked(t)
	a.options.Tip = filepath.Join(filepath.Dir(a.options.Tip), "no-such", "state.json.audit")
	require.NoError(t, os.Remove(a.options.File))
	var logged bytes.Buffer
	a.options.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	log, err := OpenAuditLog(a.options)
	require.NoError(t, err)
	write(t, log, "1")
	_ = log.saveTip(false)
	require.Positive(t, log.TipWaits())
	require.NoError(t, log.Close())
	require.Equal(t, 1, strings.Count(logged.String(), "its tip cannot be written"), logged.String())
	a.options.Required = true
	require.NoError(t, os.Remove(a.options.File))
	require.ErrorContains(t, a.run("required", 1), "the tip of the audit log")
}

// An acceptance that somebody else has signed is none, and neither is one of
// something else.
func TestAnAcceptanceIsSignedAndOfOneDiscontinuity(t *testing.T) {
	a, monday := newAttacked(t)
	a.options.Required = true
	accept := func(o AuditOptions) {
		_, err := AcceptAudit(o, "root", "why")
		require.NoError(t, err)
	}
	a.put(a.options.File, monday[a.options.File])
	other := a.options
	other.Key = nil
	accept(other)
	require.ErrorContains(t, a.run("unsigned acceptance", 1), "it is not signed by the key of the log")
	accept(a.options)
	a.cut(1)
	require.ErrorContains(t, a.run("of another", 1), "it ends with line 56, but")
	accept(a.options)
	require.NoError(t, a.run("accepted", 1))
	require.Empty(t, a.verify().Faults)
	require.NoFileExists(t, a.options.Tip+auditAcceptSuffix)
	_, err := AcceptAudit(a.options, "root", "why")
	require.ErrorContains(t, err, "nothing to accept")
}

// A discontinuity that was recorded is accepted while the key server runs.
func TestAnAcceptanceIsTakenByAKeyServerThatRuns(t *testing.T) {
	a, monday := newAttacked(t)
	a.put(a.options.File, monday[a.options.File])
	log := openAudit(t, a.options)
	require.Equal(t, 1, log.Discontinuities())
	found, err := AcceptAudit(a.options, "root", "why")
	require.NoError(t, err)
	require.Equal(t, []string{"the discontinuity in line 115"}, found)
	require.Eventually(t, func() bool { return log.Discontinuities() == 0 }, time.Minute, time.Millisecond)
	require.NoError(t, log.Close())
	v := a.verify()
	require.Empty(t, v.Faults)
	require.Contains(t, fmt.Sprint(v.Notes), "by root: why")
}

// What is accepted is not lifted: an edge that an older state file lets in is
// suspended again, and only 'edge resume' ends that.
func TestAStateFileThatIsPutBackResumesNobody(t *testing.T) {
	for _, required := range []bool{false, true} {
		a, _ := newAttacked(t)
		a.options.Required = required
		state := filepath.Join(filepath.Dir(a.options.Tip), "state.json")
		stolen := ski.KeyID{7}.String()
		start := func() (*AuditLog, testServer, error) {
			o := a.options
			o.Suspensions = openSuspensions(t, state)
			log, err := OpenAuditLog(o)
			if err != nil {
				return nil, testServer{}, err
			}
			return log, newTestServer(t, testKeys(), func(so *Options) {
				so.Audit, so.AuditRequired, so.Suspensions = log, required, o.Suspensions
			}), nil
		}
		log, server, err := start()
		require.NoError(t, err)
		require.NoFileExists(t, state)
		for _, edge := range []string{"edge", stolen, "legacy"} {
			_, err := server.Suspend(Suspension{Edge: edge, By: "a test"})
			require.NoError(t, err)
		}
		require.NoError(t, server.Resume("legacy", "a test"))
		require.NoError(t, log.Close())
		older := []byte(`{"suspended":[]}`)
		a.put(state, older)

		log, server, err = start()
		if required {
			require.ErrorContains(t, err, "2 edges are suspended by the log and not by the state file, which may be an older copy: "+stolen+", edge")
			o := a.options
			o.Suspensions = openSuspensions(t, state)
			_, err = AcceptAudit(o, "root", "restored from a backup")
			require.NoError(t, err)
			log, server, err = start()
		}
		require.NoError(t, err)
		require.True(t, server.suspensions.has("edge"))
		require.True(t, server.suspensions.has(stolen))
		require.False(t, server.suspensions.has("legacy"))
		require.NoError(t, server.Resume("edge", "a test"))
		require.NoError(t, log.Close())
		log, server, err = start()
		require.NoError(t, err)
		require.False(t, server.suspensions.has("edge"))
		require.True(t, server.suspensions.has(stolen))
		require.NoError(t, log.Close())
		require.Equal(t, required, len(a.verify().Faults) == 0)
	}
}

// A resumption that cannot be recorded does not happen where the log is required:
// the next start would suspend the edge again.
func TestAResumptionIsRecordedBeforeItIsKept(t *testing.T) {
	state := filepath.Join(stateFolder(t), "state.json")
	w := &fullWriter{room: 1 << 20}
	suspensions := openSuspensions(t, state)
	s := newTestServer(t, testKeys(), func(o *Options) {
		o.Audit, o.AuditRequired, o.Suspensions = NewAuditLog(w), true, suspensions
	})
	_, err := s.Suspend(Suspension{Edge: "edge", By: "a test"})
	require.NoError(t, err)
	w.room = 0
	require.ErrorContains(t, s.Resume("edge", "a test"), "the audit log, which is required")
	require.True(t, openSuspensions(t, state).has("edge"))
	w.room = 1 << 20
	require.NoError(t, s.Resume("edge", "a test"))
	require.False(t, openSuspensions(t, state).has("edge"))
}

// What is above a discontinuity that was accepted cannot be taken away with it.
func TestALogDoesNotBeginWithADiscontinuityUnlessItsFileDid(t *testing.T) {
	a, monday := newAttacked(t)
	a.put(a.options.File, monday[a.options.File])
	require.NoError(t, a.run("wednesday", 3))
	_, err := AcceptAudit(a.options, "root", "why")
	require.NoError(t, err)
	require.NoError(t, a.run("thursday", 3))
	require.Empty(t, a.verify().Faults)
	lines := auditLines(t, a.options.File)
	for len(lines) > 0 && !strings.Contains(lines[0], `"cause":"discontinuity"`) {
		lines = lines[1:]
	}
	v := verifyLines(auditPublic, lines)
	require.Len(t, v.Faults, 1)
	require.Contains(t, v.Faults[0].What, "a log does not begin with this line")
}

// A checkpoint that comes with the record of a resumption does not name the edge.
func TestACheckpointAfterAResumptionNamesNobody(t *testing.T) {
	a, _ := newAttacked(t)
	a.options.CheckpointRecords = 1
	log := openAudit(t, a.options)
	for event, named := range map[Event]bool{EventSuspend: true, EventResume: false} {
		require.NoError(t, log.Audit(t.Context(), &Record{Time: time.Now(), Event: EventSuspend, Edge: "edge"}))
		require.NoError(t, log.Audit(t.Context(), &Record{Time: time.Now(), Event: event, Edge: "edge"}))
		lines := auditLines(t, a.options.File)
		require.Equal(t, named, strings.Contains(lines[len(lines)-1], `"suspended":["edge"]`), lines[len(lines)-1])
	}
	require.NoError(t, log.Close())
}

// A fingerprint in capitals is the same edge.
func TestASuspensionByAFingerprintInCapitals(t *testing.T) {
	a, _ := newAttacked(t)
	a.options.Required = true
	state := filepath.Join(filepath.Dir(a.options.Tip), "state.json")
	id := ski.KeyID{0xab}
	shout := strings.ToUpper(id.String())
	for _, suspend := range []bool{true, false, true} {
		o := a.options
		o.Suspensions = openSuspensions(t, state)
		log := openAudit(t, o)
		server := newTestServer(t, testKeys(), func(so *Options) { so.Audit, so.AuditRequired, so.Suspensions = log, true, o.Suspensions })
		if suspend {
			_, err := server.Suspend(Suspension{Edge: shout, By: "a test"})
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, server.Resume(id.String(), "a test"), ErrNotSuspended)
			require.NoError(t, server.Resume(shout, "a test"))
		}
		require.NoError(t, log.Close())
	}
	require.Empty(t, a.verify().Faults)
}
