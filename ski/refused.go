package ski

import (
	"errors"
	"fmt"
	"time"
)

// ErrRefused says that a key server lets this edge have no session in which it
// answers something. It is what a *RefusedError is.
var ErrRefused = errors.New("the key server ends each session: it has suspended this edge, does not know it, or is shutting down")

// RefusedError is the Err of a TransportError for a request that was not sent: the
// key server has ended one session after the other before it answered anything,
// and is not asked before a time that grows from 1 s to a minute. A Client asks
// the next key server, and where there is none returns at once.
type RefusedError struct {
	// Until is when the key server is asked again.
	Until time.Time
	// Err is how the last session ended.
	Err error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%v: %v; next attempt in %s", ErrRefused, e.Err, e.RetryAfter().Round(100*time.Millisecond))
}

// RetryAfter returns how long the key server is not asked.
func (e *RefusedError) RetryAfter() time.Duration { return max(0, time.Until(e.Until)) }

// Is makes errors.Is(err, ErrRefused) true.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

func (e *RefusedError) Unwrap() error { return e.Err }
