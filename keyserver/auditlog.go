package keyserver

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of AuditOptions.
const (
	DefaultCheckpointRecords  = 1000
	DefaultCheckpointInterval = time.Minute
)

// AuditOptions says where an audit log goes and how it is kept. File is
// required.
type AuditOptions struct {
	// File is appended to, and created with mode 0600 if need be. The name "-"
	// stands for standard output.
	File string
	// MaxSize is the size in bytes at which the file is renamed to
	// FILE.SEQUENCE, with the number of its last line in twelve digits, and a
	// new one begun. 0 means never.
	MaxSize int64
	// Sync makes Audit wait until the record is on the disk, which takes some
	// milliseconds. Otherwise the records of the last seconds are lost where
	// the machine, not only the program, goes down.
	Sync bool
	// Key signs checkpoints. nil means that there are none but at the end of a
	// file, unsigned.
	Key ed25519.PrivateKey
	// CheckpointRecords is after how many records there is a checkpoint. 0
	// means DefaultCheckpointRecords.
	CheckpointRecords int
	// CheckpointInterval is how long a record waits for a checkpoint at most. 0
	// means DefaultCheckpointInterval.
	CheckpointInterval time.Duration
	// Reserve is how many bytes of the file's disk are kept for the records of
	// requests for which a private key was used; see ReserveAuditor. 0 means
	// none. Linux only.
	Reserve int64
	// Tip is the file that says how far the log is known to go, apart from the log: in
	// the state directory, named as the state file with ".audit". "" means that
	// there is none, so that what is done to the log while it is closed shows only
	// where it breaks the chain.
	Tip string
	// Witness is a file that is appended to, where whoever can change the log and the
	// state directory cannot change it: how far the log goes, with each checkpoint
	// interval, signed. The start compares; see ParseWitnessEntry for what is in it.
	// It needs Key, and Tip. "" means none, and that Witness can be called.
	Witness string
	// Required makes OpenAuditLog fail with a DiscontinuityError where the log is
	// not as it was left, and Audit fail while the file is removed or truncated.
	// Otherwise a discontinuity is recorded, and the log goes on.
	Required bool
	// Suspensions are those that lines say of which edges are suspended, and that
	// the log is compared with at the start. nil means none.
	Suspensions *Suspensions
	// Logger gets what goes wrong between two records. nil means slog.Default.
	Logger *slog.Logger

	// For tests: the time, and what is called before each change of a file. With
	// the latter, nothing happens by itself.
	now  func() time.Time
	step func()
}

// What the files in the state directory have in their names after the state file's.
const (
	auditTipSuffix    = ".audit"
	auditAcceptSuffix = ".accept" // after the tip's name
)

// public returns the key's public half, or nil.
func (o *AuditOptions) public() ed25519.PublicKey {
	if o.Key == nil {
		return nil
	}
	return o.Key.Public().(ed25519.PublicKey)
}

// AuditLog is an Auditor that writes each Record as one line of JSON, chained
// to the one before: docs/audit.md describes it. Lines never interleave.
type AuditLog struct {
	o    AuditOptions
	log  *slog.Logger
	stop chan struct{} // closed by Close

	reserve    auditReserve
	witnessing witnessing

	mu         sync.Mutex // see lock and unlock
	chain      chainWriter
	file       *os.File  // nil for standard output, and where NewAuditLog was given another writer
	first      auditLine // the 'open' line that is still to be written, if due
	due        bool
	unsigned   int   // records since the last checkpoint
	rotateAt   int64 // bytes; 0: never
	closed     bool
	suspended  map[string]bool // by the lines that were written
	unaccepted []string        // discontinuities, SEQUENCE:CHAIN
	lost       error           // what is wrong with the file; nil for nothing
	brokenFile bool            // lost is for good: lines are gone
	movedAt    time.Time       // when the file was found to have another name
	broken     error           // why no more is written; see discover

	state    atomic.Pointer[auditState]
	lockedAt atomic.Int64 // when mu was taken, Unix nanoseconds; 0: it is free

	saving      sync.Mutex    // held while the tip is written
	saved       link          // what it names
	unsynced    []*os.File    // that were rotated since, and are not closed
	savedAt     atomic.Uint64 // saved.seq, for the lines that say it
	saveFails   bool
	waits       atomic.Int64 // since when there is something to write, Unix nanoseconds; 0: never
	acceptFails bool         // an error was logged

	ended sync.WaitGroup // of the goroutine
}

