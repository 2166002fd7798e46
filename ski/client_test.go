package ski_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// fakeServer counts what it is asked and answers with f.
type fakeServer struct {
	calls int
	f     func(ctx context.Context, call int) (*ski.Response, error)
}

func (s *fakeServer) RoundTrip(ctx context.Context, _ *ski.Request) (*ski.Response, error) {
	s.calls++
	return s.f(ctx, s.calls)
}

var (
	errRefused = &ski.TransportError{Endpoint: "coaps://ks", Op: "dial", Err: errors.New("connection refused")}
	answer     = &ski.Response{Output: []byte("signature")}
)

func alive() *fakeServer {
	return &fakeServer{f: func(context.Context, int) (*ski.Response, error) { return answer, nil }}
}

func dead() *fakeServer {
	return &fakeServer{f: func(context.Context, int) (*ski.Response, error) { return nil, errRefused }}
}

// silent never answers.
func silent() *fakeServer {
	return &fakeServer{f: func(ctx context.Context, _ int) (*ski.Response, error) {
		<-ctx.Done()
		return nil, &ski.TransportError{Endpoint: "coaps://ks", Op: "request", Err: ctx.Err()}
	}}
}

func TestClientAnswer(t *testing.T) {
	first, second := alive(), alive()
	c := &ski.Client{Transports: []ski.Transport{first, second}}
	resp, err := c.RoundTrip(t.Context(), request())
	require.NoError(t, err)
	assert.Same(t, answer, resp)
	assert.Equal(t, []int{1, 0}, []int{first.calls, second.calls})
}

// An error of the key server is an answer: the next one would give the same.
func TestClientErrorAnswer(t *testing.T) {
	for _, e := range []ski.Error{ski.RequestDenied, ski.MalformedRequest} {
		first, second := &fakeServer{f: func(context.Context, int) (*ski.Response, error) { return ski.Failed(e), nil }}, alive()
		c := &ski.Client{Transports: []ski.Transport{first, second}}
		resp, err := c.RoundTrip(t.Context(), request())
		require.NoError(t, err)
		assert.Equal(t, e, resp.Error)
		assert.Equal(t, []int{1, 0}, []int{first.calls, second.calls})
	}
}

// A key that one key server lacks another may have. Each that answers is asked once.
func TestAKeyThatIsNotFoundIsLookedForAtTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lacks := func() *fakeServer {
			return &fakeServer{f: func(context.Context, int) (*ski.Response, error) { return ski.Failed(ski.SPKINotFound), nil }}
		}
		calls := func(all ...*fakeServer) (calls []int) {
			for _, s := range all {
				calls = append(calls, s.calls)
			}
			return calls
		}
		first, second := lacks(), alive()
		resp, err := (&ski.Client{Transports: []ski.Transport{first, second}}).RoundTrip(t.Context(), request())
		require.NoError(t, err)
		assert.Same(t, answer, resp)
		assert.Equal(t, []int{1, 1}, calls(first, second))

		first, second, gone, third := lacks(), lacks(), dead(), lacks()
		c := &ski.Client{Transports: []ski.Transport{first, second, gone, third}}
		resp, err = c.RoundTrip(t.Context(), request())
		require.NoError(t, err)
		assert.Equal(t, ski.SPKINotFound, resp.Error)
		assert.Equal(t, []int{1, 1, 1, 1}, calls(first, second, gone, third))
		_, err = c.RoundTrip(t.Context(), request())
		require.NoError(t, err)
		assert.Equal(t, []int{2, 2, 1, 2}, calls(first, second, gone, third), "who is known not to answer is not asked")

		// One that has begun to be silent does not make a time-out of it.
		first, second = lacks(), silent()
		resp, err = (&ski.Client{Transports: []ski.Transport{first, second}}).RoundTrip(t.Context(), request())
		require.NoError(t, err)
		assert.Equal(t, ski.SPKINotFound, resp.Error)

		// What a state belongs to is known to the one that gave it.
		first, second = lacks(), alive()
		req := request()
		req.State = []byte("state")
		resp, err = (&ski.Client{Transports: []ski.Transport{first, second}}).RoundTrip(t.Context(), req)
		require.NoError(t, err)
		assert.Equal(t, ski.SPKINotFound, resp.Error)
		assert.Equal(t, []int{1, 0}, calls(first, second))
	})
}

// Where the one that gave a state has lost its session, what the others cannot do with
// the state is not the answer: it is asked again.
func TestAStateGoesBackToTheOneThatGaveItWhateverTheOthersSay(t *testing.T) {
	for _, e := range []ski.Error{ski.MalformedRequest, ski.RequestDenied, ski.SPKINotFound} {
		synctest.Test(t, func(t *testing.T) {
			first := &fakeServer{f: func(_ context.Context, call int) (*ski.Response, error) {
				if call == 1 {
					return nil, errRefused
				}
				return answer, nil
			}}
			second := &fakeServer{f: func(context.Context, int) (*ski.Response, error) { return ski.Failed(e), nil }}
			req := request()
			req.State = []byte("state")
			resp, err := (&ski.Client{Transports: []ski.Transport{first, second}}).RoundTrip(t.Context(), req)
			require.NoError(t, err)
			assert.Same(t, answer, resp, string(e))
			assert.Equal(t, []int{2, 1}, []int{first.calls, second.calls})
		})
	}
}

