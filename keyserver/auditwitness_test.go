package keyserver

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// newWitnessed is newAttacked with a witness that is on another disk.
func newWitnessed(t *testing.T) (*attacked, map[string][]byte) {
	t.Helper()
	a, _ := newAttacked(t)
	a.options.Witness = filepath.Join(t.TempDir(), "ks-1.witness")
	require.NoError(t, a.run("wednesday", 50))
	wednesday := a.files()
	require.NoError(t, a.run("thursday-the-crime", 50))
	return a, wednesday
}

// putBack makes the log and the state directory what they were.
func (a *attacked) putBack(files map[string][]byte) {
	for name := range a.files() {
		require.NoError(a.t, os.Remove(name))
	}
	for name, data := range files {
		a.put(name, data)
	}
}

// verifyWitnessed is verify with the witness.
func (a *attacked) verifyWitnessed(witness string) *AuditVerifier {
	f, err := os.Open(witness)
	require.NoError(a.t, err)
	defer f.Close()
	v := &AuditVerifier{Keys: auditPublic}
	v.Witness(witness, f)
	for _, name := range append(rotated(a.t, a.options.File), a.options.File) {
		log, err := os.Open(name)
		require.NoError(a.t, err)
		require.NoError(a.t, v.File(name, log))
		require.NoError(a.t, log.Close())
	}
	v.End(false)
	return v
}

func entries(t *testing.T, file string) (all []*WitnessEntry) {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	for line := range bytes.Lines(data) {
		e, err := ParseWitnessEntry(line, auditPublic)
		require.NoError(t, err)
		all = append(all, e)
	}
	return all
}

