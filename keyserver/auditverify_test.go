package keyserver

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// verifyFiles checks the files of a log that was closed.
func verifyFiles(t *testing.T, keys []ed25519.PublicKey, files ...string) *AuditVerifier {
	t.Helper()
	v := &AuditVerifier{Keys: keys}
	for _, file := range files {
		f, err := os.Open(file)
		require.NoError(t, err)
		require.NoError(t, v.File(file, f))
		require.NoError(t, f.Close())
	}
	v.End(false)
	return v
}

var auditKey = ed25519.NewKeyFromSeed([]byte("a test-only seed of 32 bytes ...")[:ed25519.SeedSize])

var auditPublic = []ed25519.PublicKey{auditKey.Public().(ed25519.PublicKey)}

// testLog returns the lines of a log: open, 4 requests, checkpoint, 4 requests,
// checkpoint, 1 request, checkpoint.
func testLog(t *testing.T) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "audit.log")
	log := openAudit(t, AuditOptions{File: file, Key: auditKey, CheckpointRecords: 4})
	write(t, log, "1", "2", "3", "4", "5", "6", "7", "8", "9")
	require.NoError(t, log.Close())
	lines := auditLines(t, file)
	require.Len(t, lines, 13)
	return lines
}

func verifyLines(keys []ed25519.PublicKey, lines []string) *AuditVerifier {
	v := &AuditVerifier{Keys: keys}
	var text string
	if len(lines) > 0 {
		text = strings.Join(lines, "\n") + "\n"
	}
	if err := v.File("log", strings.NewReader(text)); err != nil {
		panic(err)
	}
	v.End(false)
	return v
}

func TestVerifyFindsNothingInALogAsItWasWritten(t *testing.T) {
	lines := testLog(t)
	v := verifyLines(auditPublic, lines)
	require.Empty(t, v.Faults)
	require.Empty(t, v.Notes)
	require.Equal(t, 9, v.Requests)
	require.Equal(t, 13, v.Lines)
	require.Contains(t, lines[12], strings.TrimPrefix(v.Tip(), "13:"))
}

// Whatever is done to any one line is found, at that line.
func TestVerifyFindsEachManipulation(t *testing.T) {
	lines := testLog(t)
	for i := range lines {
		number := i + 1
		for name, tc := range map[string]struct {
			change func([]string) []string
			line   int
			last   int // the line it is at for the last one
			what   string
		}{
			"removed":   {func(l []string) []string { return slices.Delete(l, i, i+1) }, number, 12, "missing"},
			"repeated":  {func(l []string) []string { return slices.Insert(l, i, l[i]) }, number + 1, 14, "moved or repeated"},
			"changed":   {func(l []string) []string { l[i] = strings.Replace(l[i], `"time":"2`, `"time":"3`, 1); return l }, number, 13, "changed"},
			"cut short": {func(l []string) []string { l[i] = l[i][:len(l[i])-5]; return l }, number, 13, "not a line"},
			"emptied":   {func(l []string) []string { l[i] = ""; return l }, number, 13, "not a line"},
			"added":     {func(l []string) []string { return slices.Insert(l, i, "{}") }, number, 13, "not a line"},
		} {
			t.Run(fmt.Sprintf("%s %d", name, number), func(t *testing.T) {
				v := verifyLines(nil, tc.change(slices.Clone(lines)))
				require.NotEmpty(t, v.Faults)
				want := tc.line
				if number == len(lines) {
					want = tc.last
				}
				require.Equal(t, want, v.Faults[0].Line, "%v", v.Faults)
				require.Contains(t, v.Faults[0].What, tc.what)
			})
		}
		if i+1 < len(lines) {
			t.Run(fmt.Sprintf("swapped %d", number), func(t *testing.T) {
				l := slices.Clone(lines)
				l[i], l[i+1] = l[i+1], l[i]
				v := verifyLines(nil, l)
				require.NotEmpty(t, v.Faults)
				require.Equal(t, number, v.Faults[0].Line, "%v", v.Faults)
			})
			t.Run(fmt.Sprintf("truncated after %d", number), func(t *testing.T) {
				v := verifyLines(nil, lines[:number])
				require.Len(t, v.Faults, 1)
				require.Equal(t, number, v.Faults[0].Line)
				require.Contains(t, v.Faults[0].What, "without a closing checkpoint")
			})
		}
	}
	require.NotEmpty(t, verifyLines(nil, nil).Faults)
}

