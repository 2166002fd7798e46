package keyserver

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// noSuchKey is the reason of 'spki not found'.
const noSuchKey = "no key with this fingerprint"

// keyStore returns the one in effect.
func (s *Server) keyStore() KeyStore { return *s.keys.Load() }

// HasKey reports whether there is such a key now.
func (s *Server) HasKey(id ski.KeyID) bool {
	_, _, ok := s.keyStore().Lookup(id)
	return ok
}

// SetKeys puts another key store in the place of the one in effect, or takes up
// what the same one has gained or lost. Each request is answered with one of the
// two: what is under way with a key that goes ends as it would have, and what
// comes later is answered with 'spki not found'. The policy in effect speaks of
// the new keys. Log and audit log have a line for each key that came or went, by
// its name and fingerprint. The error, on which nothing changes, is for two keys
// of one name, or a name that a policy cannot tell apart.
func (s *Server) SetKeys(store KeyStore) error {
	after, err := indexKeys(store)
	if err != nil {
		return fmt.Errorf("keyserver: the key store: %w", err)
	}
	s.changing.Lock()
	policy := s.policy.Load()
	s.keys.Store(&store)
	s.policy.Store(policy.withKeys(after))
	s.changing.Unlock()
	s.tellKeys(policy.keys, after)
	return nil
}

// tellKeys tells of the keys that came and went: first of what is refused now.
func (s *Server) tellKeys(before, after keyIndex) {
	gone, come := before.without(after), after.without(before)
	for _, k := range gone {
		if _, renamed := after.byID[k.id]; !renamed {
			s.keyBuckets.Delete(k.id)
			s.keyFailures.Delete(k.id)
		}
		s.tellKey(slog.LevelWarn, EventKeyRemoved, "a key is gone", k, before)
	}
	for _, k := range come {
		s.warnOfFailureSecret(k)
		s.tellKey(slog.LevelInfo, EventKeyAdded, "a key is new", k, after)
	}
	if len(gone)+len(come) == 0 {
		return
	}
	s.log.Info("keys", "new", len(come), "gone", len(gone), "unchanged", len(after.byID)-len(come))
	if len(after.byID) == 0 {
		s.log.Error("there is no key left: every request is answered with 'spki not found'")
	}
	for _, warning := range s.policy.Load().keyWarnings() {
		s.log.Warn("policy", "what", warning)
	}
}

func (s *Server) tellKey(level slog.Level, event Event, what string, k key, in keyIndex) {
	attrs := []any{"key", k.name, "spki", k.id}
	for _, cert := range in.certs[k.id] {
		attrs = append(attrs, "certificate", cert.Subject.String(), "not_after", cert.NotAfter.UTC().Format(time.RFC3339))
		break // the first is the leaf
	}
	s.log.Log(context.Background(), level, what, attrs...)
	// An error of the audit log is logged by itself. The key is gone all the same.
	_ = s.record(context.Background(), &Record{Time: time.Now(), Event: event, Key: k.id, KeyName: k.name})
}

// without returns the keys that other does not have, or has by another name.
func (x keyIndex) without(other keyIndex) []key {
	var keys []key
	for id, k := range x.byID {
		if same, ok := other.byID[id]; !ok || same.name != k.name {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b key) int { return cmp.Compare(a.name, b.name) })
	return keys
}