// NewAuditLog returns an AuditLog on w, which gets every line in one Write and
// never two at once. It has no signatures.
func NewAuditLog(w io.Writer) *AuditLog {
	return newAuditLog(AuditOptions{File: "-"}, w)
}

func newAuditLog(o AuditOptions, w io.Writer) *AuditLog {
	if o.CheckpointRecords == 0 {
		o.CheckpointRecords = DefaultCheckpointRecords
	}
	if o.CheckpointInterval == 0 {
		o.CheckpointInterval = DefaultCheckpointInterval
	}
	l := &AuditLog{o: o, log: o.Logger, stop: make(chan struct{}), suspended: make(map[string]bool)}
	if l.log == nil {
		l.log = slog.Default()
	}
	if o.Suspensions != nil {
		for _, one := range o.Suspensions.All() {
			l.suspended[one.inLog()] = true
		}
	}
	if l.o.now == nil {
		l.o.now = time.Now
	}
	l.chain = chainWriter{w: w, key: o.Key, now: l.o.now, step: o.step}
	l.open(auditLine{Cause: causeStart})
	l.publish()
	return l
}

// OpenAuditLog returns an AuditLog that goes on where the file, or else the
// last one that was rotated, ends. It holds a lock on the file: two writers
// would break the chain. Where the disk is full, only Audit fails. Where the log
// is not as it was left and is required, the error is a DiscontinuityError.
func OpenAuditLog(o AuditOptions) (*AuditLog, error) {
	l := newAuditLog(o, os.Stdout)
	var f *os.File
	made := false
	if o.File != "-" {
		_, err := os.Lstat(o.File)
		made = errors.Is(err, fs.ErrNotExist)
		if f, err = openAuditFile(o.File); err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
	}
	if err := l.start(f); err != nil {
		if f != nil {
			_ = f.Close()
		}
		if broken := (*DiscontinuityError)(nil); errors.As(err, &broken) {
			if made { // It leaves what it has found.
				_ = os.Remove(o.File)
			}
			return nil, err
		}
		return nil, fmt.Errorf("audit log: %w", err)
	}
	if o.step == nil {
		l.ended.Go(l.tick)
	}
	return l, nil
}

// start compares what there is, and writes the first lines.
func (l *AuditLog) start(f *os.File) error {
	back := f
	if f != nil && !isFile(l.o.File) {
		back = nil
	}
	s, err := lookBack(&l.o, back)
	if err != nil {
		return err
	}
	accepted, err := readAcceptance(&l.o)
	if len(s.differs) > 0 && l.o.Required && !accepted.of(s) {
		if err != nil {
			s.differ("what was accepted cannot be used: %v", err)
		}
		return &DiscontinuityError{File: l.o.File, Differs: s.differs}
	}
	if err != nil {
		l.log.Error("audit log: an acceptance cannot be used", "error", err)
	}
	if f != nil {
		l.file, l.chain.w = f, f
	}
	if f != nil && l.o.Tip != "" { // It has the lock.
		if err := errors.Join(removeUnfinished(l.o.Tip), removeUnfinished(l.o.Tip+auditWitnessSuffix)); err != nil {
			l.log.Debug("audit log: what a killed process has left in the state directory stays", "error", err)
		}
	}
	l.chain.tip, l.chain.size, l.chain.torn, l.chain.open = s.end.tip, s.end.size, s.end.torn, s.end.open
	l.setRotation()
	l.unaccepted = s.unaccepted
	first := auditLine{Cause: s.cause, Unsigned: s.unsigned}
	if s.tip != nil {
		l.saved = s.tip.link
		l.savedAt.Store(l.saved.seq)
	}
	if s.warning != "" {
		l.log.Warn("audit log", "what", s.warning)
	}
	if len(s.differs) > 0 {
		l.discontinue(s, &first)
	} else if err := l.reopenTip(s); err != nil {
		return err
	}
	l.open(first)
	if s.tip != nil {
		*l.first.Tip = s.tip.Seq
	} else if l.first.Tip != nil {
		*l.first.Tip = 0
	}
	if err := l.begin(); err != nil {
		l.log.Error("audit log: nothing can be written", "error", err)
	}
	_ = l.saveTip(false) // which logs by itself
	if s.witnessedUnusable && !l.due {
		l.change()
		if err := os.Remove(l.o.Tip + auditWitnessSuffix); err != nil { // It has been recorded.
			l.log.Error("audit log: what is known of its witness cannot be used", "error", err)
		}
	}
	if accepted != nil && !l.due {
		lines := accepted.Lines
		if len(s.differs) > 0 && accepted.of(s) {
			lines = l.unaccepted // The newest is the one that the 'open' line has recorded.
		}
		l.accept(accepted, lines)
	}
	l.beginWitness(s.witnessed)
	l.publish()
	return nil
}

