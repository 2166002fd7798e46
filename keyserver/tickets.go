package keyserver

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// MinTicketSecret is the shortest secret of a TicketRatchet, in bytes.
const MinTicketSecret = 32

// ticketMaker derives the keys of session tickets. It keeps none, so that key
// servers with the same secret, the same policy and the same edges cut off have
// the same keys and need not know of each other.
type ticketMaker struct {
	*TicketRatchet
	told    sync.Once
	failing atomic.Bool // the ratchet's file cannot be written
	now     func() time.Time

	mu      sync.Mutex
	changed chan struct{} // closed when an answer may be another
}

func newTicketMaker(r *TicketRatchet) *ticketMaker {
	if r == nil {
		r, _ = OpenTicketRatchet("", nil, time.Now()) // which cannot fail
	}
	return &ticketMaker{TicketRatchet: r, changed: make(chan struct{}), now: time.Now}
}

// wait returns a channel that is closed with the next change.
func (m *ticketMaker) wait() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// change has everybody who waits look again.
func (m *ticketMaker) change() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
}

// keys returns the keys of a site at a time, and when there are others. The
// epochs of Unix time, each as long as 'rotate', have a key each, derived from
// the ratchet's value of the minute in which its last ticket expires; members are
// those who may know it. There are none where the clock is behind the ratchet.
func (m *ticketMaker) keys(site *ticketSite, members []byte, now time.Time) (*ski.TicketKeys, time.Time) {
	r := m.at(now)
	defer r.clear()
	rotate := int64(site.rotate / time.Second)
	current := now.Unix() / rotate
	t := &ski.TicketKeys{Site: site.name}
	for epoch := max(0, current-site.formerKeys()); epoch <= current+1; epoch++ {
		k := ski.TicketKey{From: time.Unix(epoch*rotate, 0), To: time.Unix((epoch+1)*rotate, 0)}
		k.Until = k.To.Add(site.lifetime)
		if minute := k.Until.Unix() / 60; !now.Before(k.Until) || minute < r.minute || minute > ratchetEnd {
			continue
		}
		r.forward(k.Until.Unix() / 60)
		out, err := hkdf.Expand(sha256.New, r.value[:], string(ticketKeyInfo(site, epoch, members)), len(k.Secret)+len(k.ID))
		if err != nil {
			panic(err) // The length is a fixed one.
		}
		n := copy(k.Secret[:], out)
		copy(k.ID[:], out[n:])
		clear(out)
		t.Keys = append(t.Keys, k)
	}
	next := time.Unix((current+1)*rotate, 0)
	if len(t.Keys) > 0 && t.Keys[0].Until.Before(next) {
		next = t.Keys[0].Until
	}
	return t, next
}

// ticketKeyInfo is the info of the HKDF that a key comes from.
func ticketKeyInfo(site *ticketSite, epoch int64, members []byte) []byte {
	info := append([]byte("ticket key"), byte(len(site.name)))
	info = append(info, site.name...)
	for _, n := range []int64{int64(site.rotate / time.Second), int64(site.lifetime / time.Second), epoch} {
		info = binary.BigEndian.AppendUint64(info, uint64(n))
	}
	return append(info, members...)
}

