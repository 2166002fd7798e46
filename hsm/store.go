//go:build cgo

package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/tlsski/tlsski/ski"
)

// closeTimeout is how long Close waits for calls to tokens.
const closeTimeout = 5 * time.Second

// Store is a key store on PKCS #11 tokens. It has the methods of the key
// server's KeyStore, which may be called by many goroutines at once.
type Store struct {
	modules  []*sharedModule
	tokens   []*token
	now      atomic.Pointer[foundKeys]
	warnings []string // of the start

	cfg       Config
	targets   []*target
	reloading sync.Mutex

	closing sync.Once
	closed  error
}

// foundKeys are the keys of a Store, which do not change.
type foundKeys struct {
	byID map[ski.KeyID]*privateKey
	all  []*privateKey // in the order of the configuration
}

// found returns the keys as they were last found.
func (s *Store) found() *foundKeys {
	if found := s.now.Load(); found != nil {
		return found
	}
	return new(foundKeys)
}

// key returns a key that is there.
func (s *Store) key(id ski.KeyID) (*privateKey, bool) {
	k, ok := s.found().byID[id]
	if !ok || k.gone.Load() {
		return nil, false
	}
	return k, true
}

// Open logs in to the tokens and finds the keys. The error is one line, and
// says which URI and what to do; it never contains a PIN. To each token there
// is one attempt to log in.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	return open(ctx, cfg, loadModule, false)
}

// List returns every key that the URIs name, also those that Open would refuse,
// with the reason in Problem. The error is one that no key can be listed for.
func List(ctx context.Context, cfg Config) ([]KeyInfo, error) {
	s, err := open(ctx, cfg, loadModule, true)
	if err != nil {
		return nil, err
	}
	return s.Keys(), s.Close()
}

func open(ctx context.Context, cfg Config, load loader, lenient bool) (_ *Store, err error) {
	if len(cfg.Keys) == 0 {
		return nil, errors.New("no PKCS #11 URI is given")
	}
	s := &Store{cfg: cfg}
	defer func() {
		if err != nil {
			_ = s.Close() // The first error is the one that matters.
		}
	}()
	for _, key := range cfg.Keys { // the cheap mistakes first
		t, err := newTarget(&cfg, key)
		if err != nil {
			return nil, err
		}
		s.targets = append(s.targets, t)
	}
	for _, t := range s.targets {
		if err := s.connect(ctx, &cfg, t, load); err != nil {
			return nil, fmt.Errorf("%s: %w", t.uri, err)
		}
	}
	found := &foundKeys{byID: make(map[ski.KeyID]*privateKey)}
	for _, t := range s.targets {
		if err := s.addKeys(ctx, found, t, lenient); err != nil {
			return nil, fmt.Errorf("%s: %w", t.uri, err)
		}
	}
	s.now.Store(found)
	for _, t := range s.tokens {
		t.start(t.limit - 1) // The first is there already.
	}
	return s, nil
}

// connect finds the target's token and logs in to it, unless another target has
// done so already.
func (s *Store) connect(ctx context.Context, cfg *Config, t *target, load loader) error {
	if t.uri.HasPINValue() {
		s.warn("%s: pin-value shows the PIN to whoever sees the URI: use pin-source", t.uri)
	}
	mod, err := s.module(ctx, t.uri.ModulePath, load)
	if err != nil {
		return err
	}
	var slot uint
	var info pkcs11.TokenInfo
	if err := within(ctx, func() (err error) { slot, info, err = slotOf(ctx, mod, t.uri); return err }); err != nil {
		return err
	}
	for _, other := range s.tokens {
		if other.mod == mod && other.is(info) && other.slotNow() == slot {
			if t.hasPIN && other.login && !other.pin.is(t.pin.last) {
				return fmt.Errorf("another URI gives %s another PIN: give each the same pin-source", other)
			}
			t.token = other
			return nil
		}
	}
	if err := checkLogin(info, t.hasPIN); err != nil {
		return err
	}
	t.token = newToken(mod, slot, info, t.pin, cfg, false)
	s.tokens = append(s.tokens, t.token)
	if limit := cfg.MaxSessions; limit > t.token.limit {
		s.warn("%s: the token has %d sessions and not %d", t.uri, t.token.limit, limit)
	}
	t.token.start(1)
	return t.token.do(ctx, func(*session) error { return nil })
}

func (s *Store) module(ctx context.Context, file string, load loader) (*sharedModule, error) {
	var mod *sharedModule
	err := within(ctx, func() (err error) { mod, err = acquireModule(file, load); return err })
	if err != nil {
		return nil, fmt.Errorf("the module cannot be loaded: %w", err)
	}
	for _, other := range s.modules {
		if other == mod {
			return mod, mod.release(ctx) // once is enough
		}
	}
	s.modules = append(s.modules, mod)
	return mod, nil
}