func TestTheWitnessHasTheEndOfTheLog(t *testing.T) {
	a, _ := newWitnessed(t)
	all := entries(t, a.options.Witness)
	require.Equal(t, a.verify().Tip(), tipName(all[len(all)-1].link))
	v := a.verifyWitnessed(a.options.Witness)
	require.Empty(t, v.Faults)
	require.Contains(t, fmt.Sprint(v.Notes), "entries agree with the log")
	info, err := os.Stat(a.options.Witness)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	// A line that could only be written in part is none, and the next is whole.
	f, err := os.OpenFile(a.options.Witness, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write(all[0].Line()[:40])
	require.NoError(t, err)
	require.NoError(t, f.Close())
	a.options.Required = true
	require.NoError(t, a.run("friday", 5))
	v = a.verifyWitnessed(a.options.Witness)
	require.Empty(t, v.Faults)
	require.Contains(t, fmt.Sprint(v.Notes), "the entry is cut off")
}

// The twelfth manipulation: nothing on the key server's machine shows it.
func TestTheWitnessKnowsThatLogTipAndStateWereReplaced(t *testing.T) {
	t.Run("it is needed", func(t *testing.T) {
		a, before := newWitnessed(t)
		a.putBack(before)
		a.options.Witness, a.options.Required = "", true
		require.NoError(t, a.run("friday", 1))
		require.Empty(t, a.verify().Faults)
	})
	t.Run("recorded", func(t *testing.T) {
		a, before := newWitnessed(t)
		a.putBack(before)
		differs, err := CheckAuditLog(a.options)
		require.NoError(t, err)
		require.Contains(t, fmt.Sprint(differs), "and its witness has line ")
		require.NoError(t, a.run("friday", 50))
		require.Contains(t, fmt.Sprint(a.verify().Faults), "and its witness has line ")
		require.Len(t, a.verifyWitnessed(a.options.Witness).Faults, 1, "the log says itself what the witness does")
		require.NoError(t, a.run("saturday", 50))
		require.Len(t, a.verify().Faults, 1, "it was recorded once")
	})
	t.Run("refused", func(t *testing.T) {
		a, before := newWitnessed(t)
		a.putBack(before)
		a.options.Required = true
		require.ErrorAs(t, a.run("friday", 1), new(*DiscontinuityError))
		found, err := AcceptAudit(a.options, "an operator", "a backup was put back")
		require.NoError(t, err)
		require.Contains(t, fmt.Sprint(found), "and its witness has line ")
		require.NoError(t, a.run("friday", 1))
		require.NoError(t, a.run("saturday", 1))
		require.Empty(t, a.verify().Faults)
		require.Empty(t, a.verifyWitnessed(a.options.Witness).Faults)
	})
	t.Run("found by verify alone", func(t *testing.T) {
		a, before := newWitnessed(t)
		a.putBack(before)
		v := a.verifyWitnessed(a.options.Witness)
		require.Contains(t, fmt.Sprint(v.Faults), "what came after was removed")
	})
	t.Run("all removed", func(t *testing.T) {
		a, _ := newWitnessed(t)
		a.putBack(nil)
		require.NoError(t, a.run("friday", 50))
		require.Contains(t, fmt.Sprint(a.verify().Faults), "it is missing or empty, and its witness has line ")
	})
}

// Who has the audit key, as root on the key server has, can make the log anew,
// but not what the witness has.
func TestTheWitnessKnowsALogThatWasMadeAnewWithItsKey(t *testing.T) {
	a, _ := newWitnessed(t)
	witness := a.options.Witness
	a.putBack(nil)
	require.NoError(t, os.Rename(witness, witness+".aside"))
	for _, day := range []string{"monday", "tuesday-nothing", "wednesday", "thursday-nothing"} {
		require.NoError(t, a.run(day, 60))
	}
	require.NoError(t, os.Rename(witness+".aside", witness))
	require.NoError(t, os.Remove(a.options.Tip+auditWitnessSuffix))
	require.Empty(t, a.verify().Faults)
	require.Contains(t, fmt.Sprint(a.verifyWitnessed(witness).Faults), "the log was made anew")
	a.options.Required = true
	require.ErrorContains(t, a.run("friday", 1), "is another than its witness has")
}

func TestAWitnessThatIsNotAsItWasLeft(t *testing.T) {
	_, other, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	for name, attack := range map[string]struct {
		do   func(a *attacked, witness []byte)
		what string
	}{
		"removed, or its mount is not there": {func(a *attacked, _ []byte) {
			require.NoError(t, os.Remove(a.options.Witness))
		}, "is missing or empty, and had line "},
		"emptied": {func(a *attacked, _ []byte) { a.put(a.options.Witness, nil) }, "is missing or empty, and had line "},
		"another key's": {func(a *attacked, witness []byte) {
			e, err := newWitnessEntry(link{seq: 1 << 40}, time.Now(), other)
			require.NoError(t, err)
			a.put(a.options.Witness, append(witness, e.Line()...))
		}, "it is not signed by the key of the audit log"},
		"changed": {func(a *attacked, witness []byte) {
			at := bytes.LastIndex(witness, []byte(`"chain":"`)) + len(`"chain":"`)
			witness[at] ^= 1
			a.put(a.options.Witness, witness)
		}, "its witness cannot be used"},
		"another file": {func(a *attacked, _ []byte) { a.put(a.options.Witness, []byte("root:x:0:0\n")) }, "its witness cannot be used"},
		"a tip":        {func(a *attacked, _ []byte) { a.put(a.options.Witness, a.files()[a.options.Tip]) }, "its witness cannot be used"},
		"no entry, but long": {func(a *attacked, _ []byte) {
			a.put(a.options.Witness, bytes.Repeat([]byte{'x'}, 1<<20))
		}, "it is not a witness"},
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := newWitnessed(t)
			witness, err := os.ReadFile(a.options.Witness)
			require.NoError(t, err)
			attack.do(a, witness)
			a.options.Required = true
			require.ErrorContains(t, a.run("friday", 1), attack.what)
			a.options.Required = false
			require.NoError(t, a.run("friday", 1))
			require.Contains(t, fmt.Sprint(a.verify().Faults), attack.what)
		})
	}
}

// A key server whose witness is older than its log, as after a kill, goes on;
// and so does one whose log has been rotated since, or was archived.
func TestALogThatIsAheadOfItsWitness(t *testing.T) {
	a, _ := newAttacked(t)
	a.options.Required = true
	a.options.Witness = filepath.Join(t.TempDir(), "w")
	log := openAudit(t, a.options)
	write(t, log, strings.Split(strings.Repeat("x", 30), "")...)
	log.saveWitness()
	log.mu.Lock()
	log.rotate()
	log.mu.Unlock()
	write(t, log, "y")
	_ = log.saveTip(false)
	killed, witness := a.files(), entries(t, a.options.Witness)
	require.NoError(t, log.Close())
	a.putBack(killed)
	a.put(a.options.Witness, witness[len(witness)-1].Line())
	require.NoError(t, a.run("after", 10))
	require.Empty(t, a.verify().Faults)

	// Its line is in none of the files.
	before := a.files()
	for _, name := range rotated(t, a.options.File) {
		require.NoError(t, os.Remove(name))
	}
	a.put(a.options.Witness, witness[0].Line())
	require.NoError(t, os.Remove(a.options.Tip+auditWitnessSuffix))
	require.NoError(t, a.run("after", 10))

	// Nor is it a reason not to look at those that are there.
	a.putBack(before)
	forged, err := newWitnessEntry(link{seq: witness[0].Seq, chain: [32]byte{1}}, time.Now(), auditKey)
	require.NoError(t, err)
	a.put(a.options.Witness, forged.Line())
	require.ErrorContains(t, a.run("after", 1), "is another than its witness has")
}

