package edgeserver

import (
	"crypto/tls"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
)

// tickets are the keys of one site's session tickets, which outlive a Reload.
type tickets struct {
	// standard is used for nothing but its ticket keys, which crypto/tls makes
	// and rotates.
	standard tls.Config
	split    ticketKeys
	shared   sharedTickets // with TicketsShared
}

// keepTickets has the sites take over the ticket keys of those in before, which may
// be nil, that are the same.
func (t *sites) keepTickets(before *sites) {
	if before == nil {
		return
	}
	kept := map[string]*tickets{}
	for _, s := range before.all {
		kept[s.ticketID()] = s.tickets
	}
	for _, s := range t.all {
		if keys, ok := kept[s.ticketID()]; ok {
			s.tickets = keys
		}
	}
}

// ticketID tells the sites of one Config apart, and says which site of another
// Config is the same: the one that has the same first name, on the same
// addresses.
func (s *site) ticketID() string {
	var places []string
	for _, place := range s.places() {
		places = append(places, place.String())
	}
	slices.Sort(places)
	id := "@" + strings.Join(places, ",")
	if len(s.Names) > 0 {
		id = canonicalName(s.Names[0]) + id
	}
	return id
}

// useTickets has a configuration for crypto/tls use the site's ticket keys: the
// shared ones, while there are such, and otherwise, as for what was made then,
// the edge server's own.
func (s *site) useTickets(config *tls.Config) {
	t := s.tickets
	switch s.Tickets {
	case TicketsOff:
		config.SessionTicketsDisabled = true
	case TicketsShared:
		config.WrapSession = func(cs tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
			if now := t.shared.current(); now.makes {
				return now.standard.EncryptTicket(cs, session)
			}
			return t.standard.EncryptTicket(cs, session)
		}
		config.UnwrapSession = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
			if now := t.shared.current(); now.standard != nil {
				if session, err := now.standard.DecryptTicket(identity, cs); session != nil && err == nil {
					return session, nil
				}
			}
			return t.standard.DecryptTicket(identity, cs)
		}
	default:
		config.WrapSession, config.UnwrapSession = t.standard.EncryptTicket, t.standard.DecryptTicket
	}
}

// splitTickets is split.Config.TicketKeys, or nil.
func (s *site) splitTickets() func() []split.TicketKey {
	t := s.tickets
	switch s.Tickets {
	case TicketsOff:
		return nil
	case TicketsShared:
		return func() []split.TicketKey {
			now, own := t.shared.current(), t.split.current()
			if now.makes {
				return slices.Concat(now.split, own)
			}
			return slices.Concat(own, now.split)
		}
	}
	return t.split.current
}

// ticketKeyLife is how long a key makes session tickets. It opens them for
// split.TicketLifetime more.
const ticketKeyLife = 8 * time.Hour

// ticketKeys are the keys of one site's session tickets with the split engine.
// They are in memory only: another process, or this one after a restart, has
// others. The zero value is ready for use.
type ticketKeys struct {
	mu   sync.Mutex
	keys []split.TicketKey // the newest first
	made []time.Time       // of each key
	now  func() time.Time  // nil: time.Now
}

// current returns the keys, the one that makes tickets first.
func (k *ticketKeys) current() []split.TicketKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if k.now != nil {
		now = k.now()
	}
	if len(k.keys) > 0 && now.Sub(k.made[0]) < ticketKeyLife {
		return k.keys
	}
	keys, made := []split.TicketKey{split.NewTicketKey()}, []time.Time{now}
	for i := range k.keys {
		if now.Sub(k.made[i]) < ticketKeyLife+split.TicketLifetime {
			keys, made = append(keys, k.keys[i]), append(made, k.made[i])
		}
	}
	k.keys, k.made = keys, made
	return k.keys
}
