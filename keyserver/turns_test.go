package keyserver

import (
	"context"
	"crypto/tls"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// queue has operations of edges ask for their turn one after the other, while
// another is at work, and returns what became of them, in order: the edge's
// name for a turn, "!" and the name for a refusal.
func queue(t *testing.T, tu *turns, edges string) string {
	t.Helper()
	var came []string
	synctest.Test(t, func(t *testing.T) {
		require.NoError(t, tu.begin(t.Context(), "first"))
		events := make(chan string, len(edges))
		for _, edge := range strings.Split(edges, "") {
			go func() {
				if err := tu.begin(t.Context(), edge); err != nil {
					edge = "!" + edge
				}
				events <- edge
			}()
			synctest.Wait()
		}
		drain := func() {
			synctest.Wait()
			for len(events) > 0 {
				came = append(came, <-events)
			}
		}
		drain()
		for tu.waits() > 0 {
			tu.end(0)
			drain()
		}
		tu.end(0)
		require.Equal(t, 1, tu.free, "as at the start")
		require.Empty(t, tu.queues)
	})
	return strings.Join(came, " ")
}

func TestTurnsGoRoundTheEdges(t *testing.T) {
	for edges, want := range map[string]string{
		"aaa":     "a a a",
		"aaaab":   "a b a a a",
		"aaabbc":  "a b c a b a",
		"aaaabcb": "a b c a b a a",
	} {
		require.Equal(t, want, queue(t, &turns{free: 1, parallel: 1, room: 10, patience: time.Hour}, edges), edges)
	}
}

// Who has the most waiting gives way.
func TestAFullQueueHasRoomForAnotherEdge(t *testing.T) {
	for edges, want := range map[string]string{
		"aaaaa":     "!a a a a a",
		"aaaab":     "!a a b a a",
		"aaaabbb":   "!a !a !b a b a b",
		"aaabcd":    "!a !a a b c d",
		"abcde":     "!e a b c d",
		"aaaabaaaa": "!a !a !a !a !a a b a a",
	} {
		require.Equal(t, want, queue(t, &turns{free: 1, parallel: 1, room: 4, patience: time.Hour}, edges), edges)
	}
}

// Who waits no longer leaves nothing behind, be it that the turn comes at that
// moment.
func TestTurnsOfThoseWhoHaveGone(t *testing.T) {
	tu := &turns{free: 1, parallel: 1, room: 100, patience: time.Hour}
	require.NoError(t, tu.begin(t.Context(), "a"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	for _, edge := range strings.Split("aabbccddee", "") {
		go func() {
			err := tu.begin(ctx, edge)
			if err == nil {
				tu.end(0)
			}
			ended <- err
		}()
	}
	require.Eventually(t, func() bool { return tu.waits() == 10 }, time.Minute, time.Millisecond)
	go cancel()
	tu.end(0)
	for range 10 {
		if err := <-ended; err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
	}
	require.Equal(t, 1, tu.free)
	require.Zero(t, tu.waits())
	require.Empty(t, tu.queues)
}

// load has operations of an edge, each of which takes cost, ask for their turn, and
// returns how long each has waited; those that were refused have -1.
type load struct {
	tu   *turns
	cost time.Duration

	mu      sync.Mutex
	waited  []time.Duration
	refused int
	late    time.Duration // the longest that one waited to be refused
	running sync.WaitGroup
}

func (l *load) ask(ctx context.Context, edge string, n int) {
	for range n {
		l.running.Go(func() {
			began := time.Now()
			err := l.tu.begin(ctx, edge)
			waited := time.Since(began)
			l.mu.Lock()
			if err == nil {
				l.waited = append(l.waited, waited)
			} else {
				l.refused++
				l.late = max(l.late, waited)
			}
			l.mu.Unlock()
			if err == nil {
				time.Sleep(l.cost)
				l.tu.end(l.cost)
			}
		})
	}
}

// warm has the turns know what an operation takes.
func (l *load) warm(ctx context.Context) {
	l.ask(ctx, "warm", 2*enough)
	l.running.Wait()
	l.waited = nil
}

// 0.8 s of work are done, whatever number of operations that is.
func TestABurstIsServedWhole(t *testing.T) {
	for _, known := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := &load{tu: newTurns(1, DefaultMaxWait), cost: 1600 * time.Microsecond}
			if known {
				l.warm(t.Context())
			}
			l.ask(t.Context(), "edge", 500)
			l.running.Wait()
			require.Len(t, l.waited, 500)
			require.Equal(t, 499*l.cost, slices.Max(l.waited))
			require.Equal(t, 1, l.tu.free)
			require.Empty(t, l.tu.queues)
		})
	}
}

