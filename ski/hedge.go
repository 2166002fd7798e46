package ski

import (
	"context"
	"sync"
	"time"
)

// soonestHedge is the least time after which a request is hedged: below it, the
// time is that of this machine's scheduler.
const soonestHedge = time.Millisecond

// budget is how many requests may be hedged now. Each request adds its share, so
// that hedges are never more than that share of requests.
type budget struct {
	mu     sync.Mutex
	tokens float64
}

// maxHedges is how many may be saved up, for a moment in which many are slow.
const maxHedges = 10

func (b *budget) earn(share float64) {
	if share <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.tokens+share, maxHedges)
}

func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// ask asks the first of order, and the second too if the first takes longer than
// 95 of 100 of its answers. Those after them share the time that is left.
func (c *Client) ask(ctx context.Context, req *Request, order []*member, kind AttemptKind) result {
	after, known := order[0].p95()
	// A state opens once at each key server: there is one attempt at a time.
	if c.MaxExtra <= 0 || !known || len(order) < 2 || !order[1].free(time.Now()) || len(req.State) > 0 {
		return c.attempt(ctx, order[0], req, len(order), kind)
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results, done := make(chan result), make(chan struct{})
	defer close(done)
	attempt := func(order []*member, kind AttemptKind) bool {
		return c.start(func(context.Context) {
			r := c.attempt(ctx, order[0], req, len(order), kind)
			select {
			case results <- r:
			case <-done: // The other was first.
				if r.err == nil {
					clear(r.resp.Output)
				}
			}
		})
	}
	if !attempt(order, kind) {
		return c.attempt(ctx, order[0], req, len(order), kind)
	}
	waiting := 1
	// A little later, so that none is hedged where all take the same time.
	slow := time.NewTimer(max(after+after/8, soonestHedge))
	defer slow.Stop()
	var failed *result
	for {
		select {
		case r := <-results:
			waiting--
			if r.err == nil && r.resp.Error != UnspecifiedError || req.Method == MethodRSA && Answered(r.err) {
				return r
			}
			if failed == nil || r.from == order[0] {
				failed = &r
			}
			if waiting == 0 {
				return *failed
			}
		case <-slow.C:
			if c.budget.spend() && attempt(order[1:], HedgeAttempt) {
				waiting++
			}
		}
	}
}
