package keyserver

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// tipInterval is how often the tip is written while lines are: what was written
// since can be removed unseen while the key server is stopped.
const tipInterval = time.Second

// tick writes a checkpoint and the tip from time to time if there is something
// new.
func (l *AuditLog) tick() {
	checkpoints := time.NewTicker(l.o.CheckpointInterval)
	defer checkpoints.Stop()
	tips := time.NewTicker(tipInterval)
	defer tips.Stop()
	file := time.NewTicker(watchFile)
	defer file.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-checkpoints.C:
			l.intervalCheckpoint()
		case <-file.C:
			l.look()
		case <-tips.C:
			l.acceptWhileRunning()
			_ = l.saveTip(false) // which logs by itself
		}
	}
}

func (l *AuditLog) intervalCheckpoint() {
	l.lock()
	defer l.unlock()
	if l.o.Key != nil && !l.closed && l.unsigned > 0 {
		l.checkpoint(causeInterval)
	}
}

// saveTip writes the tip, when what it covers is on the disk, unless nothing was
// written since. Requests do not wait for it.
func (l *AuditLog) saveTip(closed bool) error {
	if l.o.Tip == "" {
		return nil
	}
	l.saving.Lock()
	defer l.saving.Unlock()
	l.lock()
	if l.due && l.first.Cause == causeBroken { // The old tip shows it until it is recorded.
		l.unlock()
		return nil
	}
	at, file := l.chain.tip, l.file
	rotated := l.unsynced
	l.unsynced = nil
	l.unlock()
	if at == l.saved && !closed && len(rotated) == 0 {
		return nil
	}
	if l.waits.Load() == 0 {
		l.waits.Store(time.Now().UnixNano())
	}
	rest, err := l.syncFiles(rotated, file)
	if err == nil {
		err = l.writeTip(&auditTip{Closed: closed}, at)
	}
	if len(rest) > 0 {
		l.lock()
		l.unsynced = append(rest, l.unsynced...)
		l.unlock()
	}
	if err == nil {
		l.waits.Store(0)
	}
	if failing := err != nil; failing != l.saveFails {
		l.saveFails = failing
		if failing {
			l.log.Error("audit log: its tip cannot be written, lines since the last one can be removed unseen", "error", err)
		} else {
			l.log.Info("audit log: its tip can be written again")
		}
	}
	return err
}

// TipWaits returns how long the tip could not be written: since then, lines can
// be removed unseen. 0 means that it is as new as it should be.
func (l *AuditLog) TipWaits() time.Duration {
	since := l.waits.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

// syncFiles waits until the files are on the disk, and closes those that were
// rotated. It returns the ones that are not done.
func (l *AuditLog) syncFiles(rotated []*os.File, file *os.File) (rest []*os.File, err error) {
	if len(rotated) > 0 || l.saved.seq == 0 { // The names are to last, too.
		if err := l.syncNames(file); err != nil {
			return rotated, err
		}
	}
	for i, f := range rotated {
		if err := dataSync(f); err != nil {
			return rotated[i:], err
		}
		_ = f.Close()
	}
	if file == nil {
		return nil, nil
	}
	return nil, dataSync(file)
}

func (l *AuditLog) syncNames(file *os.File) error {
	if file == nil {
		return nil
	}
	return syncFolder(filepath.Dir(l.o.File))
}

// dataSync is fdatasync where the file is regular.
func dataSync(f *os.File) error {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	return fdatasync(f)
}

// writeTip writes t, which names at, to the file. l.saving is held, or nobody else
// knows of l.
func (l *AuditLog) writeTip(t *auditTip, at link) error {
	t.Seq, t.Chain, t.Time = at.seq, at.hex(), auditTime(l.chain.now())
	l.lock()
	t.Unaccepted = l.unaccepted
	l.unlock()
	data, err := t.encode(l.o.Key)
	if err != nil {
		return err
	}
	l.change()
	if err := replaceFile(l.o.Tip, data); err != nil {
		return fmt.Errorf("the tip of the audit log: %w", err)
	}
	l.saved = at
	l.savedAt.Store(at.seq)
	return nil
}
