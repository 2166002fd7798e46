//go:build cgo

package hsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// queue is how many jobs of a token can wait without being noticed. A caller
// that has put its job into the queue wakes up once, for the answer: waking up
// for the start of the job too costs a tenth of what a fast token does. Those
// who find the queue full wait before it, in order too.
const queue = 4096

// token is one token in use: a queue of jobs, and workers that serve it in
// order, each with a session of its own. A job that hangs in the token keeps
// its worker, and nothing else.
type token struct {
	mod    *sharedModule
	label  string
	serial string
	pin    *tokenPIN
	login  bool // the token wants a PIN
	rw     bool
	limit  int // how many workers there are to be
	log    *slog.Logger
	// changed is Config.Changed, or does nothing.
	changed func()

	jobs    chan *job // first in, first out
	stop    chan struct{}
	workers sync.WaitGroup

	up    atomic.Int32 // sessions there are
	wait  atomic.Int32 // jobs in the queue
	busy  atomic.Int32 // workers in a call
	stuck atomic.Int32 // those of them whose job nobody waits for
	// epoch changes when something has happened that may have ended all
	// sessions. A session of an older epoch is looked at before it is used.
	epoch atomic.Uint64

	opening sync.Mutex // one session after the other, and so one login
	slot    atomic.Uint64

	failing atomic.Bool   // out.err is not nil
	probing atomic.Bool   // a worker finds out whether that is so still
	fewer   atomic.Bool   // the log has that there are fewer sessions than asked for
	wrong   atomic.Uint64 // signatures

	mu     sync.Mutex
	size   int // how many workers there are
	out    outage
	keys   []*privateKey
	probes int
}

// job is one use of a session.
type job struct {
	ctx   context.Context
	run   func(*session) error
	done  chan error // with room for the answer, which nobody may wait for
	state atomic.Int32
}

// The states of a job. It leaves each of the first two once: who takes it out is
// the only one who does.
const (
	jobWaits int32 = iota
	jobRuns
	jobIsDone
	jobIsGivenUp // by its caller
)

// session is a worker's session and what it knows of the keys.
type session struct {
	module
	handle pkcs11.SessionHandle
	epoch  uint64
	found  map[*privateKey]*foundKey
}

// newToken returns a token without workers.
func newToken(mod *sharedModule, slot uint, info pkcs11.TokenInfo, pin *tokenPIN, cfg *Config, rw bool) *token {
	t := &token{
		mod: mod, pin: pin, label: info.Label, serial: info.SerialNumber, rw: rw, log: cfg.logger(), changed: cfg.changed,
		login: info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0,
		limit: DefaultMaxSessions, jobs: make(chan *job, queue), stop: make(chan struct{}),
	}
	t.slot.Store(uint64(slot))
	if cfg.MaxSessions > 0 {
		t.limit = cfg.MaxSessions
	}
	most := info.MaxSessionCount
	if rw {
		most = info.MaxRwSessionCount
	}
	if most != pkcs11.CK_EFFECTIVELY_INFINITE && most != pkcs11.CK_UNAVAILABLE_INFORMATION && most < uint(t.limit) {
		t.limit = int(most)
	}
	return t
}

// slotNow returns the slot that the token was last seen in.
func (t *token) slotNow() uint { return uint(t.slot.Load()) }

// start makes the workers, as many as size.
func (t *token) start(size int) {
	t.mu.Lock()
	t.size += size
	t.mu.Unlock()
	for range size {
		w := &worker{t: t}
		t.workers.Go(w.serve)
	}
}

// do runs a job with a session and waits for its end, or for that of ctx. In
// the latter case run may go on: what it writes must be its own.
func (t *token) do(ctx context.Context, run func(*session) error) error {
	j := &job{ctx: ctx, run: run, done: make(chan error, 1)}
	t.wait.Add(1)
	select {
	case t.jobs <- j:
		select {
		case err := <-j.done:
			return err
		case <-ctx.Done():
		case <-t.stop:
		}
	case <-ctx.Done():
	case <-t.stop:
	}
	return t.giveUp(j)
}

