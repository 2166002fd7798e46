package backoff

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// sayAgain is how often a key server that stays away is spoken of.
const sayAgain = time.Minute

// Absence logs that there is no session: at once, and then each minute while that
// lasts, whatever number of attempts a second are made. The others are logged at
// the level debug. The zero value with a Log is ready for use.
type Absence struct {
	Log *slog.Logger

	mu     sync.Mutex
	said   time.Time
	failed int // attempts since
}

// Failed takes in an attempt that has failed. level is what it is worth, again the
// pause before the next one.
func (a *Absence) Failed(level slog.Level, err error, again time.Duration) {
	a.mu.Lock()
	a.failed++
	failed := a.failed
	if now := time.Now(); a.said.IsZero() || now.Sub(a.said) >= sayAgain {
		a.said, a.failed = now, 0
	} else {
		level = slog.LevelDebug
	}
	a.mu.Unlock()
	a.Log.Log(context.Background(), level, "no session", "error", err, "attempts", failed, "again_in", again)
}

// Over takes in that there is a session.
func (a *Absence) Over() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said, a.failed = time.Time{}, 0
}
