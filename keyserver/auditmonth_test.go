package keyserver

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// memoryDir is a directory in memory, where the system has such: nothing here
// depends on what a disk has got.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "audit")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// month is a key server's audit log, tip and state over a month. The time is
// its own.
type month struct {
	*attacked
	state   string
	random  *rand.Rand
	clock   time.Time
	log     *AuditLog
	server  testServer
	crashes int
	rotated int
	last    map[string][]byte // the files before the change before
	witness []byte            // what a witness has that comes now and then
	entries int               // that it has got
}

func newMonth(t *testing.T, signed bool) *month {
	dir := memoryDir(t)
	for _, sub := range []string{"log", "state"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o700))
	}
	m := &month{
		state: filepath.Join(dir, "state", "state.json"), random: rand.New(rand.NewPCG(1, 2)),
		clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	m.attacked = &attacked{t, AuditOptions{
		File: filepath.Join(dir, "log", "audit.log"), Tip: m.state + auditTipSuffix, Required: true, MaxSize: 30_000,
		CheckpointRecords: 10, Logger: slog.New(slog.DiscardHandler),
		now: func() time.Time { return m.clock }, step: m.crash,
	}}
	if signed {
		m.options.Key = auditKey
	}
	return m
}

func (m *month) start() {
	o := m.options
	o.Suspensions = openSuspensions(m.t, m.state)
	var err error
	m.log, err = OpenAuditLog(o)
	require.NoError(m.t, err)
	m.server = newTestServer(m.t, testKeys(), func(so *Options) {
		so.Audit, so.AuditRequired, so.Suspensions = crashing{m}, true, o.Suspensions
	})
}

// crashing is the log, with a crash after each record, too.
type crashing struct{ m *month }

func (c crashing) Audit(ctx context.Context, r *Record) error {
	r.Time = c.m.clock
	err := c.m.log.Audit(ctx, r)
	c.m.crash()
	return err
}

// act does what a key server does, and time goes by.
func (m *month) act() {
	m.clock = m.clock.Add(time.Duration(m.random.IntN(15000)) * time.Second)
	switch n := m.random.IntN(100); {
	case n < 55:
		require.NoError(m.t, m.log.Audit(m.t.Context(), &Record{Time: m.clock, Edge: "edge", Outcome: outcomeOutput}))
	case n < 75:
		require.NoError(m.t, m.log.saveTip(false))
	case n < 80:
		m.log.intervalCheckpoint()
		m.ask()
	case n < 85:
		_, err := m.server.Suspend(Suspension{Edge: "edge", By: "a test", Since: m.clock})
		require.NoError(m.t, err)
	case n < 90:
		_ = m.server.Resume("edge", "a test") // It may not be suspended.
	case n < 93:
		m.rotated++
		require.NoError(m.t, os.Rename(m.options.File, fmt.Sprintf("%s-%s.%04d", m.options.File, m.clock.Format(time.DateOnly), m.rotated)))
		m.crash()
		m.log.look()
		require.NoError(m.t, m.log.Reopen())
	default:
		require.NoError(m.t, m.log.Close())
		m.start()
	}
}

// ask is a witness that comes.
func (m *month) ask() {
	if m.options.Key == nil {
		return
	}
	next, err := m.log.Witness(m.witness)
	require.NoError(m.t, err)
	if next != nil {
		m.witness = next
		m.entries++
	}
	m.crash()
}

// crash tries what would be if the key server were killed here, or in the write
// before, or the machine lost what was not synced.
func (m *month) crash() {
	now := m.files()
	m.restart(now, "killed")
	for name, data := range now {
		before, ok := m.last[name]
		if !ok || filepath.Dir(name) != filepath.Dir(m.options.File) || !bytes.HasPrefix(data, before) || len(data) < len(before)+2 {
			continue
		}
		torn := maps.Clone(now)
		for range 2 {
			torn[name] = data[:len(before)+1+m.random.IntN(len(data)-len(before)-1)]
			m.restart(torn, "killed in a write")
		}
	}
	m.last = now
	m.powerFailure(now)
}