// giveUp is for a caller that waits no longer.
func (t *token) giveUp(j *job) error {
	what := "no answer"
	switch {
	case j.state.CompareAndSwap(jobWaits, jobIsGivenUp):
		t.wait.Add(-1)
		what = "no session free"
	case j.state.CompareAndSwap(jobRuns, jobIsGivenUp):
		// A caller that has gone says nothing of the token.
		if t.stuck.Add(1) >= t.up.Load() && errors.Is(j.ctx.Err(), context.DeadlineExceeded) {
			t.failed(errSilent, true)
		}
	}
	if err := j.ctx.Err(); err != nil {
		return fmt.Errorf("%s: %s: %w", t, what, err)
	}
	return errClosed
}

var errClosed = errors.New("the key store is closed")

// String names the token in errors and logs.
func (t *token) String() string { return fmt.Sprintf("token %q (serial %s)", t.label, t.serial) }

// worker serves a token's queue with one session.
type worker struct {
	t     *token
	s     *session      // nil: none, or lost
	pause time.Duration // between two attempts to get one, while others have
	next  time.Time
}

func (w *worker) serve() {
	defer w.drop()
	_ = w.ready()
	for {
		jobs, retry := w.t.jobs, (<-chan time.Time)(nil)
		if w.s == nil {
			// The jobs are for those that have a session. If nobody has, they are
			// told so.
			if w.t.up.Load() > 0 {
				jobs = nil
			}
			retry = time.After(time.Until(w.nextTry()))
		} else if next, ok := w.t.nextProbe(); ok {
			retry = time.After(time.Until(next))
		}
		select {
		case <-w.t.stop:
			return
		case j := <-jobs:
			if j.state.CompareAndSwap(jobWaits, jobRuns) { // Otherwise nobody waits for it.
				w.t.wait.Add(-1)
				w.do(j)
			}
		case <-retry:
			if w.s == nil {
				_ = w.ready()
			} else {
				w.probe()
			}
		}
	}
}

// nextTry returns when to try to get a session again.
func (w *worker) nextTry() time.Time {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	if w.t.out.next.After(w.next) {
		return w.t.out.next
	}
	return w.next
}

// do runs a job. It is run once more if the session turns out to be lost: all
// jobs can be done twice.
func (w *worker) do(j *job) {
	t := w.t
	t.busy.Add(1)
	defer t.busy.Add(-1)
	err := w.ready()
	if err == nil {
		if err = w.run(j); isLost(err) && j.ctx.Err() == nil {
			if ready := w.ready(); ready != nil {
				err = ready
			} else if err = w.run(j); isLost(err) && err != errEpoch {
				t.failed(err, true)
			}
		}
	}
	if err == nil {
		t.works(true)
	}
	if !j.state.CompareAndSwap(jobRuns, jobIsDone) {
		t.stuck.Add(-1)
	}
	j.done <- err
}

// run runs a job in the session there is, and drops the session if the job's
// error says that it cannot be trusted any more.
func (w *worker) run(j *job) error {
	before := w.s.epoch
	w.t.mod.calls.RLock()
	err := j.run(w.s)
	w.t.mod.calls.RUnlock()
	if err == nil && w.t.epoch.Load() != before {
		// Sessions have ended meanwhile, and a new one can have the number of an
		// old one: this may be the answer to another job.
		w.check()
		return errEpoch
	}
	if isLost(err) && !errors.Is(err, errEpoch) {
		w.t.epoch.Add(1)
		w.drop()
	}
	return err
}

var errEpoch = &lostError{errors.New("the token's sessions have ended")}

// drop closes the session, if there is one.
func (w *worker) drop() {
	if w.s == nil {
		return
	}
	w.t.mod.calls.RLock()
	_ = w.s.CloseSession(w.s.handle)
	w.t.mod.calls.RUnlock()
	w.s = nil
	w.t.mod.up.Add(-1)
	w.t.up.Add(-1)
}

