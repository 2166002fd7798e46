//go:build cgo

package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// patience is how long a test waits for what must happen.
const patience = time.Minute

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, 5*time.Millisecond, what)
}

// signs makes a signature with the deadline of a request, and checks it.
func signs(t testing.TB, s *Store, id ski.KeyID) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	digest := random(32)
	sig, err := s.Sign(ctx, id, digest, crypto.SHA256)
	if err != nil {
		return err
	}
	_, pub, _ := s.Lookup(id)
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		assert.True(t, ecdsa.VerifyASN1(pub, digest, sig))
	case *rsa.PublicKey:
		assert.NoError(t, rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest, sig))
	}
	return nil
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Whatever fails once, whether it took effect or not: every session comes back,
// and the requests that come afterwards are answered.
func TestOneFaultHeals(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	ec := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	rs := token.generate(t, "rsa", "rsa-2048", Template{Sign: true, Decrypt: true})
	calls := []string{
		"SignInit", "Sign", "DecryptInit", "Decrypt", "OpenSession", "CloseSession", "GetSessionInfo", "Login",
		"FindObjectsInit", "FindObjects", "FindObjectsFinal", "GetAttributeValue", "GetSlotList", "GetTokenInfo",
	}
	for _, rv := range []pkcs11.Error{
		pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_KEY_HANDLE_INVALID,
	} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s after=%v", rv, after), func(t *testing.T) {
				store, f := openFaulty(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 2})
				for _, call := range calls {
					// Losing the sessions makes the store open new ones, where the
					// fault is in what that takes.
					f.set(&fault{calls: []string{"SignInit"}, err: pkcs11.Error(pkcs11.CKR_SESSION_CLOSED), times: 1},
						&fault{calls: []string{call}, err: rv, after: after, times: 1})
					_ = signs(t, store, ec.ID) // It may fail, once,
					_ = decryptsLikeGo(t.Context(), store, rs.ID, rs.Public.(*rsa.PublicKey))
					f.set()
					eventually(t, call, func() bool {
						return signs(t, store, ec.ID) == nil && decryptsLikeGo(t.Context(), store, rs.ID, rs.Public.(*rsa.PublicKey)) == nil
					})
					eventually(t, call, func() bool { s := store.Stats()[0]; return s.Open == 2 && s.Err == nil })
				}
			})
		}
	}
}

// A session that the token has ended, as many do with idle ones, costs no
// request.
func TestALostSessionIsNotNoticed(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store, f := openFaulty(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 3})
	eventually(t, "sessions", func() bool { return store.Stats()[0].Open == 3 })
	require.NoError(t, f.real[0].CloseAllSessions(token.slot(t, f)))
	for range 20 {
		require.NoError(t, signs(t, store, key.ID))
	}
	assert.Equal(t, 2, f.counted("Login"))
	eventually(t, "sessions", func() bool { return store.Stats()[0].Open == 3 })
}

// slot returns the token's slot.
func (s *softToken) slot(t testing.TB, f *faults) uint {
	slots, err := f.real[0].GetSlotList(true)
	require.NoError(t, err)
	for _, slot := range slots {
		if info, err := f.real[0].GetTokenInfo(slot); err == nil && info.Label == s.label {
			return slot
		}
	}
	t.Fatal("the token is in no slot")
	return 0
}

// The token is pulled out under load and put back into another slot.
func TestATokenIsPulledOutAndPutBack(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	log := new(syncBuffer)
	store, f := openFaulty(t, Config{
		Keys: []Key{{URI: token.uri("")}}, MaxSessions: 4, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	require.NoError(t, signs(t, store, key.ID))

	absent := pkcs11.Error(pkcs11.CKR_TOKEN_NOT_PRESENT)
	f.set(&fault{err: absent})
	eventually(t, "an error", func() bool { return signs(t, store, key.ID) != nil })
	opened := f.counted("GetSlotList")
	start := time.Now()
	for range 200 {
		err := signs(t, store, key.ID)
		require.ErrorIs(t, err, absent)
		require.ErrorContains(t, err, `token "site-keys" (serial `)
	}
	// However many ask, the token is looked for after each pause only.
	assert.LessOrEqual(t, f.counted("GetSlotList")-opened, int(time.Since(start)/firstPause)+2)
	eventually(t, "state", func() bool { return store.Stats()[0].Open == 0 })
	assert.ErrorIs(t, store.Stats()[0].Err, absent)

	f.mu.Lock()
	f.offset = 7
	f.mu.Unlock()
	f.set()
	eventually(t, "the sessions are back without a request", func() bool { return store.Stats()[0].Open == 4 })
	require.NoError(t, signs(t, store, key.ID))
	assert.NoError(t, store.Stats()[0].Err)
	assert.Equal(t, 1, strings.Count(log.String(), `msg="an HSM does not work"`), log)
	assert.Equal(t, 1, strings.Count(log.String(), `msg="an HSM works again"`), log)
}

// Some modules find a token again only after C_Finalize and C_Initialize.
func TestAModuleIsStartedAgain(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store, f := openFaulty(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 2})
	f.set(&fault{err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR), calls: []string{"Sign", "OpenSession"}})
	eventually(t, "an error", func() bool { return signs(t, store, key.ID) != nil })
	eventually(t, "a restart", func() bool { _ = signs(t, store, key.ID); return f.counted("Finalize") > 0 })
	f.set()
	eventually(t, "healed", func() bool { return signs(t, store, key.ID) == nil })
}

