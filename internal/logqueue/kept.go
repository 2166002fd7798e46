package logqueue

import (
	"log/slog"
	"slices"
	"time"
)

// maxKept is how many bytes of lines are kept apart.
const maxKept = 1 << 17

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
	origin origin
	says   string // the line without its time
	line   []byte
	when   time.Time
}

// origin is the place in the program that a record comes from or, where that is not known,
// its message.
type origin struct {
	pc      uintptr
	message string
}

func originOf(r slog.Record) origin {
	if r.PC != 0 {
		return origin{pc: r.PC}
	}
	return origin{message: r.Message}
}

// kept is the latest lines of each origin. None can have the room of all others:
// where there is no more, the origin with the most bytes loses its oldest line.
type kept struct {
	of   map[origin]*share
	size int
}

// share is an origin's lines, the oldest first.
type share struct {
	lines []*keptLine
	size  int
}

func (k *kept) add(l *keptLine) {
	if k.of == nil {
		k.of = map[origin]*share{}
	}
	s := k.of[l.origin]
	if s == nil {
		s = &share{}
		k.of[l.origin] = s
	}
	if i := slices.IndexFunc(s.lines, func(old *keptLine) bool { return old.says == l.says }); i >= 0 {
		k.remove(s, i)
	}
	s.lines = append(s.lines, l)
	k.grow(s, len(l.line)+len(l.says))
	for k.size > maxKept {
		k.shrink()
	}
}

func (k *kept) shrink() {
	var most *share
	var of origin
	for o, s := range k.of {
		if most == nil || s.size > most.size {
			most, of = s, o
		}
	}
	k.remove(most, 0)
	if len(most.lines) == 0 {
		delete(k.of, of)
	}
}

func (k *kept) remove(s *share, i int) {
	k.grow(s, -len(s.lines[i].line)-len(s.lines[i].says))
	s.lines = slices.Delete(s.lines, i, i+1)
}

func (k *kept) grow(s *share, bytes int) {
	s.size += bytes
	k.size += bytes
}

// take returns the lines in the order of their times, and forgets them.
func (k *kept) take() (all []*keptLine) {
	for _, s := range k.of {
		all = append(all, s.lines...)
	}
	*k = kept{}
	slices.SortStableFunc(all, func(a, b *keptLine) int { return a.when.Compare(b.when) })
	return all
}

// keep keeps a line that was dropped, or appends it where the gap has ended since.
func (q *Queue) keep(l *keptLine) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gap.lines == 0 && q.size+len(l.line) <= maxWaiting {
		q.push(l.line)
		q.wakeUp()
		return
	}
	q.kept.add(l)
}
