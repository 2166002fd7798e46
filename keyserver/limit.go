package keyserver

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/tlsski/tlsski/ski"
)

// defaultEdgeInFlight is how many requests of one edge are worked on at once
// unless the policy says otherwise: a quarter of DefaultMaxInFlight, so that it
// takes more than one edge to use all of it.
const defaultEdgeInFlight = 1024

// retryInFlight is when an edge should ask again whose requests in flight are
// too many: they are answered within that.
const retryInFlight = time.Second

// slowInFlight is how long the edge is not read for such a request. It is short,
// since they are many at once, and most of those in flight will have been answered
// by then: what waits longer is too many again.
const slowInFlight = 500 * time.Microsecond

// limit is how much there may be of the requests of an edge or for a key.
type limit struct {
	rate     rate.Limit // requests a second; 0 for any number
	burst    int        // requests at once, while the rate is kept on average
	inFlight int        // of an edge: requests that are worked on at once; 0 for any number
	audit    rate.Limit // of an edge: refusals a second that have a Record each; 0 for any number
}

// limits are those of a policy.
type limits struct {
	edge, key limit // where there is no other
	edges     map[string]limit
	keys      map[string]limit    // by name
	keysByID  map[ski.KeyID]limit // by fingerprint
}

func (l *limits) ofEdge(name string) limit {
	if own, ok := l.edges[name]; ok {
		return own
	}
	return l.edge
}

func (l *limits) ofKey(k key) limit {
	if own, ok := l.keys[k.name]; ok {
		return own
	}
	if own, ok := l.keysByID[k.id]; ok {
		return own
	}
	return l.key
}

// named returns the keys that have limits of their own.
func (l *limits) named() *keySet {
	s := newKeySet()
	for name := range l.keys {
		s.names[name] = true
	}
	for id := range l.keysByID {
		s.ids[id] = true
	}
	return s
}

// String says it as -check does.
func (l limit) String() string {
	var parts []string
	if l.rate > 0 {
		parts = append(parts, fmt.Sprintf("%g a second, burst %d", float64(l.rate), l.burst))
	}
	if l.inFlight > 0 {
		parts = append(parts, fmt.Sprintf("%d in flight", l.inFlight))
	}
	if l.audit > 0 {
		parts = append(parts, fmt.Sprintf("%g refusals a second recorded", float64(l.audit)))
	}
	return cmp.Or(strings.Join(parts, ", "), "none")
}

// Limits returns a line for each limit on requests: those of each edge and for
// each key, and then of edges and keys that have their own.
func (p *Policy) Limits() []string {
	lines := []string{"each edge: " + p.limits.edge.String(), "each key: " + p.limits.key.String()}
	for _, name := range slices.Sorted(maps.Keys(p.limits.edges)) {
		lines = append(lines, "edge "+name+": "+p.limits.edges[name].String())
	}
	var keys []string
	for name, l := range p.limits.keys {
		keys = append(keys, "key "+name+": "+l.String())
	}
	for id, l := range p.limits.keysByID {
		name := id.String()
		if k, ok := p.keys.byID[id]; ok {
			name = k.name
		}
		keys = append(keys, "key "+name+": "+l.String())
	}
	return append(lines, slices.Sorted(slices.Values(keys))...)
}

// bucket is a token bucket whose limit changes with the policy. The zero value
// is a full one.
type bucket struct {
	mu     sync.Mutex
	limit  limit
	tokens *rate.Limiter
}

// take takes a token at the time now. Where there is none, it returns how long
// it is until the next.
func (b *bucket) take(now time.Time, l limit) (wait time.Duration, ok bool) {
	if l.rate == 0 {
		return 0, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.tokens == nil:
		b.tokens = rate.NewLimiter(l.rate, l.burst)
	case b.limit.rate != l.rate || b.limit.burst != l.burst: // What has been taken stays taken.
		b.tokens.SetLimitAt(now, l.rate)
		b.tokens.SetBurstAt(now, l.burst)
	}
	b.limit = l
	r := b.tokens.ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
		return wait, false
	}
	return 0, true
}

// take counts one more request of the edge in. If it is not one too many,
// e.inFlight is to be counted down at its end.
func (e *edgeState) take(now time.Time, l limit) (refusal outcome, ok bool) {
	if n := e.inFlight.Add(1); l.inFlight > 0 && n > int64(l.inFlight) {
		e.inFlight.Add(-1)
		refusal = limited(limitEdgeInFlight, "the edge has too many requests in flight", retryInFlight)
		refusal.slow = slowInFlight
		return refusal, false
	}
	if wait, ok := e.bucket.take(now, l); !ok {
		e.inFlight.Add(-1)
		refusal = limited(limitEdgeRate, "the edge asks too often", wait)
		refusal.slow = wait
		return refusal, false
	}
	return outcome{}, true
}

// takeKey counts one more operation with a key in.
func (s *Server) takeKey(now time.Time, l limit, id ski.KeyID) (refusal outcome, ok bool) {
	if l.rate == 0 {
		return outcome{}, true
	}
	b, ok := s.keyBuckets.Load(id)
	if !ok { // As many as the key store has keys: it was asked before.
		b, _ = s.keyBuckets.LoadOrStore(id, new(bucket))
	}
	if wait, ok := b.(*bucket).take(now, l); !ok {
		return limited(limitKeyRate, "the key is asked for too often", wait), false
	}
	return outcome{}, true
}

// The names of the limits in the metrics.
const (
	limitEdgeRate     = "edge_rate"
	limitEdgeInFlight = "edge_in_flight"
	limitKeyRate      = "key_rate"
	limitServer       = "server"
)

var limitNames = []string{limitEdgeRate, limitEdgeInFlight, limitKeyRate, limitServer}

// limited refuses a request until the wait is over.
func limited(limit, reason string, wait time.Duration) outcome {
	out := refused(ski.RequestDenied, reason)
	out.limit, out.retryAfter = limit, wait
	return out
}

// overloaded refuses what would have to wait too long. It is decided before the
// operation: nothing has been signed, decrypted or used up, and the refusal says
// nothing of what would have been.
func overloaded() outcome {
	out := refused(ski.UnspecifiedError, "overloaded")
	out.limit, out.overloaded, out.retryAfter = limitServer, true, retryOverloaded
	return out
}
