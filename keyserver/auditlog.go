package keyserver

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
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
	// Logger gets what goes wrong between two records. nil means slog.Default.
	Logger *slog.Logger
}

// AuditLog is an Auditor that writes each Record as one line of JSON, chained
// to the one before: docs/audit.md describes it. Lines never interleave.
type AuditLog struct {
	o    AuditOptions
	log  *slog.Logger
	stop chan struct{} // closed by Close

	reserve auditReserve

	mu       sync.Mutex
	chain    chainWriter
	file     *os.File // nil where NewAuditLog was given another writer
	cause    string   // of the 'open' line that is still to be written, or ""
	unsigned int      // records since the last checkpoint
	rotateAt int64    // bytes; 0: never
	closed   bool
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
	l := &AuditLog{o: o, log: o.Logger, stop: make(chan struct{}), cause: causeStart}
	if l.log == nil {
		l.log = slog.Default()
	}
	l.chain.w = w
	return l
}

// OpenAuditLog returns an AuditLog that goes on where the file, or else the
// last one that was rotated, ends. It holds a lock on the file: two writers
// would break the chain. Where the disk is full, only Audit fails.
func OpenAuditLog(o AuditOptions) (*AuditLog, error) {
	l := newAuditLog(o, os.Stdout)
	if o.File != "-" {
		if err := l.openFile(); err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
	}
	if err := l.begin(); err != nil {
		l.log.Error("audit log: nothing can be written", "error", err)
	}
	if o.Key != nil {
		go l.tick()
	}
	return l, nil
}

// openFile makes File the one that is written to. The chain goes on from the
// file that was written to up to now, if there is one, or from what File or the
// one before it says.
func (l *AuditLog) openFile() error {
	f, err := openAuditFile(l.o.File)
	if err != nil {
		return err
	}
	here, err := readEnd(f)
	before := fileEnd{tip: l.chain.tip, torn: l.chain.torn}
	switch {
	case err != nil:
	case l.file == nil:
		before, err = predecessor(l.o.File)
	case here.size > 0: // It has a chain of its own.
		err = fmt.Errorf("%s: it is not empty: %w", l.o.File, fs.ErrExist)
	}
	if err != nil {
		_ = f.Close()
		return err
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	next := chainWriter{w: f, tip: here.tip, size: here.size, torn: here.torn, open: here.open}
	switch {
	case here.tip.seq > 0 && l.file == nil:
		l.cause = causeRestart
	case before.tip.seq > 0:
		next.tip, next.torn = before.tip, before.torn
		l.cause = causeRotation
	default:
		l.cause = causeStart
	}
	l.file, l.chain = f, next
	l.setRotation()
	return nil
}

func (l *AuditLog) setRotation() {
	if l.o.MaxSize > 0 {
		l.rotateAt = l.chain.size - l.chain.size%l.o.MaxSize + l.o.MaxSize
	}
}

// begin writes the 'open' line if it is due. l.mu is held, or nobody else
// knows of l.
func (l *AuditLog) begin() error {
	if l.cause == "" {
		return nil
	}
	if err := l.chain.begin(l.cause); err != nil {
		return err
	}
	l.cause = ""
	return nil
}

// Audit implements Auditor. The error is that of the write.
func (l *AuditLog) Audit(_ context.Context, r *Record) error {
	line := r.line().encode()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return os.ErrClosed
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

// checkpoint writes one. It is not the fault of the record before that it
// fails, so that is only logged; the next record fails for itself.
func (l *AuditLog) checkpoint(cause string) {
	if err := l.chain.checkpoint(cause, l.o.Key); err != nil {
		l.log.Error("audit log: no checkpoint", "error", err)
		return
	}
	l.unsigned = 0
}

// tick writes a checkpoint from time to time if there is something new.
func (l *AuditLog) tick() {
	t := time.NewTicker(l.o.CheckpointInterval)
	defer t.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-t.C:
		}
		l.mu.Lock()
		if !l.closed && l.unsigned > 0 {
			l.checkpoint(causeInterval)
		}
		l.mu.Unlock()
	}
}

// rotate renames the file and begins a new one. Where that fails, the old one
// is written to until it has grown by MaxSize again.
func (l *AuditLog) rotate() {
	l.checkpoint(causeRotation)
	aside := rotatedName(l.o.File, l.chain.tip.seq)
	err := renameNew(l.o.File, aside)
	if err == nil {
		err = l.openFile()
	}
	if err != nil {
		l.setRotation()
		l.log.Error("audit log: it cannot be rotated", "error", err)
		return
	}
	l.log.Info("audit log rotated", "to", aside)
}

// Reopen begins a new file where the current one has been moved away or
// deleted, as by logrotate, and does nothing otherwise. The chain goes on.
// After an error the old file is still written to.
func (l *AuditLog) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.file == nil || isOpenFile(l.o.File, l.file) {
		return nil
	}
	l.checkpoint(causeRotation)
	if err := l.openFile(); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	if err := l.begin(); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	l.log.Info("audit log reopened", "file", l.o.File)
	return nil
}

// Close writes a last checkpoint and closes the file that OpenAuditLog opened.
// Audit fails from then on.
func (l *AuditLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	close(l.stop)
	var err error
	if err = l.begin(); err == nil {
		err = l.chain.checkpoint(causeStop, l.o.Key)
	}
	if l.file != nil {
		if errClose := l.file.Close(); err == nil {
			err = errClose
		}
	}
	return err
}
