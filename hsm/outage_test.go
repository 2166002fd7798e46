//go:build cgo

package hsm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// openLogged opens a store behind faults whose log is kept.
func openLogged(t testing.TB, cfg Config) (*Store, *faults, *syncBuffer) {
	t.Helper()
	log := new(syncBuffer)
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	store, f := openFaulty(t, cfg)
	return store, f, log
}

// Whoever is told that a token does not work asks elsewhere: it finds out by
// itself that it works again.
func TestATokenHealsWithoutARequest(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	token.generate(t, "rsa", "rsa-2048", Template{Sign: true, Decrypt: true})
	for _, call := range []string{"SignInit", "OpenSession"} {
		t.Run(call, func(t *testing.T) {
			store, f, log := openLogged(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 2})
			require.NoError(t, store.Health(key.ID))
			// The first loses the session, so that another is opened.
			f.set(&fault{calls: []string{"SignInit", call}, err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)})
			eventually(t, "failure", func() bool { return signs(t, store, key.ID) != nil && store.Health(key.ID) != nil })
			require.ErrorContains(t, store.Health(key.ID), `token "site-keys" (serial `)
			require.ErrorIs(t, store.Health(key.ID), pkcs11.Error(pkcs11.CKR_DEVICE_ERROR))
			f.set()
			eventually(t, call, func() bool { return store.Health(key.ID) == nil })
			require.NoError(t, store.Stats()[0].Err)
			assert.Equal(t, 1, strings.Count(log.String(), `msg="an HSM does not work"`), log)
			assert.Equal(t, 1, strings.Count(log.String(), `msg="an HSM works again"`), log)
		})
	}
}

// SoftHSM forgets its keys when its folder is away for a moment, until it is
// started again: for which the sessions that nobody uses have to go.
func TestAModuleIsStartedAgainWithoutARequest(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store, _, log := openLogged(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 8})
	eventually(t, "sessions", func() bool { return store.Stats()[0].Open == 8 })
	require.NoError(t, os.Rename(token.dir, token.dir+".away"))
	eventually(t, "failure", func() bool { return signs(t, store, key.ID) != nil })
	require.Error(t, store.Health(key.ID))
	require.NoError(t, os.Rename(token.dir+".away", token.dir))
	eventually(t, "healed", func() bool { return store.Health(key.ID) == nil })
	require.NoError(t, signs(t, store, key.ID))
	eventually(t, "sessions", func() bool { return store.Stats()[0].Open == 8 })
	assert.Zero(t, store.Stats()[0].Waiting)
	assert.Equal(t, 1, strings.Count(log.String(), `msg="an HSM does not work"`), log)
	assert.Equal(t, 1, strings.Count(log.String(), `msg="an HSM works again"`), log)
}

// One key of a token fails, the other works: the log has one outage and not one
// for each of both.
func TestATokenThatFailsNowAndThenDoesNotFillTheLog(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store, f, log := openLogged(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1})
	for range 20 {
		f.set(&fault{calls: []string{"SignInit"}, err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)})
		eventually(t, "failure", func() bool { return signs(t, store, key.ID) != nil && store.Health(key.ID) != nil })
		f.set()
		eventually(t, "success", func() bool { return signs(t, store, key.ID) == nil && store.Health(key.ID) == nil })
	}
	assert.Equal(t, 1, strings.Count(log.String(), `msg="an HSM does not work"`), log)
	assert.Equal(t, 1, strings.Count(log.String(), `msg="an HSM works again"`), log)
}

// A token that returns from no call is as good as one that is away. A caller that
// does not wait says nothing of it.
func TestATokenThatHangsIsAnOutage(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store, f, log := openLogged(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 2})
	eventually(t, "sessions", func() bool { return store.Stats()[0].Open == 2 })
	hang := make(chan struct{})
	f.set(&fault{calls: []string{"Sign"}, hang: hang, times: 2})
	sign := func(ctx context.Context) {
		_, err := store.Sign(ctx, key.ID, random(32), crypto.SHA256)
		require.ErrorIs(t, err, ctx.Err())
	}
	gone, leave := context.WithCancel(t.Context())
	busy := store.tokens[0]
	go func() {
		for busy.busy.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		leave()
	}()
	sign(gone)
	late, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	require.NoError(t, store.Health(key.ID), "one session is free")
	sign(late)
	require.ErrorIs(t, store.Health(key.ID), errSilent)
	require.ErrorIs(t, store.Stats()[0].Err, errSilent)
	close(hang)
	eventually(t, "healed", func() bool { return store.Health(key.ID) == nil })
	assert.Equal(t, 1, strings.Count(log.String(), `msg="an HSM does not work"`), log)
	assert.Equal(t, 1, strings.Count(log.String(), `msg="an HSM works again"`), log)
}

