package skicoap

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"slices"
	"sync"

	"github.com/pion/dtls/v3"

	"github.com/tlsski/tlsski/ski"
)

// pskLookup finds the key of the identity that one handshake comes with.
type pskLookup struct {
	find func(identity string) []byte

	mu       sync.Mutex // pion may still be at work when the handshake has been given up
	identity string     // that the handshake came with, if it is a valid one
	used     []byte     // its key, nil for an identity without
}

// key is a pion PSK callback. An identity that nobody has gets a key that
// nobody has: the handshake then ends as with a wrong key, so that it tells
// nobody which identities there are (RFC 4279, Section 2).
func (l *pskLookup) key(identity []byte) ([]byte, error) {
	fake := make([]byte, 32)
	if _, err := rand.Read(fake); err != nil {
		return nil, err
	}
	if ski.CheckPSKIdentity(string(identity)) != nil {
		return fake, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.identity = string(identity)
	if l.used = l.find(l.identity); len(l.used) == 0 {
		l.used = nil
		return fake, nil
	}
	return l.used, nil
}

// explain adds to the error of a handshake what the operator should know and
// the peer should not.
func (l *pskLookup) explain(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.identity == "":
		return err
	case l.used == nil:
		return fmt.Errorf("no pre-shared key %q: %w", l.identity, err)
	}
	return fmt.Errorf("pre-shared key %q, perhaps another at the peer: %w", l.identity, err)
}

// peer returns whom the handshake authenticated, by the key that it used.
func (l *pskLookup) peer(state *dtls.State) (identity string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	identity = string(state.IdentityHint)
	return identity, l.used != nil && identity == l.identity
}

// current reports whether the key is still what it was in the handshake.
func (l *pskLookup) current() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used == nil || subtle.ConstantTimeCompare(l.used, l.find(l.identity)) == 1
}

// isPSK reports whether a cipher suite authenticates with a pre-shared key.
func isPSK(id dtls.CipherSuiteID) bool {
	return slices.Contains(pskSuites, id) || slices.Contains(pskSuitesWithoutForwardSecrecy, id)
}
