package ski

import (
	"cmp"
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// maxRetries is how often a request is asked again at most because a key
	// server is overloaded.
	maxRetries = 2
	// retryShare is how many times that may be for each request, on average, so
	// that what is too much for the key servers gets no more than a fifth more.
	retryShare = 0.2
	// firstRetries is how many there may be before they have been earned, which
	// requests then make up for.
	firstRetries = 10
	// maxSaved is how many may be saved up for a moment in which a key server is
	// overloaded.
	maxSaved = 100
	// soon is the longest pause before another key server is asked: those that were
	// refused together shall not come to it together.
	soon = 50 * time.Millisecond
	// retryUnknown is the pause where the key server gives no advice.
	retryUnknown = time.Second
	// leastRetry is the least time that must be left to ask again.
	leastRetry = 10 * time.Millisecond
)

// retries is how many requests may be asked again now.
type retries struct {
	mu           sync.Mutex
	begun        bool
	tokens, owed float64
}

// earn takes in one more request.
func (r *retries) earn() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.begun {
		r.begun, r.tokens, r.owed = true, firstRetries, firstRetries
	}
	if r.owed > 0 {
		r.owed -= retryShare
		return
	}
	r.tokens = min(r.tokens+retryShare, maxSaved)
}

func (r *retries) spend() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tokens < 1 {
		return false
	}
	r.tokens--
	return true
}

// again returns true when a request may be asked again that a key server was too
// busy for: at once, more or less, where it is another's turn, and otherwise after
// the time that the key server has said, or less where the request has less. It
// returns false where there have been enough, and when ctx ends.
func (c *Client) again(ctx context.Context, after time.Duration, another bool) bool {
	deadline, _ := ctx.Deadline() // RoundTrip has set one.
	left := time.Until(deadline)
	if left < leastRetry || !c.retries.spend() {
		return false
	}
	after = min(cmp.Or(after, retryUnknown), left) // whatever a key server says
	pause := after + rand.N(after/2+1)
	if another {
		pause = rand.N(soon)
	}
	if most := left / 2; pause > most {
		pause = most/2 + rand.N(most/2+1)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
