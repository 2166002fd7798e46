package keyserver

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// A refusal costs an edge nothing, and each line of the audit log takes some
// of a disk that is there for the requests that are answered. So a refusal has
// a Record of its own only while its edge keeps within a budget of lines and
// the disk has more than the log's reserve. The others are counted, and an
// EventRefusals has the count. docs/audit.md says what a reader of the log can
// rely on.

// refusalPeriod is how long a refusal is counted before the count is recorded.
const refusalPeriod = time.Second

// auditBurst is how many refusals of an edge have a Record each, however fast
// they come, until the budget is used up: enough to see what an edge with a
// wrong configuration asks for, and 250 KB of the longest lines.
const auditBurst = 100

// defaultAuditRate is how many refusals of an edge have a Record each second
// in the long run: an edge that is refused for a whole day then takes 100 MB.
const defaultAuditRate = 1

// Why a refusal is counted rather than recorded, in the metrics.
const (
	countedByLimit   = "limit"   // a limit refused
	countedByBudget  = "budget"  // the edge has used up its budget
	countedByReserve = "reserve" // the disk has no more than the reserve
)

var countedReasons = []string{countedByLimit, countedByBudget, countedByReserve}

// refusalCount is what has been counted of one edge.
type refusalCount struct {
	edge        string // of the first of the policy's edges that the peer is, or unknownEdge
	peer        ski.PeerID
	address     netip.AddrPort // of the last
	first, last time.Time
	by          map[string]uint64 // by the limit that refused, or else by what the edge was told
}

func (c *refusalCount) record(now time.Time) *Record {
	return &Record{
		Time: now, Event: EventRefusals, Edge: c.edge, Peer: c.peer, Address: c.address,
		First: c.first, Last: c.last, Refused: c.by,
	}
}

// refusals are those of all edges that are counted and not recorded yet. They
// are as many as edgeStates.
type refusals struct {
	writing sync.Mutex // held while counts are recorded

	mu     sync.Mutex
	byEdge map[string]*refusalCount
	timer  *time.Timer // to the time when they are recorded; nil where there are none
	closed bool
}

// add counts one more.
func (r *refusals) add(rec *Record, edge, by string, flush func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.merge(&refusalCount{
		edge: edge, peer: rec.Peer, address: rec.Address,
		first: rec.Time, last: rec.Time, by: map[string]uint64{by: 1},
	}, flush)
}

// putBack counts again what could not be recorded.
func (r *refusals) putBack(counts []*refusalCount, flush func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range counts {
		r.merge(c, flush)
	}
}

func (r *refusals) merge(c *refusalCount, flush func()) {
	if r.byEdge == nil {
		r.byEdge = make(map[string]*refusalCount)
	}
	if r.timer == nil && !r.closed {
		r.timer = time.AfterFunc(refusalPeriod, flush)
	}
	have := r.byEdge[c.edge]
	if have == nil {
		r.byEdge[c.edge] = c
		return
	}
	if c.first.Before(have.first) {
		have.first = c.first
	}
	if c.last.After(have.last) {
		have.last, have.peer, have.address = c.last, c.peer, c.address
	}
	for by, n := range c.by {
		have.by[by] += n
	}
}

// take returns what has been counted, by the edges' names.
func (r *refusals) take() []*refusalCount {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	counts := make([]*refusalCount, 0, len(r.byEdge))
	for _, edge := range slices.Sorted(maps.Keys(r.byEdge)) {
		counts = append(counts, r.byEdge[edge])
	}
	r.byEdge = nil
	return counts
}

// close has nothing recorded any more after a time.
func (r *refusals) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// account records what came of a request, or counts it. It returns an error
// where the request must not be answered without its Record and has none.
func (s *Server) account(ctx context.Context, policy *Policy, edges []*edge, rec *Record, out outcome) error {
	inReserve := s.inReserve()
	if out.wire == "" || out.preMasterSecret != "" { // A private key was used.
		return s.record(ctx, rec)
	}
	name := unknownEdge
	if len(edges) > 0 {
		name = edges[0].name
	}
	by, why := string(out.wire), ""
	switch {
	case out.limit != "":
		by, why = out.limit, countedByLimit
	case inReserve:
		why = countedByReserve
	case !s.states.of(name).takeLine(rec.Time, policy.limits.ofEdge(name)):
		why = countedByBudget
	default:
		return s.record(ctx, rec)
	}
	s.refusals.add(rec, name, by, s.recordRefusals)
	s.metrics.counted(why)
	return nil
}

// takeLine reports whether one more refusal of the edge has a Record of its
// own.
func (e *edgeState) takeLine(now time.Time, l limit) bool {
	_, ok := e.lines.take(now, limit{rate: l.audit, burst: auditBurst})
	return ok
}

// recordRefusals records what has been counted. What cannot be recorded, now
// that there is only the reserve or the log fails, is counted on.
func (s *Server) recordRefusals() {
	s.refusals.writing.Lock()
	defer s.refusals.writing.Unlock()
	s.writeRefusals(s.inReserve)
}

// writeRefusals stops where stop says so.
func (s *Server) writeRefusals(stop func() bool) {
	counts := s.refusals.take()
	for i, c := range counts {
		if stop() || s.record(context.Background(), c.record(time.Now())) != nil {
			s.refusals.putBack(counts[i:], s.recordRefusals)
			return
		}
	}
}

// closeRefusals records the last counts, in the reserve if need be.
func (s *Server) closeRefusals() {
	s.refusals.close()
	s.refusals.writing.Lock()
	defer s.refusals.writing.Unlock()
	s.writeRefusals(func() bool { return false })
	const most = 100 // lines of the log
	for i, c := range s.refusals.take() {
		if i == most {
			s.log.Error("refusals of more edges that the audit log does not have")
			break
		}
		s.log.Error("refusals that the audit log does not have", "edge", c.edge, "refused", c.by, "first", c.first, "last", c.last)
	}
}

// ReserveAuditor is an Auditor that keeps room for the Records of requests for
// which a private key was used.
type ReserveAuditor interface {
	Auditor
	// InReserve reports whether there is only that room left. It is asked before
	// each Record of a refusal.
	InReserve() bool
}

// inReserve logs when it begins to be so and when it ends.
func (s *Server) inReserve() bool {
	a, ok := s.audit.(ReserveAuditor)
	if !ok {
		return false
	}
	in := a.InReserve()
	if s.auditReserve.Load() != in && s.auditReserve.CompareAndSwap(!in, in) {
		if in {
			s.log.Error("the audit log's disk has no more than its reserve: refusals are counted, and recorded when there is room")
		} else {
			s.log.Info("the audit log's disk has more than its reserve again")
		}
	}
	return in
}
