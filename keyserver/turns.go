package keyserver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// errOverloaded says that an operation was not done because too many wait for
// the same processors or device.
var errOverloaded = errors.New("too many operations wait")

// turns lets a bounded number of operations work at once and a bounded number
// wait. Among the edges whose operations wait it goes round, one of each; those
// of one edge come in their order. So an edge waits for as many operations as
// there are edges that ask, not for as many as another has asked.
type turns struct {
	patience time.Duration // how long an operation waits at most
	maxWait  int

	mu      sync.Mutex
	free    int
	waiting int
	queues  []*turnQueue // of edges, none empty; the first is the next
}

// turnQueue is the operations of one edge that wait.
type turnQueue struct {
	edge string
	all  []*turn
}

// turn is one operation that waits.
type turn struct{ ready chan error } // of capacity 1; gets nil for its turn

// begin returns nil when an operation of the edge may begin; end is then called
// when it is done. Where ctx ends before, the error is that of ctx; where too
// many wait, or for too long, it is errOverloaded.
func (t *turns) begin(ctx context.Context, edge string) error {
	one, err := t.enter(edge)
	if one == nil {
		return err
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
	if !t.leave(edge, one) && <-one.ready == nil {
		t.end() // Its turn had come at that moment.
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
	at := slices.IndexFunc(t.queues, func(q *turnQueue) bool { return q.edge == edge })
	if t.waiting >= t.maxWait && !t.makeRoom(at) {
		return nil, errOverloaded
	}
	if at < 0 {
		at = len(t.queues)
		t.queues = append(t.queues, &turnQueue{edge: edge})
	}
	one := &turn{ready: make(chan error, 1)}
	t.queues[at].all = append(t.queues[at].all, one)
	t.waiting++
	return one, nil
}

// makeRoom refuses the newest operation of the edge that has the most waiting,
// in favour of one of the edge at a place in queues, or -1, that has at least
// two less.
func (t *turns) makeRoom(at int) bool {
	own := 0
	if at >= 0 {
		own = len(t.queues[at].all)
	}
	longest := slices.MaxFunc(t.queues, func(a, b *turnQueue) int { return len(a.all) - len(b.all) })
	last := len(longest.all) - 1
	if last <= own { // and so last > 0: no queue becomes empty here
		return false
	}
	longest.all[last].ready <- errOverloaded
	longest.all = longest.all[:last]
	t.waiting--
	return true
}

// leave takes an operation out that waits no more. It reports false where its
// turn, or its refusal, has come.
func (t *turns) leave(edge string, one *turn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, q := range t.queues {
		at := slices.Index(q.all, one)
		if q.edge != edge || at < 0 {
			continue
		}
		q.all = slices.Delete(q.all, at, at+1)
		if len(q.all) == 0 {
			t.queues = slices.Delete(t.queues, i, i+1)
		}
		t.waiting--
		return true
	}
	return false
}

// end gives the place of an operation that is done to the next.
func (t *turns) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queues) == 0 {
		t.free++
		return
	}
	q := t.queues[0]
	q.all[0].ready <- nil
	q.all = slices.Delete(q.all, 0, 1)
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