// Who can write to the file can chain it anew, but not sign it.
func TestVerifyFindsAChainThatWasMadeAnew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	for name, tc := range map[string]struct {
		key  ed25519.PrivateKey
		what string
	}{
		"unsigned":    {nil, "not signed"},
		"another key": {ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), "not by the key"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.RemoveAll(file))
			log := openAudit(t, AuditOptions{File: file, Key: tc.key})
			write(t, log, "1", "2")
			require.NoError(t, log.Close())
			require.Empty(t, verifyFiles(t, nil, file).Faults, "by the chain alone it is right")
			v := verifyFiles(t, auditPublic, file)
			require.NotEmpty(t, v.Faults)
			require.Equal(t, 4, v.Faults[len(v.Faults)-1].Line)
			for _, f := range v.Faults {
				require.Contains(t, f.What, tc.what)
			}
		})
	}

	// With the signatures of the real one, on lines that are changed to fit, or
	// left as they were signed.
	for name, fit := range map[string]bool{"fit": true, "left": false} {
		t.Run(name, func(t *testing.T) {
			lines := testLog(t)
			var chain link
			for i, line := range lines {
				content, _, ok := splitLine([]byte(line))
				require.True(t, ok)
				content = bytes.Replace(content, []byte(`"edge":"7"`), []byte(`"edge":"8"`), 1)
				if fit {
					content = regexp.MustCompile(`("previous":").{64}`).ReplaceAll(content, []byte("${1}"+chain.hex()))
				}
				chain = chain.next(content)
				lines[i] = string(content) + chainPrefix + chain.hex() + chainSuffix
			}
			require.Equal(t, fit, len(verifyLines(nil, lines).Faults) == 0)
			v := verifyLines(auditPublic, lines)
			require.NotEmpty(t, v.Faults)
			require.Equal(t, 11, v.Faults[0].Line, "the checkpoint after the line")
		})
	}
}

// The loss of the end shows against what was seen before.
func TestVerifyExpectsAnEarlierEnd(t *testing.T) {
	lines := testLog(t)
	end := verifyLines(nil, lines).Tip()
	for n, faults := range map[int]int{13: 0, 12: 1} {
		v := &AuditVerifier{Expect: end}
		require.NoError(t, v.File("log", strings.NewReader(strings.Join(lines[:n], "\n")+"\n")))
		v.End(true)
		require.Len(t, v.Faults, faults)
	}
}

func TestVerifySaysWhatIsNotSigned(t *testing.T) {
	lines := testLog(t)
	v := &AuditVerifier{Keys: auditPublic}
	require.NoError(t, v.File("log", strings.NewReader(strings.Join(lines[:8], "\n")+"\n"+lines[8][:20])))
	v.End(true)
	require.Empty(t, v.Faults)
	require.Len(t, v.Notes, 2)
	require.Contains(t, v.Notes[0].What, "the last line is cut off")
	require.Contains(t, v.Notes[1].What, "the last 2 lines are not under a signed checkpoint")
}

