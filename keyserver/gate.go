package keyserver

import (
	"github.com/tlsski/tlsski/ski"
)

// enter decides whether a request is looked at: not that of an edge that is cut
// off, and not one too many. If it is, leave has to be called at its end.
func (s *Server) enter(peer ski.Peer, edges []*edge) (refusal outcome, ok bool) {
	if reason := s.cutOff(peer, edges); reason != "" {
		return refused(ski.RequestDenied, reason), false
	}
	if !s.schedule.enter() {
		return refused(ski.UnspecifiedError, "overloaded"), false
	}
	return outcome{}, true
}

func (s *Server) leave() { s.schedule.leave() }
