package skicoap

import (
	"slices"
	"time"
)

// When a request is sent again, and how much a session may send again. RFC 7252,
// Section 4.8 has other values, for peers that know nothing of their network;
// docs/design/0027-loss-and-refusal.md has the reasons for these.
const (
	// maxPause is the longest pause between two sendings of a request, unless a
	// round trip takes longer: 12 of them and an answer fit ski.DefaultTimeout for
	// round trips of up to 300 ms.
	maxPause = 350 * time.Millisecond
	// maxTransmitSpan is for how long a request is sent again: MAX_TRANSMIT_SPAN
	// of RFC 7252, Section 4.8.2. The key server remembers it for longer.
	maxTransmitSpan = 45 * time.Second

	// A session may send one datagram again in each retransmission time-out, and
	// perAnswer more for each answer. It saves up firstCredit of the former and
	// maxCredit in all, a quarter of the default MaxInFlight.
	firstCredit = 10
	perAnswer   = 2
	maxCredit   = 128
)

// schedule says when a request is sent again. It is what was known of the round
// trips when the request was sent for the first time.
type schedule struct {
	rto  time.Duration // the retransmission time-out
	srtt time.Duration // the smoothed round-trip time; 0: unknown
}

// after returns the pause after a request was sent n times. It doubles from the
// second on: of two that are lost, the network is rarely to blame for more than
// chance, and an answer is still there within four round trips.
func (s schedule) after(n int) time.Duration {
	if n == 1 {
		return s.rto
	}
	const enough = 8 // doublings
	return min(s.rto<<min(n-2, enough), max(maxPause, s.srtt))
}

// credit is how many datagrams a session may send again now. The zero value is
// ready to use.
type credit struct {
	left  float64
	taken time.Time // when it was last asked for one
}

// answered takes in an answer. It shows that the path carries something.
func (c *credit) answered() { c.left = min(c.left+perAnswer, maxCredit) }

// heard takes in the first message after a time-out's silence: the path carries
// again, and gets what a new one would (RFC 5681, Section 4.1). The answers to that
// give the rest.
func (c *credit) heard() { c.left = max(c.left, firstCredit) }

// take takes one and reports whether there was one.
func (c *credit) take(now time.Time, rto time.Duration) bool {
	if c.left < firstCredit {
		c.left = min(c.left+float64(now.Sub(c.taken))/float64(rto), firstCredit)
	}
	c.taken = now
	if c.left < 1 {
		return false
	}
	c.left--
	return true
}

// overdue returns the requests that are sent again now, those first that have
// waited for it the longest, and before them a probe of the path: where that loses
// long requests, they wait for it. It is called with s.mu held.
func (s *clientSession) overdue(now time.Time) []*call {
	var due []*call
	for _, c := range s.calls {
		if c.overdue(now) {
			due = append(due, c)
		}
	}
	slices.SortFunc(due, func(a, b *call) int {
		switch s.probing {
		case a:
			return -1
		case b:
			return 1
		}
		return a.next.Compare(b.next)
	})
	for i, c := range due {
		if !s.credit.take(now, s.rtt.timeout()) {
			return due[:i]
		}
		c.sentAt(now)
	}
	return due
}

// overdue reports whether the request is to be sent again.
func (c *call) overdue(now time.Time) bool {
	return !c.accepted && !now.Before(c.next) && now.Sub(c.began) <= maxTransmitSpan
}

// sentAt notes that the request is sent.
func (c *call) sentAt(now time.Time) {
	c.sent++
	c.next = now.Add(c.schedule.after(c.sent))
}