// Another process of the module's ends its use behind our back.
func TestAModuleThatForgotIsInitialized(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store, f := openFaulty(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 2})
	// SoftHSM falls over where another call is in it.
	eventually(t, "all sessions", func() bool { return store.Stats()[0].Open == 2 })
	require.NoError(t, f.real[0].Finalize())
	eventually(t, "healed", func() bool { return signs(t, store, key.ID) == nil })
}

// The device is there, sessions open, and every operation fails.
func TestOperationsThatFailAreTriedWithPauses(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store, f := openFaulty(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1})
	f.set(&fault{err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR), calls: []string{"Sign"}})
	start := time.Now()
	for range 500 {
		require.Error(t, signs(t, store, key.ID))
	}
	assert.LessOrEqual(t, f.counted("Sign"), 3*(int(time.Since(start)/firstPause)+2))
	assert.Error(t, store.Stats()[0].Err)
	f.set()
	eventually(t, "healed", func() bool { return signs(t, store, key.ID) == nil })
	assert.NoError(t, store.Stats()[0].Err)
}

// Others use the token too: the sessions that it has left do all the work.
func TestATokenWithFewerSessions(t *testing.T) {
	for _, why := range []pkcs11.Error{pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_DEVICE_MEMORY} {
		t.Run(why.Error(), func(t *testing.T) { testFewerSessions(t, why) })
	}
}

func testFewerSessions(t *testing.T, why pkcs11.Error) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	log := new(syncBuffer)
	few := &fewSessions{why: why}
	few.most.Store(2)
	store := openStoreWith(t, Config{
		Keys: []Key{{URI: token.uri("")}}, MaxSessions: 3, Logger: slog.New(slog.NewTextHandler(log, nil)),
	}, func(file string) (m module, err error) { few.module, err = loadModule(file); return few, err })
	eventually(t, "warning", func() bool { return strings.Contains(log.String(), "fewer sessions than asked for") })
	asked := few.asked.Load()
	eventually(t, "attempts", func() bool { return few.asked.Load() > asked+1 })
	require.NoError(t, store.Health(key.ID))
	require.Equal(t, 2, store.Stats()[0].Open)
	assert.Equal(t, 1, strings.Count(log.String(), "fewer sessions than asked for"), log)
	for range 50 {
		require.NoError(t, signs(t, store, key.ID))
	}
	assert.NoError(t, store.Stats()[0].Err)
	assert.NotContains(t, log.String(), "does not work")
	few.most.Store(3)
	eventually(t, "all sessions", func() bool { return store.Stats()[0].Open == 3 })
}

// fewSessions is a module whose token has a limited number of sessions left.
type fewSessions struct {
	module
	why               pkcs11.Error // there are no more
	most, open, asked atomic.Int32
}

func (m *fewSessions) OpenSession(slot, flags uint) (pkcs11.SessionHandle, error) {
	m.asked.Add(1)
	if m.open.Add(1) > m.most.Load() {
		m.open.Add(-1)
		return 0, m.why
	}
	return m.module.OpenSession(slot, flags)
}

func (m *fewSessions) CloseSession(h pkcs11.SessionHandle) error {
	m.open.Add(-1)
	return m.module.CloseSession(h)
}

// A call that hangs costs its token a session, and those who wait no more than
// their deadline. The other token does not notice.
func TestACallThatHangsHoldsUpNobodyElse(t *testing.T) {
	tokens := newSoftHSM(t, "bad", "good")
	bad := tokens[0].generate(t, "bad", "ec-p256", Template{Sign: true})
	good := tokens[1].generate(t, "good", "ec-p256", Template{Sign: true})
	store, f := openFaulty(t, Config{Keys: []Key{{URI: tokens[0].uri("")}, {URI: tokens[1].uri("")}}, MaxSessions: 2})
	eventually(t, "sessions", func() bool { return store.Stats()[0].Open == 2 && store.Stats()[1].Open == 2 })

	hang := make(chan struct{})
	t.Cleanup(func() {
		select {
		case <-hang:
		default:
			close(hang)
		}
	})
	f.set(&fault{calls: []string{"Sign"}, hang: hang, times: 2})
	before := f.counted("Sign")
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := store.Sign(ctx, bad.ID, random(32), crypto.SHA256)
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		})
	}
	eventually(t, "hanging", func() bool { return f.counted("Sign") == before+2 })
	for range 50 {
		require.NoError(t, signs(t, store, good.ID))
	}
	all.Wait()
	eventually(t, "stuck", func() bool { return store.Stats()[0].Stuck == 2 })
	assert.Zero(t, store.Stats()[0].Waiting)

	close(hang)
	eventually(t, "free again", func() bool { return store.Stats()[0].Busy == 0 })
	assert.Zero(t, store.Stats()[0].Stuck)
	require.NoError(t, signs(t, store, bad.ID))
}

