package edgeserver

import (
	"sync"
	"time"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
)

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
