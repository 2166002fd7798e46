package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// workload is what is asked, always with other randoms: key servers notice
// questions that come twice.
type workload struct {
	public   crypto.PublicKey
	key      ski.KeyID
	protocol ski.Protocol
	method   ski.Method
	hash     ski.Hash
	scheme   tls.SignatureScheme
	params   []byte // ServerECDHParams
	asked    atomic.Uint64
}

// question is a request and what its answer must be.
type question struct {
	request *ski.Request
	secret  []byte // with method RSA
	verify  bool
}

// verifyEach is how many signatures go unverified for one that is not: the load
// comes from the same machine, as a rule.
const verifyEach = 64

func (w *workload) next() question {
	q := question{
		request: &ski.Request{Protocol: w.protocol, SPKI: w.key, Method: w.method, Scheme: w.scheme},
		verify:  w.asked.Add(1)%verifyEach == 1,
	}
	switch {
	case w.method == ski.MethodRSA:
		q.secret = skitest.PreMasterSecret(tls.VersionTLS12)
		input, err := skitest.EncryptPreMasterSecret(w.public.(*rsa.PublicKey), q.secret)
		if err != nil {
			panic(err) // the key is shorter than any that is in use
		}
		q.request.Input = input
	case w.protocol == ski.TLS13:
		q.request.Input = skitest.CertificateVerifyInput(32)
	default:
		q.request.Input = append(skitest.Randoms(), w.params...)
		if w.scheme == 0 {
			q.request.Hash = w.hash
		}
	}
	return q
}

// check returns what is wrong with an answer.
func (q *question) check(w *workload, resp *ski.Response) error {
	switch {
	case resp.Error != "":
		return resp.Error
	case q.secret != nil && !bytes.Equal(q.secret, resp.Output):
		return errors.New("another PreMasterSecret")
	case q.secret == nil && q.verify:
		return skitest.Verify(w.public, q.request, resp.Output)
	}
	return nil
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

// measure loads for both times and counts in the second. An error is that of
// the surroundings; those of requests are counted.
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
	if err == nil && pid != 0 {
		l.server, err = usage.until(pid, l.counted)
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
		resp, err := c.RoundTrip(asking, q.request)
		cancel()
		took := time.Since(began)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = q.check(l.work, resp)
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
