package skicoap

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// attempts returns how often a request is sent so that the answer is there, a
// round trip later, when the deadline comes.
func attempts(s schedule, roundTrip, deadline time.Duration) int {
	n := 1
	for at := s.after(n); at+roundTrip <= deadline; at += s.after(n) {
		n++
	}
	return n
}

// Of requests that are lost one time in five each way, less than one in 200,000
// is lost twelve times.
func TestTwelveAttemptsFitTheDeadlineHoweverTheRoundTripsVary(t *testing.T) {
	for srtt := time.Duration(0); srtt <= 300*time.Millisecond; srtt += time.Millisecond {
		for rttvar := time.Duration(0); rttvar <= 2*time.Second; rttvar += 5 * time.Millisecond {
			r := roundTrips{srtt: srtt, rttvar: rttvar}
			require.GreaterOrEqual(t, attempts(r.schedule(), srtt, ski.DefaultTimeout), 12, "%s, varying by %s", srtt, rttvar)
		}
	}
	// Where round trips are longer the network would have to carry more than one
	// datagram of the request at a time (RFC 8085, Section 3.1.3).
	for _, long := range []struct {
		roundTrip time.Duration
		attempts  int
	}{{400 * time.Millisecond, 12}, {600 * time.Millisecond, 8}, {time.Second, 5}} {
		r := roundTrips{srtt: long.roundTrip}
		assert.Equal(t, long.attempts, attempts(r.schedule(), long.roundTrip, ski.DefaultTimeout), long.roundTrip)
	}
}

func TestARequestIsNotSentAgainBeforeAnAnswerCouldBeThere(t *testing.T) {
	for srtt := time.Millisecond; srtt < 2*time.Second; srtt += 7 * time.Millisecond {
		r := roundTrips{srtt: srtt}
		for n := range 200 {
			require.GreaterOrEqual(t, r.schedule().after(n+1), srtt, "after %d", n+1)
		}
	}
}

func TestRetransmissionsFallOffToAFixedPause(t *testing.T) {
	s, at := schedule{rto: 50 * time.Millisecond}, []time.Duration{}
	for n, now := 1, time.Duration(0); n < 10; n++ {
		now += s.after(n)
		at = append(at, now/time.Millisecond)
	}
	assert.Equal(t, []time.Duration{50, 100, 200, 400, 750, 1100, 1450, 1800, 2150}, at, "milliseconds")
}

// lost is a run of requests, one after the other, over a path that loses some. It
// returns how long each took that was answered within the deadline.
func lost(n int, roundTrip time.Duration, each float64) (took []time.Duration, sent int) {
	random := rand.New(rand.NewPCG(3, 4))
	var r roundTrips
	r.measured(roundTrip)
	for range n {
		s, at, times := r.schedule(), time.Duration(0), 1
		for random.Float64() > (1-each)*(1-each) {
			at += s.after(times)
			times++
		}
		sent += times
		if at+roundTrip > ski.DefaultTimeout {
			continue
		}
		took = append(took, at+roundTrip+time.Duration(random.Float64()*float64(roundTrip)/20))
		r.answered(took[len(took)-1], times > 1)
	}
	slices.Sort(took)
	return took, sent
}

// When two in a hundred datagrams or more are lost, a request in a hundred is
// lost twice: its answer has to be there within four round trips.
func TestARequestThatIsLostTwiceTakesLessThanFourRoundTrips(t *testing.T) {
	const roundTrip = 100 * time.Millisecond
	took, _ := lost(20_000, roundTrip, 0.05)
	assert.Less(t, took[len(took)*99/100], 4*roundTrip)
	assert.Less(t, took[len(took)*995/1000], 4*roundTrip, "not by chance")
}

func TestAtAFifthLostEachWayRequestsAreAnsweredWithinTheDeadline(t *testing.T) {
	for _, roundTrip := range []time.Duration{200 * time.Microsecond, 50 * time.Millisecond, 300 * time.Millisecond} {
		const n = 50_000
		took, sent := lost(n, roundTrip, 0.2)
		assert.Len(t, took, n, "answered, with a round trip of %s", roundTrip)
		assert.InDelta(t, 1/0.64, float64(sent)/n, 0.02, "datagrams for each request")
	}
}