func TestAuditLogRotatesBySize(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit[1].log") // not a pattern
	log := openAudit(t, AuditOptions{File: file, Key: auditKey, MaxSize: 2000})
	for range 50 {
		write(t, log, "edge")
	}
	require.NoError(t, log.Close())
	files := rotated(t, file)
	require.Greater(t, len(files), 3)
	v := verifyFiles(t, auditPublic, append(files, file)...)
	require.Empty(t, v.Faults)
	require.Empty(t, v.Notes)
	require.Equal(t, 50, v.Requests)
	for _, f := range files {
		info, err := os.Stat(f)
		require.NoError(t, err)
		require.Less(t, info.Size(), int64(3000))
		last := auditLines(t, f)
		require.Contains(t, last[len(last)-1], `"event":"checkpoint","cause":"rotation"`)
	}

	v = verifyFiles(t, auditPublic, append(slices.Delete(slices.Clone(files), 1, 2), file)...)
	require.NotEmpty(t, v.Faults, "a file is missing")
	require.Equal(t, AuditFinding{File: files[2], Line: 1, What: v.Faults[0].What}, v.Faults[0])
	require.Contains(t, v.Faults[0].What, "are missing before this line")

	// A crash came before the first line of the new file.
	require.NoError(t, os.Remove(file))
	v = verifyFiles(t, auditPublic, files...)
	end := v.Tip()
	log = openAudit(t, AuditOptions{File: file, Key: auditKey})
	require.NoError(t, log.Close())
	v = verifyFiles(t, auditPublic, append(files, file)...)
	require.Empty(t, v.Faults)
	require.Contains(t, auditLines(t, file)[0], `"cause":"rotation","previous":"`+strings.Split(end, ":")[1])
}

func rotated(t *testing.T, file string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	var files []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(file)+".") {
			files = append(files, filepath.Join(filepath.Dir(file), e.Name()))
		}
	}
	return files
}

func TestAuditLogReopens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	log := openAudit(t, AuditOptions{File: file, Key: auditKey})
	write(t, log, "1")
	require.NoError(t, log.Reopen())
	write(t, log, "2")
	require.Len(t, auditLines(t, file), 3, "nothing had been moved away")

	require.NoError(t, os.Rename(file, file+".old"))
	write(t, log, "3") // It still goes to the old one.
	require.NoError(t, log.Reopen())
	write(t, log, "4")
	require.NoError(t, log.Close())
	v := verifyFiles(t, auditPublic, file+".old", file)
	require.Empty(t, v.Faults)
	require.Empty(t, v.Notes)
	require.Equal(t, 4, v.Requests)
	require.Len(t, auditLines(t, file), 3)

	v = verifyFiles(t, auditPublic, file)
	require.Empty(t, v.Faults)
	require.Len(t, v.Notes, 1)
	require.Contains(t, v.Notes[0].What, "in an earlier file")
}

// Time alone brings a checkpoint too, but only one.
func TestAuditLogCheckpointsInTime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	log := openAudit(t, AuditOptions{File: file, Key: auditKey, CheckpointInterval: 5 * time.Millisecond})
	write(t, log, "1")
	require.Eventually(t, func() bool { return len(auditLines(t, file)) == 3 }, time.Minute, time.Millisecond)
	time.Sleep(50 * time.Millisecond)
	lines := auditLines(t, file)
	require.Len(t, lines, 3)
	require.Contains(t, lines[2], `"event":"checkpoint","cause":"interval"`)
}

// A clock that is set back is noted once. Requests that overtake each other are
// not.
func TestVerifyNotesAClockThatWasSetBack(t *testing.T) {
	var out bytes.Buffer
	log := NewAuditLog(&out)
	at := time.Now()
	for _, step := range []time.Duration{0, time.Hour, time.Hour - 30*time.Second, time.Minute, 2 * time.Minute, 3 * time.Minute} {
		log.chain.now = func() time.Time { return at.Add(step) }
		require.NoError(t, log.Audit(t.Context(), &Record{Time: at.Add(step), Outcome: outcomeOutput}))
	}
	require.NoError(t, log.Close())
	v := verifyLines(nil, strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"))
	require.Empty(t, v.Faults)
	require.Len(t, v.Notes, 2)
	require.Contains(t, v.Notes[0].What, "the time runs backwards by 59m0s here")
	require.Equal(t, 5, v.Notes[0].Line)
}

// What comes after a stop and before a start, nobody but a stranger can have
// written.
func TestVerifyFindsLinesAfterAStop(t *testing.T) {
	a, _ := newAttacked(t)
	a.forge("framed")
	v := a.verify()
	require.NotEmpty(t, v.Faults)
	require.Contains(t, v.Faults[0].What, "had stopped before this line")
}
