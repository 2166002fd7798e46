package ski_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// slowServer answers after a time, or fails while it is down.
type slowServer struct {
	takes atomic.Int64 // a time.Duration
	down  atomic.Bool
	calls atomic.Int64
}

func takes(d time.Duration) *slowServer {
	s := new(slowServer)
	s.takes.Store(int64(d))
	return s
}

func (s *slowServer) RoundTrip(ctx context.Context, _ *ski.Request) (*ski.Response, error) {
	s.calls.Add(1)
	if s.down.Load() {
		return nil, errRefused
	}
	select {
	case <-time.After(time.Duration(s.takes.Load())):
		return &ski.Response{Output: []byte("signature")}, nil
	case <-ctx.Done():
		return nil, &ski.TransportError{Endpoint: "coaps://ks", Op: "request", Err: ctx.Err()}
	}
}

// seen collects what a Client reports.
type seen struct {
	mu       sync.Mutex
	attempts []ski.Attempt
	health   []ski.Health
}

func (s *seen) watch(c *ski.Client) *ski.Client {
	c.OnAttempt = func(a ski.Attempt) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.attempts = append(s.attempts, a)
	}
	c.OnHealth = func(h ski.Health) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.health = append(s.health, h)
	}
	return c
}

func (s *seen) count(kind ski.AttemptKind) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.attempts {
		if a.Kind == kind {
			n++
		}
	}
	return n
}

func ask(t *testing.T, c *ski.Client) time.Duration {
	t.Helper()
	start := time.Now()
	resp, err := c.RoundTrip(t.Context(), request())
	require.NoError(t, err)
	require.Equal(t, answer.Output, resp.Output)
	return time.Since(start)
}

func TestRoundRobinAsksEachThatAnswersEquallyOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, gone, d := takes(0), takes(0), takes(0), takes(0)
		gone.down.Store(true)
		c := &ski.Client{Transports: []ski.Transport{a, b, gone, d}, Balance: ski.RoundRobin}
		defer c.Close()
		for range 303 { // less than a second in the bubble: no trial
			ask(t, c)
		}
		assert.EqualValues(t, 1, gone.calls.Load())
		for _, s := range []*slowServer{a, b, d} {
			assert.InDelta(t, 101, s.calls.Load(), 2)
		}
	})
}

func TestLeastLatencyAsksTheFasterAndForgivesTheSlower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := takes(2*time.Millisecond), takes(40*time.Millisecond)
		c := &ski.Client{Transports: []ski.Transport{far, near}, Balance: ski.LeastLatency}
		defer c.Close()
		second := func() (n, f int64) {
			n, f = near.calls.Load(), far.calls.Load()
			for end := time.Now().Add(time.Second); time.Now().Before(end); {
				ask(t, c)
			}
			return near.calls.Load() - n, far.calls.Load() - f
		}
		n, f := second()
		assert.Greater(t, n, 50*f)

		near.takes.Store(int64(300 * time.Millisecond))
		second() // finds out
		n, f = second()
		assert.Greater(t, f, 10*n, "%d %d", n, f)

		near.takes.Store(int64(2 * time.Millisecond))
		require.Eventually(t, func() bool { n, f := second(); return n > 10*f }, 5*time.Minute, time.Millisecond)
	})
}

func TestLeastLatencySpreadsWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := takes(10*time.Millisecond), takes(10*time.Millisecond)
		c := &ski.Client{Transports: []ski.Transport{a, b}, Balance: ski.LeastLatency}
		defer c.Close()
		for range 20 {
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() { ask(t, c) })
			}
			all.Wait()
		}
		assert.InDelta(t, 100, a.calls.Load(), 25)
		assert.EqualValues(t, 200, a.calls.Load()+b.calls.Load())
	})
}

