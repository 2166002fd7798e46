package ski_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// busyServer is overloaded for its first n questions.
type busyServer struct {
	n, calls   int
	retryAfter time.Duration
	asked      []time.Time
	mu         sync.Mutex
}

func busy(n int) *busyServer { return &busyServer{n: n, retryAfter: time.Second} }

const always = 1 << 30

func (s *busyServer) RoundTrip(context.Context, *ski.Request) (*ski.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	s.asked = append(s.asked, time.Now())
	if s.calls <= s.n {
		return ski.Busy(s.retryAfter), nil
	}
	return &ski.Response{Output: answer.Output}, nil
}

func TestAnOverloadedKeyServerIsAskedAgainWhenItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := busy(2)
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{s}})
		took := ask(t, c)
		assert.Equal(t, 3, s.calls)
		assert.GreaterOrEqual(t, took, 2*time.Second)
		assert.LessOrEqual(t, took, 3*time.Second)
		var what []string
		for _, a := range seen.attempts {
			what = append(what, string(a.Kind)+": "+a.Outcome())
		}
		assert.Equal(t, []string{"first: overloaded", "retry: overloaded", "retry: output"}, what)
		assert.Empty(t, seen.health, "it is well")
	})
}

// Those that were refused together do not come back together.
func TestRequestsThatWereRefusedTogetherAreAskedAgainOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := busy(10)
		c := &ski.Client{Transports: []ski.Transport{s}}
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() { ask(t, c) })
		}
		all.Wait()
		require.Len(t, s.asked, 20)
		at := map[time.Time]bool{}
		for _, when := range s.asked[10:] {
			at[when] = true
		}
		assert.Greater(t, len(at), 8)
	})
}

func TestAnotherKeyServerIsAskedWhenOneIsOverloaded(t *testing.T) {
	for _, balance := range []ski.Balance{ski.Failover, ski.RoundRobin, ski.LeastLatency} {
		synctest.Test(t, func(t *testing.T) {
			first, second := busy(1), busy(0)
			c := &ski.Client{Transports: []ski.Transport{first, second}, Balance: balance}
			assert.Less(t, ask(t, c), 100*time.Millisecond)
			assert.Equal(t, []int{1, 1}, []int{first.calls, second.calls})
			for range 10 {
				assert.Zero(t, ask(t, c), "it is not asked first while it is known to be overloaded")
			}
			assert.Equal(t, []int{1, 11}, []int{first.calls, second.calls})
			time.Sleep(time.Second)
			ask(t, c)
			ask(t, c)
			if balance != ski.LeastLatency { // which prefers what it knows to be fast
				assert.Greater(t, first.calls, 1, "and later it is")
			}
		})
	}
}

// One that is known to be down is no other to ask.
func TestAKeyServerThatIsDownIsNotAskedInThePlaceOfAnOverloadedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := busy(0), dead()
		c := &ski.Client{Transports: []ski.Transport{second, first}}
		defer c.Close()
		ask(t, c)
		first.n = first.calls + 1
		assert.GreaterOrEqual(t, ask(t, c), time.Second)
		assert.Equal(t, 3, first.calls)
	})
	// One that was not known to be, and that is found to be so: the overloaded one is
	// asked again.
	synctest.Test(t, func(t *testing.T) {
		first, second := busy(1), dead()
		c := &ski.Client{Transports: []ski.Transport{first, second}}
		defer c.Close()
		assert.GreaterOrEqual(t, ask(t, c), time.Second)
		assert.Equal(t, []int{2, 1}, []int{first.calls, second.calls})
	})
}

func TestARequestIsAskedAgainTwiceAtMost(t *testing.T) {
	for n := 1; n <= 4; n++ {
		synctest.Test(t, func(t *testing.T) {
			var servers []*busyServer
			c := &ski.Client{}
			for range n {
				servers = append(servers, busy(always))
				c.Transports = append(c.Transports, servers[len(servers)-1])
			}
			resp, err := c.RoundTrip(t.Context(), request())
			require.NoError(t, err)
			assert.Equal(t, ski.Busy(time.Second), resp)
			require.ErrorIs(t, resp.Err(), ski.ErrOverloaded)
			require.ErrorIs(t, resp.Err(), ski.UnspecifiedError)
			calls, most := 0, 0
			for _, s := range servers {
				calls, most = calls+s.calls, max(most, s.calls)
			}
			assert.Equal(t, 3, calls)
			assert.Equal(t, []int{3, 2, 1, 1}[n-1], most, "another first")
		})
	}
}

