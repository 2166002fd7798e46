package keyserver

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// edgeState is what a Server remembers of an edge from one request to the
// next. It outlives the policy that knows the edge.
type edgeState struct {
	number   uint32 // of this state among all, from 1
	requests atomic.Uint64
	refused  atomic.Uint64
	last     atomic.Int64 // time of the last request, Unix nanoseconds; 0 for none
	inFlight atomic.Int64
	waiting  atomic.Int64 // those in flight that wait for their turn
	bucket   bucket
	lines    bucket // of its refusals in the audit log
	rsa      rsaCounts

	mu       sync.Mutex // of what follows, and of what the sweep uses in rsa
	findings [detectors]findings
}

// count notes a request and whether it was refused.
func (e *edgeState) count(at time.Time, refused bool) {
	e.requests.Add(1)
	if refused {
		e.refused.Add(1)
	}
	e.last.Store(at.UnixNano())
}

// edgeStates are those of all edges. They are as many as there have been names
// in the policy: the names come from the operator, not from the peers. The
// peers that the policy does not know share the one of the name "".
type edgeStates struct {
	mu     sync.RWMutex
	byName map[string]*edgeState
}

// unknownEdge stands for the peers that the policy does not know.
const unknownEdge = ""

// of returns the state of an edge.
func (s *edgeStates) of(name string) *edgeState {
	s.mu.RLock()
	e := s.byName[name]
	s.mu.RUnlock()
	if e != nil {
		return e
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e = s.byName[name]; e == nil {
		if s.byName == nil {
			s.byName = make(map[string]*edgeState)
		}
		e = &edgeState{number: uint32(len(s.byName) + 1)}
		s.byName[name] = e
	}
	return e
}

// all returns the states of all edges, by their names.
func (s *edgeStates) all() map[string]*edgeState {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.byName)
}

// each calls f with the state of each edge that a peer is, at least one.
func (s *edgeStates) each(edges []*edge, f func(*edgeState)) {
	if len(edges) == 0 {
		f(s.of(unknownEdge))
	}
	for _, e := range edges {
		f(s.of(e.name))
	}
}
