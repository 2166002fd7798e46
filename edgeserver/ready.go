package edgeserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// fresh is how long an answer of a key server says that it answers.
	fresh = 10 * time.Second
	// askAgain is how often a key server is asked by Ready at most, that has not
	// answered.
	askAgain = 2 * time.Second
	// readyTime is how long Ready waits for an answer.
	readyTime = 2 * time.Second
)

// answering is what is known of whether the key servers of one name answer.
type answering struct {
	last atomic.Int64 // answer, in Unix nanoseconds; 0: none

	mu    sync.Mutex // of one who asks
	asked time.Time
	err   error // of that question
}

// answered takes in an answer.
func (a *answering) answered() { a.last.Store(time.Now().UnixNano()) }

func (a *answering) isFresh() bool { return time.Since(time.Unix(0, a.last.Load())) < fresh }

// check asks, if nothing has been heard for a while. The others who want to know
// then wait for the same answer.
func (a *answering) check(ask func() error) error {
	if a.isFresh() {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.isFresh() && time.Since(a.asked) >= askAgain {
		err := ask()
		if errors.Is(err, context.Canceled) {
			return err // The question was not waited for.
		}
		a.asked, a.err = time.Now(), err
	}
	if a.isFresh() {
		return nil
	}
	return a.err
}

// Alive returns when it has had the locks that each new connection has to have. It
// does not where they are stuck, which only another process helps against.
func (s *Server) Alive() {
	s.current()
	s.Usage()
}

// Ready returns nil if new connections can be served, for a load balancer: the
// Server is not ending, and a key server answers, those of one name at least. If none has
// answered in the last 10 s, it asks them, as Probe does, for 2 s at most.
func (s *Server) Ready(ctx context.Context) error {
	if s.Draining() {
		return errors.New("the edge server is about to end")
	}
	g := s.current()
	if !g.acquire() {
		return errors.New("the edge server has ended")
	}
	defer g.release()
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	one := map[*answering]*site{} // who asks
	for _, site := range g.sites.all {
		if _, ok := one[site.asking.known]; !ok {
			one[site.asking.known] = site
		}
	}
	failed := make(chan error, len(one))
	for known, site := range one {
		go func() {
			failed <- known.check(func() error { return site.asking.would(ctx, site.questions(site.chains()[0])[0].requests()[0]) })
		}()
	}
	ready, reasons := false, map[string]bool{}
	for range one {
		if err := <-failed; err == nil {
			ready = true
			cancel()
		} else {
			reasons[reason(err)] = true
		}
	}
	if ready {
		return nil
	}
	return fmt.Errorf("no key server answers: %s", strings.Join(slices.Sorted(maps.Keys(reasons)), ", "))
}