// Whoever is refused learns so while there is time to ask elsewhere.
func TestWhatWouldWaitTooLongIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &load{tu: newTurns(1, 2*time.Second), cost: 10 * time.Millisecond}
		l.warm(t.Context())
		l.ask(t.Context(), "edge", 1000)
		synctest.Wait()
		require.InDelta(t, 800, l.refused, 5)
		l.running.Wait()
		require.InDelta(t, 800, l.refused, 5)
		require.Zero(t, l.late)
		require.LessOrEqual(t, slices.Max(l.waited), 2*time.Second)
	})
}

// While nothing is known of what operations take, they wait as long as any may.
func TestNothingWaitsForLongerThanItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &load{tu: newTurns(1, 2*time.Second), cost: time.Second}
		l.ask(t.Context(), "edge", 10)
		l.running.Wait()
		require.InDelta(t, 7, l.refused, 1)
		require.Equal(t, 2*time.Second, l.late)
	})
}

// Twice as much is asked for as can be done, for a minute. All the time as much is
// done as can be, and after the first seconds it is done for edges that still wait.
func TestWhatIsTooMuchForLongIsNotServedLate(t *testing.T) {
	for _, edges := range []int{1, 10, 100000} {
		testTooMuch(t, edges)
	}
}

func testTooMuch(t *testing.T, edges int) {
	n := 0
	edge := func() string { // one after the other
		n++
		return strconv.Itoa(n % edges)
	}
	synctest.Test(t, func(t *testing.T) {
		l := &load{tu: newTurns(1, 4*time.Second), cost: 5 * time.Millisecond}
		l.warm(t.Context())
		begun := time.Now()
		for time.Since(begun) < 10*time.Second {
			l.ask(t.Context(), edge(), 1)
			l.ask(t.Context(), edge(), 1)
			time.Sleep(l.cost)
		}
		synctest.Wait()
		early := len(l.waited)
		for time.Since(begun) < time.Minute {
			l.ask(t.Context(), edge(), 1)
			l.ask(t.Context(), edge(), 1)
			time.Sleep(l.cost)
		}
		l.running.Wait()
		late := l.waited[early:]
		require.InDelta(t, 50*200, len(late), 250)
		require.LessOrEqual(t, slices.Max(late), 5*time.Second/4, "a quarter, as far as it can be told")
		// And a burst waits again once there has been a pause.
		l.waited = nil
		l.ask(t.Context(), edge(), 700)
		l.running.Wait()
		require.Len(t, l.waited, 700)
	})
}

func TestOneEdgesBurstLeavesAnothersOperationsTheirTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		greedy := &load{tu: newTurns(1, 4*time.Second), cost: time.Millisecond}
		modest := &load{tu: greedy.tu, cost: greedy.cost}
		greedy.warm(t.Context())
		greedy.ask(t.Context(), "greedy", 5000)
		synctest.Wait()
		require.Positive(t, greedy.refused)
		for range 100 {
			modest.ask(t.Context(), "modest", 1)
			modest.running.Wait()
		}
		greedy.running.Wait()
		require.Zero(t, modest.refused)
		require.LessOrEqual(t, slices.Max(modest.waited), 2*greedy.cost)
	})
}

// What is refused because of it could be served: so the cost is rather too little
// than too much.
func TestAnOperationThatTookLongIsSoonForgotten(t *testing.T) {
	var c cost
	c.note(time.Second) // a cold start
	require.Zero(t, c.of(1000), "of one, nothing is known")
	for range 100 {
		c.note(time.Millisecond)
	}
	require.InDelta(t, time.Millisecond, c.of(1), float64(10*time.Microsecond))
	c.note(time.Hour) // a device was away
	require.Less(t, c.of(1), 1100*time.Microsecond)
	for range 200 { // other keys
		c.note(10 * time.Millisecond)
	}
	require.InDelta(t, 10*time.Millisecond, c.of(1), float64(time.Millisecond))
}