// addKeys finds the target's keys. If it is lenient, it takes them with their
// problems.
func (s *Store) addKeys(ctx context.Context, found *foundKeys, t *target, lenient bool) error {
	keys, err := s.keysOf(ctx, t)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.info.Problem == nil {
			k.info.Problem = checkTogether(found.all, k)
		}
		if k.info.Problem != nil && !lenient {
			return fmt.Errorf("the key %s: %w", k.describe(), k.info.Problem)
		}
		found.all = append(found.all, k)
		if k.info.Problem != nil {
			continue
		}
		found.byID[k.info.ID] = k
		t.token.addKey(k)
		for _, warning := range k.warnings() {
			s.warn("%s", warning)
		}
	}
	return nil
}

// keysOf asks the token for the target's keys.
func (s *Store) keysOf(ctx context.Context, t *target) ([]*privateKey, error) {
	var keys []*privateKey // A job that is not waited for may still write it.
	err := t.token.do(ctx, func(session *session) error {
		found, err := t.discover(session, demands{nonExtractable: s.cfg.RequireNonExtractable, generated: s.cfg.RequireGenerated})
		if err == nil {
			keys = found
		}
		clear(session.found) // It would keep them, wanted or not, as long as it lasts.
		return err
	})
	if err != nil {
		return nil, err
	}
	return keys, nil
}

// warnings returns a line for each thing that an operator should know of the key.
func (k *privateKey) warnings() (lines []string) {
	warn := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if k.noRaw {
		warn("the key %q: the token has no raw RSA decryption (CKM_RSA_X_509): the method RSA is off for it", k.info.Name)
	}
	if _, ok := k.public.(*rsa.PublicKey); ok && k.info.Signs && !k.pss {
		warn("the key %q: the token has no RSA-PSS (CKM_RSA_PKCS_PSS): it cannot be used with TLS 1.3", k.info.Name)
	}
	if fault, setting := (demands{nonExtractable: true, generated: true}).fault(&k.info); fault != "" {
		warn("the key %q: %s: make another with skictl key generate, and set %s", k.info.Name, fault, setting)
	}
	return lines
}

func (s *Store) warn(format string, args ...any) {
	s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
}

// Close ends the sessions and the modules. It waits a few seconds for calls
// that are under way; a module that one is stuck in stays loaded, which the
// error says. A second call returns what the first has. Afterwards all methods
// can still be called, since a scrape of metrics may outlast the server.
func (s *Store) Close() error {
	s.closing.Do(func() { s.closed = s.close() })
	return s.closed
}

func (s *Store) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	for _, t := range s.tokens {
		errs = append(errs, t.close(ctx))
	}
	for _, m := range s.modules {
		errs = append(errs, m.release(ctx))
	}
	return errors.Join(errs...)
}

// Warnings returns what an operator should know at the start, one line each:
// keys that cannot be used for all that they could be, and PINs and keys that
// are not as well kept as they could be.
func (s *Store) Warnings() []string { return s.warnings }

// Keys describes the keys, in the order of the configuration.
func (s *Store) Keys() []KeyInfo {
	all := s.found().all
	infos := make([]KeyInfo, 0, len(all))
	for _, k := range all {
		if !k.gone.Load() {
			infos = append(infos, k.info)
		}
	}
	return infos
}

// Stats returns the state of each token.
func (s *Store) Stats() []Stats {
	all := make([]Stats, 0, len(s.tokens))
	for _, t := range s.tokens {
		all = append(all, t.stats())
	}
	return all
}

// IDs returns the fingerprints of all keys, in no particular order.
func (s *Store) IDs() []ski.KeyID {
	byID := s.found().byID
	ids := make([]ski.KeyID, 0, len(byID))
	for id, k := range byID {
		if !k.gone.Load() {
			ids = append(ids, id)
		}
	}
	return ids
}

// Lookup returns the name that policies call the key by and its public half.
func (s *Store) Lookup(id ski.KeyID) (name string, pub crypto.PublicKey, ok bool) {
	k, ok := s.key(id)
	if !ok {
		return "", nil, false
	}
	return k.info.Name, k.public, true
}

// Certificates returns those of a key that are on its token or in
// Key.PublicKey.
func (s *Store) Certificates(id ski.KeyID) []*x509.Certificate {
	if k, ok := s.key(id); ok {
		return k.info.Certificates
	}
	return nil
}

// Device returns what identifies the token that has the key, and how many
// operations there are with it at once: its sessions. n is 0 where the store
// does not have the key.
func (s *Store) Device(id ski.KeyID) (device string, n int) {
	k, ok := s.key(id)
	if !ok {
		return "", 0
	}
	return k.info.Module + " " + k.token.serial + " " + k.token.label, k.token.limit
}

