package keyserver

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/internal/guarded"
)

// auditWitnessSuffix is that of the file beside the tip with the last entry that
// a witness is known to have.
const auditWitnessSuffix = ".witness"

// witnessing is what an AuditLog knows of its witness.
type witnessing struct {
	seen  atomic.Int64 // when a witness has last taken or confirmed something, Unix nanoseconds
	ended sync.WaitGroup

	mu      sync.Mutex    // of what follows; the file may be on a disk that hangs
	file    *Witness      // AuditOptions.Witness; nil for none
	last    *WitnessEntry // the newest that a witness has
	failing bool
}

// ErrWitness is why a witness is refused, whenever it comes.
var ErrWitness = errors.New("the audit log takes no such witness")

// canBeWitnessed reports whether there can be a witness: it proves nothing
// without signatures, nor where the log cannot be compared with it, and what it
// has found can only be accepted where there is a tip.
func (o *AuditOptions) canBeWitnessed() bool { return o.Key != nil && o.Tip != "" && isFile(o.File) }

func (o *AuditOptions) witnessKeys() []ed25519.PublicKey { return []ed25519.PublicKey{o.public()} }

// compareWitnesses finds what differs between the log and the entries that
// witnesses have: of the file that is configured, and the last one that is known.
func (s *auditStart) compareWitnesses(o *AuditOptions) {
	if !o.canBeWitnessed() {
		return
	}
	known, err := readWitnessed(o)
	if err != nil {
		s.differ("%v", err)
		s.witnessedUnusable = true
	}
	s.witnessed = known
	var entries []*WitnessEntry
	if s.witnessed != nil {
		entries = append(entries, s.witnessed)
	}
	if o.Witness != "" {
		w, err := OpenWitness(o.Witness, o.witnessKeys())
		switch {
		case err != nil:
			s.differ("its witness cannot be used: %v", err)
		case w.last == nil && s.witnessed != nil:
			s.differ("its witness %s is missing or empty, and had %v", o.Witness, s.witnessed)
		case w.last != nil:
			entries = append(entries, w.last)
			if s.witnessed == nil || w.last.Seq > s.witnessed.Seq {
				s.witnessed = w.last
			}
		}
	}
	for _, e := range entries {
		differs, warning := compareWitness(o, s.end.tip, e)
		if differs != "" && !slices.Contains(s.differs, differs) {
			s.differ("%s", differs)
		}
		if warning != "" {
			s.warning = warning
		}
	}
}

// readWitnessed reads the last entry that a witness is known to have; nil if
// there is none.
func readWitnessed(o *AuditOptions) (*WitnessEntry, error) {
	if !o.canBeWitnessed() {
		return nil, nil
	}
	file := o.Tip + auditWitnessSuffix
	data, err := guarded.Read(file, guarded.Secret, MaxWitnessEntry)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	e, err := ParseWitnessEntry(data, o.witnessKeys())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return e, nil
}

// compareWitness says how a log with this end differs from what a witness has,
// or why that cannot be told.
func compareWitness(o *AuditOptions, end link, e *WitnessEntry) (differs, warning string) {
	switch {
	case e.Seq == 0:
		return "", ""
	case end.seq == 0:
		return fmt.Sprintf("it is missing or empty, and its witness has %v", e), ""
	case e.Seq > end.seq:
		return fmt.Sprintf("it ends with line %d, and its witness has %v", end.seq, e), ""
	}
	at, err := findLine(o.File, e.Seq)
	if err == nil && at == e.link {
		return "", ""
	}
	// A line that is missing is missing since any discontinuity. One that is another
	// was to be found by that which recorded it: others may be there to hide it.
	recorded, errScan := brokenAfter(o.File, e.Seq, at.seq != 0, o.public())
	switch {
	case recorded:
		return "", ""
	case err != nil || errScan != nil:
		return "", fmt.Sprintf("the log could not be compared with %v, which its witness has: %v", e, errors.Join(err, errScan))
	case at.seq == 0:
		return fmt.Sprintf("line %d is missing, and its witness has it, of %s", e.Seq, e.Time), ""
	}
	return fmt.Sprintf("line %d, or one before it, is another than its witness has, of %s", e.Seq, e.Time), ""
}

