package ski

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// AttemptKind says why a Client asked a key server.
type AttemptKind string

const (
	// FirstAttempt is the request itself.
	FirstAttempt AttemptKind = "first"
	// FailoverAttempt is the request again, after another attempt failed.
	FailoverAttempt AttemptKind = "failover"
	// RetryAttempt is the request again, after a key server was overloaded.
	RetryAttempt AttemptKind = "retry"
	// HedgeAttempt is the request at a second key server while the first is
	// slow (Client.MaxExtra).
	HedgeAttempt AttemptKind = "hedge"
	// TrialAttempt is a copy of a request for a key server that did not answer
	// before. Nobody waits for it.
	TrialAttempt AttemptKind = "trial"
)

// Attempt is one question to one key server.
type Attempt struct {
	// Endpoint is what the Transport says of itself with a method Endpoint() string,
	// which those of skicoap and skihttp have; otherwise # and its place.
	Endpoint  string
	Transport Transport
	Kind      AttemptKind
	Method    Method
	Took      time.Duration
	// Err is why there is no answer; nil if there is one.
	Err error
	// Answer is the answer's error; empty for an output.
	Answer Error
	// Overloaded and RetryAfter are the Response's.
	Overloaded bool
	RetryAfter time.Duration
}

// Outcome names what came of the attempt, for the label of a metric: "output",
// one of the four errors, "overloaded", "canceled" where the answer was not waited for,
// "timeout", "refused" (ErrRefused), "unreachable" or "failed". With MethodRSA it is "answered" for
// whatever the key server has answered: that may depend on the plaintext, and
// whoever reads metrics and connects would learn it.
func (a *Attempt) Outcome() string {
	te := (*TransportError)(nil)
	switch {
	case a.Method == MethodRSA && Answered(a.Err):
		return "answered"
	case a.Err == nil && a.Answer == "":
		return "output"
	case a.Err == nil && a.Overloaded:
		return "overloaded"
	case a.Err == nil:
		return string(a.Answer)
	case errors.Is(a.Err, context.Canceled):
		return "canceled"
	case errors.Is(a.Err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(a.Err, ErrRefused):
		return "refused"
	case errors.As(a.Err, &te):
		return "unreachable"
	}
	return "failed"
}

// Health is a change of what a Client thinks of a key server.
type Health struct {
	Endpoint  string
	Transport Transport
	// Answers says whether it is asked before those that do not.
	Answers bool
	// Err is why not.
	Err error
	// Down is how long it did not answer, where it does now.
	Down time.Duration
}

const (
	// The pause before a key server that does not answer gets the copy of a
	// request. It doubles from the first value to the second.
	firstTrial = time.Second
	lastTrial  = 10 * time.Second
	// maxUnspecified is how many times in a row a key server may answer
	// UnspecifiedError. Fewer may be the fault of one key.
	maxUnspecified = 3
	// maxBusy bounds for how long a key server that was overloaded is asked after the
	// others, whatever it says.
	maxBusy = 10 * time.Second
)

// health is what is known of a key server. What counts are the answers to real
// requests: whether it has the keys and can use them, no other question tells.
type health struct {
	latency

	state       sync.Mutex
	down        bool
	since       time.Time // of the last change
	unspecified int       // answers in a row
	faulty      bool      // it is reached, but its answers to others than MethodRSA are wrong
	trial       time.Time // when to send a copy
	pause       time.Duration
	busyUntil   time.Time // as it has said when it was overloaded
	heard       time.Time // when it gave its last answer
}

// answers reports whether the key server gives answers, as far as known.
func (h *health) answers() bool {
	h.state.Lock()
	defer h.state.Unlock()
	return !h.down
}

// free reports whether the key server gives answers, and has not said that it is
// overloaded now.
func (h *health) free(now time.Time) bool {
	h.state.Lock()
	defer h.state.Unlock()
	return !h.down && !now.Before(h.busyUntil)
}

// due reports whether it is time to send a copy of a request with method, which
// is then the caller's to do.
func (h *health) due(now time.Time, method Method) bool {
	h.state.Lock()
	defer h.state.Unlock()
	if !h.down || now.Before(h.trial) || method == MethodRSA && h.faulty {
		return false
	}
	h.pause = min(2*h.pause, lastTrial)
	h.trial = now.Add(h.pause/2 + rand.N(h.pause/2)) // edges shall not come all at once
	return true
}

// note takes in what came of an attempt that began at start. hurried says that it
// had too little time.
func (h *health) note(a *Attempt, start time.Time, hurried bool, changed func(Health)) {
	te := (*TransportError)(nil)
	// What a key server answers to MethodRSA may depend on what a TLS client has
	// encrypted, and must not decide who is asked next. It says that the key
	// server can be reached, and no more.
	reached := a.Method == MethodRSA && Answered(a.Err)
	overloaded := a.Err == nil && a.Overloaded && !reached
	switch {
	case overloaded: // A refusal comes sooner than an answer would.
	case reached, a.Err == nil && a.Answer != UnspecifiedError:
		h.latency.answered(a.Took)
	case errors.As(a.Err, &te) && te.Op == "wait":
		return // It was this side that had no place.
	case errors.Is(a.Err, context.Canceled), a.Err != nil && hurried:
		h.latency.abandoned(a.Took)
		return // says nothing else
	case a.Err != nil && !errors.As(a.Err, &te) && !errors.Is(a.Err, context.DeadlineExceeded):
		return // The request was at fault.
	}
	h.state.Lock()
	defer h.state.Unlock()
	err := a.Err
	if Answered(err) {
		h.heard = time.Now()
	} else if errors.Is(err, context.DeadlineExceeded) && h.heard.After(start) {
		// It has answered another request since: it is busy, and not gone.
		h.latency.abandoned(a.Took)
		if a.Method != MethodRSA {
			h.busyUntil = time.Now().Add(retryUnknown)
		}
		return
	}
	if overloaded {
		h.busyUntil = time.Now().Add(min(cmp.Or(a.RetryAfter, retryUnknown), maxBusy))
	}
	if reached || overloaded { // which says that it is there, not that it is well
		if h.faulty {
			return
		}
		err = nil
	} else if a.Err == nil && a.Answer == UnspecifiedError {
		if h.unspecified++; h.unspecified < maxUnspecified {
			return
		}
		err = UnspecifiedError
	} else {
		h.unspecified = 0
	}
	// What began before it was known to answer again is of the time before.
	if err != nil && start.Before(h.since) {
		return
	}
	if !reached && !overloaded {
		h.faulty = err != nil && Answered(a.Err)
	}
	if errors.Is(err, ErrRefused) {
		h.pause = firstTrial // It was not asked, and keeps a clock of its own.
	}
	if h.down == (err != nil) {
		return
	}
	now := time.Now()
	change := Health{Endpoint: a.Endpoint, Transport: a.Transport, Answers: err == nil, Err: err}
	if h.down = err != nil; h.down {
		h.pause = firstTrial
		h.trial = now.Add(h.pause/2 + rand.N(h.pause/2))
	} else {
		change.Down = now.Sub(h.since)
	}
	h.since = now
	if changed != nil {
		changed(change)
	}
}
