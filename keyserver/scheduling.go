package keyserver

import (
	"context"
	"crypto/rsa"
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

// scheduler bounds the work that is done at once. Operations have two classes
// of cost. The cheap ones, on elliptic curves, take less time than it takes to
// hand them over, and run where they are. RSA operations take thirty times as
// long, and run on a bounded number of goroutines, so that they leave a
// processor for the others; and a bounded number of them waits.
type scheduler struct {
	maxInFlight int64
	inFlight    atomic.Int64
	rsa         turns
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
		maxInFlight: int64(maxInFlight),
		rsa:         turns{free: rsaWorkers, maxWait: rsaQueuePerWorker * rsaWorkers, patience: rsaPatience},
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

// edgeKey is where withEdge puts the name of the edge.
type edgeKey struct{}

// withEdge says which edge an operation is for.
func withEdge(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, edgeKey{}, name)
}

// private runs an operation with the private half of pub. The RSA ones wait
// for their turn, which they have by edge (withEdge). Where ctx ends before
// that, the operation is not done, and the error is that of ctx; where too many
// wait, or for too long, it is errOverloaded.
func (s *scheduler) private(ctx context.Context, pub crypto.PublicKey, operation func() error) error {
	if _, slow := pub.(*rsa.PublicKey); slow {
		edge, _ := ctx.Value(edgeKey{}).(string)
		if err := s.rsa.begin(ctx, edge); err != nil {
			return err
		}
		defer s.rsa.end()
	}
	if err := ctx.Err(); err != nil { // A turn and the end of ctx can come together.
		return err
	}
	return operation()
}
