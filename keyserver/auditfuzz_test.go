package keyserver

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A tip and an acceptance are read only as the key server writes them, byte for
// byte.
func FuzzAuditTip(f *testing.F) {
	tip := &auditTip{Seq: 7, Chain: link{seq: 7, chain: [32]byte{1}}.hex(), Time: "2026-01-02T03:04:05Z", Closed: true}
	tip.Unaccepted = []string{tipName(link{seq: 3, chain: [32]byte{2}})}
	for _, key := range []bool{true, false} {
		k := auditKey
		if !key {
			k = nil
		}
		data, err := tip.encode(k)
		require.NoError(f, err)
		f.Add(data)
		data, err = encodeSigned(acceptContext, &acceptance{Time: tip.Time, By: "root", Reason: "why", Differs: []string{"it <is> gone"}, Lines: tip.Unaccepted}, k)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if tip, err := parseTip(data); err == nil {
			again, err := encodeSigned(tipContext, tip, nil)
			require.NoError(t, err)
			require.True(t, bytes.HasPrefix(data, again[:len(again)-2]))
			require.LessOrEqual(t, tip.link.seq, uint64(maxTipSeq))
		}
		o := &AuditOptions{Key: auditKey}
		if a, err := parseAcceptance(data, o); err == nil {
			again, err := encodeSigned(acceptContext, a, auditKey)
			require.NoError(t, err)
			require.Equal(t, data, again, "only the key can have made it")
		}
	})
}

// Whatever a log and its tip are, a start either refuses them or writes a log
// that goes on: it neither panics nor hangs.
func FuzzAuditStart(f *testing.F) {
	dir := f.TempDir()
	options := AuditOptions{File: filepath.Join(dir, "audit.log"), Tip: filepath.Join(dir, "state.json.audit"), Key: auditKey, CheckpointRecords: 3}
	log, err := OpenAuditLog(options)
	require.NoError(f, err)
	for range 7 {
		require.NoError(f, log.Audit(f.Context(), &Record{Edge: "edge", Outcome: outcomeOutput}))
	}
	require.NoError(f, log.Close())
	data, err := os.ReadFile(options.File)
	require.NoError(f, err)
	tip, err := os.ReadFile(options.Tip)
	require.NoError(f, err)
	f.Add(data, tip)
	f.Add(data[:len(data)-10], tip)
	f.Add([]byte{}, tip)
	f.Add(data, []byte{})
	f.Fuzz(func(t *testing.T, data, tip []byte) {
		dir := t.TempDir()
		require.NoError(t, os.Chmod(dir, 0o700))
		o := options
		o.File, o.Tip = filepath.Join(dir, "audit.log"), filepath.Join(dir, "state.json.audit")
		require.NoError(t, os.WriteFile(o.File, data, 0o600))
		require.NoError(t, os.WriteFile(o.Tip, tip, 0o600))
		f, err := os.Open(o.File)
		require.NoError(t, err)
		defer f.Close()
		s, err := lookBack(&o, f)
		if err != nil || len(s.differs) > 0 {
			return
		}
		// What is taken for continuous ends with the tip, or with lines that chain.
		require.NotNil(t, s.tip)
		require.GreaterOrEqual(t, s.end.tip.seq, s.tip.Seq)
	})
}

// shortLine is JSON, but has no room for a number before what would be its chain.
const shortLine = `{"seq":0,"":"0000000","00000":"0000000","0000":"0000","0000000":"000000000"}`

func TestALineThatIsTooShortIsAFault(t *testing.T) {
	v := &AuditVerifier{Keys: auditPublic}
	require.NoError(t, v.File("log", strings.NewReader(shortLine+"\n")))
	v.End(true)
	require.NotEmpty(t, v.Faults)
	file := filepath.Join(t.TempDir(), "audit.log")
	require.NoError(t, os.WriteFile(file, []byte(shortLine+"\n"), 0o600))
	log, err := OpenAuditLog(AuditOptions{File: file, Key: auditKey})
	require.NoError(t, err, "it looks like what could only be written in part")
	require.NoError(t, log.Close())
}

// Where a check finds no fault, all lines up to the last that is signed are the
// key server's.
func FuzzAuditVerify(f *testing.F) {
	dir := f.TempDir()
	// The same in each process of the fuzzing.
	now := func() time.Time { return time.Unix(1_800_000_000, 0) }
	o := AuditOptions{File: filepath.Join(dir, "audit.log"), Key: auditKey, CheckpointRecords: 3, now: now}
	for range 2 {
		log, err := OpenAuditLog(o)
		require.NoError(f, err)
		for range 4 {
			require.NoError(f, log.Audit(f.Context(), &Record{Time: now(), Edge: "edge", Outcome: outcomeOutput}))
		}
		require.NoError(f, log.Close())
	}
	original, err := os.ReadFile(o.File)
	require.NoError(f, err)
	f.Add(original)
	f.Add([]byte(shortLine))
	written := make(map[string]bool)
	for line := range bytes.Lines(original) {
		written[string(line)] = true
		f.Add(bytes.Replace(original, line, nil, 1))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v := &AuditVerifier{Keys: auditPublic}
		require.NoError(t, v.File("log", bytes.NewReader(data)))
		v.End(true)
		if len(v.Faults) > 0 || !v.anySigned {
			return
		}
		lines := bytes.SplitAfter(data, []byte{'\n'})
		for _, line := range lines[:max(0, len(lines)-1-v.unsigned-bytes.Count(data, []byte(cutOff)))] {
			if _, _, whole := splitLine(bytes.TrimSuffix(line, []byte{'\n'})); whole {
				require.True(t, written[string(line)], "%s", line)
			}
		}
	})
}
