package keyserver

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// awayStore is a store whose keys can be away.
type awayStore struct {
	hookStore
	mu   sync.Mutex
	away error
}

func newAwayStore(keys KeyStore) *awayStore {
	s := &awayStore{hookStore: hookStore{KeyStore: keys}}
	s.sign = func(context.Context) ([]byte, error) { return []byte("signature"), s.Health(ski.KeyID{}) }
	return s
}

func (s *awayStore) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
}

func (s *awayStore) Health(ski.KeyID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.away
}

// A load balancer asks whether a request could be answered: by any key.
func TestHealthSaysWhetherAKeyCanBeUsed(t *testing.T) {
	gone := errors.New("the token is gone")
	store := newAwayStore(only(t, p256))
	s := newTestServer(t, store)
	require.NoError(t, s.Health())
	store.set(gone)
	require.EqualError(t, s.Health(), "no private key can be used: the token is gone")
	store.set(nil)
	require.NoError(t, s.Health())

	t.Run("beside keys in files", func(t *testing.T) {
		both, err := JoinKeyStores(store, only(t, rsa2048))
		require.NoError(t, err)
		s := newTestServer(t, both)
		store.set(gone)
		require.NoError(t, s.Health())
		store.set(nil)
	})
	t.Run("beside another token", func(t *testing.T) {
		other := newAwayStore(only(t, rsa2048))
		both, err := JoinKeyStores(store, other)
		require.NoError(t, err)
		s := newTestServer(t, both)
		store.set(gone)
		require.NoError(t, s.Health())
		other.set(gone)
		require.ErrorIs(t, s.Health(), gone)
		store.set(nil)
		require.NoError(t, s.Health())
	})
	t.Run("with files alone", func(t *testing.T) {
		require.NoError(t, newTestServer(t, testKeys()).Health())
	})
}

// The log is not as long as the requests are many: the store has said that its
// keys are away, and what fails besides is logged once a minute for each key.
func TestFailedOperationsDoNotFillTheLog(t *testing.T) {
	var log bytes.Buffer
	store := newAwayStore(testKeys())
	s := newTestServer(t, store, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	ask := func(want ski.Error) {
		for range 100 {
			resp, _ := s.ask(edgePeer, grantedRequest(testKeys()))
			require.Equal(t, want, resp.Error)
		}
	}
	store.set(errors.New("the token is gone"))
	ask(ski.UnspecifiedError)
	require.NotContains(t, log.String(), "failed")
	store.set(nil)
	store.sign = func(context.Context) ([]byte, error) { return nil, errors.New("a fault of this key") }
	ask(ski.UnspecifiedError)
	assert.Equal(t, 1, strings.Count(log.String(), `msg="operation failed"`), log.String())
	assert.Contains(t, log.String(), "a fault of this key")
}
