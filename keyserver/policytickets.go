package keyserver

import (
	"time"

	"github.com/tlsski/tlsski/ski"
)

// ticketsEntry is one site of the section 'tickets' of a policy: edges that share
// the keys of session tickets.
//
//	tickets:
//	  - name: www.example.com   # as the edges' configuration calls it
//	    edges: [edge-1, europe] # and groups of edges
//	    rotate: 8h              # how long a key makes tickets; default
//	    lifetime: 24h           # how long it opens them after that; default
//	    generation: 1           # another number: other keys, at once; default 0
type ticketsEntry struct {
	Name       string   `yaml:"name"`
	Edges      []string `yaml:"edges"`
	Rotate     Duration `yaml:"rotate"`
	Lifetime   Duration `yaml:"lifetime"`
	Generation uint32   `yaml:"generation"`
}

const (
	defaultTicketRotate   = 8 * time.Hour
	defaultTicketLifetime = 24 * time.Hour
	// maxTicketTime is how long a client may keep a ticket (RFC 8446, Section
	// 4.6.1), and a key may make some.
	maxTicketTime = ski.MaxTicketKeyTime
)

// ticketSite is a site of the policy whose edges share ticket keys.
type ticketSite struct {
	name             string
	edges            []*edge
	rotate, lifetime time.Duration
	generation       uint32
}

func (b *policyBuilder) addTickets(path string, entry ticketsEntry) error {
	site := &ticketSite{
		name: entry.Name, rotate: time.Duration(entry.Rotate), lifetime: time.Duration(entry.Lifetime), generation: entry.Generation,
	}
	if site.rotate == 0 {
		site.rotate = defaultTicketRotate
	}
	if site.lifetime == 0 {
		site.lifetime = defaultTicketLifetime
	}
	switch {
	case !ski.ValidTicketSite(entry.Name):
		return b.errorAt(path, "a ticket site needs a 'name' of 1 to %d printable characters without spaces", ski.MaxTicketSite)
	case b.policy.tickets[entry.Name] != nil:
		return b.errorAt(path+".name", "there are two ticket sites called %q", entry.Name)
	case len(entry.Edges) == 0:
		return b.errorAt(path, "a ticket site needs 'edges'")
	case site.rotate < time.Minute || site.rotate%time.Second != 0 || site.rotate > maxTicketTime:
		return b.errorAt(path+".rotate", "it is less than 1m, more than 168h, or not in whole seconds")
	case site.lifetime%time.Second != 0 || site.lifetime > maxTicketTime:
		return b.errorAt(path+".lifetime", "it is more than 168h, or not in whole seconds")
	case site.formerKeys() > ski.MaxTicketKeys-2:
		return b.errorAt(path+".lifetime", "it is more than %d times 'rotate' (%v): too many keys at once", ski.MaxTicketKeys-2, site.rotate)
	}
	edges, err := b.edgesNamed(path+".edges", entry.Edges, b.edgeGroups)
	if err != nil {
		return err
	}
	site.edges = edges
	b.policy.tickets[site.name] = site
	return nil
}

// formerKeys returns how many of the keys before the one that makes tickets
// still open some.
func (s *ticketSite) formerKeys() int64 { return int64((s.lifetime + s.rotate - 1) / s.rotate) }

// TicketRight is what the policy grants an edge of a site's ticket keys.
type TicketRight struct {
	Edge, Site       string
	Rotate, Lifetime time.Duration
}
