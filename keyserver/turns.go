package keyserver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// errOverloaded says that an operation was not begun, because it would wait, or
// has waited, for too long.
var errOverloaded = errors.New("too many operations wait")

const (
	// waiterSize is the memory of an operation that waits, in bytes: its
	// goroutine's stack, its message and what the binding keeps of it. 2,000 of them
	// have been measured at 42 to 55 MiB, over HTTPS the most.
	waiterSize = 28 << 10
	// maxWaitingSize bounds the memory of all that wait for the same processors
	// or device.
	maxWaitingSize = 80 << 20
	// standing is by how much less an operation may wait, where those of its edge have
	// waited without a break for as long as one may; or where its edge has none that
	// wait, those of others.
	standing = 4
)

// turns lets a bounded number of operations work at once; the others wait, for
// patience at most. It goes round the edges whose operations wait, one of each;
// those of one edge come in their order. So an edge waits for as many operations
// as there are edges that ask, not for as many as another has asked.
//
// What would wait for too long is refused at once, while its edge still has the
// time to ask another key server. A burst may wait for all of patience. Where an
// edge asks for more than there are processors for, its queue does not get empty
// any more, and every operation would be done at the end of patience, when whoever
// asked may have gone: then it may wait for a part of it alone. So may an edge that
// comes to many others, which together ask for more.
type turns struct {
	patience time.Duration
	room     int // how many may wait, for their memory
	parallel int

	mu      sync.Mutex
	free    int
	waiting int
	cost    cost
	since   time.Time    // that some have waited without a break
	queues  []*turnQueue // of edges, none empty; the first is the next
}

func newTurns(parallel int, patience time.Duration) *turns {
	return &turns{patience: patience, room: maxWaitingSize / waiterSize, parallel: parallel, free: parallel}
}

// turnQueue is the operations of one edge that wait.
type turnQueue struct {
	edge  string
	since time.Time // that it has not been empty
	all   []*turn
}

// turn is one operation that waits.
type turn struct {
	queue *turnQueue
	ready chan error // of capacity 1; gets nil for its turn
}

// begin returns nil when an operation of the edge may begin; end is then called
// when it is done. Where ctx ends before, the error is that of ctx; where it would
// wait, or has waited, for too long, it is errOverloaded. It counts in waits while it
// waits.
func (t *turns) begin(ctx context.Context, edge string, waits ...*atomic.Int64) error {
	one, err := t.enter(edge)
	if one == nil {
		return err
	}
	for _, n := range waits {
		if n != nil {
			n.Add(1)
			defer n.Add(-1)
		}
	}
	late := time.NewTimer(t.patience)
	defer late.Stop()
	select {
	case err := <-one.ready:
		return err
	case <-late.C:
		err = errOverloaded
	case <-ctx.Done():
		err = ctx.Err()
	}
	if !t.leave(one) && <-one.ready == nil {
		t.end(0) // Its turn had come at that moment.
	}
	return err
}

// enter returns nil and no error where an operation may begin at once.
func (t *turns) enter(edge string) (*turn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free > 0 { // Nobody waits: those who do are given what becomes free.
		t.free--
		return nil, nil
	}
	now := time.Now()
	at := slices.IndexFunc(t.queues, func(q *turnQueue) bool { return q.edge == edge })
	if len(t.queues) == 0 {
		t.since = now
	}
	own, since, may := 0, t.since, t.patience
	if at >= 0 {
		own, since = len(t.queues[at].all), t.queues[at].since
	}
	if now.Sub(since) > t.patience {
		may /= standing
	}
	if t.wait(own) >= may || t.waiting >= t.room && !t.makeRoom(own) {
		return nil, errOverloaded
	}
	if at < 0 {
		at = len(t.queues)
		t.queues = append(t.queues, &turnQueue{edge: edge, since: now})
	}
	one := &turn{queue: t.queues[at], ready: make(chan error, 1)}
	one.queue.all = append(one.queue.all, one)
	t.waiting++
	return one, nil
}

// wait returns how long one more operation of an edge that has own waiting will
// wait: for those, and for as many of each other edge and one more.
func (t *turns) wait(own int) time.Duration {
	before := 1                  // of those at work, one has to end
	for _, q := range t.queues { // Its own has own, and none more.
		before += min(len(q.all), own+1)
	}
	return t.cost.of(before) / time.Duration(t.parallel)
}

// makeRoom refuses the newest operation of the edge that has the most waiting,
// in favour of one of an edge that has own, at least two less.
func (t *turns) makeRoom(own int) bool {
	longest := slices.MaxFunc(t.queues, func(a, b *turnQueue) int { return len(a.all) - len(b.all) })
	last := len(longest.all) - 1
	if last <= own { // and so last > 0: no queue becomes empty here
		return false
	}
	longest.all[last].ready <- errOverloaded
	longest.all[last] = nil
	longest.all = longest.all[:last]
	t.waiting--
	return true
}

// leave takes an operation out that waits no more. It reports false where its
// turn, or its refusal, has come.
func (t *turns) leave(one *turn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := one.queue
	at := slices.Index(q.all, one)
	if at < 0 {
		return false
	}
	if q.all = slices.Delete(q.all, at, at+1); len(q.all) == 0 {
		i := slices.Index(t.queues, q)
		t.queues = slices.Delete(t.queues, i, i+1)
	}
	t.waiting--
	return true
}

// end gives the place of an operation that is done to the next. took is how long
// it took, or 0 where there was none.
func (t *turns) end(took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if took > 0 {
		t.cost.note(took)
	}
	if len(t.queues) == 0 {
		t.free++
		return
	}
	q := t.queues[0]
	q.all[0].ready <- nil
	q.all[0] = nil
	q.all = q.all[1:]
	t.queues = slices.Delete(t.queues, 0, 1)
	if len(q.all) > 0 {
		t.queues = append(t.queues, q)
	}
	t.waiting--
}

// waits returns how many operations wait.
func (t *turns) waits() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waiting
}

// cost is what an operation takes, as far as that is known: rather too little
// than too much, since what is refused because of it could still be served.
type cost struct {
	known int
	mean  time.Duration
}

// enough is of how many operations a cost has to be to say something.
const enough = 16

// note takes in how long an operation took. What is cheaper counts four times as
// much as what is dearer, and none for more than four times the mean: a device
// that was away, or a machine that was busy, is soon forgotten.
func (c *cost) note(took time.Duration) {
	if c.known == 0 {
		c.mean = took
	}
	c.known = min(c.known+1, enough)
	if took < c.mean {
		c.mean -= (c.mean - took) / 8
	} else {
		c.mean += (min(took, 4*c.mean) - c.mean) / 32
	}
}

// of returns what n operations take, or 0 while that is not known.
func (c *cost) of(n int) time.Duration {
	if c.known < enough {
		return 0
	}
	return time.Duration(n) * c.mean
}