func TestAKeyServerThatFailsIsAskedLastAndFoundWhenItIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := takes(0), takes(time.Millisecond)
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{first, second}})
		defer c.Close()
		first.down.Store(true)
		for range 30_000 { // 30 seconds
			assert.Equal(t, time.Millisecond, ask(t, c), "no request waits for the one that is down")
		}
		require.Len(t, seen.health, 1)
		assert.False(t, seen.health[0].Answers)
		assert.ErrorIs(t, seen.health[0].Err, errRefused)
		assert.Equal(t, "#0", seen.health[0].Endpoint)
		assert.Equal(t, 1, seen.count(ski.FailoverAttempt))
		// After 1, 2, 4, 8, then every 10 seconds, each up to a half shorter.
		assert.InDelta(t, 5, seen.count(ski.TrialAttempt), 3)

		first.down.Store(false)
		back := time.Now()
		for first.calls.Load() < 100 && time.Since(back) < time.Minute {
			ask(t, c)
		}
		assert.Less(t, time.Since(back), 11*time.Second)
		require.Len(t, seen.health, 2)
		assert.True(t, seen.health[1].Answers)
		assert.InDelta(t, 30*time.Second, seen.health[1].Down, float64(11*time.Second))
	})
}

func TestASilentKeyServerCostsOneRequestItsShareOfTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := takes(time.Hour), takes(time.Millisecond)
		c := &ski.Client{Transports: []ski.Transport{first, second}, Timeout: 4 * time.Second}
		defer c.Close()
		assert.Equal(t, 2*time.Second+time.Millisecond, ask(t, c))
		for range 10_000 {
			assert.Equal(t, time.Millisecond, ask(t, c))
		}
	})
}

func TestUnspecifiedErrorsInARowAreNoHealth(t *testing.T) {
	one := &fakeServer{f: func(_ context.Context, call int) (*ski.Response, error) {
		if call == 3 { // Now and then one key cannot be used.
			return ski.Failed(ski.RequestDenied), nil
		}
		return ski.Failed(ski.UnspecifiedError), nil
	}}
	var seen seen
	c := seen.watch(&ski.Client{Transports: []ski.Transport{one}})
	for range 5 {
		_, err := c.RoundTrip(t.Context(), request())
		require.NoError(t, err)
	}
	assert.Empty(t, seen.health)
	_, err := c.RoundTrip(t.Context(), request())
	require.NoError(t, err)
	require.Len(t, seen.health, 1)
	assert.ErrorIs(t, seen.health[0].Err, ski.UnspecifiedError)
}

func TestWhatTheCallerGivesUpIsNotTheKeyServersFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{takes(time.Second), takes(time.Second)}})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		_, err := c.RoundTrip(ctx, request())
		assert.ErrorIs(t, err, context.Canceled)
		assert.Empty(t, seen.health)
		require.Len(t, seen.attempts, 1)
		assert.Equal(t, "canceled", seen.attempts[0].Outcome())
	})
}

// A TLS client that sends its ClientKeyExchange as late as it may decides how
// little time is left for the answer.
func TestWhatHasNoTimeLeftIsNotTheKeyServersFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen seen
		first, second := takes(100*time.Millisecond), takes(100*time.Millisecond)
		c := seen.watch(&ski.Client{Transports: []ski.Transport{first, second}})
		defer c.Close()
		for _, left := range []time.Duration{time.Millisecond, 150 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), left)
			_, err := c.RoundTrip(ctx, request())
			assert.ErrorIs(t, err, context.DeadlineExceeded)
			cancel()
		}
		assert.Empty(t, seen.health)
		assert.Equal(t, "timeout", seen.attempts[0].Outcome())

		first.takes.Store(int64(time.Hour))
		ask(t, c)
		assert.Len(t, seen.health, 1, "this one had")
	})
}

func TestReplaceKeepsWhatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second, third := takes(0), takes(0), takes(0)
		first.down.Store(true)
		c := &ski.Client{Transports: []ski.Transport{first, second}}
		defer c.Close()
		ask(t, c)
		c.Replace([]ski.Transport{first, third})
		ask(t, c)
		assert.EqualValues(t, 1, first.calls.Load(), "it is known to be down")
		assert.EqualValues(t, 1, second.calls.Load())
		assert.EqualValues(t, 1, third.calls.Load())
	})
}

