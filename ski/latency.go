package ski

import (
	"math"
	"slices"
	"sync"
	"time"
)

const (
	// latencies are how many answers the quantile is of: enough for the 95th of
	// a hundred, few enough that a change shows soon.
	latencies = 128
	// enough is how many there must be before it is used.
	enough = 20
	// forgotten is the time in which the mean loses most of what it was.
	forgotten = 5 * time.Second
	// unknown is what a key server that has not been asked is expected to take.
	unknown = 100 * time.Microsecond
)

// latency is how long a key server takes to answer: the newest answers, in
// bounded memory.
type latency struct {
	mu     sync.Mutex
	ring   [latencies]time.Duration
	n      int // answers so far
	q95    time.Duration
	mean   float64 // of the last seconds, as seconds
	meanAt time.Time
}

// answered takes in the time of an answer.
func (l *latency) answered(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(took)
}

// abandoned takes in an answer that was not waited for until the end: it would
// have taken took at least. That says something only if it is long.
func (l *latency) abandoned(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n > 0 && took.Seconds() > l.mean {
		l.add(took)
	}
}

func (l *latency) add(took time.Duration) {
	l.ring[l.n%latencies] = took
	l.n++
	if l.n == enough || l.n > enough && l.n%(latencies/8) == 0 {
		sorted := slices.Clone(l.ring[:min(l.n, latencies)])
		slices.Sort(sorted)
		l.q95 = sorted[len(sorted)*95/100]
	}
	// The mean moves by a tenth with each answer, and further if the last was
	// long ago.
	now := time.Now()
	weight := 1.0
	if l.n > 1 {
		weight = max(0.1, 1-math.Exp(-now.Sub(l.meanAt).Seconds()/forgotten.Seconds()))
	}
	l.mean += (took.Seconds() - l.mean) * weight
	l.meanAt = now
}

// p95 returns how long 95 of 100 answers take at most; ok is false while that
// is not known.
func (l *latency) p95() (d time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.q95, l.n >= enough
}

// expected returns how many seconds an answer is expected to take: the mean, less
// the longer ago that was.
func (l *latency) expected(now time.Time) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == 0 {
		return unknown.Seconds()
	}
	return l.mean * math.Exp(-now.Sub(l.meanAt).Seconds()/forgotten.Seconds())
}
