// Package backoff keeps a client from a key server that does not let it in.
package backoff

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// The pause before the next session. It doubles from the first value to the
// second; half of it is random, so that edges do not come all at once.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// enough is how many sessions in a row have to be ended for a refusal: a key
// server that is restarted ends one.
const enough = 2

// Refusals are what is known of whether a key server lets this edge in. It refuses
// an edge if it ends two sessions in a row before it has answered anything. What
// counts is an end that the key server itself has said, on a channel on which it
// is authenticated. The zero value with a Log is ready for use.
type Refusals struct {
	// Log gets a line when refusals begin, and one when they are over.
	Log *slog.Logger

	mu    sync.Mutex
	inRow int       // sessions that were ended, one after the other
	last  time.Time // when the last one was
	pause time.Duration
	now   *ski.RefusedError // nil: the key server may be asked
}

// Enter returns nil if a session may be made, and why not otherwise. After a pause
// it lets one in, and others when that has had a pause's time to show something.
func (b *Refusals) Enter() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.now == nil:
		return nil
	case b.now.RetryAfter() > 0:
		return b.now
	}
	b.now = &ski.RefusedError{Until: time.Now().Add(b.pause), Err: b.now.Err}
	return nil
}

// Refused takes in how a session ended that began at a time. It returns what Enter
// does from now on. Of sessions that were there together one counts.
func (b *Refusals) Refused(began time.Time, cause error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if began.After(b.last) {
		b.last = time.Now()
		if b.inRow++; b.inRow >= enough {
			b.back(cause)
		}
	}
	if b.now == nil {
		return nil
	}
	return b.now
}

// back is called with b.mu held.
func (b *Refusals) back(cause error) {
	begins := b.pause == 0
	b.pause = min(max(2*b.pause, firstPause), lastPause)
	pause := b.pause/2 + rand.N(b.pause/2)
	b.now = &ski.RefusedError{Until: b.last.Add(pause), Err: cause}
	level := slog.LevelDebug
	if begins {
		level = slog.LevelWarn
	}
	b.Log.Log(context.Background(), level, "the key server refuses this edge: it is asked less and less often", "error", cause, "again_in", pause)
}

// Answered takes in that a session has had an answer.
func (b *Refusals) Answered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now != nil {
		b.Log.Info("the key server lets this edge in again")
	}
	b.inRow, b.pause, b.now = 0, 0, nil
}

// Retry has the key server asked at once, and not after the pause: something has
// changed, or it could not be reached when its time had come.
func (b *Refusals) Retry() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now != nil {
		b.now = &ski.RefusedError{Err: b.now.Err}
	}
}

// Level is that of lines about single sessions: while they are refused, the two of
// Log are enough.
func (b *Refusals) Level(usual slog.Level) slog.Level {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now != nil {
		return slog.LevelDebug
	}
	return usual
}
