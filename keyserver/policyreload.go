package keyserver

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/tlsski/tlsski/internal/guarded"
)

// PolicyReloader gives a Server the policy of a file again, whole or not at
// all: a file with a fault in it changes nothing.
type PolicyReloader struct {
	file   string
	server *Server
	log    *slog.Logger

	mu     sync.Mutex
	tried  string // what the file was when it was last read: a digest, or why it could not be
	status PolicyStatus
}

// PolicyStatus is what has become of a policy file, for metrics.
type PolicyStatus struct {
	// Loads counts the policies that went into effect, the one of the start
	// included, and Failures the files that were refused.
	Loads, Failures uint64
	// LoadedAt is when the policy in effect was read.
	LoadedAt time.Time
	// Err is why the file as it is now was refused; nil if it is in effect.
	Err error
}

// NewPolicyReloader returns a PolicyReloader for a Server whose policy has just
// been loaded from the file.
func NewPolicyReloader(file string, s *Server) *PolicyReloader {
	return &PolicyReloader{
		file:   file,
		server: s,
		log:    s.log,
		tried:  string(s.policy.Load().digest[:]),
		status: PolicyStatus{Loads: 1, LoadedAt: time.Now()},
	}
}

// Status returns what has become of the file so far.
func (r *PolicyReloader) Status() PolicyStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// Reload reads the file and makes it the Server's policy. It logs what came of
// it. The error, which names file, line and column, says why the policy before
// stays.
func (r *PolicyReloader) Reload() error { return r.reload(true) }

// reload does nothing, unless told to try again, where the file is as it was.
func (r *PolicyReloader) reload(again bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	data, err := readTrustedFile(r.file)
	found := fmt.Sprint(err)
	if err == nil {
		digest := sha256.Sum256(data)
		found = string(digest[:])
	}
	if found == r.tried && !again {
		return nil
	}
	r.tried = found
	var p *Policy
	if err == nil {
		p, err = ParsePolicy(r.file, data, r.server.keyStore())
	}
	r.status.Err = err
	r.server.metrics.PolicyLoaded(err)
	if err != nil {
		r.status.Failures++
		r.log.Error("policy refused, the one before stays", "error", err)
		return err
	}
	r.server.SetPolicy(p)
	r.status.Loads++
	r.status.LoadedAt = time.Now()
	r.log.Info("policy loaded", "file", r.file, "edges", p.EdgeCount(), "rules", len(p.rules))
	for _, warning := range p.Warnings(r.status.LoadedAt) {
		r.log.Warn("unsafe choice", "what", warning)
	}
	return nil
}

// policySettles is how long a policy file must have been left alone before it
// is read: half a file, written where the old one was, could be a valid policy
// that lacks the limits of its last rule.
const policySettles = 200 * time.Millisecond

// Watch reloads the policy whenever its file changes, until ctx ends. It looks
// at the folder of the file and of each link on the way to it, so that it sees
// what is put in the place of any of them. The error says why it cannot watch; Reload works all the same.
func (r *PolicyReloader) Watch(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", r.file, err)
	}
	defer w.Close()
	names, err := r.watchFolders(w)
	if err != nil {
		return err
	}
	pending := true // It may have changed before it was watched.
	settled := time.NewTimer(policySettles)
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-w.Events:
			// Other files of the folder may be written all the time, and matter
			// only as links: they do not put off what is pending.
			if !pending || slices.Contains(names, event.Name) {
				pending = true
				settled.Reset(policySettles)
			}
		case err := <-w.Errors: // Events are lost: look.
			r.log.Warn("watching the policy file", "error", err)
			pending = true
			settled.Reset(policySettles)
		case <-settled.C:
			pending = false
			// Before it is read: what changes afterwards is seen.
			if now, err := r.watchFolders(w); err == nil {
				names = now
			}
			_ = r.reload(false) // which logs by itself
		}
	}
}

// watchFolders watches the folders of the file and of the links on the way to
// it, and returns them as events name them.
func (r *PolicyReloader) watchFolders(w *fsnotify.Watcher) ([]string, error) {
	names, err := guarded.Links(r.file)
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", r.file, err)
	}
	for _, name := range names {
		if err := w.Add(filepath.Dir(name)); err != nil {
			return nil, fmt.Errorf("watching %s: %w", filepath.Dir(name), err)
		}
	}
	return names, nil
}
