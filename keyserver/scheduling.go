package keyserver

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"runtime"
	"sync/atomic"
	"time"
)

// DefaultMaxInFlight is how many requests a Server works on at once by
// default: the operations on elliptic curves among them are done in a fraction
// of the second for which clients wait.
const DefaultMaxInFlight = 4096

// rsaQueuePerWorker is how many RSA operations may wait for each one at work:
// about 0.2 s with a modulus of 2048 bits, 1 s with 4096. It is far below
// DefaultMaxInFlight, so that RSA cannot use up the room of the others.
const rsaQueuePerWorker = 128

// rsaPatience is how long an RSA operation waits for its turn at most. An edge
// gives a request ski.DefaultTimeout in all: it can still ask another key server.
const rsaPatience = 2 * time.Second

// errOverloaded says that an operation was not done because too many wait for
// the same processors.
var errOverloaded = errors.New("too many RSA operations wait")

// scheduler bounds the work that is done at once. Operations have two classes
// of cost. The cheap ones, on elliptic curves, take less time than it takes to
// hand them over, and run where they are. RSA operations take thirty times as
// long, and run on a bounded number of goroutines, so that they leave a
// processor for the others; and a bounded number of them waits.
type scheduler struct {
	maxInFlight   int64
	inFlight      atomic.Int64
	rsa           chan struct{} // holds one element for each RSA operation at work
	maxRSAWaiting int64
	rsaWaiting    atomic.Int64
	patience      time.Duration // how long one of them waits at most
}

// newScheduler takes 0 for the default.
func newScheduler(maxInFlight, rsaWorkers int) *scheduler {
	if maxInFlight == 0 {
		maxInFlight = DefaultMaxInFlight
	}
	if rsaWorkers == 0 {
		rsaWorkers = max(1, runtime.GOMAXPROCS(0)-1)
	}
	return &scheduler{
		maxInFlight:   int64(maxInFlight),
		rsa:           make(chan struct{}, rsaWorkers),
		maxRSAWaiting: rsaQueuePerWorker * int64(rsaWorkers),
		patience:      rsaPatience,
	}
}

// enter reports whether one more request can be worked on; if so, leave has to
// be called when it is done. It never waits: a queue that is too long is of no
// use to the clients at its end.
func (s *scheduler) enter() bool {
	if s.inFlight.Add(1) > s.maxInFlight {
		s.leave()
		return false
	}
	return true
}

func (s *scheduler) leave() { s.inFlight.Add(-1) }

// private runs an operation with the private half of pub. The RSA ones wait
// for their turn, first come, first served. Where ctx ends before that, the
// operation is not done, and the error is that of ctx; where too many wait, or
// for too long, it is errOverloaded.
func (s *scheduler) private(ctx context.Context, pub crypto.PublicKey, operation func() error) error {
	if _, slow := pub.(*rsa.PublicKey); slow {
		if err := s.awaitRSA(ctx); err != nil {
			return err
		}
		defer func() { <-s.rsa }()
	}
	if err := ctx.Err(); err != nil { // select picks either where both are ready
		return err
	}
	return operation()
}

// awaitRSA returns nil when an RSA operation may begin. The caller then takes
// an element out of s.rsa at its end.
func (s *scheduler) awaitRSA(ctx context.Context) error {
	select {
	case s.rsa <- struct{}{}: // Nobody waits: those who do are given what becomes free.
		return nil
	default:
	}
	defer s.rsaWaiting.Add(-1)
	if s.rsaWaiting.Add(1) > s.maxRSAWaiting {
		return errOverloaded
	}
	late := time.NewTimer(s.patience)
	defer late.Stop()
	select {
	case s.rsa <- struct{}{}:
		return nil
	case <-late.C:
		return errOverloaded
	case <-ctx.Done():
		return ctx.Err()
	}
}
