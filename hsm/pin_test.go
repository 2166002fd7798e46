//go:build cgo

package hsm

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/pkcs11"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// writePIN replaces the file with the token's PIN.
func (s *softToken) writePIN(t testing.TB, pin string) {
	t.Helper()
	next := filepath.Join(filepath.Dir(s.pin), "pin.next")
	require.NoError(t, os.WriteFile(next, []byte(pin+"\n"), 0o600))
	require.NoError(t, os.Rename(next, s.pin))
}

// changePIN gives the token another PIN. It does so in this process, since
// SoftHSM keeps what it has read.
func (s *softToken) changePIN(t testing.TB, f *faults, from, to string) {
	t.Helper()
	m := f.real[0].(*pkcs11.Ctx)
	session, err := m.OpenSession(s.slot(t, f), pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	require.NoError(t, err)
	require.NoError(t, m.SetPIN(session, from, to))
	require.NoError(t, m.CloseSession(session))
}

// The PIN is changed on the token while the store is open. What pin-source has
// then is tried once, and when it has the new one, the token works again.
func TestANewPINIsReadWhenALoginFails(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	log := new(syncBuffer)
	store, f := openFaulty(t, Config{
		Keys: []Key{{URI: token.uri("")}}, MaxSessions: 4, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	eventually(t, "sessions", func() bool { return store.Stats()[0].Open == 4 })
	require.Equal(t, 1, f.counted("Login"))

	token.changePIN(t, f, userPIN, "new-5678")
	require.NoError(t, f.real[0].CloseAllSessions(token.slot(t, f)))
	require.ErrorIs(t, signs(t, store, key.ID), ErrPIN)
	require.Equal(t, 2, f.counted("Login"))
	require.ErrorContains(t, store.Stats()[0].Err, "correct the PIN")

	token.writePIN(t, "new-5678")
	eventually(t, "healed", func() bool { return signs(t, store, key.ID) == nil })
	eventually(t, "all sessions", func() bool { return store.Stats()[0].Open == 4 })
	assert.NoError(t, store.Stats()[0].Err)
	assert.Equal(t, 3, f.counted("Login"))
	assert.Equal(t, 1, strings.Count(log.String(), "does not take the PIN"), log)
	assert.Equal(t, 1, strings.Count(log.String(), "works again"), log)
	assert.NotContains(t, log.String(), userPIN)
	assert.NotContains(t, log.String(), "new-5678")
}

// A PIN that was changed in time is what the next login takes.
func TestTheNextLoginReadsThePINAgain(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store, f := openFaulty(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1})
	token.changePIN(t, f, userPIN, "new-5678")
	token.writePIN(t, "new-5678")
	require.NoError(t, f.real[0].CloseAllSessions(token.slot(t, f)))
	require.NoError(t, signs(t, store, key.ID))
	require.Equal(t, 2, f.counted("Login"))
	// Without the file, the PIN that the token took last serves.
	require.NoError(t, os.Remove(token.pin))
	require.NoError(t, f.real[0].CloseAllSessions(token.slot(t, f)))
	require.NoError(t, signs(t, store, key.ID))
	require.Equal(t, 3, f.counted("Login"))
}

// However often it is asked for, and however often pin-source is looked at.
func TestAWrongPINIsTriedOnce(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	var pin atomic.Pointer[string]
	var read atomic.Int32
	set := func(s string) { pin.Store(&s) }
	set(userPIN)
	store, f := openFaulty(t, Config{
		Keys:        []Key{{URI: strings.Replace(token.uri(""), "file:"+token.pin, "env:PIN", 1)}},
		Getenv:      func(string) string { read.Add(1); return *pin.Load() },
		MaxSessions: 4,
	})
	eventually(t, "sessions", func() bool { return store.Stats()[0].Open == 4 })
	// The token refuses also what is right: nothing but another PIN is tried.
	f.set(&fault{calls: []string{"Login"}, err: pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)})
	require.NoError(t, f.real[0].CloseAllSessions(token.slot(t, f)))
	logins := 1
	for _, wrong := range []string{userPIN, "wrong-1", "wrong-2", userPIN} {
		set(wrong)
		logins++
		eventually(t, "an attempt", func() bool { _ = signs(t, store, key.ID); return f.counted("Login") == logins })
		before := read.Load()
		eventually(t, "pin-source is looked at", func() bool {
			require.ErrorIs(t, signs(t, store, key.ID), ErrPIN)
			return read.Load() >= before+2
		})
		require.Equal(t, logins, f.counted("Login"))
	}
	// A source without a PIN, while it is written say, is no other PIN.
	set("")
	before := read.Load()
	eventually(t, "pin-source is looked at", func() bool { return read.Load() > before })
	require.ErrorIs(t, signs(t, store, key.ID), ErrPIN)
	require.Equal(t, logins, f.counted("Login"))
}

// SoftHSM knows of what other processes change only when it is started again.
func TestANewPINThatAnotherProcessHasSetIsTaken(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store, f := openFaulty(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 2})
	token.tool(t, "--change-pin", "--new-pin", "new-5678")
	f.set(&fault{calls: []string{"Login"}, err: pkcs11.Error(pkcs11.CKR_PIN_INCORRECT), times: 1})
	require.NoError(t, f.real[0].CloseAllSessions(token.slot(t, f)))
	eventually(t, "a refusal", func() bool { return errors.Is(signs(t, store, key.ID), ErrPIN) })
	token.writePIN(t, "new-5678")
	eventually(t, "healed", func() bool { return signs(t, store, key.ID) == nil })
	require.Equal(t, 3, f.counted("Login"))
}

// The token says, while it runs, that the next wrong PIN locks it: the attempt
// is left to a person, as at the start.
func TestTheLastAttemptIsNotTakenLater(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	f := new(faults)
	var flags atomic.Uint64
	store := openStoreWith(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1}, func(file string) (module, error) {
		m, err := f.load(file)
		return &changedToken{m, func(info *pkcs11.TokenInfo) { info.Flags |= uint(flags.Load()) }}, err
	})
	flags.Store(pkcs11.CKF_USER_PIN_FINAL_TRY)
	require.NoError(t, f.real[0].CloseAllSessions(token.slot(t, f)))
	require.ErrorContains(t, signs(t, store, key.ID), "one more wrong PIN locks the token")
	require.Equal(t, 1, f.counted("Login"))
	flags.Store(0) // Somebody has logged in.
	eventually(t, "healed", func() bool { return signs(t, store, key.ID) == nil })
}
