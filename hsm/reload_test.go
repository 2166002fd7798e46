//go:build cgo

package hsm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/stretchr/testify/require"
)

// A token is asked again: a key that has come is served, one that is gone is not,
// one that the configuration refuses is named, and the sessions stay.
func TestReload(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	first := token.generate(t, "first", "ec-p256", Template{Sign: true})
	changed := make(chan bool, 10)
	store := openStore(t, Config{
		Keys: []Key{{URI: token.uri("")}}, RequireGenerated: true, MaxSessions: 2,
		Changed: func() { changed <- true },
	})
	require.Empty(t, store.Reload(t.Context()))
	require.Len(t, store.Keys(), 1)

	second := token.generate(t, "second", "rsa-2048", Template{Sign: true, Decrypt: true})
	_, _, ok := store.Lookup(second.ID)
	require.False(t, ok)
	require.Empty(t, store.Reload(t.Context()))
	require.NoError(t, signs(t, store, second.ID))
	require.NoError(t, signs(t, store, first.ID))

	// One that was not made on the token.
	imported, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	token.importKeyWith(t, imported, "imported", "99")
	token.importPublic(t, &imported.PublicKey, "imported", "99")
	faults := store.Reload(t.Context())
	require.Len(t, faults, 1)
	require.ErrorContains(t, faults[0], `the key "imported" (id 99) is not served: it was not made on the token`)
	require.Len(t, store.IDs(), 2)

	for _, kind := range []string{"privkey", "pubkey"} {
		token.tool(t, "--delete-object", "--type", kind, "--label", "first")
	}
	require.ErrorIs(t, signs(t, store, first.ID), errKeyRemoved)
	<-changed
	_, _, ok = store.Lookup(first.ID)
	require.False(t, ok, "without a Reload")
	require.Equal(t, 1, len(store.IDs()))
	require.ErrorIs(t, signs(t, store, first.ID), errNoKey)
	require.Len(t, store.Reload(t.Context()), 1, "the imported key alone")
	require.NoError(t, signs(t, store, second.ID))
	require.NoError(t, store.tokens[0].health())
}