// Witness takes the last line that a witness has, empty for none, and returns
// the next, nil where there is nothing new. The log is compared with what the
// witness has: the error is a *DiscontinuityError where the two differ, which is
// recorded, or, where the log is required, stops it until an operator accepts it.
func (l *AuditLog) Witness(line []byte) (next []byte, err error) {
	if !l.o.canBeWitnessed() {
		return nil, fmt.Errorf("%w: it is not in a file, or the key server has no audit.key or no state", ErrWitness)
	}
	if l.o.Witness != "" {
		return nil, fmt.Errorf("%w: it has one, audit.witness in the configuration", ErrWitness)
	}
	var last *WitnessEntry
	if len(line) > 0 {
		if last, err = ParseWitnessEntry(line, l.o.witnessKeys()); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrWitness, err)
		}
	}
	at, err := l.durable()
	if err != nil {
		return nil, err
	}
	l.witnessing.mu.Lock()
	defer l.witnessing.mu.Unlock()
	if last != nil {
		differs, warning := compareWitness(&l.o, at, last)
		if warning != "" {
			l.log.Warn("audit log", "what", warning)
		}
		l.keepWitnessed(last)
		if differs != "" {
			return nil, l.discover(differs, last)
		}
		l.witnessing.seen.Store(time.Now().UnixNano())
		if last.link == at {
			return nil, nil
		}
	}
	if last == nil && l.witnessing.last != nil {
		l.log.Warn("audit log: a witness that has nothing, where there was one before", "had", l.witnessing.last)
	}
	e, err := newWitnessEntry(at, l.chain.now(), l.o.Key)
	if err != nil {
		return nil, err
	}
	return e.line, nil
}

// durable returns how far the log goes on the disk.
func (l *AuditLog) durable() (link, error) {
	if err := l.saveTip(false); err != nil {
		return link{}, err
	}
	l.saving.Lock()
	defer l.saving.Unlock()
	return l.saved, nil
}

// keepWitnessed remembers the newest entry that a witness has, over a restart
// too.
func (l *AuditLog) keepWitnessed(e *WitnessEntry) {
	if last := l.witnessing.last; last != nil && last.Seq >= e.Seq {
		return
	}
	l.witnessing.last = e
	if err := replaceFile(l.o.Tip+auditWitnessSuffix, e.line); err != nil {
		l.log.Error("audit log: the next start will not know what its witness has", "error", err)
	}
}

// discover takes note of a difference that has been found while the log is
// written.
func (l *AuditLog) discover(differs string, e *WitnessEntry) error {
	broken := &DiscontinuityError{File: l.o.File, Differs: []string{differs}}
	l.lock()
	defer l.unlock()
	if l.broken == nil {
		l.log.Error("audit log: it is not what its witness has", "file", l.o.File, "what", differs, "required", l.o.Required)
	}
	if l.o.Required {
		l.broken = broken
		return broken
	}
	l.chain.tip.seq = max(l.chain.tip.seq, e.Seq) // The numbers show the gap.
	l.open(auditLine{Cause: causeBroken, Reason: differs, Witnessed: e.Seq})
	if err := l.begin(); err != nil {
		return errors.Join(broken, err)
	}
	return broken
}

// Witnessed returns when a witness has last taken or confirmed how far the log
// goes; the zero time where there never was a witness.
func (l *AuditLog) Witnessed() time.Time {
	if seen := l.witnessing.seen.Load(); seen != 0 {
		return time.Unix(0, seen)
	}
	return time.Time{}
}

// beginWitness begins to write the witness's file, if there is one.
func (l *AuditLog) beginWitness(known *WitnessEntry) {
	w := &l.witnessing
	w.last = known
	if known != nil {
		w.seen.Store(known.at().UnixNano())
	}
	if l.o.Witness == "" || !l.o.canBeWitnessed() {
		return
	}
	w.file, _ = OpenWitness(l.o.Witness, l.o.witnessKeys()) // What is wrong has been found before.
	w.file.create = known == nil
	if known == nil {
		w.seen.Store(time.Now().UnixNano()) // From now on it has to be seen.
	}
	w.ended.Go(func() {
		t := time.NewTicker(l.o.CheckpointInterval)
		defer t.Stop()
		for {
			l.saveWitness()
			select {
			case <-l.stop:
				return
			case <-t.C:
			}
		}
	})
}

// saveWitness appends to the witness's file how far the log goes, unless it has
// that. Neither requests nor the tip wait for it.
func (l *AuditLog) saveWitness() {
	at, err := l.durable()
	w := &l.witnessing
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		err = l.appendWitness(at)
	}
	if err == nil {
		w.seen.Store(time.Now().UnixNano())
	}
	if failing := err != nil; failing != w.failing {
		w.failing = failing
		if failing {
			l.log.Error("audit log: its witness cannot be written", "error", err)
		} else {
			l.log.Info("audit log: its witness can be written again")
		}
	}
}

func (l *AuditLog) appendWitness(at link) error {
	w := &l.witnessing
	if last := w.file.last; last != nil && last.link == at {
		return w.file.Check()
	}
	e, err := newWitnessEntry(at, l.chain.now(), l.o.Key)
	if err != nil {
		return err
	}
	if err := w.file.Append(e); err != nil {
		return err
	}
	l.keepWitnessed(e)
	return nil
}

// endWitness appends the end of the log. The log is closed.
func (l *AuditLog) endWitness() {
	if l.witnessing.file == nil {
		return
	}
	l.witnessing.ended.Wait()
	l.saveWitness()
}
