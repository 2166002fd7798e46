package keyserver

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// only returns a store with the keys of these names.
func only(t *testing.T, names ...string) *MemoryStore {
	t.Helper()
	store := new(MemoryStore)
	for _, name := range names {
		require.NoError(t, store.Add(name, testKeys().keys[testKeys().id(name)].private))
	}
	return store
}

// decryptRequest asks for the PreMasterSecret in a valid
// EncryptedPreMasterSecret.
func decryptRequest(keys testStore) *ski.Request {
	pub := rsaPublic(keys)
	return &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA,
		Input: rawEncrypt(pub, encodedMessage(pub, preMasterSecret(0x0303)))}
}

func TestJoinedStoresServeTheKeysOfEach(t *testing.T) {
	keys, err := JoinKeyStores(only(t, p256), only(t, rsa2048))
	require.NoError(t, err)
	assert.Len(t, keys.IDs(), 2)
	s := newTestServer(t, keys)
	resp, _ := s.ask(edgePeer, grantedRequest(testKeys()))
	assert.Empty(t, resp.Error)
	resp, rec := s.ask(edgePeer, decryptRequest(testKeys()))
	assert.Empty(t, resp.Error)
	assert.Equal(t, rsa2048, rec.KeyName)
	s.refuses(&ski.Request{Protocol: ski.TLS12, SPKI: testKeys().id(p384), Hash: ski.SHA256, Input: []byte{0}}, ski.SPKINotFound, "no key")

	_, ok := keys.(FailureKeyStore).FailureKey(testKeys().id(rsa2048))
	assert.True(t, ok, "the failure key of a key in memory is the key's own")
	_, err = keys.Sign(t.Context(), testKeys().id(p384), make([]byte, 32), crypto.SHA256)
	assert.ErrorIs(t, err, errNotInStore)
	assert.ErrorIs(t, keys.DecryptPreMasterSecret(t.Context(), testKeys().id(p384), nil, nil), errNotInStore)
}

func TestJoinedStoresCannotShareAKeyOrAName(t *testing.T) {
	_, err := JoinKeyStores(only(t, p256, p384), only(t, p256))
	assert.ErrorContains(t, err, "are the same")

	other := new(MemoryStore)
	require.NoError(t, other.Add(p256, testKeys().keys[testKeys().id(p384)].private))
	_, err = JoinKeyStores(only(t, p256), other)
	assert.ErrorContains(t, err, `two keys are called "`+p256+`"`)
}

// deviceStore is a store like an HSM's, which makes no PSS signatures and does
// not decrypt.
type deviceStore struct{ testStore }

func (deviceStore) Device(ski.KeyID) (string, int) { return "token", 2 }

func (deviceStore) Signs(_ ski.KeyID, opts crypto.SignerOpts) bool {
	_, pss := opts.(*rsa.PSSOptions)
	return !pss
}

func (deviceStore) Decrypts(ski.KeyID) bool { return false }

func TestWhatADeviceCannotDoIsOff(t *testing.T) {
	joined, err := JoinKeyStores(deviceStore{named(only(t, rsa2048))}, only(t, p256))
	require.NoError(t, err)
	for name, keys := range map[string]KeyStore{"alone": deviceStore{testKeys()}, "joined": joined} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, keys)
			s.refuses(decryptRequest(testKeys()), ski.MalformedRequest, "the key's device does not decrypt")
			pss := &ski.Request{Protocol: ski.TLS13, SPKI: testKeys().id(rsa2048), Scheme: tls.PSSWithSHA256, Input: certificateVerify(32)}
			s.refuses(pss, ski.MalformedRequest, "the key's device does not make such signatures")

			for _, r := range s.policy.Load().Rights() {
				if r.KeyName == rsa2048 {
					assert.NotContains(t, r.Methods, ski.MethodRSA)
					assert.NotContains(t, r.Protocols, ski.TLS13, "which needs PSS")
				}
			}
			resp, _ := s.ask(edgePeer, grantedRequest(testKeys()))
			assert.Empty(t, resp.Error)
		})
	}
}

// busyDevice is a device whose operations all wait until there are two.
type busyDevice struct {
	deviceStore
	waiting chan struct{}
}

func (d busyDevice) Sign(ctx context.Context, id ski.KeyID, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	select { // One of the two hands over to the other.
	case d.waiting <- struct{}{}:
	case <-d.waiting:
	}
	return d.deviceStore.Sign(ctx, id, digest, opts)
}

func TestOperationsOfADeviceDoNotWaitForTheProcessors(t *testing.T) {
	keys := busyDevice{deviceStore{testKeys()}, make(chan struct{})}
	s := newTestServer(t, keys, func(o *Options) { o.RSAWorkers = 1 })
	answers := make(chan *ski.Response, 2)
	for range 2 {
		go func() {
			req := grantedRequest(testKeys())
			req.SPKI = testKeys().id(rsa2048)
			answers <- s.ServeSKI(t.Context(), edgePeer, req)
		}()
	}
	for range 2 {
		assert.Empty(t, (<-answers).Error)
	}
}

// hungDevice is a device whose operations never end.
type hungDevice struct{ deviceStore }

func (hungDevice) Sign(ctx context.Context, _ ski.KeyID, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestADeviceThatHangsKeepsNoRequestWaiting(t *testing.T) {
	s := newTestServer(t, hungDevice{deviceStore{testKeys()}})
	s.schedule.deviceTime = time.Millisecond
	for range 3 { // one more than the device does at once
		resp, rec := s.ask(edgePeer, grantedRequest(testKeys()))
		assert.Equal(t, ski.UnspecifiedError, resp.Error)
		assert.Equal(t, "operation failed, see the log", rec.Reason)
	}
}

func TestADeviceDoesNoMoreAtOnceThanItCan(t *testing.T) {
	s := newScheduler(0, 1, 0)
	k := key{device: deviceStore{}, at: place{"token", 2}}
	var now, most atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			assert.NoError(t, s.private(t.Context(), k, func(context.Context) error {
				most.Store(max(most.Load(), now.Add(1)))
				runtime.Gosched()
				now.Add(-1)
				return nil
			}))
		})
	}
	wg.Wait()
	assert.LessOrEqual(t, most.Load(), int64(2))
}
