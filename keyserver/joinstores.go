package keyserver

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"

	"github.com/tlsski/tlsski/ski"
)

// JoinKeyStores returns a KeyStore with the keys of all stores. The error names
// a key that two of them have, or a name that two keys have. A store that gains
// keys afterwards has to be joined again: see JoinAgain.
func JoinKeyStores(stores ...KeyStore) (KeyStore, error) {
	if len(stores) == 1 {
		return stores[0], nil
	}
	all, faults := join(nil, nil, stores)
	if len(faults) > 0 {
		return nil, faults[0]
	}
	return all, nil
}

// JoinAgain is JoinKeyStores for stores whose keys may have changed, while those
// of before are in use. A key that cannot be beside another is left out, if it was
// not there before, and so is one that refuse has an error for. The faults say
// which, and why. refuse may be nil.
func JoinAgain(before KeyStore, refuse func(ski.KeyID) error, stores ...KeyStore) (all KeyStore, faults []error) {
	return join(before, refuse, stores)
}

func join(before KeyStore, refuse func(ski.KeyID) error, stores []KeyStore) (joinedStores, []error) {
	var faults []error
	all := joinedStores{}
	names := make(map[string]ski.KeyID)
	add := func(store KeyStore, id ski.KeyID, name string) error {
		if refuse != nil {
			if err := refuse(id); err != nil {
				return fmt.Errorf("the key %q (%s): %w", name, id, err)
			}
		}
		if other, taken := all[id]; taken {
			otherName, _, _ := other.Lookup(id)
			return fmt.Errorf("the keys %q and %q are the same (%s): keep one of them", otherName, name, id)
		}
		if other, taken := names[name]; taken {
			return fmt.Errorf("two keys are called %q (%s and %s): give one of them another name", name, other, id)
		}
		all[id], names[name] = store, id
		return nil
	}
	for _, known := range []bool{true, false} { // Those that were there have their place first.
		for _, store := range stores {
			for _, id := range store.IDs() {
				name, _, ok := store.Lookup(id)
				if ok && hasAs(before, id, name) == known {
					if err := add(store, id, name); err != nil {
						faults = append(faults, err)
					}
				}
			}
		}
	}
	return all, faults
}

func hasAs(store KeyStore, id ski.KeyID, name string) bool {
	if store == nil {
		return false
	}
	known, _, ok := store.Lookup(id)
	return ok && known == name
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