// keepTickets turns the ratchet with the clock, and keeps it in its file, until
// ctx ends. It looks at the clock with each tick.
func (s *Server) keepTickets(ctx context.Context, tick <-chan time.Time) {
	var wasHeld time.Time
	for tried := int64(0); ; {
		now := s.tickets.now()
		r := s.tickets.at(now)
		r.clear()
		if minute := ratchetMinute(now); minute != tried { // A full disk is tried once a minute.
			tried = minute
			s.noteTicketFile(s.tickets.save())
			held := s.tickets.held()
			if wasHeld.IsZero() && !held.IsZero() {
				s.log.Warn("the clock is more than a day ahead of the ticket keys: none is forgotten until it has gone on for an hour from there",
					"ticket_keys", held, "clock", now.UTC())
			}
			wasHeld = held
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}

// noteTicketFile logs when the ratchet's file begins to fail and when it works
// again.
func (s *Server) noteTicketFile(err error) {
	failing := err != nil
	if s.tickets.failing.Swap(failing) == failing {
		return
	}
	if failing {
		s.log.Error("the ticket keys' file cannot be kept up: it yields keys of tickets that have expired", "error", err)
	} else {
		s.log.Info("the ticket keys' file is kept up again")
	}
}

// ticketMembers returns a digest of who may have a site's keys: the edges that
// the policy grants them and that are not cut off, by all that they are known by. Whenever one leaves, or is
// let in, the others have keys that it does not know. What is cut off by its
// certificate or key may be any of the edges, and changes the keys of all sites.
func (s *Server) ticketMembers(site *ticketSite) []byte {
	h := sha256.New()
	part := func(data []byte) { writePart(h, data) }
	part(binary.BigEndian.AppendUint32(nil, site.generation))
	suspended := s.suspensions.now.Load()
	edges := make(map[string]*edge)
	for _, e := range site.edges {
		if _, off := suspended.byName[e.name]; !off {
			edges[e.name] = e
		}
	}
	for _, name := range slices.Sorted(maps.Keys(edges)) {
		part([]byte("edge " + name))
		for _, known := range slices.Sorted(slices.Values(edges[name].known)) {
			part([]byte(known)) // The edge may be another behind its name.
		}
		for _, identity := range slices.Sorted(slices.Values(edges[name].psks)) {
			if s.psks == nil {
				continue
			}
			if key := s.psks.Key(identity); key != nil {
				digest := sha256.Sum256(key)
				part([]byte("psk " + identity))
				part(digest[:])
			}
		}
	}
	peers := slices.SortedFunc(maps.Keys(suspended.byPeer), func(a, b ski.PeerID) int { return strings.Compare(a.String(), b.String()) })
	for _, id := range peers {
		part([]byte("suspended " + id.String()))
	}
	if s.revocations != nil {
		part([]byte("revoked"))
		part(s.revocations.digest())
	}
	return h.Sum(nil)
}

// writePart writes data so that what follows cannot be taken for its end.
func writePart(h hash.Hash, data []byte) {
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(data))))
	h.Write(data)
}

// digest stands for which certificates are revoked.
func (r *Revocations) digest() []byte {
	var all [][]byte
	for _, l := range *r.now.Load() {
		all = append(all, l.digest)
	}
	slices.SortFunc(all, bytes.Compare)
	sum := sha256.Sum256(slices.Concat(all...))
	return sum[:]
}

// digestSerials is that of one list, whose number and times do not count.
func (l *revocationList) digestSerials() []byte {
	h := sha256.New()
	writePart(h, l.signer[:])
	for _, serial := range slices.Sorted(maps.Keys(l.serials)) {
		writePart(h, []byte(serial))
	}
	return h.Sum(nil)
}

var _ ski.TicketHandler = (*Server)(nil)