// reopenTip writes that lines may come after the tip. It comes before the first
// one: what is found after a tip that says that the log was closed, nobody but
// a stranger can have written.
func (l *AuditLog) reopenTip(s *auditStart) error {
	if l.o.Tip == "" {
		return nil
	}
	err := l.syncFound(s) // A key server that was killed has left lines that may not be on the disk.
	if err == nil {
		err = l.writeTip(&auditTip{Unsigned: s.unsignedYet}, l.chain.tip)
	}
	if err != nil && l.o.Required {
		return err
	}
	return nil // saveTip says so.
}

// syncFound waits until what a start has found is on the disk.
func (l *AuditLog) syncFound(s *auditStart) error {
	if s.end.before != "" {
		f, err := os.Open(s.end.before)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := dataSync(f); err != nil {
			return err
		}
	}
	_, err := l.syncFiles(nil, l.file)
	return err
}

// discontinue makes first the record of a discontinuity, and puts right what can
// be. The sequence numbers go on after what is known of the log, so that they show
// the gap.
func (l *AuditLog) discontinue(s *auditStart, first *auditLine) {
	first.Cause, first.Reason = causeBroken, strings.Join(s.differs, "; ")
	first.NewFile = s.cause != causeRestart
	var known link
	if s.tip != nil {
		known = s.tip.link
	}
	if s.witnessed != nil {
		first.Witnessed = s.witnessed.Seq
		if s.witnessed.Seq > known.seq {
			known = s.witnessed.link
		}
	}
	if known.seq > s.end.tip.seq {
		l.chain.tip.seq = known.seq
		if s.end.tip.seq == 0 {
			l.chain.tip.chain = known.chain
		}
	}
	l.log.Error("audit log: a discontinuity is recorded", "file", l.o.File, "what", first.Reason)
	for _, edge := range s.suspended {
		l.suspended[edge] = true
		if err := l.o.Suspensions.Suspend(Suspension{
			Edge: edge, By: "the audit log", Reason: "the log says that it is suspended, and the state file did not", Since: time.Now(),
		}); err != nil {
			l.log.Error("the suspension will not outlast a restart", "edge", edge, "error", err)
		}
	}
}

// reopenFile makes File the one that is written to, in the place of the one up to
// now. The chain goes on.
func (l *AuditLog) reopenFile() error {
	l.change()
	f, err := openAuditFile(l.o.File)
	if err != nil {
		return err
	}
	here, err := readEnd(f)
	if err == nil && here.size > 0 { // It has a chain of its own.
		err = fmt.Errorf("%s: it is not empty: %w", l.o.File, fs.ErrExist)
	}
	if err != nil {
		_ = f.Close()
		return err
	}
	if l.o.Tip != "" {
		l.unsynced = append(l.unsynced, l.file) // saveTip closes it.
	} else {
		_ = l.file.Close()
	}
	l.file = f
	l.chain.w, l.chain.size, l.chain.open = f, 0, false
	l.open(auditLine{Cause: causeRotation})
	l.setRotation()
	return nil
}

// change comes before each change of a file but the writing of a line.
func (l *AuditLog) change() {
	if l.o.step != nil {
		l.o.step()
	}
}

func (l *AuditLog) setRotation() {
	if l.o.MaxSize > 0 {
		l.rotateAt = l.chain.size - l.chain.size%l.o.MaxSize + l.o.MaxSize
	}
}

// open makes a line the 'open' that is due.
func (l *AuditLog) open(line auditLine) {
	l.first, l.due = line, true
	l.describe(&l.first)
}

// describe puts into an 'open' or a checkpoint what is repeated there.
func (l *AuditLog) describe(line *auditLine) {
	if l.o.Tip != "" {
		tip := l.savedAt.Load()
		line.Tip = &tip
	}
	line.Suspended = slices.Sorted(maps.Keys(l.suspended))
	if more := len(line.Suspended) - maxSuspendedNames; more > 0 {
		line.Suspended, line.MoreSuspended = line.Suspended[:maxSuspendedNames], more
	}
}