// sessionWith returns a session on which n requests wait that were sent now.
func sessionWith(t *testing.T, n int, now time.Time) *clientSession {
	t.Helper()
	s := &clientSession{calls: map[uint32]*call{}}
	s.rtt.measured(time.Millisecond)
	for i := range uint32(n) {
		c := &call{token: i, began: now, schedule: s.rtt.schedule(), done: make(chan outcome, 1)}
		c.sentAt(now)
		s.calls[i] = c
	}
	return s
}

// A path that has failed gets one datagram in each time-out beside the first few,
// however many requests wait.
func TestASessionWithoutAnswersSendsLittleAgain(t *testing.T) {
	began := time.Unix(1e9, 0)
	for _, n := range []int{1, 12, 512} {
		s := sessionWith(t, n, began)
		again := 0
		for after := time.Duration(0); after < ski.DefaultTimeout; after += tick {
			again += len(s.overdue(began.Add(after)))
			most := firstCredit + int(after/minRTO)
			require.LessOrEqual(t, again, most, "%d requests, after %s", n, after)
		}
		if n == 1 {
			assert.GreaterOrEqual(t, 1+again, 12, "a single request has all its attempts")
		}
	}
}

// The credit that answers give is bounded, too.
func TestASessionThatLosesItsPathSendsAQuarterOfItsRequestsAgain(t *testing.T) {
	began := time.Unix(1e9, 0)
	s := sessionWith(t, 512, began)
	for range 10_000 {
		s.credit.answered()
	}
	again := 0
	for after := time.Duration(0); after < time.Second; after += tick {
		again += len(s.overdue(began.Add(after)))
	}
	assert.LessOrEqual(t, again, maxCredit+int(time.Second/minRTO))
	assert.GreaterOrEqual(t, again, maxCredit)
}

// After a silence the first sign of life, which need not be an answer, is enough to
// have as many requests sent again as in the beginning, and no more.
func TestAPathThatCarriesAgainIsMadeUseOf(t *testing.T) {
	began := time.Now().Add(-time.Second)
	s := sessionWith(t, 512, began)
	s.heard = began
	now := began
	for ; now.Before(began.Add(990 * time.Millisecond)); now = now.Add(tick) {
		s.overdue(now)
	}
	require.LessOrEqual(t, len(s.overdue(now)), 1)
	pong := &message.Message{Type: message.Reset, Code: codes.Empty, MessageID: 1}
	s.receive(pong)
	assert.InDelta(t, firstCredit, len(s.overdue(now)), 1)
	s.receive(pong)
	assert.Empty(t, s.overdue(now), "the next one says nothing new")
}

// While answers come, no request that is lost waits for another: all 512 that can
// be in flight are answered in time although a fifth is lost each way.
func TestAFullSessionIsAnsweredWithAFifthLostEachWay(t *testing.T) {
	const n = 512
	random := rand.New(rand.NewPCG(5, 6))
	arrives := func() bool { return random.Float64() < 0.8*0.8 }
	began := time.Unix(1e9, 0)
	s := sessionWith(t, n, began)
	answer := func(token uint32, now time.Time) {
		if c := s.calls[token]; c != nil && arrives() {
			s.rtt.answered(now.Sub(c.began), c.sent > 1)
			s.credit.answered()
			delete(s.calls, token)
		}
	}
	for token := range uint32(n) {
		answer(token, began.Add(time.Millisecond))
	}
	again := 0
	for after := time.Duration(0); after < ski.DefaultTimeout; after += tick {
		for _, c := range s.overdue(began.Add(after)) {
			again++
			answer(c.token, began.Add(after+time.Millisecond))
		}
	}
	assert.Empty(t, s.calls, "not answered")
	assert.Less(t, again, 2*n)
}

// The key server remembers a request for as long as it can come again.
func TestNothingIsSentAgainThatTheKeyServerHasForgotten(t *testing.T) {
	began := time.Unix(1e9, 0)
	s := sessionWith(t, 1, began)
	last := time.Duration(0)
	for after := time.Duration(0); after < 5*time.Minute; after += tick {
		if len(s.overdue(began.Add(after))) > 0 {
			last = after
		}
	}
	assert.Greater(t, last, maxTransmitSpan-time.Second)
	assert.Less(t, last, rememberFor-10*time.Second)
}
