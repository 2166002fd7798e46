//go:build cgo

package hsm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

var hashes = []crypto.Hash{crypto.SHA224, crypto.SHA256, crypto.SHA384, crypto.SHA512}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func digestOf(h crypto.Hash, message []byte) []byte {
	w := h.New()
	w.Write(message)
	return w.Sum(nil)
}

func TestEveryTypeOfKeySigns(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	kinds := []string{"ec-p256", "ec-p384", "ec-p521", "ed25519", "rsa-2048", "rsa-3072"}
	for _, kind := range kinds {
		token.generate(t, kind, kind, Template{Sign: true})
	}
	store := openStore(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 2, RequireNonExtractable: true})
	require.Len(t, store.IDs(), len(kinds))
	assert.Empty(t, store.Warnings())
	for _, info := range store.Keys() {
		t.Run(info.Name, func(t *testing.T) {
			name, pub, ok := store.Lookup(info.ID)
			require.True(t, ok)
			assert.Equal(t, info.Type, name)
			assert.False(t, store.Decrypts(info.ID))
			message := random(130)
			switch pub := pub.(type) {
			case ed25519.PublicKey:
				sig, err := store.Sign(t.Context(), info.ID, message, crypto.Hash(0))
				require.NoError(t, err)
				assert.True(t, ed25519.Verify(pub, message, sig))
				_, err = store.Sign(t.Context(), info.ID, message[:32], crypto.SHA256)
				assert.ErrorContains(t, err, "not a digest")
			case *ecdsa.PublicKey:
				for _, h := range append(hashes, crypto.SHA1) {
					for range 20 { // r and s have leading zeros now and then
						digest := digestOf(h, random(130))
						sig, err := store.Sign(t.Context(), info.ID, digest, h)
						require.NoError(t, err)
						assert.True(t, ecdsa.VerifyASN1(pub, digest, sig), h)
					}
				}
			case *rsa.PublicKey:
				for _, h := range append(hashes, crypto.SHA1, crypto.MD5SHA1) {
					digest := random(h.Size())
					sig, err := store.Sign(t.Context(), info.ID, digest, h)
					require.NoError(t, err, h)
					assert.NoError(t, rsa.VerifyPKCS1v15(pub, h, digest, sig), h)
				}
				for _, h := range hashes {
					for _, salt := range []int{rsa.PSSSaltLengthEqualsHash, rsa.PSSSaltLengthAuto, 20} {
						opts := &rsa.PSSOptions{SaltLength: salt, Hash: h}
						digest := digestOf(h, message)
						sig, err := store.Sign(t.Context(), info.ID, digest, opts)
						require.NoError(t, err, "%s %d", h, salt)
						assert.NoError(t, rsa.VerifyPSS(pub, h, digest, sig, opts))
					}
				}
			}
		})
	}
	t.Run("wrong questions", func(t *testing.T) {
		id := store.Keys()[0].ID
		_, err := store.Sign(t.Context(), ski.KeyID{1}, random(32), crypto.SHA256)
		assert.ErrorIs(t, err, errNoKey)
		for _, info := range store.Keys() {
			_, err = store.Sign(t.Context(), info.ID, random(31), crypto.SHA256)
			assert.Error(t, err, info.Name)
			_, err = store.Sign(t.Context(), info.ID, random(16), crypto.MD5)
			assert.Error(t, err, info.Name)
		}
		assert.ErrorIs(t, store.DecryptPreMasterSecret(t.Context(), ski.KeyID{1}, nil, nil), errNoKey)
		assert.ErrorContains(t, store.DecryptPreMasterSecret(t.Context(), id, random(256), make([]byte, 48)), "cannot decrypt")
	})
}

func TestAPreMasterSecretIsDecrypted(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	token.generate(t, "both", "rsa-2048", Template{Sign: true, Decrypt: true})
	token.generate(t, "decrypts", "rsa-2048", Template{Decrypt: true})
	store := openStore(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1})
	for _, info := range store.Keys() {
		require.True(t, store.Decrypts(info.ID))
		pub := info.Public.(*rsa.PublicKey)
		assert.NoError(t, decryptsLikeGo(t.Context(), store, info.ID, pub), info.Name)
	}
	_, err := store.Sign(t.Context(), store.Keys()[1].ID, random(32), crypto.SHA256)
	assert.ErrorContains(t, err, `does not let the key "decrypts" sign`)
	// What is not below the modulus does not reach the token.
	pub := store.Keys()[0].Public.(*rsa.PublicKey)
	for _, c := range [][]byte{pub.N.Bytes(), random(255), nil, make([]byte, 257)} {
		secret := random(48)
		before := fmt.Sprint(secret)
		assert.Error(t, store.DecryptPreMasterSecret(t.Context(), store.Keys()[0].ID, c, secret))
		assert.Equal(t, before, fmt.Sprint(secret))
	}
}