// ready sees to it that there is a session that is logged in.
func (w *worker) ready() error {
	if w.s != nil && w.s.epoch != w.t.epoch.Load() {
		w.check()
	}
	if w.s != nil {
		return nil
	}
	s, err := w.t.open()
	if err != nil {
		if now := time.Now(); !now.Before(w.next) {
			w.pause = min(max(2*w.pause, firstPause), lastPause)
			w.next = now.Add(w.pause)
		}
		return err
	}
	w.s, w.pause, w.next = s, 0, time.Time{}
	return nil
}

// check drops a session that has ended, or has been logged out.
func (w *worker) check() {
	if w.s == nil {
		return
	}
	epoch := w.t.epoch.Load()
	w.t.mod.calls.RLock()
	loggedIn, err := w.s.loggedIn()
	w.t.mod.calls.RUnlock()
	if err != nil || w.t.login && !loggedIn {
		w.drop()
		return
	}
	w.s.epoch = epoch
}

func (s *session) loggedIn() (bool, error) {
	info, err := s.GetSessionInfo(s.handle)
	if err != nil {
		return false, err
	}
	return info.State == pkcs11.CKS_RO_USER_FUNCTIONS || info.State == pkcs11.CKS_RW_USER_FUNCTIONS, nil
}

// open opens a session, and logs in if the token has forgotten that we were.
func (t *token) open() (*session, error) {
	if err := t.mayTry(); err != nil {
		return nil, err
	}
	t.opening.Lock()
	defer t.opening.Unlock()
	if err := t.mayTry(); err != nil { // It has failed while this one waited.
		return nil, err
	}
	if err := t.stillRefused(); err != nil {
		t.failed(err, false)
		return nil, err
	}
	if t.shouldRestart() {
		t.loseSessions() // for the next time, if there are any
		if err := t.mod.restart(); err != nil {
			t.log.Debug("the PKCS #11 module cannot be started again", "module", t.mod.file, "error", err)
		}
	}
	t.mod.calls.RLock()
	s, err := t.tryOpen()
	t.mod.calls.RUnlock()
	switch {
	case err == nil:
		t.works(false)
		return s, nil
	case isPINError(err):
		return nil, t.refuse(err)
	}
	if up := t.up.Load(); up > 0 && errors.Is(err, errNoSession) {
		// Other processes have some of the token's sessions, or its memory. Whether it
		// works is for the jobs of the sessions that it has given to tell.
		if t.fewer.CompareAndSwap(false, true) {
			t.log.Warn("an HSM gives fewer sessions than asked for", "token", t.label, "serial", t.serial, "sessions", up, "error", err)
		}
	} else {
		t.failed(err, false)
	}
	return nil, fmt.Errorf("%s: %w", t, err)
}

var errNoSession = errors.New("C_OpenSession")

func (t *token) tryOpen() (*session, error) {
	epoch := t.epoch.Load()
	slot, err := t.locate()
	if err != nil {
		return nil, err
	}
	flags := uint(pkcs11.CKF_SERIAL_SESSION)
	if t.rw {
		flags |= pkcs11.CKF_RW_SESSION
	}
	handle, err := t.mod.OpenSession(slot, flags)
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_COUNT)) && t.up.Load() == 0 {
		// The sessions are ours all the same: opened by calls that failed.
		if t.mod.CloseAllSessions(slot) == nil {
			handle, err = t.mod.OpenSession(slot, flags)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoSession, err)
	}
	s := &session{module: t.mod.module, handle: handle, epoch: epoch, found: make(map[*privateKey]*foundKey)}
	if err := t.logIn(s, slot); err != nil {
		_ = s.CloseSession(handle)
		return nil, err
	}
	t.slot.Store(uint64(slot))
	t.mod.up.Add(1)
	if int(t.up.Add(1)) == t.limit {
		t.fewer.Store(false)
	}
	return s, nil
}