// What faults in a computation make of a signature would give the key away. It
// does not leave the store: of no type of key, with no padding.
func TestAWrongSignatureIsKeptBack(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	kinds := []string{"rsa-2048", "ec-p256", "ec-p384", "ec-p521", "ed25519"}
	for _, kind := range kinds {
		token.generate(t, kind, kind, Template{Sign: true})
	}
	f, log, wrong := new(faults), new(syncBuffer), false
	store := openStoreWith(t, Config{
		Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1, Logger: slog.New(slog.NewTextHandler(log, nil)),
	}, func(file string) (module, error) {
		m, err := f.load(file)
		return &bitFlipper{m, &wrong}, err
	})
	kept := uint64(0)
	for _, info := range store.Keys() {
		all := []crypto.SignerOpts{crypto.SHA256}
		switch info.Public.(type) {
		case *rsa.PublicKey:
			all = append(all, crypto.MD5SHA1, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
		default:
			if info.Type == "ed25519" {
				all = []crypto.SignerOpts{crypto.Hash(0)}
			}
		}
		for _, opts := range all {
			digest := random(32)
			if opts == crypto.MD5SHA1 {
				digest = random(36)
			}
			for range 2 { // not only the first of a session
				_, err := store.Sign(t.Context(), info.ID, digest, opts)
				require.NoError(t, err)
				wrong = true
				out, err := store.Sign(t.Context(), info.ID, digest, opts)
				wrong = false
				require.ErrorIs(t, err, errWrongSignature, info.Type)
				require.Nil(t, out)
				kept++
			}
		}
	}
	require.Equal(t, kept, store.Stats()[0].WrongSignatures)
	assert.Equal(t, 4, strings.Count(log.String(), "a wrong signature, which is kept back"), log) // 1, 2, 4 and 8 of 14
	require.NoError(t, signs(t, store, store.Keys()[0].ID))
}

// A job is done again where sessions have ended meanwhile. What was verified then
// is the first signature of a session, and not the one that is returned.
func TestAWrongSignatureIsKeptBackWhereTheFirstWasRight(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	f, wrong := new(faults), false
	again := &interrupted{on: &wrong}
	store := openStoreWith(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1}, func(file string) (module, error) {
		m, err := f.load(file)
		again.module = &bitFlipper{m, &wrong}
		return again, err
	})
	f.set(&fault{calls: []string{"GetSessionInfo"}, err: pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID), times: 1})
	store.tokens[0].epoch.Add(1) // so that the next has a session of its own
	again.of = store.tokens[0]
	out, err := store.Sign(t.Context(), key.ID, random(32), crypto.SHA256)
	require.True(t, wrong)
	require.ErrorIs(t, err, errWrongSignature)
	require.Nil(t, out)
}

// interrupted is a module whose sessions may have ended while the next signature
// is made; those after it are wrong.
type interrupted struct {
	module
	of *token
	on *bool
}

func (m *interrupted) Sign(h pkcs11.SessionHandle, data []byte) ([]byte, error) {
	sig, err := m.module.Sign(h, data)
	if m.of != nil && !*m.on {
		m.of.epoch.Add(1)
		*m.on = true
	}
	return sig, err
}

// bitFlipper is a module that makes wrong signatures while it is on.
type bitFlipper struct {
	module
	on *bool
}

func (m *bitFlipper) Sign(h pkcs11.SessionHandle, data []byte) ([]byte, error) {
	sig, err := m.module.Sign(h, data)
	if *m.on && err == nil {
		sig[len(sig)-1] ^= 4
	}
	return sig, err
}
