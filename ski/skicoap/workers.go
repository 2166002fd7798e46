package skicoap

import (
	"sync/atomic"
	"time"
)

const (
	// maxWaiting bounds the goroutines that wait for a request, linger how long
	// each does.
	maxWaiting = 64
	linger     = time.Second
)

// workers runs requests in goroutines that have run some before: their stacks
// have grown to what a request needs, which that of a new one does each time
// anew (a tenth of an ECDSA request's time).
type workers struct {
	jobs    chan func() // unbuffered: what is sent has a goroutine
	done    <-chan struct{}
	waiting atomic.Int32
}

func newWorkers(done <-chan struct{}) *workers {
	return &workers{jobs: make(chan func()), done: done}
}

// run runs f at once, in a goroutine that ends, or waits a little for the next
// f while done is not closed.
func (w *workers) run(f func()) {
	select {
	case w.jobs <- f:
	default:
		go w.work(f)
	}
}

func (w *workers) work(f func()) {
	enough := time.NewTimer(linger)
	defer enough.Stop()
	for {
		f()
		if w.waiting.Add(1) > maxWaiting {
			w.waiting.Add(-1)
			return
		}
		enough.Reset(linger)
		select {
		case f = <-w.jobs:
			w.waiting.Add(-1)
		case <-enough.C:
			w.waiting.Add(-1)
			return
		case <-w.done:
			return
		}
	}
}
