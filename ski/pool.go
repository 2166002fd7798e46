package ski

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// Balance says which of a Client's key servers is asked first.
type Balance string

const (
	// Failover asks the first that answers, in the order of preference.
	Failover Balance = "failover"
	// RoundRobin asks each that answers in turn.
	RoundRobin Balance = "round-robin"
	// LeastLatency asks the one whose answers come soonest, with the requests in
	// flight to it taken into account. A slow one is forgiven with time: it is
	// asked again, the sooner the less slow it was.
	LeastLatency Balance = "least-latency"
)

// Valid reports whether b is one of the above, or empty.
func (b Balance) Valid() bool {
	switch b {
	case "", Failover, RoundRobin, LeastLatency:
		return true
	}
	return false
}

// member is a Transport of a Client and what is known of its key server.
type member struct {
	transport Transport
	endpoint  string
	inFlight  atomic.Int64
	health
}

func newMember(t Transport, i int) *member {
	m := &member{transport: t, endpoint: fmt.Sprintf("#%d", i)}
	if named, ok := t.(interface{ Endpoint() string }); ok {
		m.endpoint = named.Endpoint()
	}
	return m
}

// pool returns the members as they are now.
func (c *Client) pool() []*member {
	if p := c.members.Load(); p != nil {
		return *p
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.members.Load() == nil {
		c.replace(c.Transports)
	}
	return *c.members.Load()
}

// Replace makes transports the key servers from now on. What is known of those
// that stay is kept; requests in flight end where they are. The Transports need
// to be comparable, as pointers are.
func (c *Client) Replace(transports []Transport) {
	c.pool()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replace(transports)
}

// Members returns the key servers as they are now.
func (c *Client) Members() []Transport {
	var all []Transport
	for _, m := range c.pool() {
		all = append(all, m.transport)
	}
	return all
}

func (c *Client) replace(transports []Transport) {
	var old []*member
	if p := c.members.Load(); p != nil {
		old = *p
	}
	members := make([]*member, 0, len(transports))
	for i, t := range transports {
		known := slices.IndexFunc(old, func(m *member) bool { return m.transport == t })
		if known >= 0 {
			members = append(members, old[known])
		} else {
			members = append(members, newMember(t, i))
		}
	}
	c.members.Store(&members)
}

// order returns the members in the order in which to ask for req: those that
// answer first, and among them those that are not overloaded. The one that gave req.State goes before all, even if it has been
// replaced since: whether others have the secret to open it is not known.
func (c *Client) order(req *Request) []*member {
	members := c.pool()
	if len(members) == 1 && req.origin == nil {
		return members
	}
	healthy, now := make([]*member, 0, len(members)), time.Now()
	var busy, others []*member
	for _, m := range members {
		switch {
		case m.free(now):
			healthy = append(healthy, m)
		case m.answers():
			busy = append(busy, m)
		default:
			others = append(others, m)
		}
	}
	if len(healthy) == 0 { // All are: it is as if none were.
		healthy, busy = busy, nil
	}
	switch {
	case req.origin != nil: // It takes no turn.
	case c.Balance == RoundRobin:
		if n := uint64(len(healthy)); n > 1 {
			turn := (c.turn.Add(1) - 1) % n
			healthy = slices.Concat(healthy[turn:], healthy[:turn])
		}
	case c.Balance == LeastLatency:
		cost := map[*member]float64{}
		for _, m := range healthy {
			cost[m] = m.expected(now) * float64(m.inFlight.Load()+1)
		}
		slices.SortStableFunc(healthy, func(a, b *member) int { return cmp.Compare(cost[a], cost[b]) })
	}
	order := slices.Concat(healthy, busy, others)
	if req.origin != nil {
		others := slices.DeleteFunc(order, func(m *member) bool { return m == req.origin })
		order = append([]*member{req.origin}, others...)
	}
	return order
}

// tryAgain sends a copy of req to each member that is due to be asked whether it
// is back. Where none answers, the request itself is asked of them all.
func (c *Client) tryAgain(req *Request) {
	members := c.pool()
	if len(req.State) > 0 || len(members) < 2 || !slices.ContainsFunc(members, (*member).answers) {
		return
	}
	for _, m := range members {
		if !m.due(time.Now(), req.method()) {
			continue
		}
		c.start(func(ctx context.Context) {
			if r := c.attempt(ctx, m, req, 1, TrialAttempt); r.err == nil {
				clear(r.resp.Output)
			}
		})
	}
}
