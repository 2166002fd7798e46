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

// timeout returns how long to wait for an answer.
func (r *roundTrips) timeout() time.Duration {
	if r.srtt == 0 {
		return firstRTO
	}
	return min(max(r.srtt+4*r.rttvar, minRTO), maxRTO)
}