// newAsked is a log with a witness that comes through the admin socket, and what
// that has.
func newAsked(t *testing.T) (*attacked, map[string][]byte, []byte) {
	a, _ := newAttacked(t)
	log := openAudit(t, a.options)
	write(t, log, "1", "2", "3")
	first, err := log.Witness(nil)
	require.NoError(t, err)
	write(t, log, "4")
	second, err := log.Witness(first)
	require.NoError(t, err)
	next, err := log.Witness(second)
	require.NoError(t, err)
	require.Nil(t, next, "there is nothing new")
	require.False(t, log.Witnessed().IsZero())
	before := a.files()
	write(t, log, "the crime")
	last, err := log.Witness(second)
	require.NoError(t, err)
	_, err = log.Witness(last)
	require.NoError(t, err)
	require.NoError(t, log.Close())
	require.NoError(t, a.run("after", 3))
	return a, before, last
}

func TestTheWitnessComesAfterTheStart(t *testing.T) {
	t.Run("all is well", func(t *testing.T) {
		a, _, last := newAsked(t)
		a.options.Required = true
		log := openAudit(t, a.options)
		require.False(t, log.Witnessed().IsZero(), "it is known from before")
		next, err := log.Witness(last)
		require.NoError(t, err)
		e, err := ParseWitnessEntry(next, auditPublic)
		require.NoError(t, err)
		require.Equal(t, tipName(log.chain.tip), tipName(e.link))
		require.NoError(t, log.Close())
		require.Empty(t, a.verify().Faults)
	})
	t.Run("recorded", func(t *testing.T) {
		a, before, last := newAsked(t)
		a.putBack(before)
		log := openAudit(t, a.options)
		write(t, log, "a", "b", "c", "d", "e", "f", "g") // It has more lines than the witness knows.
		_, err := log.Witness(last)
		require.ErrorAs(t, err, new(*DiscontinuityError))
		write(t, log, "h")
		next, err := log.Witness(last)
		require.NoError(t, err, "it goes on")
		require.NoError(t, log.Close())
		require.Contains(t, fmt.Sprint(a.verify().Faults), "its witness has")
		require.NoError(t, a.run("later", 1))
		require.Len(t, a.verify().Faults, 1)

		witness := filepath.Join(t.TempDir(), "w")
		a.put(witness, append(bytes.Clone(last), next...))
		require.NotEmpty(t, a.verifyWitnessed(witness).Faults)
	})
	t.Run("recorded where lines are missing", func(t *testing.T) {
		a, _, _ := newAsked(t)
		log := openAudit(t, a.options)
		last, err := newWitnessEntry(link{seq: 5000, chain: [32]byte{1}}, time.Now(), auditKey)
		require.NoError(t, err)
		_, err = log.Witness(last.Line())
		require.ErrorContains(t, err, "it ends with line ")
		write(t, log, "h")
		require.Greater(t, log.chain.tip.seq, last.Seq)
		require.NoError(t, log.Close())
		v := a.verify()
		require.Len(t, v.Faults, 1)
		require.Contains(t, v.Faults[0].What, "it ends with line ")
	})
	t.Run("refused", func(t *testing.T) {
		a, before, last := newAsked(t)
		a.putBack(before)
		a.options.Required = true
		log := openAudit(t, a.options)
		write(t, log, "nobody knows yet")
		for range 2 {
			_, err := log.Witness(last)
			require.ErrorAs(t, err, new(*DiscontinuityError))
			require.ErrorAs(t, log.Audit(t.Context(), &Record{Time: time.Now()}), new(*DiscontinuityError))
			require.ErrorAs(t, log.Fault(), new(*DiscontinuityError))
		}
		_, err := AcceptAudit(a.options, "an operator", "a test")
		require.ErrorContains(t, err, "stop the key server, and accept it then")
		_ = log.Close()
		require.ErrorAs(t, a.run("after", 1), new(*DiscontinuityError), "a restart is no way out")
		_, err = AcceptAudit(a.options, "an operator", "a test")
		require.NoError(t, err)
		log = openAudit(t, a.options)
		next, err := log.Witness(last)
		require.NoError(t, err)
		write(t, log, "on")
		_, err = log.Witness(next)
		require.NoError(t, err)
		require.NoError(t, log.Close())
		require.Empty(t, a.verify().Faults)
	})
}

