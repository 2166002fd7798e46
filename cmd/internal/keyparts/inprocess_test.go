package keyparts

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// held is a Handler that has each request until it is told to answer it.
type held struct {
	come   chan *ski.Request
	answer chan *ski.Response
}

func newHeld() held { return held{make(chan *ski.Request), make(chan *ski.Response)} }

func (h held) ServeSKI(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
	h.come <- req
	return <-h.answer
}

func TestACallerIsNotKeptBeyondItsContext(t *testing.T) {
	h := newHeld()
	p := NewInProcess(h, ski.Peer{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	req := &ski.Request{Input: []byte{1, 2, 3}}
	go func() {
		_, err := p.RoundTrip(ctx, req)
		ended <- err
	}()
	asked := <-h.come
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	clear(req.Input)
	require.Equal(t, []byte{1, 2, 3}, asked.Input, "the handler still has its request")

	// It counts until the handler has done with it.
	_, err := p.RoundTrip(t.Context(), req)
	require.ErrorIs(t, err, errOverload)

	closed := make(chan error)
	go func() { closed <- p.Close(t.Context()) }()
	require.Eventually(t, func() bool {
		_, err := p.RoundTrip(t.Context(), req)
		failed := (*ski.TransportError)(nil)
		require.ErrorAs(t, err, &failed)
		return failed.Permanent
	}, time.Minute, time.Millisecond)
	select {
	case <-closed:
		require.Fail(t, "closed while the handler has a request")
	default:
	}
	output := []byte("a secret that nobody gets")
	h.answer <- &ski.Response{Output: output}
	require.NoError(t, <-closed)
	require.Equal(t, make([]byte, len(output)), output, "it is cleared")
}

func TestAnAnswerComesThrough(t *testing.T) {
	h := newHeld()
	p := NewInProcess(h, ski.Peer{}, 1)
	go func() {
		<-h.come
		h.answer <- &ski.Response{Output: []byte("output")}
	}()
	resp, err := p.RoundTrip(t.Context(), new(ski.Request))
	require.NoError(t, err)
	require.True(t, bytes.Equal([]byte("output"), resp.Output))
	require.NoError(t, p.Close(t.Context()))
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	h := newHeld()
	p := NewInProcess(h, ski.Peer{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, _ = p.RoundTrip(ctx, new(ski.Request)) }()
	<-h.come
	cancel()
	require.ErrorIs(t, p.Close(ctx), context.Canceled)
	h.answer <- nil
	<-p.ended
}

// ticketHandler hands out one ticket key.
type ticketHandler struct{ ski.HandlerFunc }

func (ticketHandler) ServeTickets(_ context.Context, peer ski.Peer, site string, _ ski.TicketTag) *ski.TicketAnswer {
	if peer.PSK != "edge" {
		return &ski.TicketAnswer{Error: ski.RequestDenied}
	}
	return &ski.TicketAnswer{Keys: &ski.TicketKeys{Site: site}, Next: time.Now().Add(time.Hour)}
}

func TestInProcessHasTheTicketKeysOfItsHandler(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := NewInProcess(ticketHandler{}, ski.Peer{PSK: "edge"}, 1)
	require.ErrorIs(t, p.WatchTickets(ctx, "www.example.com", func(k *ski.TicketKeys) {
		require.Equal(t, "www.example.com", k.Site)
		cancel()
	}), context.Canceled)
	p = NewInProcess(ticketHandler{}, ski.Peer{}, 1)
	require.ErrorIs(t, p.WatchTickets(t.Context(), "www.example.com", nil), ski.RequestDenied)
	p = NewInProcess(ski.HandlerFunc(nil), ski.Peer{}, 1)
	require.ErrorIs(t, p.WatchTickets(t.Context(), "www.example.com", nil), ski.ErrNoTickets)
}

// heldTickets takes its time to hand out ticket keys.
type heldTickets struct {
	ticketHandler
	come   chan struct{}
	answer chan *ski.TicketKeys
}

func (h heldTickets) ServeTickets(context.Context, ski.Peer, string, ski.TicketTag) *ski.TicketAnswer {
	h.come <- struct{}{}
	return &ski.TicketAnswer{Keys: <-h.answer, Next: time.Now().Add(time.Hour)}
}

func TestAWatchIsNotKeptBeyondItsContext(t *testing.T) {
	echo := func(context.Context, ski.Peer, *ski.Request) *ski.Response { return new(ski.Response) }
	h := heldTickets{ticketHandler: ticketHandler{echo}, come: make(chan struct{}), answer: make(chan *ski.TicketKeys)}
	p := NewInProcess(h, ski.Peer{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- p.WatchTickets(ctx, "www.example.com", func(*ski.TicketKeys) { t.Error("nobody watches any more") })
	}()
	<-h.come
	_, err := p.RoundTrip(t.Context(), new(ski.Request))
	require.NoError(t, err, "who watches takes no place of a request")
	cancel()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(time.Minute):
		require.FailNow(t, "it waits for the handler")
	}
	keys := &ski.TicketKeys{Keys: make([]ski.TicketKey, 1)}
	keys.Keys[0].Secret[0] = 1
	h.answer <- keys
	require.NoError(t, p.Close(t.Context()))
	require.Zero(t, keys.Keys[0].Secret, "it is cleared")
	require.Error(t, p.WatchTickets(t.Context(), "www.example.com", nil), "it is closed")
}