// Whatever the key servers say, edges ask a fifth more than without it at most.
func TestRetriesAreAFifthOfTheRequestsAtMost(t *testing.T) {
	for _, atOnce := range []int{1, 50, 500} {
		synctest.Test(t, func(t *testing.T) {
			a, b := busy(always), busy(always)
			c := &ski.Client{Transports: []ski.Transport{a, b}}
			const n = 2000
			for range n / atOnce {
				var all sync.WaitGroup
				for range atOnce {
					all.Go(func() {
						resp, err := c.RoundTrip(t.Context(), request())
						assert.NoError(t, err)
						assert.True(t, resp.Overloaded)
					})
				}
				all.Wait()
			}
			assert.LessOrEqual(t, a.calls+b.calls, n+n/5)
			assert.GreaterOrEqual(t, a.calls+b.calls, n+n/10)
		})
	}
}

func TestAskingAgainEndsWithTheDeadline(t *testing.T) {
	for timeout, retryAfter := range map[time.Duration]time.Duration{
		3 * time.Second:        time.Minute, // what a key server means that says nothing (RFC 7252, Section 5.10.5)
		500 * time.Millisecond: math.MaxInt64,
	} {
		synctest.Test(t, func(t *testing.T) {
			s := busy(always)
			s.retryAfter = retryAfter
			c := &ski.Client{Transports: []ski.Transport{s}, Timeout: timeout}
			began := time.Now()
			resp, err := c.RoundTrip(t.Context(), request())
			require.NoError(t, err, "there is an answer, such as it is")
			assert.True(t, resp.Overloaded)
			assert.Equal(t, 3, s.calls)
			assert.Less(t, time.Since(began), timeout)
			assert.Greater(t, time.Since(began), timeout/4)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s := busy(always)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		resp, err := (&ski.Client{Transports: []ski.Transport{s}}).RoundTrip(ctx, request())
		require.NoError(t, err)
		assert.True(t, resp.Overloaded)
		assert.Equal(t, 1, s.calls)
	})
}

// A key server could be overloaded by a plaintext: see the other answers to RSA.
func TestOverloadIsTheEndForRSAToo(t *testing.T) {
	first, second := busy(always), busy(0)
	var seen seen
	c := seen.watch(&ski.Client{Transports: []ski.Transport{first, second}})
	defer c.Close()
	for range 10 {
		resp, err := c.RoundTrip(t.Context(), rsaRequest())
		require.NoError(t, err)
		assert.True(t, resp.Overloaded)
	}
	assert.Equal(t, []int{10, 0}, []int{first.calls, second.calls}, "nor does it say who is asked first")
	assert.Equal(t, "answered", seen.attempts[0].Outcome())
	first.n = 0
	ask(t, c)
	assert.Equal(t, []int{11, 0}, []int{first.calls, second.calls})
}

// It is no fault, but says nothing of one either.
func TestAnOverloadedKeyServerIsNotTakenForDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := busy(always), busy(always)
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{first, second}})
		defer c.Close()
		for range 100 {
			_, _ = c.RoundTrip(t.Context(), request())
		}
		assert.Empty(t, seen.health)
		assert.Zero(t, seen.count(ski.TrialAttempt))
	})
	mixed := []*ski.Response{ski.Failed(ski.UnspecifiedError), ski.Busy(time.Second)}
	synctest.Test(t, func(t *testing.T) {
		first := &fakeServer{f: func(_ context.Context, call int) (*ski.Response, error) { return mixed[call%2], nil }}
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{first, alive()}})
		defer c.Close()
		for range 6 {
			ask(t, c)
			time.Sleep(2 * time.Second)
		}
		require.NotEmpty(t, seen.health, "it is at fault, besides")
		assert.ErrorIs(t, seen.health[0].Err, ski.UnspecifiedError)
	})
}