func TestRequestsAreServedInOrder(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store, f := openFaulty(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1})
	hang := make(chan struct{})
	f.set(&fault{calls: []string{"Sign"}, hang: hang, times: 1})
	var all sync.WaitGroup
	all.Go(func() { assert.NoError(t, signs(t, store, key.ID)) })
	eventually(t, "hanging", func() bool { return store.Stats()[0].Busy == 1 })
	const requests = 30
	served := make(chan int, requests)
	tok := store.tokens[0]
	for i := range requests {
		all.Go(func() {
			assert.NoError(t, tok.do(t.Context(), func(*session) error { served <- i; return nil }))
		})
		eventually(t, "waiting", func() bool { return store.Stats()[0].Waiting == i+1 })
	}
	close(hang)
	all.Wait()
	for i := range requests {
		assert.Equal(t, i, <-served)
	}
}

// A store closes while a call hangs, and says so. The module stays loaded: the
// thread is still in it.
func TestAStoreClosesWhileACallHangs(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	f := new(faults)
	store, err := open(t.Context(), Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1}, f.load, false)
	require.NoError(t, err)
	hang := make(chan struct{})
	f.set(&fault{calls: []string{"Sign"}, hang: hang})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = store.Sign(ctx, key.ID, random(32), crypto.SHA256)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	tok, mod := store.tokens[0], store.modules[0]
	assert.ErrorContains(t, store.Close(), "do not return")
	_, err = store.Sign(t.Context(), key.ID, random(32), crypto.SHA256)
	assert.ErrorIs(t, err, errClosed)
	close(hang)
	tok.workers.Wait()
	require.NoError(t, mod.release(t.Context())) // for the tests that follow
}

// A scrape of the metrics, or a request, may come after the end.
func TestAClosedStoreCanBeAsked(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store := openStore(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 2})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 1000 {
				assert.Len(t, store.Stats(), 1)
			}
		})
		all.Go(func() { assert.NoError(t, store.Close()) })
	}
	all.Wait()
	assert.Zero(t, store.Stats()[0].Open)
	assert.ErrorIs(t, signs(t, store, key.ID), errClosed)
}

// What is decrypted when nobody waits for it any more is cleared. It must not
// come out as a plaintext of zeros where the caller is still there to see it.
func TestALateDecryptionIsAnError(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "rsa", "rsa-2048", Template{Decrypt: true})
	store := openStore(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1})
	//lint:ignore SA1019 It is what TLS clients do.
	ciphertext, err := rsa.EncryptPKCS1v15(rand.Reader, key.Public.(*rsa.PublicKey), random(ski.PreMasterSecretLen))
	require.NoError(t, err)
	late, cancel := context.WithCancel(t.Context())
	cancel()
	err = store.tokens[0].do(t.Context(), func(s *session) error {
		raw, err := store.now.Load().byID[key.ID].decryptInTime(late, s, ciphertext)
		assert.Empty(t, raw)
		return err
	})
	assert.ErrorIs(t, err, context.Canceled)
}

// Another key has taken the place of ours while the token was away.
func TestAKeyThatWasReplacedIsNotUsed(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	for _, kind := range []string{"ec-p256", "rsa-2048"} {
		t.Run(kind, func(t *testing.T) {
			key := token.generate(t, "site", kind, Template{Sign: true})
			store, f := openFaulty(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1})
			require.NoError(t, signs(t, store, key.ID))
			for _, object := range []string{"privkey", "pubkey"} {
				token.tool(t, "--delete-object", "--type", object, "--label", "site")
			}
			info, err := Generate(t.Context(), Config{Keys: []Key{{URI: token.uri(";object=site;id=" + escapeID(unhex(t, key.CKAID)))}}},
				Template{Type: kind, Sign: true})
			require.NoError(t, err)
			require.NotEqual(t, key.ID, info.ID)
			require.NoError(t, f.real[0].CloseAllSessions(token.slot(t, f)))
			for range 5 {
				err := signs(t, store, key.ID)
				require.Error(t, err)
				assert.True(t, errors.Is(err, errNoKey) || strings.Contains(err.Error(), "does not fit") || strings.Contains(err.Error(), "another one in its place"), err)
			}
			for _, object := range []string{"privkey", "pubkey"} {
				token.tool(t, "--delete-object", "--type", object, "--label", "site")
			}
			err = signs(t, store, key.ID)
			assert.True(t, errors.Is(err, errNoKey) || errors.Is(err, errKeyGone), err)
		})
	}
}
