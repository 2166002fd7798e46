package keyserver

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"

	"github.com/tlsski/tlsski/ski"
)

// JoinKeyStores returns a KeyStore with the keys of all stores. The error names
// a key that two of them have, or a name that two keys have. No store may gain
// or lose keys afterwards.
func JoinKeyStores(stores ...KeyStore) (KeyStore, error) {
	if len(stores) == 1 {
		return stores[0], nil
	}
	all := joinedStores{}
	names := make(map[string]ski.KeyID)
	for _, store := range stores {
		for _, id := range store.IDs() {
			name, _, _ := store.Lookup(id)
			if other, taken := all[id]; taken {
				otherName, _, _ := other.Lookup(id)
				return nil, fmt.Errorf("the keys %q and %q are the same (%s): keep one of them", otherName, name, id)
			}
			if other, taken := names[name]; taken {
				return nil, fmt.Errorf("two keys are called %q (%s and %s): give one of them another name", name, other, id)
			}
			all[id], names[name] = store, id
		}
	}
	return all, nil
}

// joinedStores has the store of each key.
type joinedStores map[ski.KeyID]KeyStore

var (
	_ FailureKeyStore = joinedStores(nil)
	_ DeviceKeyStore  = joinedStores(nil)
	_ HealthKeyStore  = joinedStores(nil)

	_ CertificateKeyStore = joinedStores(nil)
)

// IDs implements KeyStore.
func (s joinedStores) IDs() []ski.KeyID {
	ids := make([]ski.KeyID, 0, len(s))
	for id := range s {
		ids = append(ids, id)
	}
	return ids
}

// Lookup implements KeyStore.
func (s joinedStores) Lookup(id ski.KeyID) (name string, pub crypto.PublicKey, ok bool) {
	if store, ok := s[id]; ok {
		return store.Lookup(id)
	}
	return "", nil, false
}

// Sign implements KeyStore.
func (s joinedStores) Sign(ctx context.Context, id ski.KeyID, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if store, ok := s[id]; ok {
		return store.Sign(ctx, id, digest, opts)
	}
	return nil, errNotInStore
}

// DecryptPreMasterSecret implements KeyStore.
func (s joinedStores) DecryptPreMasterSecret(ctx context.Context, id ski.KeyID, ciphertext, secret []byte) error {
	if store, ok := s[id]; ok {
		return store.DecryptPreMasterSecret(ctx, id, ciphertext, secret)
	}
	return errNotInStore
}

// FailureKey implements FailureKeyStore.
func (s joinedStores) FailureKey(id ski.KeyID) (secret [32]byte, ok bool) {
	if store, ok := s[id].(FailureKeyStore); ok {
		return store.FailureKey(id)
	}
	return secret, false
}

// Certificates implements CertificateKeyStore.
func (s joinedStores) Certificates(id ski.KeyID) []*x509.Certificate {
	if store, ok := s[id].(CertificateKeyStore); ok {
		return store.Certificates(id)
	}
	return nil
}

// Device implements DeviceKeyStore.
func (s joinedStores) Device(id ski.KeyID) (device string, n int) {
	if store, ok := s[id].(DeviceKeyStore); ok {
		return store.Device(id)
	}
	return "", 0
}

// Signs implements DeviceKeyStore.
func (s joinedStores) Signs(id ski.KeyID, opts crypto.SignerOpts) bool {
	store, ok := s[id].(DeviceKeyStore)
	return !ok || store.Signs(id, opts)
}

// Decrypts implements DeviceKeyStore.
func (s joinedStores) Decrypts(id ski.KeyID) bool {
	store, ok := s[id].(DeviceKeyStore)
	return !ok || store.Decrypts(id)
}

// Health implements HealthKeyStore.
func (s joinedStores) Health(id ski.KeyID) error {
	if store, ok := s[id].(HealthKeyStore); ok {
		return store.Health(id)
	}
	return nil
}
