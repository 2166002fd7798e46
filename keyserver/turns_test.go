package keyserver

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
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
			tu.end()
			drain()
		}
		tu.end()
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
		require.Equal(t, want, queue(t, &turns{free: 1, maxWait: 10, patience: time.Hour}, edges), edges)
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
		require.Equal(t, want, queue(t, &turns{free: 1, maxWait: 4, patience: time.Hour}, edges), edges)
	}
}

// Who waits no longer leaves nothing behind, be it that the turn comes at that
// moment.
func TestTurnsOfThoseWhoHaveGone(t *testing.T) {
	tu := &turns{free: 1, maxWait: 100, patience: time.Hour}
	require.NoError(t, tu.begin(t.Context(), "a"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	for _, edge := range strings.Split("aabbccddee", "") {
		go func() {
			err := tu.begin(ctx, edge)
			if err == nil {
				tu.end()
			}
			ended <- err
		}()
	}
	require.Eventually(t, func() bool { return tu.waits() == 10 }, time.Minute, time.Millisecond)
	go cancel()
	tu.end()
	for range 10 {
		if err := <-ended; err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
	}
	require.Equal(t, 1, tu.free)
	require.Zero(t, tu.waits())
	require.Empty(t, tu.queues)
}