func BenchmarkTurns(b *testing.B) {
	for _, waiting := range []int{0, 1, 100, 2000} {
		b.Run(strconv.Itoa(waiting), func(b *testing.B) {
			tu := newTurns(1, time.Hour)
			for range min(waiting, 1) {
				require.NoError(b, tu.begin(b.Context(), "first"))
			}
			for i := range waiting {
				_, err := tu.enter("edge" + strconv.Itoa(i%20))
				require.NoError(b, err)
			}
			for b.Loop() {
				if one, _ := tu.enter("edge1"); one == nil && waiting > 0 {
					b.Fatal("refused")
				}
				tu.end(time.Microsecond)
			}
		})
	}
}

// What an edge asks of P-384 and P-521 takes as long as RSA, and has its turns
// with it: it cannot take the processors from the others.
func TestSlowCurvesHaveTheirTurns(t *testing.T) {
	keys := testKeys()
	slow := func(name string) *ski.Request {
		r := grantedRequest(keys)
		r.SPKI = keys.id(name)
		return r
	}
	pms := func(group tls.CurveID) *ski.Request {
		return &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256, Method: ski.MethodECDHEPMS, Group: group, Input: randoms()}
	}
	granted := func(o *Options) {
		p, err := ParsePolicy("policy.yaml", []byte(strings.ReplaceAll(testPolicy, "[ECDHE, RSA]", "[ECDHE, RSA, ECDHE-PMS]")), keys)
		require.NoError(t, err)
		p.detectors = detectorRules{}
		o.Policy = p
	}
	s := newTestServer(t, keys, granted, func(o *Options) { o.RSAWorkers = 1 })
	s.schedule.rsa.patience = time.Millisecond
	require.NoError(t, s.schedule.rsa.begin(t.Context(), "another")) // the only worker is busy
	for name, req := range map[string]*ski.Request{
		"P-384 key": slow(p384), "P-521 key": slow(p521),
		"P-384 group": pms(tls.CurveP384), "P-521 group": pms(tls.CurveP521),
	} {
		resp, rec := s.ask(edgePeer, req)
		assert.Equal(t, ski.UnspecifiedError, resp.Error, name)
		assert.Equal(t, map[string]uint64{limitServer: 1}, rec.Refused, name)
	}
	for name, req := range map[string]*ski.Request{
		"P-256 key": slow(p256), "P-256 group": pms(tls.CurveP256), "X25519 group": pms(tls.X25519),
	} {
		resp, _ := s.ask(edgePeer, req)
		assert.Empty(t, resp.Error, name)
	}
}

// A state is not used up by an exchange that does not get its turn.
func TestAStateOutlastsAnExchangeWithoutATurn(t *testing.T) {
	keys := testKeys()
	p, err := ParsePolicy("policy.yaml", []byte(strings.ReplaceAll(testPolicy, "[ECDHE, RSA]", "[ECDHE, RSA, ECDHE-PMS]")), keys)
	require.NoError(t, err)
	p.detectors = detectorRules{}
	s := newTestServer(t, keys, func(o *Options) { o.Policy, o.RSAWorkers = p, 1 })
	s.schedule.rsa.patience = time.Millisecond
	first, _ := s.ask(edgePeer, &ski.Request{
		Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256, Method: ski.MethodECDHEPMS, Group: tls.CurveP384, Input: randoms(),
	})
	require.Empty(t, first.Error)
	second := &ski.Request{
		Protocol: ski.TLS12, SPKI: keys.id(p256), Method: ski.MethodECDHEPMS, State: first.State, Input: basePoint(secp384r1),
	}
	require.NoError(t, s.schedule.rsa.begin(t.Context(), "another"))
	s.exceeds(limitServer, edgePeer, second)
	s.schedule.rsa.end(0)
	resp, _ := s.ask(edgePeer, second)
	require.Empty(t, resp.Error)
	require.Len(t, resp.Output, 48)
}
