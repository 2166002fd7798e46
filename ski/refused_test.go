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

// keyServer is a Transport that does one thing after the other.
type keyServer struct {
	asked int
	do    []func() (*ski.Response, error)
}

func (k *keyServer) RoundTrip(context.Context, *ski.Request) (*ski.Response, error) {
	k.asked++
	return k.do[min(k.asked, len(k.do))-1]()
}

func refuses() (*ski.Response, error) {
	err := &ski.RefusedError{Until: time.Now().Add(time.Minute), Err: errors.New("close notify")}
	return nil, &ski.TransportError{Endpoint: "coaps://ski.test", Op: "dial", Err: err}
}

func isGone() (*ski.Response, error) {
	return nil, &ski.TransportError{Endpoint: "coaps://ski.test", Op: "dial", Err: errors.New("connection refused")}
}

func answers() (*ski.Response, error) { return &ski.Response{Output: []byte{1}}, nil }

func TestAClientDoesNotAskAgainWhereAllKeyServersRefuse(t *testing.T) {
	for _, req := range []*ski.Request{{Method: ski.MethodECDHE}, {Method: ski.MethodRSA}, {Method: ski.MethodECDHEPMS, State: []byte{1}}} {
		first, second := &keyServer{do: []func() (*ski.Response, error){refuses}}, &keyServer{do: []func() (*ski.Response, error){refuses}}
		var outcomes []string
		client := &ski.Client{
			Transports: []ski.Transport{first, second}, Timeout: time.Hour,
			OnAttempt: func(a ski.Attempt) { outcomes = append(outcomes, a.Outcome()) },
		}
		_, err := client.RoundTrip(t.Context(), req)
		require.ErrorIs(t, err, ski.ErrRefused)
		assert.ErrorContains(t, err, "it has suspended this edge, does not know it, or is shutting down: close notify; next attempt in 1m0s")
		assert.Equal(t, []string{"refused", "refused"}, outcomes)
	}
}

func TestAClientWaitsForAKeyServerThatMayComeBackWhileAnotherRefuses(t *testing.T) {
	first, second := &keyServer{do: []func() (*ski.Response, error){refuses}}, &keyServer{do: []func() (*ski.Response, error){isGone, isGone, answers}}
	client := &ski.Client{Transports: []ski.Transport{first, second}, Timeout: time.Hour}
	resp, err := client.RoundTrip(t.Context(), &ski.Request{Method: ski.MethodECDHE})
	require.NoError(t, err)
	assert.Equal(t, []byte{1}, resp.Output)
}

// An edge that is let in again finds that out soon, although another key server
// answers: whether one that refuses may be asked costs that nothing.
func TestAKeyServerThatRefusedIsAskedSoonAfterItsTimeHasCome(t *testing.T) {
	for refusing := time.Minute; refusing < 70*time.Second; refusing += time.Second {
		synctest.Test(t, func(t *testing.T) {
			until := time.Now().Add(refusing)
			var back time.Time
			refused := ski.TransportFunc(func(context.Context, *ski.Request) (*ski.Response, error) {
				if time.Now().Before(until) {
					return refuses()
				}
				if back.IsZero() {
					back = time.Now()
				}
				return answers()
			})
			client := &ski.Client{Transports: []ski.Transport{refused, &keyServer{do: []func() (*ski.Response, error){answers}}}}
			for range 1000 {
				_, err := client.RoundTrip(t.Context(), &ski.Request{Method: ski.MethodECDHE})
				require.NoError(t, err)
				time.Sleep(100 * time.Millisecond)
			}
			require.NoError(t, client.Close())
			assert.WithinDuration(t, until, back, 3*time.Second)
		})
	}
}
