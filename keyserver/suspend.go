package keyserver

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Suspension is why an edge is cut off.
type Suspension struct {
	// Edge is the edge's name in the policy, or the ski.PeerID of one of its
	// certificates or pre-shared keys.
	Edge string `json:"edge"`
	// Reason is what whoever suspended it has to say.
	Reason string `json:"reason,omitempty"`
	// By is who suspended it: a user of the machine, or a detector.
	By string `json:"by"`
	// Since is when.
	Since time.Time `json:"since"`
}

// String returns one line for logs.
func (s Suspension) String() string {
	text := fmt.Sprintf("suspended at %s by %s", s.Since.UTC().Format(time.RFC3339), s.By)
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	return text
}

// Suspensions are the edges that are cut off at run time, whatever the policy
// grants them. Its methods can be called by many goroutines at once.
type Suspensions struct {
	file    string
	writing sync.Mutex // held while the set is changed
	now     atomic.Pointer[suspended]
	unkept  atomic.Bool // the file could not be written
}

// suspended is the set, which does not change: each request looks into it.
type suspended struct {
	byName map[string]Suspension // all of them, by Suspension.Edge
	byPeer map[ski.PeerID]Suspension
}

// inLog returns what the audit log calls the edge, which knows a peer by one name
// alone.
func (s Suspension) inLog() string {
	if id, err := ski.ParsePeerID(s.Edge); err == nil {
		return id.String()
	}
	return s.Edge
}

func newSuspended(all map[string]Suspension) *suspended {
	s := &suspended{byName: all, byPeer: make(map[ski.PeerID]Suspension)}
	for name, one := range all {
		if id, err := ski.ParsePeerID(name); err == nil {
			s.byPeer[id] = one
		}
	}
	return s
}

func (s *suspended) all() []Suspension {
	return slices.SortedFunc(maps.Values(s.byName), func(a, b Suspension) int { return strings.Compare(a.Edge, b.Edge) })
}

// OpenSuspensions reads the suspensions that a former process kept in a file;
// none if there is no such file. A file that cannot be read is an error: to go
// on would resume every edge. With no name the suspensions end with the
// process.
func OpenSuspensions(file string) (*Suspensions, error) {
	s := &Suspensions{file: file}
	var all []Suspension
	if file != "" {
		var err error
		if all, err = readState(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	set := make(map[string]Suspension, len(all))
	for _, one := range all {
		set[one.Edge] = one
	}
	s.now.Store(newSuspended(set))
	return s, nil
}

// Suspend cuts an edge off, or changes why it is. It is in effect even if the
// error says that it could not be kept in the file. Server.Watch tries that again.
func (s *Suspensions) Suspend(one Suspension) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	all := maps.Clone(s.now.Load().byName)
	all[one.Edge] = one
	set := newSuspended(all)
	s.now.Store(set)
	return s.keep(set)
}

// Resume ends the suspension of an edge, named as in its Suspension. It reports
// whether there was one. Where the file cannot be written, the edge stays
// suspended: a restart would suspend it again.
func (s *Suspensions) Resume(edge string) (bool, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	all := maps.Clone(s.now.Load().byName)
	if _, found := all[edge]; !found {
		return false, nil
	}
	delete(all, edge)
	set := newSuspended(all)
	if err := s.keep(set); err != nil {
		return false, err
	}
	s.now.Store(set)
	return true, nil
}

// named reports whether there is a suspension of exactly this name.
func (s *Suspensions) named(edge string) bool {
	_, ok := s.now.Load().byName[edge]
	return ok
}

// has reports whether there is a suspension of this edge.
func (s *Suspensions) has(edge string) bool {
	set := s.now.Load()
	if id, err := ski.ParsePeerID(edge); err == nil {
		_, ok := set.byPeer[id]
		return ok
	}
	return s.named(edge)
}

// Lasting reports whether the suspensions outlast the process.
func (s *Suspensions) Lasting() bool { return s.file != "" }

// All returns the suspensions, by the name of the edge.
func (s *Suspensions) All() []Suspension { return s.now.Load().all() }

// find returns the suspension that the peer is under, by itself or by the
// name of one of the edges that it is.
func (s *Suspensions) find(peer ski.Peer, edges []*edge) (Suspension, bool) {
	set := s.now.Load()
	if one, ok := set.byPeer[peer.ID()]; ok {
		return one, true
	}
	for _, e := range edges {
		if one, ok := set.byName[e.name]; ok {
			return one, true
		}
	}
	return Suspension{}, false
}

// keep writes the file. It is called with s.writing held.
func (s *Suspensions) keep(set *suspended) error {
	if s.file == "" {
		return nil
	}
	err := writeState(s.file, set.all())
	s.unkept.Store(err != nil)
	return err
}

// keepAgain writes the file if that has failed before. It reports whether the file
// has everything now that it had not.
func (s *Suspensions) keepAgain() bool {
	if !s.unkept.Load() {
		return false
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.unkept.Load() && s.keep(s.now.Load()) == nil
}
