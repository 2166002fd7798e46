package ski

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"time"
)

// Bounds on ticket keys. A message with MaxTicketKeys of them fits one datagram.
const (
	// MaxTicketKeys is how many keys a site can have at once.
	MaxTicketKeys = 8
	// MaxTicketSite is the length in bytes of the name of a ticket site.
	MaxTicketSite = 253
	// MaxTicketsLen is the length in bytes of a message with ticket keys.
	MaxTicketsLen = 1024
	// MaxTicketKeyTime bounds From to To of a ticket key, and To to Until: no
	// ticket is good for longer (RFC 8446, Section 4.6.1), and who learns a key
	// reads what was recorded of TLS 1.2 in its time.
	MaxTicketKeyTime = 7 * 24 * time.Hour
)

// TicketKey is what the edge servers of one site derive the keys of their
// session tickets from (RFC 5077, Section 4; RFC 8446, Section 4.6.1).
type TicketKey struct {
	// ID tells keys apart, in logs too. It says nothing of Secret.
	ID TicketKeyID
	// Secret is what is derived from.
	Secret [32]byte `json:"-"`
	// From and To are when the key makes tickets, Until is when it opens its
	// last: whole seconds, From before To, To not after Until.
	From, To, Until time.Time
}

// String returns the ID: nobody prints the secret by mistake.
func (k TicketKey) String() string { return k.ID.String() }

// GoString returns the ID too.
func (k TicketKey) GoString() string { return k.ID.String() }

// TicketKeyID tells ticket keys apart.
type TicketKeyID [8]byte

// String returns the ID in hexadecimal.
func (id TicketKeyID) String() string { return hex.EncodeToString(id[:]) }

// Derive returns n bytes that are of this key, of this use, a word, and of this
// site alone: two sites that a key server has given one key have nothing in
// common.
func (k *TicketKey) Derive(site, use string, n int) []byte {
	out, err := hkdf.Expand(sha256.New, k.Secret[:], "tlsski ticket key "+use+" "+site, n)
	if err != nil {
		panic(err) // n is above 8,160.
	}
	return out
}

// TicketKeys are the keys of one site at one time: the former ones that still
// open tickets, the one that makes them, and the next, by From. The next is
// there early, so that an edge server whose clock is ahead, or which the key
// server cannot reach for a while, has it.
type TicketKeys struct {
	// Site is the site's name in the key server's policy.
	Site string
	Keys []TicketKey
}

// TicketTag stands for what a TicketKeys holds: two that differ have different
// tags. The zero value is that of none.
type TicketTag [8]byte

// Tag returns the tag of t.
func (t *TicketKeys) Tag() (tag TicketTag) {
	h := sha256.New()
	h.Write([]byte(t.Site))
	for i := range t.Keys {
		k := &t.Keys[i]
		h.Write(k.ID[:])
		for _, at := range []time.Time{k.From, k.To, k.Until} {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(at.Unix())))
		}
	}
	copy(tag[:], h.Sum(nil))
	return tag
}

// Clear forgets the secrets.
func (t *TicketKeys) Clear() {
	for i := range t.Keys {
		clear(t.Keys[i].Secret[:])
	}
}

// Validate reports what is wrong with t, as a *MalformedError.
func (t *TicketKeys) Validate() error {
	switch {
	case !ValidTicketSite(t.Site):
		return malformed("site", "is not a name")
	case len(t.Keys) == 0 || len(t.Keys) > MaxTicketKeys:
		return malformed("keys", "are none or too many")
	}
	for i := range t.Keys {
		k := &t.Keys[i]
		switch {
		case !k.From.Before(k.To) || k.Until.Before(k.To):
			return malformed("keys", "have times in the wrong order")
		case k.From.Unix() < 0 || k.Until.Unix() > maxTicketTime:
			return malformed("keys", "have a time out of range")
		case k.To.Sub(k.From) > MaxTicketKeyTime || k.Until.Sub(k.To) > MaxTicketKeyTime:
			return malformed("keys", "are good for too long")
		case slices.ContainsFunc(t.Keys[:i], func(o TicketKey) bool { return o.ID == k.ID }):
			return malformed("keys", "have an id twice")
		case i > 0 && k.From.Before(t.Keys[i-1].From):
			return malformed("keys", "are not in their order")
		}
	}
	return nil
}