// Health returns why no operation with the key can succeed at present: its token
// fails, does not take the PIN, or does not return from any call. The log has a
// line when that begins and one when it ends.
func (s *Store) Health(id ski.KeyID) error {
	k, ok := s.key(id)
	if !ok {
		return errNoKey
	}
	return k.token.health()
}

// Signs reports whether Sign works for a key with such opts: the token may lack
// the mechanism, or not let the key sign.
func (s *Store) Signs(id ski.KeyID, opts crypto.SignerOpts) bool {
	k, ok := s.key(id)
	if !ok {
		return false
	}
	var digest []byte
	if _, known := digestInfoPrefix[opts.HashFunc()]; known {
		digest = make([]byte, opts.HashFunc().Size())
	}
	_, err := k.newSignature(digest, opts)
	return err == nil
}

// Decrypts reports whether DecryptPreMasterSecret works for a key: an RSA key
// with CKA_DECRYPT, on a token with CKM_RSA_X_509.
func (s *Store) Decrypts(id ski.KeyID) bool {
	k, ok := s.key(id)
	return ok && k.info.Decrypts
}

// Sign signs digest as crypto.Signer does: opts is an *rsa.PSSOptions for
// RSA-PSS and otherwise the crypto.Hash that made the digest (crypto.MD5SHA1
// for the RSA signatures before TLS 1.2). With Ed25519, opts is crypto.Hash(0)
// and digest the message itself.
//
// Every signature is verified before it is returned, since a wrong one can give
// the private key away. One of RSA does, by a fault in a token that computes with
// the Chinese remainder theorem (Boneh, DeMillo and Lipton, 1997); one of Ed25519
// does, or of ECDSA on a token that derives its nonces from the message (RFC
// 6979), beside the right one over the same message, which an edge can ask for.
// Verifying happens outside of the session.
func (s *Store) Sign(ctx context.Context, id ski.KeyID, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k, ok := s.key(id)
	if !ok {
		return nil, errNoKey
	}
	sig, err := k.newSignature(digest, opts)
	if err != nil {
		return nil, err
	}
	var out []byte
	err = k.token.do(ctx, func(s *session) (err error) { out, err = sig.make(s); return err })
	if err == nil && !sig.verify(out) {
		err = errWrongSignature
	}
	if errors.Is(err, errWrongSignature) {
		k.token.wrongSignature(k)
	}
	s.noteGone(k, err)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// DecryptPreMasterSecret decrypts an EncryptedPreMasterSecret, which is as long
// as the modulus and below it, with RSAES-PKCS1-v1_5 (RFC 8017, Section 7.2.2)
// into secret, which has ski.PreMasterSecretLen bytes. The caller has filled
// secret with what is to be there otherwise: it is overwritten only where the
// padding is right and the plaintext as long as secret. Neither time nor error
// tells whether it was, as far as that is in the hands of this process.
func (s *Store) DecryptPreMasterSecret(ctx context.Context, id ski.KeyID, ciphertext, secret []byte) error {
	k, ok := s.key(id)
	if !ok {
		return errNoKey
	}
	if !k.info.Decrypts {
		return fmt.Errorf("the key %q cannot decrypt: the token does not let it, or has no raw RSA decryption (CKM_RSA_X_509)", k.info.Name)
	}
	pub := k.public.(*rsa.PublicKey)
	if len(ciphertext) != pub.Size() || new(big.Int).SetBytes(ciphertext).Cmp(pub.N) >= 0 {
		return errors.New("the ciphertext is not below the modulus")
	}
	ciphertext = bytes.Clone(ciphertext) // The call may outlast this one.
	var raw []byte
	err := k.token.do(ctx, func(s *session) (err error) {
		raw, err = k.decryptInTime(ctx, s, ciphertext)
		return err
	})
	s.noteGone(k, err)
	if err != nil {
		return err
	}
	defer clear(raw)
	return unpadPreMasterSecret(raw, pub.Size(), secret)
}

// Signer returns a key as a crypto.Signer, for what crypto/x509 signs. Its Sign
// works as long as ctx does.
func (s *Store) Signer(ctx context.Context, id ski.KeyID) (crypto.Signer, error) {
	k, ok := s.key(id)
	if !ok {
		return nil, errNoKey
	}
	return &signer{ctx: ctx, store: s, id: id, public: k.public}, nil
}

type signer struct {
	ctx    context.Context
	store  *Store
	id     ski.KeyID
	public crypto.PublicKey
}

func (s *signer) Public() crypto.PublicKey { return s.public }

func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.store.Sign(s.ctx, s.id, digest, opts)
}
