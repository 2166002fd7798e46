package keyserver

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// EdgeStatus is what is known of an edge at the moment.
type EdgeStatus struct {
	// Name is the edge's in the policy; for a suspension of one
	// certificate or pre-shared key it is the ski.PeerID.
	Name string `json:"name"`
	// Suspended is why the edge is cut off, or nil.
	Suspended *Suspension `json:"suspended,omitempty"`
	// Sessions is how many live sessions it has, and Addresses from where.
	Sessions  int          `json:"sessions"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// SPKI are the keys of the certificates that the sessions were made with.
	SPKI []ski.KeyID `json:"spki,omitempty"`
	// PSK are the identities of the pre-shared keys that they were made with.
	PSK []string `json:"psk,omitempty"`
	// Requests counts the requests since the start, and Refused those among
	// them without an output.
	Requests uint64 `json:"requests"`
	Refused  uint64 `json:"refused"`
	// LastRequest is when the last of them came.
	LastRequest time.Time `json:"last_request,omitzero"`
}

// Edges returns the status of the policy's edges, in its order; then of what
// else is suspended. A peer that is several edges counts for each.
func (s *Server) Edges() []EdgeStatus {
	var all []EdgeStatus
	index := make(map[string]int)
	add := func(name string) {
		if _, ok := index[name]; !ok {
			index[name] = len(all)
			all = append(all, s.counted(name))
		}
	}
	for _, e := range s.policy.Load().edges {
		add(e.name)
	}
	for _, one := range s.suspensions.All() {
		add(one.Edge)
		all[index[one.Edge]].Suspended = &one
	}
	for _, sessions := range s.sessions {
		for _, p := range sessions.Peers() {
			names := []string{p.ID().String()}
			for _, e := range s.policy.Load().match(p) {
				names = append(names, e.name)
			}
			for _, name := range names {
				if i, ok := index[name]; ok {
					all[i].addSession(p)
				}
			}
		}
	}
	return all
}

func (s *Server) counted(name string) EdgeStatus {
	state := s.states.of(name)
	e := EdgeStatus{Name: name, Requests: state.requests.Load(), Refused: state.refused.Load()}
	if last := state.last.Load(); last != 0 {
		e.LastRequest = time.Unix(0, last).UTC()
	}
	return e
}

func (e *EdgeStatus) addSession(p ski.Peer) {
	e.Sessions++
	if a := p.Addr.Addr(); !slices.Contains(e.Addresses, a) {
		e.Addresses = append(e.Addresses, a)
	}
	if p.PSK == "" && !slices.Contains(e.SPKI, p.SPKI) {
		e.SPKI = append(e.SPKI, p.SPKI)
	}
	if p.PSK != "" && !slices.Contains(e.PSK, p.PSK) {
		e.PSK = append(e.PSK, p.PSK)
	}
}