// One that could not be reached is there again if it says that it is overloaded.
func TestAKeyServerThatComesBackOverloadedIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := true
		first := &fakeServer{f: func(context.Context, int) (*ski.Response, error) {
			if gone {
				return nil, errRefused
			}
			return ski.Busy(time.Second), nil
		}}
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{first, alive()}})
		defer c.Close()
		ask(t, c)
		gone = false
		time.Sleep(2 * time.Second)
		ask(t, c)
		synctest.Wait()
		require.Len(t, seen.health, 2)
		assert.True(t, seen.health[1].Answers)
	})
}

// A state is opened by the key server that has made it, which has not done so when
// it was overloaded.
func TestTheSecondExchangeIsAskedAgainOfTheSameKeyServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		first := ski.TransportFunc(func(_ context.Context, req *ski.Request) (*ski.Response, error) {
			if calls++; calls == 2 {
				return ski.Busy(time.Second), nil
			} else if len(req.State) > 0 {
				return &ski.Response{Output: counting(32)}, nil
			}
			return &ski.Response{Output: make([]byte, 256), Params: ecdheInput[64:], State: []byte("sealed")}, nil
		})
		other := &fakeServer{f: func(context.Context, int) (*ski.Response, error) { return ski.Failed(ski.MalformedRequest), nil }}
		k, err := ski.NewKey(&ski.Client{Transports: []ski.Transport{&named{first}, other}}, privateKeys()["RSA"].Public())
		require.NoError(t, err)
		e, err := k.NewEphemeral(t.Context(), tls.X25519, counting(64), crypto.SHA256)
		require.NoError(t, err)
		_, err = e.PreMasterSecret(t.Context(), counting(32))
		require.NoError(t, err)
		assert.Equal(t, 3, calls)
		assert.Zero(t, other.calls)
	})
}

// named makes a TransportFunc comparable, which a Client needs.
type named struct{ f ski.TransportFunc }

func (n *named) RoundTrip(ctx context.Context, req *ski.Request) (*ski.Response, error) {
	return n.f(ctx, req)
}

// What has no place at the edge itself is not the key server's silence.
func TestARequestThatFindsNoPlaceSaysNothingOfTheKeyServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := &fakeServer{f: func(ctx context.Context, _ int) (*ski.Response, error) {
			<-ctx.Done()
			return nil, &ski.TransportError{Endpoint: "coaps://ks", Op: "wait", Err: ctx.Err()}
		}}
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{full}})
		_, err := c.RoundTrip(t.Context(), request())
		te := (*ski.TransportError)(nil)
		require.True(t, errors.As(err, &te))
		assert.Equal(t, "timeout", seen.attempts[0].Outcome())
		assert.Empty(t, seen.health)
	})
}

// A key server with a long queue may be silent for longer than a request has for it,
// and answers others.
func TestAKeyServerThatAnswersOthersIsNotTakenForDead(t *testing.T) {
	for _, req := range []*ski.Request{request(), rsaRequest()} {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			first := &named{func(ctx context.Context, _ *ski.Request) (*ski.Response, error) {
				if calls.Add(1) > 1 {
					return &ski.Response{Output: answer.Output}, nil
				}
				<-ctx.Done()
				return nil, &ski.TransportError{Endpoint: "coaps://ks", Op: "read", Err: ctx.Err()}
			}}
			second := busy(0)
			var seen seen
			c := seen.watch(&ski.Client{Transports: []ski.Transport{first, second, busy(0)}})
			defer c.Close()
			var slow sync.WaitGroup
			began := time.Now()
			slow.Go(func() {
				resp, err := c.RoundTrip(t.Context(), req)
				assert.NoError(t, err)
				assert.Empty(t, resp.Error)
				assert.Equal(t, ski.DefaultTimeout/2, time.Since(began), "the first has half of the time")
			})
			time.Sleep(time.Second)
			ask(t, c)
			slow.Wait()
			assert.Empty(t, seen.health)
			ask(t, c)
			want := 2 // It is asked after the others for a while,
			if req.Method == ski.MethodRSA {
				want = 1 // unless a plaintext could be the reason.
			}
			assert.Equal(t, want, second.calls)
		})
	}
}
