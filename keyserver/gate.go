package keyserver

import (
	"time"

	"github.com/tlsski/tlsski/ski"
)

// enter decides whether a request is looked at: not that of an edge that is cut
// off, and not one too many. If it is, leave has to be called at its end.
func (s *Server) enter(now time.Time, peer ski.Peer, policy *Policy, edges []*edge) (refusal outcome, ok bool) {
	if reason := s.cutOff(peer, edges); reason != "" {
		return refused(ski.RequestDenied, reason), false
	}
	if refusal, ok = s.enterEdges(now, &policy.limits, edges); !ok {
		return refusal, false
	}
	var own int64
	s.states.each(edges, func(e *edgeState) { own = max(own, e.inFlight.Load()-e.waiting.Load()) })
	if !s.schedule.enter(own) {
		s.leaveEdges(edges)
		return overloaded(), false
	}
	return outcome{}, true
}

func (s *Server) leave(edges []*edge) {
	s.schedule.leave()
	s.leaveEdges(edges)
}

// enterEdges counts the request in at each edge that the peer is: it has their
// rights together, and their limits together.
func (s *Server) enterEdges(now time.Time, limits *limits, edges []*edge) (refusal outcome, ok bool) {
	if len(edges) == 0 {
		return s.states.of(unknownEdge).take(now, limits.edge)
	}
	for i, e := range edges {
		if refusal, ok = s.states.of(e.name).take(now, limits.ofEdge(e.name)); !ok {
			if i > 0 {
				s.leaveEdges(edges[:i])
			}
			return refusal, false
		}
	}
	return outcome{}, true
}

func (s *Server) leaveEdges(edges []*edge) {
	s.states.each(edges, func(e *edgeState) { e.inFlight.Add(-1) })
}
