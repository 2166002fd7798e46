package logqueue

import (
	"container/list"
	"log/slog"
	"slices"
	"time"
)

// maxKept is how many bytes of lines are kept apart: what is free in the queue when
// they are appended to it.
const maxKept = maxWaiting / 2

// gap is lines that were dropped one after the other.
type gap struct {
	lines       int
	first, last time.Time
}

func (g *gap) add(when time.Time) {
	if g.lines == 0 {
		g.first = when
	}
	g.lines++
	g.last = when
}

// record says what was dropped, and how many of the lines follow.
func (g *gap) record(kept int) slog.Record {
	r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were dropped, since the log was not read or could not be written", 0)
	r.Add("lines", g.lines, "first", g.first, "last", g.last, "repeated", kept)
	return r
}

// keptLine is a line that was dropped.
type keptLine struct {
	origin uintptr // where in the program it was logged; 0: through the standard library's log
	says   uint64  // hash of the line without its time
	line   []byte
	when   time.Time
}

// kept is the latest lines of each origin. None can have the room of all others:
// where there is no more, the origin with the most bytes loses its oldest line.
type kept struct {
	of   map[uintptr]*share
	size int
}

// share is an origin's lines.
type share struct {
	lines *list.List // of *keptLine, the oldest first
	by    map[uint64]*list.Element
	size  int
}

func (k *kept) add(l *keptLine) {
	if len(l.line) > maxKept {
		return // or it would take the others of its origin with it
	}
	if k.of == nil {
		k.of = map[uintptr]*share{}
	}
	s := k.of[l.origin]
	if s == nil {
		s = &share{lines: list.New(), by: map[uint64]*list.Element{}}
		k.of[l.origin] = s
	}
	if old := s.by[l.says]; old != nil {
		k.remove(s, old)
	}
	s.by[l.says] = s.lines.PushBack(l)
	k.grow(s, len(l.line))
	for k.size > maxKept {
		k.shrink()
	}
}

func (k *kept) shrink() {
	var most *share
	for _, s := range k.of {
		if most == nil || s.size > most.size {
			most = s
		}
	}
	k.remove(most, most.lines.Front())
}

func (k *kept) remove(s *share, e *list.Element) {
	l := s.lines.Remove(e).(*keptLine)
	delete(s.by, l.says)
	k.grow(s, -len(l.line))
}

func (k *kept) grow(s *share, bytes int) {
	s.size += bytes
	k.size += bytes
}

// take returns the lines in the order of their times, and forgets them.
func (k *kept) take() (all []*keptLine) {
	for _, s := range k.of {
		for e := s.lines.Front(); e != nil; e = e.Next() {
			all = append(all, e.Value.(*keptLine))
		}
	}
	*k = kept{}
	slices.SortStableFunc(all, func(a, b *keptLine) int { return a.when.Compare(b.when) })
	return all
}

// keep keeps a line that was dropped, or appends it where the gap has ended since.
func (q *Queue) keep(l *keptLine) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gap.lines == 0 {
		if q.size+len(l.line) <= maxWaiting {
			q.push(l.line)
			q.wakeUp()
			return
		}
		q.gap.add(l.when) // or it would wait for the next gap
	}
	q.kept.add(l)
}
