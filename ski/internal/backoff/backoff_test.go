package backoff_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/backoff"
)

var errEnded = errors.New("close notify")

// refusals are those of an edge that asks a thousand times a second, for so long,
// a key server that ends each session at once.
func refusals(r *backoff.Refusals, lasting time.Duration) (sessions []time.Duration) {
	for began := time.Now(); time.Since(began) < lasting; time.Sleep(time.Millisecond) {
		if r.Enter() == nil {
			sessions = append(sessions, time.Since(began))
			time.Sleep(time.Millisecond)
			_ = r.Refused(time.Now(), errEnded)
		}
	}
	return sessions
}

func TestAKeyServerThatRefusesIsAskedLessAndLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := &backoff.Refusals{Log: slog.New(slog.NewTextHandler(&log, nil))}
		sessions := refusals(r, time.Hour)
		require.Greater(t, len(sessions), 60, "once a minute")
		assert.Less(t, sessions[1], 10*time.Millisecond, "the first may be a restart")
		pause := time.Second
		for i := 2; i < len(sessions); i++ {
			got := sessions[i] - sessions[i-1]
			assert.GreaterOrEqual(t, got, pause/2, "before session %d", i)
			assert.LessOrEqual(t, got, pause+10*time.Millisecond, "before session %d", i)
			pause = min(2*pause, time.Minute)
		}
		assert.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
		assert.Contains(t, log.String(), "the key server refuses this edge")
		r.Answered()
		assert.Contains(t, log.String(), "lets this edge in again")
		assert.Equal(t, 2, strings.Count(log.String(), "\n"))
		assert.NoError(t, r.Enter())
		assert.Len(t, refusals(r, time.Second/2), 2, "from the beginning")
	})
}

func TestInFifteenSecondsOfRefusalsThereAreSevenSessionsAtMost(t *testing.T) {
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			r := &backoff.Refusals{Log: slog.New(slog.DiscardHandler)}
			assert.LessOrEqual(t, len(refusals(r, 15*time.Second)), 7)
		})
	}
}

func TestARefusalSaysUntilWhenAndWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &backoff.Refusals{Log: slog.New(slog.DiscardHandler)}
		refusals(r, 10*time.Millisecond)
		err := r.Enter()
		refused := (*ski.RefusedError)(nil)
		require.ErrorAs(t, err, &refused)
		assert.ErrorIs(t, err, ski.ErrRefused)
		assert.ErrorIs(t, err, errEnded)
		after := refused.RetryAfter()
		assert.Greater(t, after, 400*time.Millisecond)
		time.Sleep(after - time.Millisecond)
		assert.Error(t, r.Enter())
		time.Sleep(time.Millisecond)
		assert.NoError(t, r.Enter())
		assert.ErrorIs(t, r.Enter(), ski.ErrRefused, "one session is enough to find out")
	})
}

func TestARestartIsNoRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &backoff.Refusals{Log: slog.New(slog.DiscardHandler)}
		for range 10 {
			time.Sleep(time.Second)
			assert.NoError(t, r.Refused(time.Now(), errEnded))
			assert.NoError(t, r.Enter())
			r.Answered()
		}
	})
}

// All connections of a client that a restart ends count as one.
func TestSessionsThatEndTogetherAreOneRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &backoff.Refusals{Log: slog.New(slog.DiscardHandler)}
		began := time.Now()
		time.Sleep(time.Millisecond)
		for range 8 {
			assert.NoError(t, r.Refused(began, errEnded))
		}
		time.Sleep(time.Millisecond)
		assert.ErrorIs(t, r.Refused(time.Now(), errEnded), ski.ErrRefused)
	})
}

func TestAnOperatorNeedNotWaitForTheNextSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &backoff.Refusals{Log: slog.New(slog.DiscardHandler)}
		refusals(r, time.Hour)
		require.Error(t, r.Enter())
		r.Retry()
		assert.NoError(t, r.Enter())
		assert.Error(t, r.Enter())
	})
}
