// Package logqueue keeps everybody from waiting for a log: whoever reads it may
// stop reading, and a disk may be slow. Lines go to a [Queue] that is bounded, and
// a goroutine of the Queue's own writes them. [Queue.Handler] is for log/slog.
package logqueue

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// maxWaiting is how many bytes of lines may wait to be written.
	maxWaiting = 1 << 20
	// maxPiece is how many bytes are written at once, unless a line is longer: what a pipe
	// takes as a whole (PIPE_BUF), so that lines of several writers do not mix.
	maxPiece = 4096
	// retry is the pause after a write that has failed.
	retry = time.Second
	// lastLines is how long Close waits for the lines to be written, but in tests.
	lastLines = time.Second
)

// errDropped is the error of a line that was dropped.
var errDropped = errors.New("the log is not read: a line is dropped")

// Queue is a writer of lines that never waits. A line that finds no room is
// dropped, and so are those after it until half of what waits has been
// written. Then a line says how many were dropped, and the latest of
// each message follow, which the Queue has kept apart.
type Queue struct {
	w        io.Writer
	format   func(io.Writer) slog.Handler
	patience time.Duration // of Close

	mu      sync.Mutex
	waiting []byte // whole lines that run has not taken
	size    int    // bytes that are not written: waiting, and what run has taken
	gap     gap
	kept    kept
	dropped uint64
	since   time.Time // when the write that is under way, or fails, began; zero: none
	closed  bool

	wake    chan struct{}
	closing chan struct{}
	done    chan struct{} // closed when run has ended
}

// New returns a Queue for w, which is written to by one goroutine until Close.
// format returns a handler that writes each record to a writer, as one line in
// one Write.
func New(w io.Writer, format func(io.Writer) slog.Handler) *Queue {
	q := &Queue{w: w, format: format, patience: lastLines, wake: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{})}
	go q.run()
	return q
}

// Write appends a line, its newline included, or drops it.
func (q *Queue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wakeUp()
	if q.closed || q.gap.lines > 0 || q.size+len(line) > maxWaiting {
		q.dropped++
		q.gap.add(time.Now())
		return 0, errDropped
	}
	q.push(line)
	return len(line), nil
}

// Dropped returns how many lines were dropped. Of those some may have been
// written later, since they were kept apart.
func (q *Queue) Dropped() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}

// Waits returns for how long the log has taken nothing of what is to be written.
func (q *Queue) Waits() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.since.IsZero() {
		return 0
	}
	return time.Since(q.since)
}

// Close waits until all is written, for a second at most. What comes later is
// dropped.
func (q *Queue) Close() error {
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		close(q.closing)
	}
	q.mu.Unlock()
	select {
	case <-q.done:
		return nil
	case <-time.After(q.patience):
		return errors.New("the log's last lines cannot be written in time")
	}
}

// wakeUp, push and resume are called with mu held.
func (q *Queue) wakeUp() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *Queue) push(line []byte) {
	q.waiting = append(q.waiting, line...)
	q.size += len(line)
}

// resume ends a gap, if there is one and room for what has to be said of it.
func (q *Queue) resume() {
	if q.gap.lines == 0 || q.size > maxWaiting/2 {
		return
	}
	kept := q.kept.take()
	var line bytes.Buffer
	_ = q.format(&line).Handle(context.Background(), q.gap.record(len(kept)))
	q.push(line.Bytes())
	for _, k := range kept {
		q.push(k.line)
	}
	q.gap = gap{}
}

// run writes what waits. It ends after Close, when all is written or the log takes
// no more.
func (q *Queue) run() {
	defer close(q.done)
	var spare []byte
	for {
		q.mu.Lock()
		q.resume()
		lines, closed := q.waiting, q.closed
		q.waiting = spare[:0]
		q.mu.Unlock()
		if !q.write(lines) {
			return
		}
		if spare = lines; cap(spare) > maxWaiting/16 {
			spare = nil // or the memory of a burst would stay
		}
		if len(lines) > 0 {
			continue
		}
		if closed {
			return
		}
		select {
		case <-q.wake:
		case <-q.closing:
		}
	}
}

// write writes lines, however often it takes. It returns false where the log
// takes no more and the Queue is closed.
func (q *Queue) write(lines []byte) bool {
	for len(lines) > 0 {
		q.writes()
		n, err := q.w.Write(Piece(lines))
		lines = lines[n:]
		q.wrote(n, err)
		if err == nil {
			continue
		}
		select {
		case <-time.After(retry):
		case <-q.closing:
			return false
		}
	}
	return true
}

func (q *Queue) writes() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.since.IsZero() {
		q.since = time.Now()
	}
}

func (q *Queue) wrote(n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.size -= n
	if n > 0 || err == nil {
		q.since = time.Time{}
	}
	q.resume()
}

// Piece returns those of the lines, from the first on, that are written at once so that
// they do not mix with what others write to the same pipe or socket.
func Piece(lines []byte) []byte {
	if len(lines) <= maxPiece {
		return lines
	}
	if end := bytes.LastIndexByte(lines[:maxPiece], '\n'); end >= 0 {
		return lines[:end+1]
	}
	if end := bytes.IndexByte(lines, '\n'); end >= 0 {
		return lines[:end+1]
	}
	return lines
}