// ServeTickets hands out the keys of a site's session tickets to an edge that
// the policy grants them, with a Record each time.
func (s *Server) ServeTickets(ctx context.Context, peer ski.Peer, site string, have ski.TicketTag) *ski.TicketAnswer {
	changed := s.tickets.wait() // before anything is looked at
	policy, edges, rec := s.begin(peer)
	rec.Event = EventTickets
	granted := policy.tickets[site]
	if granted != nil {
		rec.TicketSite = site // Others are whatever the peer likes.
	}
	out, ok := s.enter(rec.Time, peer, policy, edges)
	var keys *ski.TicketKeys
	var next time.Time
	if ok {
		keys, next, out = s.ticketKeys(ctx, granted, edges)
		s.leave(edges)
		// Who has been cut off meanwhile is not to have what the others have now
		// because of it.
		if reason := s.cutOff(peer, edges); reason != "" && keys != nil {
			keys.Clear()
			keys, out = nil, refused(ski.RequestDenied, reason)
		}
	}
	if out.wire == ski.RequestDenied && s.unsure(peer) { // It keeps the keys that it has.
		out.wire = ski.UnspecifiedError
	}
	if keys != nil && keys.Tag() == have {
		keys.Clear()
		s.metrics.handedOutTickets(rec.TicketSite, "same")
		return &ski.TicketAnswer{Same: true, Changed: changed, Next: next}
	}
	s.states.each(edges, func(e *edgeState) { e.count(rec.Time, out.wire != "") })
	rec.Reason = out.reason
	rec.Outcome = outcomeOutput
	if keys == nil {
		rec.Outcome = string(out.wire)
	} else {
		rec.TicketKeys = ticketIDs(keys)
	}
	if err := s.account(ctx, policy, edges, rec, out); err != nil && s.auditRequired && keys != nil {
		keys.Clear()
		keys, out = nil, refused(ski.UnspecifiedError, "")
		rec.Outcome = string(out.wire)
	}
	s.metrics.handedOutTickets(rec.TicketSite, rec.Outcome)
	if out.limit != "" {
		s.metrics.Limited(out.limit)
	}
	if keys == nil {
		return &ski.TicketAnswer{Error: out.wire, RetryAfter: out.retryAfter, Overloaded: out.overloaded}
	}
	return &ski.TicketAnswer{Keys: keys, Changed: changed, Next: next}
}

// ticketKeys takes its turn with the operations that are slow: with a site of a
// thousand edges, or one that rotates once a week, it needs as long as some.
func (s *Server) ticketKeys(ctx context.Context, site *ticketSite, edges []*edge) (keys *ski.TicketKeys, next time.Time, out outcome) {
	switch {
	case len(edges) == 0:
		return nil, time.Time{}, refused(ski.RequestDenied, denialUnknownPeer)
	case site == nil || !slices.ContainsFunc(edges, func(e *edge) bool { return slices.Contains(site.edges, e) }):
		return nil, time.Time{}, refused(ski.RequestDenied, "the policy does not grant the ticket keys of this site")
	}
	err := inTurn(s.withEdge(ctx, edges[0].name), s.schedule.rsa, func() error {
		keys, next = s.tickets.keys(site, s.ticketMembers(site), s.tickets.now())
		return nil
	})
	switch {
	case errors.Is(err, errOverloaded):
		return nil, time.Time{}, overloaded()
	case err != nil:
		return nil, time.Time{}, refused(ski.UnspecifiedError, "the caller has gone")
	case len(keys.Keys) == 0:
		return nil, time.Time{}, refused(ski.UnspecifiedError, "there are no ticket keys for what the clock says")
	}
	return keys, next, outcome{}
}

func ticketIDs(t *ski.TicketKeys) string {
	ids := make([]string, len(t.Keys))
	for i := range t.Keys {
		ids[i] = t.Keys[i].ID.String()
	}
	return strings.Join(ids, ",")
}

// noteTickets is called with each policy.
func (s *Server) noteTickets(p *Policy) {
	if s.tickets.random && len(p.tickets) > 0 {
		s.tickets.told.Do(func() {
			s.log.Warn("no ticket secret: the ticket keys are this process's own and end with it: " +
				"import those of another key server (skictl tickets import), or set ticket_secret_file, the same on all key servers of the site, and state")
		})
	}
	s.tickets.change()
}

// TicketRightsOf returns the ticket sites that the policy grants a peer, by
// name.
func (p *Policy) TicketRightsOf(peer ski.Peer) []TicketRight { return p.ticketRights(p.match(peer)) }

// TicketRights returns those of all edges, in the file's order.
func (p *Policy) TicketRights() []TicketRight { return p.ticketRights(p.edges) }

func (p *Policy) ticketRights(edges []*edge) (rights []TicketRight) {
	for _, e := range edges {
		for _, name := range slices.Sorted(maps.Keys(p.tickets)) {
			if site := p.tickets[name]; slices.Contains(site.edges, e) {
				rights = append(rights, TicketRight{e.name, name, site.rotate, site.lifetime})
			}
		}
	}
	return rights
}