// One answer in 33 is slow: more than the cap, so that it has something to do.
func TestSlowAnswersAreHedgedUpToTheCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const requests, every, maxExtra = 3300, 33, 0.02
		var n, others atomic.Int64
		quick := func(ctx context.Context, d time.Duration) (*ski.Response, error) {
			select {
			case <-time.After(d):
				return &ski.Response{Output: []byte("signature")}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		first := ski.TransportFunc(func(ctx context.Context, _ *ski.Request) (*ski.Response, error) {
			if n.Add(1)%every == 0 {
				return quick(ctx, time.Second)
			}
			return quick(ctx, 2*time.Millisecond)
		})
		second := ski.TransportFunc(func(ctx context.Context, _ *ski.Request) (*ski.Response, error) {
			others.Add(1)
			return quick(ctx, 2*time.Millisecond)
		})
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{&first, &second}, MaxExtra: maxExtra})
		defer c.Close()
		rescued, slow := 0, 0
		for range requests {
			switch took := ask(t, c); {
			case took >= time.Second:
				slow++
			case took > 2*time.Millisecond:
				rescued++
				assert.LessOrEqual(t, took, 5*time.Millisecond)
			}
		}
		assert.Equal(t, rescued, seen.count(ski.HedgeAttempt))
		assert.LessOrEqual(t, float64(others.Load()), requests*maxExtra)
		assert.InDelta(t, requests*maxExtra, others.Load(), 5, "the cap is made use of")
		assert.Equal(t, requests/every, rescued+slow)
		assert.Empty(t, seen.health, "what is not waited for is not a failure")
	})
}

func TestAHedgeIsNoBetterThanNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := takes(time.Millisecond), takes(time.Millisecond)
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{first, second}, MaxExtra: 1})
		defer c.Close()
		for range 30 {
			ask(t, c)
		}
		first.takes.Store(int64(100 * time.Millisecond))
		second.down.Store(true)
		assert.Equal(t, 100*time.Millisecond, ask(t, c), "the first goes on where the second fails")
		assert.Equal(t, 1, seen.count(ski.HedgeAttempt))
		ask(t, c)
		assert.Equal(t, 1, seen.count(ski.HedgeAttempt), "no hedge goes to one that does not answer")
	})
}

// stateful is a key server that does ECDHE-PMS: its states are its name.
type stateful struct {
	name   string
	second func() (*ski.Response, error) // the second exchange
	asked  []string                      // whose states
}

func (s *stateful) RoundTrip(_ context.Context, req *ski.Request) (*ski.Response, error) {
	if len(req.State) == 0 {
		sig, err := crypto.SignMessage(privateKeys()["P-256"], rand.Reader, req.Input, crypto.SHA256)
		params := append([]byte{3, 0, byte(tls.X25519), 32}, make([]byte, 32)...)
		return &ski.Response{Output: sig, Params: params, State: []byte(s.name)}, err
	}
	s.asked = append(s.asked, string(req.State))
	return s.second()
}

