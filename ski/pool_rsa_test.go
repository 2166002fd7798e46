package ski_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func rsaRequest() *ski.Request {
	return &ski.Request{Protocol: ski.TLS12, Method: ski.MethodRSA, SPKI: ski.KeyID{1}, Input: make([]byte, 256)}
}

var errNotSKI = &ski.TransportError{Endpoint: "https://ks", Op: "answer", Err: errors.New("500 without an SKI message")}

// wrongAnswers are those that say of ECDHE that another key server may do better.
func wrongAnswers() map[string]func() (*ski.Response, error) {
	return map[string]func() (*ski.Response, error){
		"unspecified error": func() (*ski.Response, error) { return ski.Failed(ski.UnspecifiedError), nil },
		"not SKI":           func() (*ski.Response, error) { return nil, errNotSKI },
	}
}

// Of some key servers the answer to RSA depends on the plaintext: it must decide
// neither who is asked next, nor how often.
func TestAnAnswerToRSAIsTheEnd(t *testing.T) {
	for name, answer := range wrongAnswers() {
		t.Run(name, func(t *testing.T) {
			first, second := &fakeServer{f: func(context.Context, int) (*ski.Response, error) { return answer() }}, alive()
			var seen seen
			c := seen.watch(&ski.Client{Transports: []ski.Transport{first, second}})
			defer c.Close()
			for range 10 {
				resp, err := c.RoundTrip(t.Context(), rsaRequest())
				want, wantErr := answer()
				assert.Equal(t, want, resp)
				assert.Equal(t, wantErr, err)
			}
			assert.Equal(t, []int{10, 0}, []int{first.calls, second.calls})
			assert.Empty(t, seen.health)
			assert.Equal(t, ski.MethodRSA, seen.attempts[0].Method)
		})
	}
}

func TestWithoutAnAnswerToRSAAnotherKeyServerIsAsked(t *testing.T) {
	for _, none := range []error{
		&ski.TransportError{Op: "dial", Err: errors.New("refused")}, &ski.TransportError{Op: "request", Err: errors.New("reset")},
	} {
		first, second := &fakeServer{f: func(context.Context, int) (*ski.Response, error) { return nil, none }}, alive()
		c := &ski.Client{Transports: []ski.Transport{first, second}}
		resp, err := c.RoundTrip(t.Context(), rsaRequest())
		require.NoError(t, err)
		assert.Same(t, answer, resp)
		assert.Equal(t, []int{1, 1}, []int{first.calls, second.calls})
		require.NoError(t, c.Close())
	}
}

// A hedge is for what is slow. An error that comes before is not waited past.
func TestAnErrorOfRSAIsNotWaitedPastWhereARequestIsHedged(t *testing.T) {
	for name, answer := range wrongAnswers() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first := takes(2 * time.Millisecond)
				second := ski.TransportFunc(func(context.Context, *ski.Request) (*ski.Response, error) {
					time.Sleep(10 * time.Millisecond)
					return answer()
				})
				c := &ski.Client{Transports: []ski.Transport{first, &second}, MaxExtra: 1}
				defer c.Close()
				for range 30 {
					ask(t, c)
				}
				first.takes.Store(int64(time.Second))
				start := time.Now()
				resp, err := c.RoundTrip(t.Context(), rsaRequest())
				want, wantErr := answer()
				assert.Equal(t, want, resp)
				assert.Equal(t, wantErr, err)
				assert.Less(t, time.Since(start), 20*time.Millisecond)
			})
		})
	}
}

// What signing requests have found out of a key server is not undone by an answer
// to RSA; that it can be reached again is.
func TestAnAnswerToRSASaysOnlyThatAKeyServerIsReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var say atomic.Pointer[func(req *ski.Request) (*ski.Response, error)]
		is := func(f func(req *ski.Request) (*ski.Response, error)) { say.Store(&f) }
		first := ski.TransportFunc(func(_ context.Context, req *ski.Request) (*ski.Response, error) { return (*say.Load())(req) })
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{&first, alive()}})
		defer c.Close()
		for range 3 {
			is(func(*ski.Request) (*ski.Response, error) { return ski.Failed(ski.UnspecifiedError), nil })
			ask(t, c)
		}
		require.Len(t, seen.health, 1, "it is asked last")
		for range 60 {
			_, err := c.RoundTrip(t.Context(), rsaRequest())
			require.NoError(t, err)
			time.Sleep(time.Second)
		}
		assert.Len(t, seen.health, 1)
		assert.Zero(t, seen.count(ski.TrialAttempt), "it is not tried with RSA")
		is(func(*ski.Request) (*ski.Response, error) { return &ski.Response{Output: []byte("signature")}, nil })
		ask(t, c)
		synctest.Wait()
		require.Len(t, seen.health, 2)
		assert.True(t, seen.health[1].Answers)

		is(func(*ski.Request) (*ski.Response, error) { return nil, errRefused })
		ask(t, c)
		require.Len(t, seen.health, 3)
		is(func(*ski.Request) (*ski.Response, error) { return ski.Failed(ski.UnspecifiedError), nil })
		for range 2 {
			time.Sleep(time.Second)
			_, err := c.RoundTrip(t.Context(), rsaRequest())
			require.NoError(t, err)
			synctest.Wait()
		}
		require.Len(t, seen.health, 4)
		assert.True(t, seen.health[3].Answers)
	})
}

// A page in the place of an answer is a fault, too, that RSA must not undo: the
// others would be asked it first again, and whatever it says of RSA be the end.
func TestAnAnswerToRSADoesNotUndoThatAnswersAreNotSKI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := &fakeServer{f: func(context.Context, int) (*ski.Response, error) { return nil, errNotSKI }}
		second := alive()
		var seen seen
		c := seen.watch(&ski.Client{Transports: []ski.Transport{first, second}})
		defer c.Close()
		ask(t, c)
		require.Len(t, seen.health, 1, "it is asked last")
		calls := first.calls
		for range 60 {
			resp, err := c.RoundTrip(t.Context(), rsaRequest())
			require.NoError(t, err)
			assert.Same(t, answer, resp)
			time.Sleep(time.Second)
		}
		assert.Len(t, seen.health, 1)
		assert.Equal(t, calls, first.calls)
	})
}
