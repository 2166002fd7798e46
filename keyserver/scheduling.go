package keyserver

import (
	"cmp"
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

// DefaultMaxWait is how long an operation waits for its turn at most by default:
// less than half of the time that edges give a request, ski.DefaultTimeout. An edge
// with several key servers gives half of it to the first.
const DefaultMaxWait = 2 * time.Second

// deviceTime is how long a device has for an operation.
const deviceTime = 2 * time.Second

// retryOverloaded is when an edge should ask again that was told of an overload.
const retryOverloaded = time.Second

// scheduler bounds the work that is done at once. Operations have two classes
// of cost. The cheap ones, on P-256 and the curves of RFC 7748, take less time
// than it takes to hand them over, and run where they are. RSA operations take
// thirty times as long, those on P-384 and P-521 ten to forty times: a bounded
// number of them runs, so that they leave a processor for the others, and the rest
// waits for its turn. What a device does waits for that device alone.
type scheduler struct {
	maxInFlight int64
	inFlight    atomic.Int64
	waiting     atomic.Int64 // those in flight that wait for their turn
	rsa         *turns       // and of the slow curves, and of ticket keys
	devices     sync.Map     // of *turns, by place
	maxWait     time.Duration
	deviceTime  time.Duration
}

// place is where operations are done: a device and how many it does at once.
// The zero value stands for the processors.
type place struct {
	device   string
	parallel int
}

// newScheduler takes 0 for the default.
func newScheduler(maxInFlight, rsaWorkers int, maxWait time.Duration) *scheduler {
	if rsaWorkers == 0 {
		rsaWorkers = max(1, runtime.GOMAXPROCS(0)-1)
	}
	s := &scheduler{
		maxInFlight: int64(cmp.Or(maxInFlight, DefaultMaxInFlight)),
		maxWait:     cmp.Or(maxWait, DefaultMaxWait),
		deviceTime:  deviceTime,
	}
	s.rsa = newTurns(rsaWorkers, s.maxWait)
	return s
}

// enter reports whether one more request can be worked on, of an edge with own at
// work, this one included; if so, leave has to be called when it is done. It never
// waits. Those that wait for their turn are not at work: turns bound them, and they
// would keep out those that need not wait. No edge gets more than are free: alone it
// has half, and whoever comes later finds room.
func (s *scheduler) enter(own int64) bool {
	working := s.inFlight.Add(1) - s.waiting.Load()
	if working > s.maxInFlight || own > max(1, s.maxInFlight-working) {
		s.leave()
		return false
	}
	return true
}

func (s *scheduler) leave() { s.inFlight.Add(-1) }

// asker is the edge that an operation is for, and what counts its operations, and
// those of all edges, while they wait.
type asker struct {
	edge     string
	own, all *atomic.Int64
}

// askerKey is where withEdge puts the asker.
type askerKey struct{}

// withEdge says which edge an operation is for.
func (s *Server) withEdge(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, askerKey{}, asker{name, &s.states.of(name).waiting, &s.schedule.waiting})
}

// edgeOf returns the name of the edge that an operation is for.
func edgeOf(ctx context.Context) string {
	from, _ := ctx.Value(askerKey{}).(asker)
	return from.edge
}

// private runs an operation with a private key. The slow ones, and all that a
// device does, wait for their turn. The error is that of inTurn.
func (s *scheduler) private(ctx context.Context, k key, operation func(context.Context) error) error {
	return inTurn(ctx, s.turnsFor(k), func() error {
		if k.device == nil {
			return operation(ctx)
		}
		limited, cancel := context.WithTimeout(ctx, s.deviceTime)
		defer cancel()
		return operation(limited)
	})
}

// inTurn runs an operation when it has its turn, which it has by edge
// (withEdge), or at once where t is nil. Where ctx ends before that, the
// operation is not done, and the error is that of ctx; where it would wait for too
// long, it is errOverloaded, and the operation is not done either.
func inTurn(ctx context.Context, t *turns, operation func() error) error {
	if t != nil {
		from, _ := ctx.Value(askerKey{}).(asker)
		if err := t.begin(ctx, from.edge, from.own, from.all); err != nil {
			return err
		}
		defer func(began time.Time) { t.end(time.Since(began)) }(time.Now())
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
			t, _ = s.devices.LoadOrStore(k.at, newTurns(k.at.parallel, s.maxWait))
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
