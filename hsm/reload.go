//go:build cgo

package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/tlsski/tlsski/ski"
)

// Reload asks the tokens for their keys again. Keys that have come are there from
// now on, and those that a token has lost are not. Sessions and logins stay. The
// faults say why a token could not be asked, or shows nothing, all of whose keys
// then stay; and which key is refused, or stays although it has a fault now. New
// keys are warned of in the log as Warnings does at the start.
func (s *Store) Reload(ctx context.Context) (faults []error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	before := s.found()
	perTarget := make(map[*target][]*privateKey)
	for _, t := range s.targets {
		keys, err := s.keysOf(ctx, t)
		known := before.of(t)
		switch {
		case errors.Is(err, errNone):
			keys = nil
		case err != nil:
			if errors.Is(err, errNothing) {
				err = errNothing
			}
			faults = append(faults, fmt.Errorf("%s: its keys stay as they were: %w", t.uri, err))
			keys = known
		}
		for i, k := range keys {
			at := slices.IndexFunc(known, k.isSame)
			if at < 0 || known[at].gone.Load() {
				continue
			}
			if k.info.Problem != nil {
				faults = append(faults, fmt.Errorf("the key %s: %w", k.describe(), k.info.Problem))
			}
			keys[i] = known[at] // which sessions know
		}
		perTarget[t] = keys
	}
	now := &foundKeys{byID: make(map[ski.KeyID]*privateKey)}
	for _, isKnown := range []bool{true, false} { // Those that were there have their place first.
		for _, t := range s.targets {
			for _, k := range perTarget[t] {
				if slices.Contains(before.all, k) != isKnown {
					continue
				}
				if err := k.info.Problem; err == nil {
					k.info.Problem = checkTogether(now.all, k)
				}
				if k.info.Problem != nil {
					faults = append(faults, fmt.Errorf("the key %s is not served: %w", k.describe(), k.info.Problem))
					continue
				}
				now.all, now.byID[k.info.ID] = append(now.all, k), k
				if !isKnown {
					for _, warning := range k.warnings() {
						s.cfg.logger().Warn("unsafe choice", "what", warning)
					}
				}
			}
		}
	}
	for _, t := range s.tokens {
		t.setKeys(now.on(t))
	}
	s.now.Store(now)
	return faults
}

// isSame reports whether the token says of both that they are one key. Of one
// with a problem it may not know the public half.
func (k *privateKey) isSame(other *privateKey) bool {
	return bytes.Equal(k.ckaID, other.ckaID) && bytes.Equal(k.label, other.label) &&
		(k.info.ID == other.info.ID || k.info.ID.IsZero())
}

// of returns the keys that a target has named.
func (f *foundKeys) of(t *target) (keys []*privateKey) {
	for _, k := range f.all {
		if k.target == t && !k.gone.Load() {
			keys = append(keys, k)
		}
	}
	return keys
}

// on returns the keys of a token.
func (f *foundKeys) on(t *token) (keys []*privateKey) {
	for _, k := range f.all {
		if k.token == t {
			keys = append(keys, k)
		}
	}
	return keys
}

// noteGone takes a key out that its token has lost, as an operation shows.
func (s *Store) noteGone(k *privateKey, err error) {
	if errors.Is(err, errKeyRemoved) && k.gone.CompareAndSwap(false, true) {
		s.cfg.changed()
	}
}
