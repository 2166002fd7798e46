package keyserver

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// keysHealth returns why no key can be used at the moment, or nil while one can.
func (s *Server) keysHealth() error {
	if len(s.policy.Load().keys.byID) == 0 {
		return errors.New("there is no private key")
	}
	store, ok := s.keyStore().(HealthKeyStore)
	if !ok {
		return nil
	}
	var last error
	for _, id := range store.IDs() {
		if last = store.Health(id); last == nil {
			return nil
		}
	}
	if last != nil {
		return fmt.Errorf("no private key can be used: %w", last)
	}
	return nil
}

// failureInterval is how often the log has that operations with a key fail.
const failureInterval = time.Minute

// keyFailures is what the log has of the operations with a key that failed.
type keyFailures struct {
	mu       sync.Mutex
	logged   time.Time
	unlogged int // since then
}

// operationFailed logs a failure, once a minute for each key. Where the store
// says that the key cannot be used, it has logged that.
func (s *Server) operationFailed(k key, req *ski.Request, err error) {
	if store, ok := k.store.(HealthKeyStore); ok && store.Health(k.id) != nil {
		s.log.Debug("operation failed", "key", k.name, "method", req.KeyExchange(), "error", err)
		return
	}
	v, _ := s.keyFailures.LoadOrStore(k.id, new(keyFailures))
	f := v.(*keyFailures)
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.logged) >= failureInterval {
		s.log.Error("operation failed", "key", k.name, "method", req.KeyExchange(), "error", err, "unlogged", f.unlogged)
		f.logged, f.unlogged = now, 0
		return
	}
	f.unlogged++
}
