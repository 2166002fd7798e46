package skicoap

import "time"

// The bounds of the retransmission time-out.
const (
	// firstRTO is for want of a measurement. A client has one from the
	// handshake.
	firstRTO = 250 * time.Millisecond
	// minRTO keeps the noise of two busy machines from being taken for loss;
	// RFC 6298 has 1 s for want of finer clocks.
	minRTO = 50 * time.Millisecond
	maxRTO = 2 * time.Second
)

// roundTrips estimates the time after which an answer is overdue (RFC 6298,
// Section 2). The zero value is ready to use.
type roundTrips struct {
	srtt, rttvar time.Duration
	unclear      int // answers to requests that were sent more than once, in a row
}

// manyUnclear is how many such answers in a row mean that the key server has
// become slow, and not that the network loses something.
const manyUnclear = 8

// answered takes the answer to a request into account. If that was sent again,
// nobody knows which of the two was answered, so that it does not count (Karn's
// algorithm): at some loss the time-out would be half as long again. But if
// no other answers come, these have to, a little at a time: each request would be
// sent twice for ever.
func (r *roundTrips) answered(took time.Duration, resent bool) {
	if !resent {
		r.unclear = 0
	} else if r.unclear++; r.unclear < manyUnclear {
		return
	}
	r.measured(min(took, 2*r.timeout()))
}

// measured takes a round trip into account.
func (r *roundTrips) measured(rtt time.Duration) {
	if r.srtt == 0 {
		r.srtt, r.rttvar = rtt, rtt/2
		return
	}
	r.rttvar += ((r.srtt - rtt).Abs() - r.rttvar) / 4
	r.srtt += (rtt - r.srtt) / 8
}

// schedule returns when a request is sent again that is sent now.
func (r *roundTrips) schedule() schedule { return schedule{rto: r.timeout(), srtt: r.srtt} }

// timeout returns how long to wait for an answer. What answers vary by is bounded:
// those to requests that were sent again make it look like more than it is.
func (r *roundTrips) timeout() time.Duration {
	if r.srtt == 0 {
		return firstRTO
	}
	return min(max(r.srtt+min(4*r.rttvar, maxPause), minRTO), maxRTO)
}
