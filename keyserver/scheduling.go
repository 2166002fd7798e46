package keyserver

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultMaxInFlight is how many requests a Server works on at once by
// default: the operations on elliptic curves among them are done in a fraction
// of the second for which clients wait.
const DefaultMaxInFlight = 4096

// queuePerWorker is how many operations may wait for each one at work: with RSA
// about 0.2 s with a modulus of 2048 bits, 1 s with 4096. It is far below
// DefaultMaxInFlight, so that RSA cannot use up the room of the others.
const queuePerWorker = 128

// maxQueue bounds them where many work at once, with the same purpose.
const maxQueue = DefaultMaxInFlight / 4

// patience is how long an operation waits for its turn at most, and a device
// for the end of one. An edge gives a request ski.DefaultTimeout in all: it can
// still ask another key server.
const patience = 2 * time.Second

// scheduler bounds the work that is done at once. Operations have two classes
// of cost. The cheap ones, on P-256 and the curves of RFC 7748, take less time
// than it takes to hand them over, and run where they are. RSA operations take
// thirty times as long, those on P-384 and P-521 ten to forty times: a bounded
// number of them runs, so that they leave a processor for the others, and a
// bounded number waits. What a device does waits for that device alone.
type scheduler struct {
	maxInFlight int64
	inFlight    atomic.Int64
	rsa         *turns   // and of the slow curves, and of ticket keys
	devices     sync.Map // of *turns, by place
	patience    time.Duration
}

// place is where operations are done: a device and how many it does at once.
// The zero value stands for the processors.
type place struct {
	device   string
	parallel int
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
		rsa:         newTurns(rsaWorkers),
		patience:    patience,
	}
}

func newTurns(parallel int) *turns {
	return &turns{free: parallel, maxWait: min(queuePerWorker*parallel, maxQueue), patience: patience}
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

// private runs an operation with a private key. The slow ones, and all that a
// device does, wait for their turn. The error is that of inTurn.
func (s *scheduler) private(ctx context.Context, k key, operation func(context.Context) error) error {
	return inTurn(ctx, s.turnsFor(k), func() error {
		if k.device == nil {
			return operation(ctx)
		}
		limited, cancel := context.WithTimeout(ctx, s.patience)
		defer cancel()
		return operation(limited)
	})
}

// inTurn runs an operation when it has its turn, which it has by edge
// (withEdge), or at once where t is nil. Where ctx ends before that, the
// operation is not done, and the error is that of ctx; where too many wait, or
// for too long, it is errOverloaded.
func inTurn(ctx context.Context, t *turns, operation func() error) error {
	if t != nil {
		edge, _ := ctx.Value(edgeKey{}).(string)
		if err := t.begin(ctx, edge); err != nil {
			return err
		}
		defer t.end()
	}
	if err := ctx.Err(); err != nil { // A turn and the end of ctx can come together.
		return err
	}
	return operation()
}

// turnsFor returns nil for a key whose operations are done at once.
func (s *scheduler) turnsFor(k key) *turns {
	if k.device != nil {
		t, ok := s.devices.Load(k.at)
		if !ok { // There are as many as devices.
			t, _ = s.devices.LoadOrStore(k.at, newTurns(k.at.parallel))
		}
		return t.(*turns)
	}
	switch pub := k.public.(type) {
	case *rsa.PublicKey:
		return s.rsa
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() {
			return s.rsa
		}
	}
	return nil
}

// turnsOn is turnsFor for operations with ephemeral keys on a curve.
func (s *scheduler) turnsOn(curve ecdh.Curve) *turns {
	if curve == ecdh.P256() || curve == ecdh.X25519() {
		return nil
	}
	return s.rsa
}
