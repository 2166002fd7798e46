package keyparts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tlsski/tlsski/cmd/internal/watch"
	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

// Reloader takes up keys that come, and takes away those that go, while a key
// server runs.
type Reloader struct {
	keys    *Keys
	server  *keyserver.Server
	metrics *keyserver.Metrics
	log     *slog.Logger

	asked  chan struct{} // by whoever wants to hear of every fault
	events chan struct{}

	store keyserver.KeyStore // what the server has
	told  map[string]bool    // faults that the log has

	mu     sync.Mutex
	refuse map[ski.KeyID]error
}

// NewReloader returns a Reloader for a server of the keys. The key of the audit
// log is not one of them.
func NewReloader(k *Keys, server *keyserver.Server, audit keyserver.AuditOptions, metrics *keyserver.Metrics, log *slog.Logger) *Reloader {
	r := &Reloader{
		keys: k, server: server, metrics: metrics, log: log, store: k.Store,
		asked: make(chan struct{}, 1), events: make(chan struct{}, 1),
		told: make(map[string]bool), refuse: make(map[ski.KeyID]error),
	}
	if audit.Key != nil {
		if id, err := ski.PublicKeyID(audit.Key.Public()); err == nil {
			r.Refuse(id, errAuditKey)
		}
	}
	return r
}

var errAuditKey = errors.New("it is the audit log's: give that a key of its own, skictl audit keygen makes one")

// Refuse keeps a key from being served, for the reason given, or no longer if
// that is nil.
func (r *Reloader) Refuse(id ski.KeyID, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if delete(r.refuse, id); why != nil {
		r.refuse[id] = why
	}
	ask(r.events) // It may just be becoming one that is served.
}

func (r *Reloader) refused(id ski.KeyID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refuse[id]
}

// Reload asks for the keys to be read again. It does not wait for that.
func (r *Reloader) Reload() { ask(r.asked) }

func ask(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // It has been asked for.
	}
}

// retry is when files are read again that may have been half written.
const retry = time.Second

// rest is how many times as long as the last reading the next one waits, unless
// somebody asks for it: a file that is written all the time, beside thousands of
// keys, would keep a processor busy.
const rest = 4

// Run reads the keys again when it is asked to, and when a file changes, until
// ctx ends.
func (r *Reloader) Run(ctx context.Context) {
	var watching sync.WaitGroup
	defer watching.Wait()
	if r.keys.folder != nil {
		watching.Go(func() {
			if err := watch.Eagerly(ctx, r.keys.folder.Watched, func() { ask(r.events) }, r.log); err != nil {
				r.log.Warn("the keys are read again with SIGHUP alone", "error", err)
			}
		})
	}
	if r.keys.tokens != nil {
		watching.Go(func() { r.askTokens(ctx) })
	}
	var again, rested <-chan time.Time
	events := r.events
	for {
		impatient := false
		select {
		case <-ctx.Done():
			return
		case <-r.asked:
			impatient = true
			ask(r.keys.changed)
		case <-events:
		case <-again:
		case <-rested:
			events, rested = r.events, nil
			continue
		}
		again = nil
		began := time.Now()
		if r.reload(ctx, impatient) {
			again = time.After(retry)
		}
		events, rested = nil, time.After(rest*time.Since(began))
	}
}

// askTokens asks the tokens for their keys when they may have others. They may
// take their time, for which the files do not wait.
func (r *Reloader) askTokens(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.keys.changed:
		}
		ask(r.events) // for what is gone already
		limited, cancel := context.WithTimeout(ctx, openTimeout)
		faults := r.keys.tokens.Reload(limited)
		cancel()
		if ctx.Err() != nil {
			return
		}
		for _, err := range faults {
			r.log.Error("tokens", "error", err)
		}
		r.metrics.SetReloadFaults(keyserver.ReloadTokens, len(faults))
		ask(r.events)
	}
}

// reload reads the keys again and gives them to the server. It reports whether to
// do so again soon.
func (r *Reloader) reload(ctx context.Context, impatient bool) (unsettled bool) {
	if impatient {
		clear(r.told)
	}
	faults := make(map[string]bool)
	fault := func(err error) {
		text := err.Error()
		if !r.told[text] && !faults[text] {
			r.log.Error("keys", "error", err)
		}
		faults[text] = true
	}
	if folder := r.keys.folder; folder != nil {
		result, err := folder.Reload(impatient)
		if err != nil {
			result.Faults = append(result.Faults, err)
		}
		for _, err := range result.Faults {
			fault(err)
		}
		unsettled = result.Unsettled
	}
	store, conflicts := keyserver.JoinAgain(r.store, r.refused, r.keys.stores()...)
	for _, err := range conflicts {
		fault(fmt.Errorf("it is not served: %w", err))
	}
	if err := r.server.SetKeys(store); err != nil {
		fault(err)
	} else {
		r.store = store
	}
	if len(r.told) > 0 && len(faults) == 0 && !unsettled {
		r.log.Info("keys: there is no fault any more")
	}
	r.told = faults
	r.metrics.SetReloadFaults(keyserver.ReloadKeys, len(faults))
	return unsettled
}