// The second exchange of ECDHE-PMS goes where the first was, whatever the
// balance, and again where nobody knows whether it has got there: it may have
// been sent over a session that had lost its address.
func TestAStateGoesToWhoGaveIt(t *testing.T) {
	secret := func() (*ski.Response, error) { return &ski.Response{Output: make([]byte, 32)}, nil }
	lostRequest := &ski.TransportError{Endpoint: "coaps://ks", Op: "request", Err: errRefused.Err}
	lost := func() (*ski.Response, error) { return nil, lostRequest }
	const many = 2 // or more
	otherSecret := func() (*ski.Response, error) { return ski.Failed(ski.MalformedRequest), nil }
	used := func() (*ski.Response, error) { return ski.Failed(ski.RequestDenied), nil }
	for name, tt := range map[string]struct {
		first, second func() (*ski.Response, error)
		asked         int // how often the second is, which has not given the state
		err           string
	}{
		"it answers":                         {secret, secret, 0, ""},
		"it does not; another of the fleet":  {lost, secret, 1, ""},
		"it does not; another secret":        {lost, otherSecret, 1, "connection refused"},
		"none answers":                       {lost, lost, many, "connection refused"},
		"its answer is an error":             {otherSecret, secret, 0, "malformed request"},
		"it denies":                          {used, secret, 0, "request denied"},
		"it cannot be reached for the while": {failsOnce(errRefused, secret), otherSecret, 1, ""},
		"its session is lost":                {failsOnce(lostRequest, secret), otherSecret, 1, ""},
		"its answer was lost":                {failsOnce(lostRequest, used), otherSecret, 1, "connection refused"},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := &stateful{name: "a", second: tt.first}, &stateful{name: "b", second: tt.second}
			c := &ski.Client{Transports: []ski.Transport{a, b}, Balance: ski.RoundRobin, MaxExtra: 1, Timeout: 300 * time.Millisecond}
			defer c.Close()
			key, err := ski.NewKey(c, privateKeys()["P-256"].Public())
			require.NoError(t, err, name)
			e, err := key.NewEphemeral(t.Context(), tls.X25519, make([]byte, 64), crypto.SHA256)
			require.NoError(t, err, name)
			_, err = e.PreMasterSecret(t.Context(), make([]byte, 32))
			if tt.err == "" {
				require.NoError(t, err, name)
			} else {
				require.ErrorContains(t, err, tt.err, name)
			}
			assert.Equal(t, "a", a.asked[0], name)
			if tt.asked == many {
				assert.GreaterOrEqual(t, len(b.asked), many, name)
			} else {
				assert.Len(t, b.asked, tt.asked, name)
			}
		})
	}
}

// A handshake with ECDHE-PMS is one turn, not two.
func TestRoundRobinOfEphemeralKeys(t *testing.T) {
	secret := func() (*ski.Response, error) { return &ski.Response{Output: make([]byte, 32)}, nil }
	a, b := &stateful{name: "a", second: secret}, &stateful{name: "b", second: secret}
	c := &ski.Client{Transports: []ski.Transport{a, b}, Balance: ski.RoundRobin}
	key, err := ski.NewKey(c, privateKeys()["P-256"].Public())
	require.NoError(t, err)
	for range 10 {
		e, err := key.NewEphemeral(t.Context(), tls.X25519, make([]byte, 64), crypto.SHA256)
		require.NoError(t, err)
		_, err = e.PreMasterSecret(t.Context(), make([]byte, 32))
		require.NoError(t, err)
	}
	assert.Equal(t, []string{"a", "a", "a", "a", "a"}, a.asked)
	assert.Equal(t, []string{"b", "b", "b", "b", "b"}, b.asked)
}

// The addresses of a name may change between the two exchanges.
func TestAStateGoesToWhoGaveItAlsoOnceThatIsReplaced(t *testing.T) {
	for _, more := range []int{0, 1} {
		secret := func() (*ski.Response, error) { return &ski.Response{Output: make([]byte, 32)}, nil }
		otherSecret := func() (*ski.Response, error) { return ski.Failed(ski.MalformedRequest), nil }
		gone, other := &stateful{name: "gone", second: secret}, &stateful{name: "other", second: otherSecret}
		c := &ski.Client{Transports: []ski.Transport{gone}}
		key, err := ski.NewKey(c, privateKeys()["P-256"].Public())
		require.NoError(t, err)
		e, err := key.NewEphemeral(t.Context(), tls.X25519, make([]byte, 64), crypto.SHA256)
		require.NoError(t, err)
		c.Replace([]ski.Transport{other, alive()}[:1+more])
		_, err = e.PreMasterSecret(t.Context(), make([]byte, 32))
		require.NoError(t, err)
		assert.Len(t, gone.asked, 1)
		assert.Empty(t, other.asked)
	}
}

// failsOnce fails once, and is then f.
func failsOnce(err error, f func() (*ski.Response, error)) func() (*ski.Response, error) {
	failed := false
	return func() (*ski.Response, error) {
		if !failed {
			failed = true
			return nil, err
		}
		return f()
	}
}
