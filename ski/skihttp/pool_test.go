package skihttp

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// silencing passes connections on to a server until they are silenced: then it reads
// and passes on nothing more of those that there are.
type silencing struct {
	net.Listener
	server string
	age    atomic.Int64 // connections of an earlier age are silent
	made   atomic.Int64
}

func newSilencing(t *testing.T, server string) *silencing {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &silencing{Listener: l, server: server}
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); _ = l.Close(); running.Wait() })
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", s.server)
			if !assert.NoError(t, err) {
				return
			}
			s.made.Add(1)
			age := s.age.Load()
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(writerFunc(func(b []byte) (int, error) {
					if s.age.Load() > age {
						return len(b), nil
					}
					return to.Write(b)
				}), from)
				if s.age.Load() == age {
					_ = to.Close()
				}
			}
			stop := context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })
			running.Go(func() { pass(server, client) })
			running.Go(func() { pass(client, server); stop(); _, _ = client.Close(), server.Close() })
		}
	})
	return s
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// All connections to a key server without HTTP/2 die together. Only the requests
// that are on them may be lost, and not one for each that lies idle.
func TestASilentPoolCostsOneRequest(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	const conns = 4
	var meeting sync.WaitGroup
	var together atomic.Bool
	s := serve(t, ca, ServerConfig{Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, r *ski.Request) *ski.Response {
		if together.Load() {
			meeting.Done()
			meeting.Wait()
		}
		return echo(ctx, p, r)
	})})
	relay := newSilencing(t, s.Addr().String())
	c, err := NewClient("https://"+relay.Addr().String()+"/ski", ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, Logger: new(logBuffer).logger(), DialTimeout: time.Minute})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	c.tls.NextProtos = []string{"http/1.1"}
	together.Store(true)
	meeting.Add(conns)
	var asking sync.WaitGroup
	for i := range conns {
		asking.Go(func() { assert.NoError(t, ask(t.Context(), c, i)) })
	}
	asking.Wait()
	together.Store(false)
	require.EqualValues(t, conns, relay.made.Load())

	relay.age.Add(1)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, ask(ctx, c, 0), context.DeadlineExceeded)
	// The others would take a minute.
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, ask(ctx, c, 0))
	assert.EqualValues(t, conns+1, relay.made.Load())
}