// maxTicketTime bounds a time, in seconds since 1970, so that nothing that is
// computed of it overflows.
const maxTicketTime = 1 << 40

// ValidTicketSite reports whether a text can be the name of a ticket site: 1 to
// MaxTicketSite letters, digits and other printable ASCII, without spaces.
func ValidTicketSite(name string) bool {
	return len(name) > 0 && len(name) <= MaxTicketSite &&
		!slices.ContainsFunc([]byte(name), func(b byte) bool { return b <= ' ' || b > '~' })
}

// TicketHandler is a Handler that hands out ticket keys too. It is called by
// many goroutines at once, and never returns nil.
type TicketHandler interface {
	Handler
	// ServeTickets returns the keys of a site as they are now. have is the tag of
	// those that the peer has.
	ServeTickets(ctx context.Context, peer Peer, site string, have TicketTag) *TicketAnswer
}

// TicketAnswer is what a TicketHandler has to say. Exactly one of Keys, Same and
// Error is set.
type TicketAnswer struct {
	// Keys belong to the caller, which clears them.
	Keys *TicketKeys
	// Same says that the peer has the keys already.
	Same bool
	// Error is why there are none. RequestDenied without RetryAfter takes from
	// the peer those that it has.
	Error Error
	// RetryAfter is when to ask again where a limit refused, or where the key server
	// is Overloaded.
	RetryAfter time.Duration
	// Overloaded is that of a Response.
	Overloaded bool
	// Changed is closed when others may have an answer that differs. Next is when
	// the keys change by themselves. Both are set unless there is an Error.
	Changed <-chan struct{}
	Next    time.Time
}

// TicketSource is a Transport that can get ticket keys.
type TicketSource interface {
	// WatchTickets calls update, from its own goroutine, with the keys that the key
	// server has for a site, and again whenever they change. What it is called
	// with is its own to keep and to clear. It returns when ctx ends or the key
	// server is lost. An error that is RequestDenied (errors.Is) takes the keys
	// back: they are not to be used any more. After any other they are good until
	// they expire.
	WatchTickets(ctx context.Context, site string, update func(*TicketKeys)) error
}

// ErrNoTickets says that a key server, or the binding to it, has no ticket keys.
var ErrNoTickets = errors.New("ski: this key server hands out no ticket keys")

// WatchTickets watches the key servers one after the other, those that answer
// first, and returns when each has been lost or one has denied the keys.
func (c *Client) WatchTickets(ctx context.Context, site string, update func(*TicketKeys)) error {
	members := slices.Clone(c.pool())
	slices.SortStableFunc(members, func(a, b *member) int { return rank(a) - rank(b) })
	var lost error = ErrNoTickets
	for _, m := range members {
		source, ok := m.transport.(TicketSource)
		if !ok {
			continue
		}
		err := source.WatchTickets(ctx, site, update)
		if err == nil || ctx.Err() != nil || errors.Is(err, RequestDenied) {
			return err
		}
		lost = err
	}
	return lost
}

func rank(m *member) int {
	if m.answers() {
		return 0
	}
	return 1
}

// WatchTickets asks the Handler.
func (d *direct) WatchTickets(ctx context.Context, site string, update func(*TicketKeys)) error {
	h, ok := d.handler.(TicketHandler)
	if !ok {
		return ErrNoTickets
	}
	var have TicketTag
	for {
		a := h.ServeTickets(ctx, d.peer, site, have)
		wait := time.Until(a.Next)
		switch {
		case a.Error != "" && a.RetryAfter == 0:
			return a.Error
		case a.Error != "":
			wait = a.RetryAfter
		case !a.Same:
			have = a.Keys.Tag()
			update(a.Keys)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-a.Changed:
		case <-timer.C:
		}
		timer.Stop()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
