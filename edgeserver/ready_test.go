package edgeserver

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func TestReady(t *testing.T) {
	p := newPKI(t)
	var asked atomic.Int64
	var down atomic.Pointer[error]
	transport := ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
		asked.Add(1)
		if err := down.Load(); err != nil {
			return nil, *err
		}
		return p.transport().RoundTrip(ctx, req)
	})
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
		{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: htdocs(t, "this is b")},
	}}, transport)
	known := e.site("a.test").asking.known
	long := func(ago time.Duration) { // has passed since the last answer and the last question
		known.last.Store(time.Now().Add(-ago).UnixNano())
		known.asked = time.Now().Add(-ago)
	}

	require.NoError(t, e.Ready(t.Context()))
	require.EqualValues(t, 1, asked.Load(), "one question for all its sites")
	require.NoError(t, e.Ready(t.Context()))
	require.EqualValues(t, 1, asked.Load(), "the answer is fresh")
	long(time.Minute)
	get(t, e.client(t, p), "https://a.test/")
	require.NoError(t, e.Ready(t.Context()))
	require.EqualValues(t, 2, asked.Load(), "the answer is that of a handshake")

	gone := error(&ski.TransportError{Err: errors.New("nobody there")})
	down.Store(&gone)
	require.NoError(t, e.Ready(t.Context()), "for a while")
	long(time.Minute)
	begin := time.Now()
	require.EqualError(t, e.Ready(t.Context()), "no key server answers: unreachable")
	n := asked.Load()
	require.Error(t, e.Ready(t.Context()))
	require.LessOrEqual(t, asked.Load(), n+int64(time.Since(begin)/askAgain), "who does not answer is not asked each time")

	down.Store(nil)
	long(time.Minute)
	require.NoError(t, e.Ready(t.Context()))
	require.NoError(t, e.Close())
	assert.EqualError(t, e.Ready(t.Context()), "the edge server is about to end")
}

// That it is told no is an answer.
func TestReadyWithoutRights(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir},
	}}, ski.TransportFunc(func(context.Context, *ski.Request) (*ski.Response, error) {
		return &ski.Response{Error: ski.RequestDenied}, nil
	}))
	assert.NoError(t, e.Ready(t.Context()))
}

// A key server that has too much to do is there, and to take its edges away would
// leave it no less to do.
func TestReadyWhileTheKeyServerIsOverloaded(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir},
	}}, ski.TransportFunc(func(context.Context, *ski.Request) (*ski.Response, error) {
		return ski.Busy(time.Second), nil
	}))
	assert.NoError(t, e.Ready(t.Context()))
	resp, err := e.site("a.test").asking.RoundTrip(t.Context(), &ski.Request{})
	require.NoError(t, err)
	assert.Equal(t, "overloaded", reason(resp.Err()), "what the log says of a handshake")
}

// One site's key servers are of no use to the others, and no reason to take theirs
// away.
func TestReadyWithTheKeyServersOfOneSite(t *testing.T) {
	p := newPKI(t)
	silent := ski.TransportFunc(func(ctx context.Context, _ *ski.Request) (*ski.Response, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	sites := []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir},
		{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: p.dir, KeyServer: "berlin"},
	}
	cfg := Config{KeyServers: map[string]KeyServer{"berlin": {}}, Sites: sites}
	e := startWith(t, cfg, map[string]ski.Transport{"": p.transport(), "berlin": silent})
	assert.NoError(t, e.Ready(t.Context()))

	cfg.KeyServer.Timeout = 20 * time.Millisecond
	e = startWith(t, cfg, map[string]ski.Transport{"": silent, "berlin": silent})
	assert.EqualError(t, e.Ready(t.Context()), "no key server answers: timeout")
}

// What keeps new connections waiting for ever is not alive.
func TestAlive(t *testing.T) {
	p := newPKI(t)
	e := limited(t, p, "", Limits{})
	e.Alive()
	for name, stuck := range map[string]sync.Locker{"generations": &e.mu, "limits": &e.bounds.mu} {
		stuck.Lock()
		alive := make(chan struct{})
		go func() {
			e.Alive()
			close(alive)
		}()
		select {
		case <-alive:
			assert.Fail(t, "it is not", name)
		case <-time.After(20 * time.Millisecond):
		}
		stuck.Unlock()
		<-alive
	}
}
