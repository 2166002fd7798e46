package edgeserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
	"github.com/tlsski/tlsski/ski"
)

// The values of Site.Tickets.
const (
	// TicketsLocal makes session tickets with keys of this edge server's own.
	TicketsLocal = "local"
	// TicketsShared makes them with keys that the edge servers of a site share.
	TicketsShared = "shared"
	// TicketsOff makes none: sessions are not resumed.
	TicketsOff = "off"
)

// TicketSiteName returns TicketSite or its default.
func (s *Site) TicketSiteName() string {
	if s.TicketSite == "" && len(s.Names) > 0 {
		return canonicalName(s.Names[0])
	}
	return s.TicketSite
}

// validateTickets checks what a site says of session tickets. owner has the
// fields of the sites that share theirs, by ticket site.
func (c *Config) validateTickets(field string, s *Site, owner map[string]string) error {
	switch s.Tickets {
	case "", TicketsLocal, TicketsOff:
		if s.TicketSite != "" {
			return c.errorf(field+".ticket_site", "is for tickets: %s", TicketsShared)
		}
		return nil
	case TicketsShared:
	default:
		return c.errorf(field+".tickets", "'%s' is not %s, %s or %s", s.Tickets, TicketsLocal, TicketsShared, TicketsOff)
	}
	name := s.TicketSiteName()
	if !ski.ValidTicketSite(name) {
		return c.errorf(field+".ticket_site", "'%s' is not a name, of 1 to %d characters without spaces", name, ski.MaxTicketSite)
	}
	k := c.keyServer(s.KeyServer)
	isHTTPS := func(url string) bool { return strings.HasPrefix(strings.ToLower(url), "https://") }
	switch urls := k.Endpoints(); {
	case k.DraftOnly:
		return c.errorf(field+".tickets", "a key server that is draft_only has no ticket keys")
	case len(urls) > 0 && !slices.ContainsFunc(urls, func(u string) bool { return !isHTTPS(u) }):
		return c.errorf(field+".tickets", "%s needs a key server at coaps:// or coaps+tcp://: over https:// none can say when the keys change", TicketsShared)
	}
	// A ticket of one of two sites with the same keys would be good at the other.
	// Two entries of key servers may be the same ones, or have the same secret.
	if other, ok := owner[name]; ok {
		return c.errorf(field+".ticket_site", "'%s' is that of %s already: two sites cannot share tickets with each other", name, other)
	}
	owner[name] = field
	return nil
}

// sharedTickets are the ticket keys of one site as its key server hands them
// out. The zero value has none.
type sharedTickets struct {
	now func() time.Time // nil: time.Now

	mu     sync.Mutex
	site   string
	turn   int             // of become
	keys   []ski.TicketKey // by From
	built  derivedTickets
	stale  time.Time // when built is to be made again; zero: at once
	expiry *time.Timer
}

// derivedTickets is what the engines use. They have keys of their own each.
type derivedTickets struct {
	// makes says that the first key makes tickets; otherwise they are all only
	// for opening.
	makes    bool
	standard *tls.Config // used for nothing but its ticket keys; nil without any
	split    []split.TicketKey
}

// current returns what there is to use now.
func (s *sharedTickets) current() derivedTickets {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.clock(); !now.Before(s.stale) {
		s.build(now)
	}
	return s.built
}

func (s *sharedTickets) clock() time.Time {
	if s.now == nil {
		return time.Now()
	}
	return s.now()
}

// build derives the keys of the engines, forgets the keys that open no ticket any
// more, and sees to it that it is called again when there is something to
// change. It is called with s.mu held.
func (s *sharedTickets) build(now time.Time) {
	s.keys = slices.DeleteFunc(s.keys, func(k ski.TicketKey) bool {
		over := !now.Before(k.Until)
		if over {
			clear(k.Secret[:])
		}
		return over
	})
	s.built, s.stale = derivedTickets{}, now.Add(24*time.Hour)
	ordered := slices.Clone(s.keys)
	for i, k := range s.keys {
		if !now.Before(k.From) && now.Before(k.To) {
			s.built.makes = true
			ordered[0], ordered[i] = ordered[i], ordered[0]
		}
		for _, at := range []time.Time{k.From, k.To, k.Until} {
			if now.Before(at) && at.Before(s.stale) {
				s.stale = at
			}
		}
	}
	if s.expiry != nil {
		s.expiry.Stop()
		s.expiry = nil
	}
	if len(ordered) == 0 {
		return
	}
	var standard [][32]byte
	for i := range ordered {
		k := &ordered[i]
		standard = append(standard, [32]byte(k.Derive(s.site, "crypto/tls", 32)))
		s.built.split = append(s.built.split, split.TicketKeyFrom(k.Derive(s.site, "split", split.TicketKeyLen)))
		clear(k.Secret[:])
	}
	s.built.standard = new(tls.Config)
	s.built.standard.SetSessionTicketKeys(standard)
	for i := range standard {
		clear(standard[i][:])
	}
	if s.now == nil { // Nobody may ask for a long time, and what has expired is to be gone.
		s.expiry = time.AfterFunc(s.stale.Sub(now), func() { s.current() })
	}
}