// Nobody without the key can say what a witness has.
func TestAWitnessIsBelievedByItsSignatureAlone(t *testing.T) {
	a, _, last := newAsked(t)
	a.options.Required = true
	log := openAudit(t, a.options)
	_, other, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	e, err := newWitnessEntry(link{seq: 1 << 40}, time.Now(), other)
	require.NoError(t, err)
	changed := bytes.Clone(last)
	changed[bytes.IndexByte(changed, ':')+1] = '9'
	for _, line := range [][]byte{e.Line(), changed, []byte("{}\n"), last[:len(last)-1], append(bytes.Clone(last), last...), a.files()[a.options.Tip]} {
		_, err := log.Witness(line)
		require.Error(t, err)
		require.NotErrorAs(t, err, new(*DiscontinuityError))
		write(t, log, "on")
	}
	// Nor does who has no key make the log believe that it has recorded it.
	require.NoError(t, log.Close())

	for _, change := range []func(*AuditOptions){
		func(o *AuditOptions) { o.Key = nil }, func(o *AuditOptions) { o.Tip = "" },
		func(o *AuditOptions) { o.File = "-" }, func(o *AuditOptions) { o.Witness = filepath.Join(t.TempDir(), "w") },
	} {
		o := AuditOptions{File: filepath.Join(t.TempDir(), "log"), Tip: filepath.Join(t.TempDir(), "tip"), Key: auditKey}
		change(&o)
		log := openAudit(t, o)
		_, err := log.Witness(nil)
		require.Error(t, err)
		require.NoError(t, log.Close())
	}
}

// A discontinuity that only looks recorded is none.
func TestAForgedRecordOfADiscontinuity(t *testing.T) {
	a, before := newWitnessed(t)
	a.putBack(before)
	f, err := os.OpenFile(a.options.File, os.O_APPEND|os.O_RDWR, 0)
	require.NoError(t, err)
	end, err := readEnd(f)
	require.NoError(t, err)
	c := chainWriter{w: f, tip: end.tip, size: end.size, now: time.Now}
	c.tip.seq = 1 << 20
	require.NoError(t, c.begin(auditLine{Cause: causeBroken, Reason: "nothing"}))
	require.NoError(t, f.Close())
	a.options.Required = true
	require.ErrorContains(t, a.run("friday", 1), "its witness has")
}

// A line is found in a file of any length, and in files that were rotated, whatever
// could only be written in part.
// A discontinuity that is provoked after the line that the witness has, by
// whoever has put back all the rest, settles nothing.
func TestAProvokedDiscontinuityDoesNotHideAnOlderLog(t *testing.T) {
	for _, required := range []bool{false, true} {
		a, before, last := newAsked(t)
		e, err := ParseWitnessEntry(last, auditPublic)
		require.NoError(t, err)
		a.putBack(before)
		require.NoError(t, a.run("nothing happened", 100))
		a.cut(1)
		require.NoError(t, a.run("the provoked one is recorded", 1))

		a.options.Required = required
		log := openAudit(t, a.options)
		require.Greater(t, log.chain.tip.seq, e.Seq)
		_, err = log.Witness(last)
		require.ErrorContains(t, err, "is another than its witness has")
		_, err = log.Witness(last)
		if required {
			require.Error(t, err)
		} else {
			require.NoError(t, err, "it has been recorded")
		}
		require.NoError(t, log.Close())
		if required {
			_, err = AcceptAudit(a.options, "a test", "a test")
			require.NoError(t, err)
		}
		require.NoError(t, a.run("after", 1))
	}
}

func TestFindLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	log := openAudit(t, AuditOptions{File: file, Key: auditKey, MaxSize: 5 << 20})
	long := strings.Repeat("x", 2000)
	for i := range 6000 {
		require.NoError(t, log.Audit(t.Context(), &Record{Time: time.Now(), Edge: "e", Reason: long[:i%2000]}))
		if i%1000 == 500 {
			log.mu.Lock()
			torn := []byte(`{"seq":1,"ti`)
			_, err := log.file.Write(torn)
			require.NoError(t, err)
			log.chain.wrote(torn)
			log.mu.Unlock()
		}
	}
	end := log.chain.tip
	require.NoError(t, log.Close())
	files := append(rotated(t, file), file)
	require.Greater(t, len(files), 1)
	want := make(map[uint64]link)
	for _, name := range files {
		for _, line := range auditLines(t, name) {
			if _, at, ok := splitLine([]byte(line)); ok {
				want[at.seq] = at
			}
		}
	}
	for seq := uint64(1); seq <= end.seq; seq += 1 + seq%37 {
		got, err := findLine(file, seq)
		require.NoError(t, err)
		require.Equal(t, want[seq], got, seq)
	}
	require.NoError(t, os.Remove(files[0]))
	_, err := findLine(file, 1)
	require.ErrorContains(t, err, "in none of the files")
}

// The witness is on a disk that is full, and then is not.
func TestTheLogDoesNotWaitForItsWitness(t *testing.T) {
	a, _ := newAttacked(t)
	a.options.Witness = filepath.Join(t.TempDir(), "w")
	log := openAudit(t, a.options)
	log.saveWitness()
	require.NoError(t, os.Chmod(filepath.Dir(a.options.Witness), 0o700))
	moved := a.options.Witness + ".moved"
	require.NoError(t, os.Rename(a.options.Witness, moved))
	write(t, log, "on")
	log.saveWitness()
	require.NoFileExists(t, a.options.Witness, "a mount that has gone is not written beside")
	seen := log.Witnessed()
	write(t, log, "on")
	require.NoError(t, os.Rename(moved, a.options.Witness))
	log.saveWitness()
	require.True(t, log.Witnessed().After(seen))
	require.NoError(t, os.Truncate(a.options.Witness, 10))
	log.saveWitness()
	require.True(t, log.witnessing.failing)
	require.NoError(t, log.Close())
}

func TestVerifyOfAWitness(t *testing.T) {
	a, _ := newWitnessed(t)
	good, err := os.ReadFile(a.options.Witness)
	require.NoError(t, err)
	lines := bytes.SplitAfter(bytes.TrimSuffix(good, []byte{'\n'}), []byte{'\n'})
	lines[len(lines)-1] = append(lines[len(lines)-1], '\n')
	require.GreaterOrEqual(t, len(lines), 2)
	for what, file := range map[string][]byte{
		"it was moved, repeated or is of another log": append(bytes.Clone(good), lines[0]...),
		"it is not an entry":                          append(append(bytes.Clone(lines[0]), "hello\n"...), lines[1]...),
		"it has more than 1024 bytes":                 append(append(bytes.Clone(lines[0]), bytes.Repeat([]byte{'x'}, 5000)...), '\n'),
	} {
		witness := filepath.Join(t.TempDir(), "w")
		a.put(witness, file)
		v := a.verifyWitnessed(witness)
		require.Len(t, v.Faults, 1, what)
		require.Contains(t, v.Faults[0].What, what)
		require.Equal(t, witness, v.Faults[0].File)
	}
	// Files of a log that begin later than the witness.
	require.NoError(t, os.Rename(a.options.File, a.options.File+"-old"))
	require.NoError(t, a.run("friday", 2))
	v := a.verifyWitnessed(a.options.Witness)
	require.Empty(t, v.Faults, "%v", v.Faults)
	require.Contains(t, fmt.Sprint(v.Notes), "entries are of lines before the first of these files")
}

func FuzzParseWitnessEntry(f *testing.F) {
	e, err := newWitnessEntry(link{seq: 7, chain: [32]byte{1}}, time.Unix(0, 0), auditKey)
	require.NoError(f, err)
	f.Add(e.Line())
	f.Add([]byte("{}\n"))
	tip, err := (&auditTip{Seq: 7, Chain: e.Chain, Time: e.Time}).encode(auditKey)
	require.NoError(f, err)
	f.Add(tip)
	f.Fuzz(func(t *testing.T, line []byte) {
		got, err := ParseWitnessEntry(line, auditPublic)
		if err == nil {
			require.Equal(t, e.Line(), line, "there is one with a signature")
			require.Equal(t, e.link, got.link)
		}
	})
}
