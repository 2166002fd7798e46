package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tlsski/tlsski/ski"
)

// A closingTransport is a ski.Transport with an end.
type closingTransport interface {
	ski.Transport
	Close() error
}

// load asks a key server as much as is said.
type load struct {
	work        *workload
	connections []closingTransport
	inFlight    int     // on each
	rate        float64 // in all; 0 is flat out
	timeout     time.Duration

	measuring  atomic.Bool
	operations atomic.Int64 // answered with an output, the warm-up included
	turns      atomic.Int64 // of the timetable

	histograms []*latencies
	took       time.Duration
	counted    int64
	server     *benchServer
}

// latencies are those of a connection.
type latencies struct {
	mu     sync.Mutex
	hist   *hdrhistogram.Histogram // in microseconds
	errors map[string]int64
}

// The histograms have 3 digits from a microsecond to a minute.
const maxLatency = time.Minute

// measure loads for both times and counts in the second; took is above zero once
// it has begun. An error is that of the surroundings, or of the context; those of
// requests are counted.
func (l *load) measure(ctx context.Context, warmUp, duration time.Duration, pid int, progress func(time.Duration, int64, int64)) error {
	if pid != 0 {
		if _, err := processUsage(pid); err != nil {
			return fmt.Errorf("--server-pid: %w", err)
		}
	}
	loading, stop := context.WithCancel(ctx)
	defer stop()
	start := time.Now()
	var workers sync.WaitGroup
	defer workers.Wait()
	defer stop()
	for _, c := range l.connections {
		n := &latencies{hist: hdrhistogram.New(1, maxLatency.Microseconds(), 3), errors: map[string]int64{}}
		l.histograms = append(l.histograms, n)
		for range l.inFlight {
			workers.Go(func() { l.ask(loading, start, c, n) })
		}
	}
	var showing sync.WaitGroup
	if progress != nil {
		showing.Go(func() { l.show(loading, start, progress) })
		defer showing.Wait()
		defer stop()
	}
	if err := pause(ctx, warmUp); err != nil {
		return err
	}
	before, began, usage := l.operations.Load(), time.Now(), usageOf(pid)
	l.measuring.Store(true)
	err := pause(ctx, duration)
	l.measuring.Store(false)
	l.took, l.counted = time.Since(began), l.operations.Load()-before
	if pid != 0 {
		var ended error
		if l.server, ended = usage.until(pid, l.counted); err == nil {
			err = ended
		}
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask is one request in flight, again and again.
func (l *load) ask(ctx context.Context, start time.Time, c ski.Transport, n *latencies) {
	for {
		q := l.work.next()
		began := time.Now()
		if l.rate > 0 {
			// The time on the timetable counts, however late this is.
			began = start.Add(time.Duration(float64(l.turns.Add(1)-1) / l.rate * float64(time.Second)))
			if pause(ctx, time.Until(began)) != nil {
				return
			}
		}
		asking, cancel := context.WithTimeout(ctx, l.timeout)
		err := q.ask(asking, c)
		cancel()
		took := time.Since(began)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			l.operations.Add(1)
		}
		if l.measuring.Load() {
			n.count(took, err)
		}
	}
}

func (n *latencies) count(took time.Duration, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		n.errors[errorKind(err)]++
		return
	}
	_ = n.hist.RecordValue(max(1, min(took, maxLatency-time.Millisecond).Microseconds())) // in its range
}

// errorKind is what errors are counted by: little enough to be a few.
func errorKind(err error) string {
	var wire ski.Error
	var transport *ski.TransportError
	switch {
	case errors.As(err, &wire):
		return string(wire)
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &transport):
		return transport.Op + " failed"
	}
	return "wrong output"
}

// show calls progress every second.
func (l *load) show(ctx context.Context, start time.Time, progress func(time.Duration, int64, int64)) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	last := int64(0)
	for {
		select {
		case <-t.C:
			n := l.operations.Load()
			progress(time.Since(start), n, n-last)
			last = n
		case <-ctx.Done():
			progress(1<<62, 0, 0) // the end: the line is cleared
			return
		}
	}
}