// powerFailure tries what would be if the machine had lost what was not on the
// disk: lines after the tip, and after a resumption.
func (m *month) powerFailure(now map[string][]byte) {
	data := now[m.options.File]
	tip, err := parseTip(now[m.options.Tip])
	if err != nil {
		return
	}
	kept := bytes.Index(data, []byte(`"chain":"`+tip.Chain))
	resumedEnd := -1
	if resumed := bytes.LastIndex(data, []byte(`"event":"resume"`)); resumed > kept {
		kept = resumed
		resumedEnd = resumed + bytes.IndexByte(data[resumed:], '\n') + 1
	}
	if kept < 0 {
		return
	}
	kept += bytes.IndexByte(data[kept:], '\n') + 1
	if m.options.Key != nil && kept == resumedEnd { // The signature on it is, too.
		kept += bytes.IndexByte(data[kept:], '\n') + 1
	}
	lost := maps.Clone(now)
	lost[m.options.File] = data[:kept+m.random.IntN(len(data)-kept+1)]
	m.restart(lost, "without power")
}

// restart starts a key server on a copy of the files, which is required to keep
// the log, and stops it. Nothing is found, then and by a check.
func (m *month) restart(files map[string][]byte, how string) {
	m.crashes++
	dir := memoryDir(m.t)
	a := &attacked{m.t, m.options}
	a.options.File, a.options.Tip = filepath.Join(dir, "log", "audit.log"), filepath.Join(dir, "state", "state.json.audit")
	a.options.step, a.options.MaxSize = nil, 0
	for _, sub := range []string{"log", "state"} {
		require.NoError(m.t, os.Mkdir(filepath.Join(dir, sub), 0o700))
	}
	from := filepath.Dir(filepath.Dir(m.options.File))
	for name, data := range files {
		a.put(filepath.Join(dir, strings.TrimPrefix(name, from)), data)
	}
	a.options.Suspensions = openSuspensions(m.t, filepath.Join(dir, "state", "state.json"))
	log, err := OpenAuditLog(a.options)
	require.NoError(m.t, err, "%s in step %d", how, m.crashes)
	write(m.t, log, "after the crash")
	if m.witness != nil {
		_, err = log.Witness(m.witness)
		require.NoError(m.t, err, "%s in step %d", how, m.crashes)
	}
	require.NoError(m.t, log.Close())
	v := a.check(3) // Those before are checked at the end of the month.
	require.Empty(m.t, v.Faults, "%s in step %d", how, m.crashes)
	require.NoError(m.t, os.RemoveAll(dir))
}

// check is verify with the files in the order of their lines, the last of them
// alone.
func (a *attacked) check(last int) *AuditVerifier {
	v := &AuditVerifier{}
	if a.options.Key != nil {
		v.Keys = auditPublic
	}
	files := inOrder(a.t, a.options.File)
	for _, file := range files[max(0, len(files)-last):] {
		f, err := os.Open(file)
		require.NoError(a.t, err)
		require.NoError(a.t, v.File(file, f))
		require.NoError(a.t, f.Close())
	}
	v.End(false)
	return v
}

// inOrder returns the files of a log, the oldest first: their names are of two
// kinds.
func inOrder(t *testing.T, file string) []string {
	names, err := filepath.Glob(file + "*")
	require.NoError(t, err)
	bySeq := make(map[uint64]string)
	var order []uint64
	for _, name := range names {
		f, err := os.Open(name)
		require.NoError(t, err)
		begin := make([]byte, 100)
		n, _ := f.Read(begin)
		require.NoError(t, f.Close())
		seq, ok := lineNumber(begin[:n])
		if !ok {
			seq = 1 << 60
		}
		bySeq[seq] = name
		order = append(order, seq)
	}
	slices.Sort(order)
	for i, seq := range order {
		names[i] = bySeq[seq]
	}
	return names
}

// A month with restarts, rotations by size and by logrotate, suspensions, and a
// kill or a power failure at every write: no start is refused, no suspension is
// lost, and audit verify finds nothing.
func TestAMonthWithACrashAtEveryWriteIsNoDiscontinuity(t *testing.T) {
	for name, signed := range map[string]bool{"signed": true, "unsigned": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMonth(t, signed)
			m.start()
			end := m.clock.AddDate(0, 1, 0)
			for m.clock.Before(end) {
				m.act()
			}
			require.NoError(t, m.log.Close())
			v := m.check(1000)
			require.Empty(t, v.Faults)
			require.Greater(t, v.Requests, 120)
			require.Greater(t, m.crashes, 1000)
			if signed {
				require.Greater(t, m.entries, 5)
			}
			t.Log(m.crashes, "crashes,", v.Requests, "requests,", v.Lines, "lines, notes:", len(v.Notes))
		})
	}
}
