package skicoap

import "sync/atomic"

// maxWaiting bounds the goroutines that wait for a request.
const maxWaiting = 64

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

// run runs f at once, in a goroutine that ends, or waits for the next f until
// done is closed.
func (w *workers) run(f func()) {
	select {
	case w.jobs <- f:
	default:
		go w.work(f)
	}
}

func (w *workers) work(f func()) {
	for {
		f()
		if w.waiting.Add(1) > maxWaiting {
			w.waiting.Add(-1)
			return
		}
		select {
		case f = <-w.jobs:
			w.waiting.Add(-1)
		case <-w.done:
			return
		}
	}
}
