//go:build cgo

package hsm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A token that fails is tried again after the first pause, then after twice as
// long, up to the last.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 10 * time.Second
)

// restartAfter is how many attempts in a row fail before the module itself is
// ended and started again, which some need to find a token again that was away.
const restartAfter = 4

// quiet is how long the log says nothing of a token that fails again. One whose
// every second call fails would fill it.
const quiet = time.Minute

// outage is what is known of a token that does not work. It is guarded by the
// token's mu.
type outage struct {
	err      error         // why the token does not work; nil while it does
	pause    time.Duration // between two attempts
	next     time.Time     // when it may be tried again
	failures int           // in a row
	inUse    bool          // a job failed, and not an attempt to open a session
	told     bool          // the log has it
	toldAt   time.Time     // when the log had the last one
}

// mayTry returns why the token must not be used now.
func (t *token) mayTry() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.out.err == nil || !time.Now().Before(t.out.next) {
		return nil
	}
	return t.whyNot()
}

// health returns why the token does not work, or nil.
func (t *token) health() error {
	if !t.failing.Load() {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.whyNot()
}

func (t *token) whyNot() error {
	if t.out.err == nil || errors.Is(t.out.err, ErrPIN) { // which names the token
		return t.out.err
	}
	return fmt.Errorf("%s does not work: %w", t, t.out.err)
}

// failed notes that the token does not work and sets the pause. Those who fail
// during the pause have begun before it and do not make it longer.
func (t *token) failed(err error, inUse bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if !t.out.told && now.Sub(t.out.toldAt) >= quiet {
		t.log.Error("an HSM does not work", "token", t.label, "serial", t.serial, "module", t.mod.file, "error", err)
		t.out.told, t.out.toldAt = true, now
	}
	t.out.err = err
	t.failing.Store(true)
	t.out.inUse = t.out.inUse || inUse
	if !now.Before(t.out.next) {
		t.out.pause = min(max(2*t.out.pause, firstPause), lastPause)
		t.out.next = now.Add(t.out.pause)
		t.out.failures++
	}
}

// works notes that a session was opened or that a job succeeded. If jobs have
// failed, only a job can show that the token works again.
func (t *token) works(inUse bool) {
	if !t.failing.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.out.err == nil || t.out.inUse && !inUse {
		return
	}
	if t.out.told {
		t.log.Info("an HSM works again", "token", t.label, "serial", t.serial, "module", t.mod.file)
	}
	t.out = outage{toldAt: t.out.toldAt}
	t.failing.Store(false)
	t.changed()
}

// refuse notes that the token does not take the PIN.
func (t *token) refuse(err error) error {
	t.log.Error("an HSM does not take the PIN, which is not tried again before pin-source has another", "token", t.label, "serial", t.serial, "error", err)
	err = fmt.Errorf("%s %w (%w): it is not tried again, since tokens lock themselves: correct the PIN", t, ErrPIN, err)
	t.pin.refuse(err)
	t.mu.Lock()
	t.out.told, t.out.toldAt = true, time.Now()
	t.out.pause, t.out.next = 0, time.Time{} // for the next PIN
	t.mu.Unlock()
	t.failed(err, false)
	return err
}

// stillRefused returns why the token did not take the PIN, as long as there is
// no other to try. The token is not asked.
func (t *token) stillRefused() error {
	t.mu.Lock()
	refused := errors.Is(t.out.err, ErrPIN)
	t.mu.Unlock()
	if !refused {
		return nil
	}
	_, err := t.pin.current()
	return err
}

// shouldRestart reports whether to start the module again before the next
// attempt: after several that failed, and before another PIN is tried, since
// SoftHSM knows only of changes that this process has made.
func (t *token) shouldRestart() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.out.failures >= restartAfter || errors.Is(t.out.err, ErrPIN)
}

// loseSessions has the workers that wait for jobs drop their sessions, which
// otherwise keep the module from being started again as long as nobody asks.
func (t *token) loseSessions() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // so that it is done once
	for range t.up.Load() {
		t.wait.Add(1)
		select {
		case t.jobs <- &job{ctx: ctx, run: func(*session) error { return errDistrusted }, done: make(chan error, 1)}:
		default: // There are jobs enough.
			t.wait.Add(-1)
		}
	}
}

var errDistrusted = &lostError{errors.New("the token's other sessions fail")}

// addKey makes a key one of those that a probe uses.
func (t *token) addKey(k *privateKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys = append(t.keys, k)
}

// setKeys makes these the keys that a probe uses.
func (t *token) setKeys(keys []*privateKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys = keys
}

// nextProbe returns when to find out, without a request, whether the token works
// again. Who is told that it does not may ask elsewhere, and then nobody would
// notice. ok is false where there is nothing to find out.
func (t *token) nextProbe() (next time.Time, ok bool) {
	if !t.failing.Load() {
		return next, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.probing.Load() {
		return time.Now().Add(lastPause), true
	}
	return t.out.next, t.out.inUse && len(t.keys) > 0
}

// probe has a key prove itself, each time another: what fails may be one key.
func (w *worker) probe() {
	t := w.t
	if !t.probing.CompareAndSwap(false, true) {
		return
	}
	defer t.probing.Store(false)
	t.mu.Lock()
	if len(t.keys) == 0 {
		t.mu.Unlock()
		return
	}
	k := t.keys[t.probes%len(t.keys)]
	t.probes++
	t.mu.Unlock()
	j := &job{ctx: context.Background(), run: k.prove, done: make(chan error, 1)}
	j.state.Store(jobRuns)
	w.do(j)
	if err := <-j.done; err != nil {
		t.failed(err, true)
	}
}

// wrongSignature notes that a key has made one. The log has the first, the
// second, the fourth and so on.
func (t *token) wrongSignature(k *privateKey) {
	if n := t.wrong.Add(1); n&(n-1) == 0 {
		t.log.Error("an HSM made a wrong signature, which is kept back", "key", k.info.Name, "token", t.label, "serial", t.serial, "so_far", n)
	}
}

func (t *token) stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{
		Module: t.mod.file, Token: t.label, Serial: strings.TrimSpace(t.serial), Sessions: t.size,
		Open: int(t.up.Load()), Busy: int(t.busy.Load()), Stuck: max(0, int(t.stuck.Load())), Waiting: int(t.wait.Load()),
		WrongSignatures: t.wrong.Load(), Err: t.out.err,
	}
}