// maxSuspendedNames is how many edges a line names that are suspended.
const maxSuspendedNames = 1000

// begin writes the 'open' line if it is due. l.mu is held, or nobody else
// knows of l.
func (l *AuditLog) begin() error {
	if !l.due {
		return nil
	}
	if err := l.chain.begin(l.first); err != nil {
		return err
	}
	if l.first.Cause == causeBroken {
		l.unaccepted = addUnaccepted(l.unaccepted, tipName(l.chain.tip))
	}
	l.due = false
	return nil
}

// Audit implements Auditor. The error is that of the write.
func (l *AuditLog) Audit(_ context.Context, r *Record) error {
	line := r.line().encode()
	l.lock()
	defer l.unlock()
	if l.closed {
		return os.ErrClosed
	}
	if r.Event == EventSuspend {
		l.suspended[r.name()] = true
	}
	if l.lost != nil && l.o.Required {
		return l.lost
	}
	var resumed string
	if r.Event == EventResume {
		resumed = r.name()
	}
	err := l.write(line, resumed)
	if err != nil && !l.o.Required { // The edge is resumed all the same.
		delete(l.suspended, resumed)
	}
	return err
}

// write appends the line of a record, which may resume an edge.
func (l *AuditLog) write(line []byte, resumed string) error {
	if l.broken != nil {
		return l.broken
	}
	if l.rotateAt > 0 && l.chain.size >= l.rotateAt {
		l.rotate()
	}
	if err := l.begin(); err != nil {
		return err
	}
	if err := l.chain.append(line); err != nil {
		return err
	}
	if resumed != "" {
		return l.resume(resumed)
	}
	if l.o.Sync && l.file != nil {
		if err := l.file.Sync(); err != nil {
			return err
		}
	}
	if l.unsigned++; l.o.Key != nil && l.unsigned >= l.o.CheckpointRecords {
		l.checkpoint(causeInterval)
	}
	return nil
}

// resume comes after the line of a resumption. That, and a signature on it, has to
// be on the disk before the state file loses the suspension: a line without one can
// be anybody's.
func (l *AuditLog) resume(name string) error {
	delete(l.suspended, name) // before the checkpoint names it
	var err error
	if l.o.Key != nil {
		if err = l.writeCheckpoint(causeInterval); err == nil {
			l.unsigned = 0
		}
	}
	if err == nil && l.file != nil {
		err = dataSync(l.file)
	}
	if err != nil {
		l.suspended[name] = true
	}
	return err
}

// checkpoint writes one. It is not the fault of the record before that it
// fails, so that is only logged; the next record fails for itself.
func (l *AuditLog) checkpoint(cause string) {
	if err := l.writeCheckpoint(cause); err != nil {
		l.log.Error("audit log: no checkpoint", "error", err)
		return
	}
	l.unsigned = 0
}

func (l *AuditLog) writeCheckpoint(cause string) error {
	line := auditLine{Event: eventCheckpoint, Cause: cause}
	l.describe(&line)
	return l.chain.appendOwn(line)
}

// rotate renames the file and begins a new one. Where that fails, the old one
// is written to until it has grown by MaxSize again.
func (l *AuditLog) rotate() {
	l.checkpoint(causeRotation)
	aside := rotatedName(l.o.File, l.chain.tip.seq)
	l.change()
	err := renameNew(l.o.File, aside)
	if err == nil {
		err = l.reopenFile()
	}
	if err != nil {
		l.setRotation()
		l.log.Error("audit log: it cannot be rotated", "error", err)
		return
	}
	l.log.Info("audit log rotated", "to", aside)
}

// Close writes a last checkpoint and closes the file that OpenAuditLog opened.
// Audit fails from then on.
func (l *AuditLog) Close() error {
	err := l.end()
	l.ended.Wait()
	_ = l.saveTip(err == nil) // which logs by itself
	l.endWitness()
	l.lock()
	defer l.unlock()
	if l.file != nil {
		if errClose := l.file.Close(); err == nil {
			err = errClose
		}
		l.file = nil
	}
	return err
}

// end writes the last checkpoint.
func (l *AuditLog) end() error {
	l.lock()
	defer l.unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	close(l.stop)
	if err := l.begin(); err != nil {
		return err
	}
	return l.writeCheckpoint(causeStop)
}