// 'unspecified error' is about the key server, not the request: the next one may
// do better. Each is asked once.
func TestClientUnspecifiedError(t *testing.T) {
	overloaded := func() *fakeServer {
		return &fakeServer{f: func(context.Context, int) (*ski.Response, error) { return ski.Failed(ski.UnspecifiedError), nil }}
	}
	first, second := overloaded(), alive()
	resp, err := (&ski.Client{Transports: []ski.Transport{first, second}}).RoundTrip(t.Context(), request())
	require.NoError(t, err)
	assert.Same(t, answer, resp)
	assert.Equal(t, []int{1, 1}, []int{first.calls, second.calls})

	first, second, third := overloaded(), dead(), overloaded()
	resp, err = (&ski.Client{Transports: []ski.Transport{first, second, third}}).RoundTrip(t.Context(), request())
	require.NoError(t, err)
	assert.Equal(t, ski.UnspecifiedError, resp.Error)
	assert.Equal(t, []int{1, 1, 1}, []int{first.calls, second.calls, third.calls})
}

func TestClientFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := dead(), alive()
		c := &ski.Client{Transports: []ski.Transport{first, second}}
		start := time.Now()
		resp, err := c.RoundTrip(t.Context(), request())
		require.NoError(t, err)
		assert.Same(t, answer, resp)
		assert.Equal(t, []int{1, 1}, []int{first.calls, second.calls})
		assert.Zero(t, time.Since(start), "there is no pause before the next key server")
	})
}

func TestClientLeavesTimeForTheNextServerWhenOneIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := silent(), alive()
		c := &ski.Client{Transports: []ski.Transport{first, second}, Timeout: 4 * time.Second}
		start := time.Now()
		resp, err := c.RoundTrip(t.Context(), request())
		require.NoError(t, err)
		assert.Same(t, answer, resp)
		assert.Equal(t, 2*time.Second, time.Since(start), "half of the time for each of two")
	})
}

func TestClientRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		back := &fakeServer{f: func(context.Context, int) (*ski.Response, error) {
			if time.Since(start) < time.Second {
				return nil, errRefused
			}
			return answer, nil
		}}
		c := &ski.Client{Transports: []ski.Transport{back}}
		resp, err := c.RoundTrip(t.Context(), request())
		require.NoError(t, err)
		assert.Same(t, answer, resp)
		assert.Less(t, time.Since(start), time.Second+250*time.Millisecond)
		// 20, 40, 80, 160, then 250 ms, each up to a half shorter.
		assert.InDelta(t, 9, back.calls, 3)
	})
}

func TestClientTimeout(t *testing.T) {
	for _, v := range []struct {
		name          string
		timeout, want time.Duration
		ctxTimeout    time.Duration
	}{
		{"the default", 0, ski.DefaultTimeout, time.Hour},
		{"its own", time.Second, time.Second, time.Hour},
		{"the caller's", time.Second, 300 * time.Millisecond, 300 * time.Millisecond},
	} {
		t.Run(v.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), v.ctxTimeout)
				defer cancel()

				start := time.Now()
				c := &ski.Client{Transports: []ski.Transport{dead()}, Timeout: v.timeout}
				_, err := c.RoundTrip(ctx, request())
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				assert.ErrorIs(t, err, errRefused, "the error names the cause, too")
				assert.Equal(t, v.want, time.Since(start))
			})
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), v.ctxTimeout)
				defer cancel()

				start := time.Now()
				c := &ski.Client{Transports: []ski.Transport{silent()}, Timeout: v.timeout}
				_, err := c.RoundTrip(ctx, request())
				var te *ski.TransportError
				require.ErrorAs(t, err, &te)
				assert.True(t, te.Timeout())
				assert.Equal(t, v.want, time.Since(start))
			})
		})
	}
}

func TestClientCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		start := time.Now()
		s := dead()
		_, err := (&ski.Client{Transports: []ski.Transport{s}}).RoundTrip(ctx, request())
		assert.ErrorIs(t, err, context.Canceled)
		assert.LessOrEqual(t, time.Since(start), 10*time.Millisecond)
		assert.Equal(t, 1, s.calls)
	})
}

// What no key server could answer is not asked again.
func TestClientFaultyRequest(t *testing.T) {
	faulty := &fakeServer{f: func(context.Context, int) (*ski.Response, error) {
		_, err := ski.EncodeRequest(ski.CBOR, &ski.Request{})
		return nil, err
	}}
	second := alive()
	_, err := (&ski.Client{Transports: []ski.Transport{faulty, second}}).RoundTrip(t.Context(), &ski.Request{})
	assert.ErrorIs(t, err, ski.MalformedRequest)
	assert.Equal(t, []int{1, 0}, []int{faulty.calls, second.calls})

	_, err = new(ski.Client).RoundTrip(t.Context(), request())
	assert.ErrorContains(t, err, "needs a Transport")
}