// become makes the store that of a site, or of none. What it has of another one
// is forgotten. It returns what puts keys in the place of those before, until the
// next call of become.
func (s *sharedTickets) become(site string) (set func(keys []ski.TicketKey)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.site != site {
		s.site = site
		s.put(nil)
	}
	s.turn++
	turn := s.turn
	return func(keys []ski.TicketKey) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.turn == turn {
			s.put(keys)
		} else {
			clearKeys(keys)
		}
	}
}

// put is called with s.mu held.
func (s *sharedTickets) put(keys []ski.TicketKey) {
	clearKeys(s.keys)
	s.keys = keys
	s.build(s.clock())
}

func clearKeys(keys []ski.TicketKey) {
	for i := range keys {
		clear(keys[i].Secret[:])
	}
}

// The pause after a key server, or all of them, have been lost. It doubles from
// the first value to the second, or to the third where no session came about: a
// network that was away for long is to be back at once.
const (
	firstTicketPause = 250 * time.Millisecond
	lastTicketPause  = 30 * time.Second
	lastTicketRedial = 2 * time.Second
)

// errNoTicketSource is for a Transport of an embedding program.
var errNoTicketSource = errors.New("the Transport to its key server is no ski.TicketSource")

// followTickets hands a site's keys to set as the key server wants them, until ctx
// ends. While no key server can be reached the keys stay, until they expire. One
// that denies them takes them away.
func followTickets(ctx context.Context, site string, source ski.TicketSource, set func([]ski.TicketKey), log *slog.Logger) {
	log = log.With("ticket_site", site)
	pause, said := firstTicketPause, ""
	for {
		err := source.WatchTickets(ctx, site, func(t *ski.TicketKeys) {
			ids, now := ticketIDs(t.Keys), time.Now()
			outOfTime := !slices.ContainsFunc(t.Keys, func(k ski.TicketKey) bool { return !now.Before(k.From) && now.Before(k.To) })
			set(t.Keys)
			pause = firstTicketPause
			said = ""
			log.Info("ticket keys", "ids", ids)
			if outOfTime {
				log.Warn("none of the ticket keys makes tickets now: is the clock of this machine, or of the key server, right?")
			}
		})
		if ctx.Err() != nil {
			return
		}
		text := fmt.Sprint(err)
		switch {
		case errors.Is(err, ski.RequestDenied):
			set(nil)
			text = "denied" // Each key server says so in its own words.
			if said != text {
				log.Warn("the key server denies the site's ticket keys: tickets are this edge server's own from now on", "error", err)
			}
		case said != text:
			log.Warn("no ticket keys from the key server: those that are there are used until they expire", "error", err)
		}
		said = text
		timer := time.NewTimer(pause/2 + rand.N(pause/2)) // All edges have lost it at once.
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		longest := lastTicketPause
		if te := (*ski.TransportError)(nil); errors.As(err, &te) && te.Op == "dial" && !te.Permanent {
			longest = lastTicketRedial
		}
		pause = min(2*pause, longest)
	}
}

func ticketIDs(keys []ski.TicketKey) string {
	ids := make([]string, len(keys))
	for i := range keys {
		ids[i] = keys[i].ID.String()
	}
	return strings.Join(ids, ",")
}

// ticketFeeds keep the ticket keys of sites as their key servers want them. The
// zero value is ready for use.
type ticketFeeds struct {
	mu      sync.Mutex
	cancel  context.CancelFunc // nil before start
	closed  bool
	running sync.WaitGroup
}

// start begins to follow the sites that share tickets, until close or the end of
// ctx. It does so once.
func (f *ticketFeeds) start(ctx context.Context, all []*site, log *slog.Logger) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cancel != nil || f.closed {
		return
	}
	ctx, f.cancel = context.WithCancel(ctx)
	for _, s := range all {
		if s.Tickets != TicketsShared {
			s.tickets.shared.become("") // It may have been another before a Reload.
			continue
		}
		set := s.tickets.shared.become(s.TicketSiteName())
		f.running.Go(func() {
			followTickets(ctx, s.TicketSiteName(), s.asking.transport.(ski.TicketSource), set, log.With("site", s.label))
		})
	}
}

// stop has what start has begun end, and reports whether it had.
func (f *ticketFeeds) stop() (started bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.cancel == nil {
		return false
	}
	f.cancel()
	return true
}

// close is stop, and returns when all has ended.
func (f *ticketFeeds) close() {
	f.stop()
	f.running.Wait()
}

// forgetTickets forgets the keys that the sites share with other edge servers, but
// for those that have gone over to the sites of another Config.
func (t *sites) forgetTickets(but *sites) {
	for _, s := range t.all {
		if !slices.ContainsFunc(but.all, func(other *site) bool { return other.tickets == s.tickets }) {
			s.tickets.shared.become("")
		}
	}
}
