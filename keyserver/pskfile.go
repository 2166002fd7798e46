package keyserver

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// PSKs are the pre-shared keys of edges, read from a file. Its methods can be
// called by many goroutines at once.
type PSKs struct {
	file    string
	reading sync.Mutex
	seen    fs.FileInfo // of the file as it was last read
	told    string      // why it could not be read the last time
	now     atomic.Pointer[map[string][]byte]
	// closing are the identities that have lost their key, while sessions that
	// were made with it may be left.
	closing atomic.Pointer[[]string]
	closed  sync.Mutex // held until they are none any more
}

// OpenPSKs reads a file of pre-shared keys; see ski.ParsePSKs. It refuses a
// file that group or others have any right to. The error names file and line.
func OpenPSKs(file string) (*PSKs, error) {
	p := &PSKs{file: file}
	p.now.Store(new(map[string][]byte))
	_, err := p.reload(true)
	return p, err
}

// Key returns the key of an identity, or nil. It is not to be changed.
func (p *PSKs) Key(identity string) []byte { return (*p.now.Load())[identity] }

// unusable returns why nobody is answered who has shown the key of an identity,
// or "".
func (p *PSKs) unusable(identity string) string {
	if p.Key(identity) == nil {
		return "its pre-shared key is gone"
	}
	// The session may be of the key before: of who has stolen it, say.
	if lost := p.closing.Load(); lost != nil && slices.Contains(*lost, identity) {
		return "its pre-shared key is another now"
	}
	return ""
}

// Len returns how many keys there are.
func (p *PSKs) Len() int { return len(*p.now.Load()) }

// reload reads the file again if it has changed and has been left alone since,
// or if told to. It returns the identities that have lost their key. Where the
// file cannot be used the keys stay as they were, and the error is returned
// once for each change of the file.
func (p *PSKs) reload(again bool) (lost []string, err error) {
	p.reading.Lock()
	defer p.reading.Unlock()
	info, err := os.Stat(p.file)
	if err != nil {
		return nil, p.unread(err, again)
	}
	if !again {
		if p.seen != nil && os.SameFile(info, p.seen) && info.ModTime().Equal(p.seen.ModTime()) && info.Size() == p.seen.Size() {
			return nil, nil
		}
		// Half a file has lost the keys of the other half.
		if age := time.Since(info.ModTime()); age >= 0 && age < policySettles {
			return nil, nil
		}
	}
	p.seen = info
	data, err := readPrivateFile(p.file)
	if err != nil {
		return nil, p.unread(err, again)
	}
	defer clear(data)
	p.told = ""
	all, err := ski.ParsePSKs(p.file, data)
	if err != nil {
		return nil, err
	}
	keys := make(map[string][]byte, len(all))
	for _, one := range all {
		keys[one.Identity] = one.Key
	}
	for identity, key := range *p.now.Load() {
		if !bytes.Equal(key, keys[identity]) { // Both are the operator's: nobody times it.
			lost = append(lost, identity)
		}
	}
	p.closing.Store(&lost)
	p.now.Store(&keys)
	return lost, nil
}

// unread returns an error that it has not returned before, or if told to. What
// was wrong may be put right without a change of the file: its mode, or a
// folder's.
func (p *PSKs) unread(err error, again bool) error {
	p.seen = nil
	if p.told == err.Error() && !again {
		return nil
	}
	p.told = err.Error()
	return err
}

// ReloadPSKs reads the file of pre-shared keys again, and closes the sessions
// that were made with a key that is no longer in it. The error says why the
// keys stay as they were.
func (s *Server) ReloadPSKs() error { return s.reloadPSKs(true) }

func (s *Server) reloadPSKs(again bool) error {
	if s.psks == nil {
		return nil
	}
	s.psks.closed.Lock()
	defer s.psks.closed.Unlock()
	defer s.psks.closing.Store(nil)
	before := s.psks.now.Load()
	lost, err := s.psks.reload(again)
	if err != nil {
		s.log.Error("the pre-shared keys stay as they were", "error", err)
		return err
	}
	if s.psks.now.Load() != before {
		s.tickets.change()
		s.log.Info("pre-shared keys read", "keys", s.psks.Len(), "changed", len(lost))
	}
	if len(lost) > 0 {
		s.closeSessions(errKeyChanged, func(p ski.Peer) bool {
			return p.PSK != "" && slices.Contains(lost, p.PSK)
		})
	}
	return nil
}

// MissingPSKs returns a line for each identity that an edge is known by and
// that there is no key of.
func (p *Policy) MissingPSKs(keys *PSKs) []string {
	var warnings []string
	for _, e := range p.edges {
		for _, identity := range e.psks {
			if keys == nil || keys.Key(identity) == nil {
				warnings = append(warnings, fmt.Sprintf("there is no pre-shared key %q, by which edge %q is known", identity, e.name))
			}
		}
	}
	return warnings
}