// locate returns the token's slot, which changes if it is pulled out and put
// into another.
func (t *token) locate() (uint, error) {
	if info, err := t.mod.GetTokenInfo(t.slotNow()); err == nil && t.is(info) {
		return t.slotNow(), nil
	} else if errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)) {
		if err := t.mod.initialize(); err != nil {
			return 0, fmt.Errorf("C_Initialize: %w", err)
		}
	}
	slots, err := t.mod.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("C_GetSlotList: %w", err)
	}
	for _, slot := range slots {
		if info, err := t.mod.GetTokenInfo(slot); err == nil && t.is(info) {
			return slot, nil
		}
	}
	return 0, errors.New("it is in no slot")
}

func (t *token) is(info pkcs11.TokenInfo) bool {
	return info.Label == t.label && info.SerialNumber == t.serial && info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0
}

// logIn logs in, once for all sessions with the token (PKCS #11, "C_Login").
// Whether somebody has is asked of the token, which knows it also after a call
// that failed and took effect.
func (t *token) logIn(s *session, slot uint) error {
	if !t.login {
		return nil
	}
	if loggedIn, err := s.loggedIn(); err != nil {
		return fmt.Errorf("C_GetSessionInfo: %w", err)
	} else if loggedIn {
		return nil
	}
	info, err := s.GetTokenInfo(slot)
	if err != nil {
		return fmt.Errorf("C_GetTokenInfo: %w", err)
	}
	if err := checkLogin(info, true); err != nil {
		return err
	}
	pin, err := t.pin.next()
	if err != nil {
		return err
	}
	err = s.Login(s.handle, pkcs11.CKU_USER, pin)
	if err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		return fmt.Errorf("C_Login: %w", err)
	}
	return nil
}

// close ends the workers and waits for them until ctx ends.
func (t *token) close(ctx context.Context) error {
	close(t.stop)
	done := make(chan struct{})
	go func() { t.workers.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: calls to it do not return", t)
	}
}

// lostError says that what failed was the session or the token, and not what
// was asked of it.
type lostError struct{ error }

func (e *lostError) Unwrap() error { return e.error }

// harmless are the errors after which a session is as good as before: the token
// has looked at the question and refused it.
var harmless = map[pkcs11.Error]bool{
	pkcs11.CKR_DATA_INVALID:               true,
	pkcs11.CKR_DATA_LEN_RANGE:             true,
	pkcs11.CKR_ENCRYPTED_DATA_INVALID:     true,
	pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE:   true,
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: true,
	pkcs11.CKR_KEY_SIZE_RANGE:             true,
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:      true,
	pkcs11.CKR_MECHANISM_INVALID:          true,
	pkcs11.CKR_MECHANISM_PARAM_INVALID:    true,
	pkcs11.CKR_ATTRIBUTE_SENSITIVE:        true,
	pkcs11.CKR_ATTRIBUTE_TYPE_INVALID:     true,
	pkcs11.CKR_ATTRIBUTE_VALUE_INVALID:    true,
	pkcs11.CKR_TEMPLATE_INCOMPLETE:        true,
	pkcs11.CKR_TEMPLATE_INCONSISTENT:      true,
	pkcs11.CKR_DOMAIN_PARAMS_INVALID:      true,
	pkcs11.CKR_TOKEN_WRITE_PROTECTED:      true,
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:     true,
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED:   true,
	pkcs11.CKR_ATTRIBUTE_READ_ONLY:        true,
}

// isLost reports whether an error makes the session worthless. That is every
// error of the module that is not known to be harmless.
func isLost(err error) bool {
	var lost *lostError
	if errors.As(err, &lost) {
		return true
	}
	var rv pkcs11.Error
	return errors.As(err, &rv) && !harmless[rv]
}

// isPINError reports whether a login failed because of the PIN.
func isPINError(err error) bool {
	for _, rv := range []pkcs11.Error{
		pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED,
		pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_USER_PIN_NOT_INITIALIZED,
	} {
		if errors.Is(err, rv) {
			return true
		}
	}
	return false
}
