package keyserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

const (
	// watchFile is how often the file is looked at: what happens to it is noticed
	// within a second.
	watchFile = 500 * time.Millisecond
	// movedGrace is how long a file may have another name before that is a fault:
	// logrotate gives it one, and sends SIGHUP then.
	movedGrace = 60 * time.Second
)

// look finds out whether the file is still there, and whether it is as it was
// written.
func (l *AuditLog) look() {
	l.lock()
	defer l.unlock()
	if l.closed || l.file == nil || !l.noticeLoss() {
		return
	}
	if l.o.Required {
		l.log.Error("audit log: no request is answered until SIGHUP begins a new file", "file", l.o.File, "error", l.lost)
		return
	}
	l.log.Error("audit log", "file", l.o.File, "error", l.lost)
	if err := l.mend(); err != nil {
		l.log.Error("audit log: what is written is lost until SIGHUP begins a new file", "error", err)
	}
}

// noticeLoss looks at the file. It reports whether something is wrong with it
// that was not before. l.mu is held.
func (l *AuditLog) noticeLoss() bool {
	if l.brokenFile { // It stays so.
		return false
	}
	broken, moved := l.fileFault()
	switch {
	case broken != nil:
		l.lost, l.brokenFile = broken, true
		return true
	case !moved:
		if l.lost != nil {
			l.log.Info("audit log: its file is back", "file", l.o.File)
		}
		l.lost, l.movedAt = nil, time.Time{}
	case l.movedAt.IsZero():
		l.movedAt = l.chain.now()
	case l.lost == nil && l.chain.now().Sub(l.movedAt) > movedGrace:
		l.lost = fmt.Errorf("it was moved away %v ago, and no SIGHUP has come", movedGrace)
		return true
	}
	return false
}

// fileFault returns what was done to the file: lines are lost, or it only has
// another name.
func (l *AuditLog) fileFault() (broken error, moved bool) {
	info, err := l.file.Stat()
	switch {
	case err != nil:
		return err, false
	case !info.Mode().IsRegular():
		return nil, false
	case links(info) == 0:
		return errors.New("its file was removed while the key server wrote to it"), false
	case info.Size() < l.chain.size:
		return fmt.Errorf("its file was truncated from %d to %d bytes while the key server wrote to it", l.chain.size, info.Size()), false
	case info.Size() > l.chain.size:
		return fmt.Errorf("somebody else has written %d bytes to its file", info.Size()-l.chain.size), false
	}
	there, err := os.Stat(l.o.File)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false // There is no telling.
	}
	return nil, err != nil || !os.SameFile(there, info)
}

// Reopen begins a new file where the current one has been moved away, as by
// logrotate, and does nothing otherwise. The chain goes on. Where the file was
// removed, truncated or written to by somebody else, the first line then is the
// signed record of a discontinuity. After an error the old file is still written
// to.
func (l *AuditLog) Reopen() error {
	l.lock()
	defer l.unlock()
	if l.closed || l.file == nil {
		return nil
	}
	l.noticeLoss()
	if l.lost == nil && l.movedAt.IsZero() {
		return nil
	}
	if err := l.mend(); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// mend makes File one that can be written to: a new one, or what is left of the
// same.
func (l *AuditLog) mend() error {
	first := auditLine{Cause: causeRotation}
	if l.brokenFile {
		first.Cause, first.Reason = causeBroken, l.lost.Error()
	}
	var err error
	switch {
	case isOpenFile(l.o.File, l.file):
		first.NewFile, err = l.takeAsFound()
	case l.brokenFile:
		first.NewFile, err = true, l.reopenFile()
	default:
		l.checkpoint(causeRotation)
		err = l.reopenFile()
	}
	if err != nil {
		return err
	}
	l.lost, l.brokenFile, l.movedAt = nil, false, time.Time{}
	l.open(first)
	if err := l.begin(); err != nil {
		return err
	}
	l.log.Info("audit log reopened", "file", l.o.File)
	return nil
}

// takeAsFound goes on behind what is in the file now, and reports whether that is
// not one line.
func (l *AuditLog) takeAsFound() (empty bool, err error) {
	here, err := readEnd(l.file)
	if err == nil {
		l.chain.size, l.chain.torn, l.chain.open = here.size, here.torn, here.open
		l.setRotation()
	}
	return here.tip.seq == 0, err
}

// Fault returns why the log's file is not one that keeps what is written to it, or
// how a log that is required is not what its witness has; or nil.
func (l *AuditLog) Fault() error {
	return l.state.Load().fault
}

// Waits returns for how long the file has taken nothing of the line that is being
// written, and nothing that is recorded is answered.
func (l *AuditLog) Waits() time.Duration {
	since := l.lockedAt.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

// auditState is what can be asked for while a write hangs.
type auditState struct {
	fault           error
	discontinuities int
}

func (l *AuditLog) lock() {
	l.mu.Lock()
	l.lockedAt.Store(time.Now().UnixNano())
}

func (l *AuditLog) unlock() {
	l.publish()
	l.lockedAt.Store(0)
	l.mu.Unlock()
}

// publish makes a state that is new what can be asked for. l.mu is held.
func (l *AuditLog) publish() {
	now := auditState{l.lost, len(l.unaccepted)}
	if now.fault == nil {
		now.fault = l.broken
	}
	if before := l.state.Load(); before == nil || *before != now {
		l.state.Store(&now)
	}
}
