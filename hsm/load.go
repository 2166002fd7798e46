//go:build cgo

package hsm

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/tlsski/tlsski/ski"
)

// target is one Key of the configuration, and the token it is on.
type target struct {
	key    Key
	uri    *URI
	pin    *tokenPIN
	hasPIN bool
	public crypto.PublicKey  // out of Key.PublicKey
	cert   *x509.Certificate // likewise; nil where that is a public key alone
	token  *token
}

// one reports whether the target names one key and not all of the token.
func (t *target) one() bool { return t.uri.Object != nil || t.uri.ID != nil }

// newTarget checks all that can be checked without the token.
func newTarget(cfg *Config, key Key) (*target, error) {
	uri, err := ParseURI(key.URI)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", redact(key.URI), err)
	}
	t := &target{key: key, uri: uri}
	switch {
	case uri.ModulePath == "":
		return nil, fmt.Errorf("%s: it has no module-path: say after a \"?\" which PKCS #11 module to load", redact(key.URI))
	case uri.Type != "" && uri.Type != "private":
		return nil, fmt.Errorf("%s: it names no private key: type is private, or not there", uri)
	case key.Name != "" && !t.one():
		return nil, fmt.Errorf("%s: it names all keys of the token, which cannot all be called %q: add object or id", uri, key.Name)
	case key.PublicKey != "" && !t.one():
		return nil, fmt.Errorf("%s: it names all keys of the token, and %s has the public half of one: add object or id", uri, key.PublicKey)
	}
	if key.PublicKey != "" {
		if t.public, t.cert, err = loadPublicKey(cfg.path(key.PublicKey)); err != nil {
			return nil, fmt.Errorf("%s: %w", uri, err)
		}
	}
	t.pin = &tokenPIN{read: func() (string, error) { pin, _, err := cfg.pin(uri); return pin, err }}
	if t.pin.last, t.hasPIN, err = cfg.pin(uri); err != nil {
		return nil, fmt.Errorf("%s: %w", uri, err)
	}
	return t, nil
}

// redact is for a URI that cannot be parsed: what comes after "?" may be a PIN.
func redact(uri string) string {
	path, _, ok := strings.Cut(uri, "?")
	if len(path) > 200 {
		path = path[:200] + "..."
	}
	if i := strings.Index(strings.ToLower(path), "pin"); i >= 0 { // on the wrong side, however it is misspelt
		path = path[:i] + "..."
	}
	if ok {
		path += "?..."
	}
	return fmt.Sprintf("%q", path)
}

// loadPublicKey returns the first public half in a PEM file, with its
// certificate where it is in one.
func loadPublicKey(file string) (pub crypto.PublicKey, cert *x509.Certificate, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", file, err)
			}
			pub = cert.PublicKey
		case "PUBLIC KEY":
			if pub, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", file, err)
			}
		default:
			continue
		}
		if err := checkPublic(pub); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", file, err)
		}
		return pub, cert, nil
	}
	return nil, nil, fmt.Errorf("%s: it has neither a certificate nor a public key in PEM form", file)
}

// slotOf returns the slot of the one token that a URI fits.
func slotOf(ctx context.Context, m *sharedModule, uri *URI) (uint, pkcs11.TokenInfo, error) {
	m.calls.RLock()
	defer m.calls.RUnlock()
	if err := ctx.Err(); err != nil { // It is not waited for, and the module may have ended.
		return 0, pkcs11.TokenInfo{}, err
	}
	none := pkcs11.TokenInfo{}
	if uri.LibraryManufacturer != nil || uri.LibraryDescription != nil || uri.LibraryVersion != nil {
		info, err := m.GetInfo()
		if err != nil {
			return 0, none, fmt.Errorf("C_GetInfo: %w", err)
		}
		version := fmt.Sprintf("%d.%d", info.LibraryVersion.Major, info.LibraryVersion.Minor)
		if !fits(uri.LibraryManufacturer, info.ManufacturerID) || !fits(uri.LibraryDescription, info.LibraryDescription) ||
			!fits(uri.LibraryVersion, version) {
			return 0, none, fmt.Errorf("the module is another one: library-manufacturer %q, library-description %q, library-version %s",
				info.ManufacturerID, info.LibraryDescription, version)
		}
	}
	slots, err := m.GetSlotList(true)
	if err != nil {
		return 0, none, fmt.Errorf("C_GetSlotList: %w", err)
	}
	var fitting []uint
	var found pkcs11.TokenInfo
	var others []string
	for _, slot := range slots {
		info, err := m.GetTokenInfo(slot)
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		others = append(others, fmt.Sprintf("%q (serial %s, slot %d)", info.Label, info.SerialNumber, slot))
		ok, err := fitsSlot(m, uri, slot)
		if err != nil {
			return 0, none, err
		}
		if ok && fits(uri.Token, info.Label) && fits(uri.Serial, info.SerialNumber) &&
			fits(uri.Manufacturer, info.ManufacturerID) && fits(uri.Model, info.Model) {
			fitting, found = append(fitting, slot), info
		}
	}
	switch {
	case len(fitting) == 1:
		return fitting[0], found, nil
	case len(others) == 0:
		return 0, none, errors.New("the module has no token: check that the device is connected and the module's own configuration")
	case len(fitting) == 0:
		return 0, none, fmt.Errorf("no token fits: the module has %s", strings.Join(others, ", "))
	}
	return 0, none, fmt.Errorf("%d tokens fit: add token or serial; the module has %s", len(fitting), strings.Join(others, ", "))
}

func fitsSlot(m *sharedModule, uri *URI, slot uint) (bool, error) {
	if uri.SlotID != nil && *uri.SlotID != slot {
		return false, nil
	}
	if uri.SlotManufacturer == nil && uri.SlotDescription == nil {
		return true, nil
	}
	info, err := m.GetSlotInfo(slot)
	if err != nil {
		return false, fmt.Errorf("C_GetSlotInfo: %w", err)
	}
	return fits(uri.SlotManufacturer, info.ManufacturerID) && fits(uri.SlotDescription, info.SlotDescription), nil
}

// fits compares an attribute with what the module says, which may be padded
// with blanks.
func fits(attribute *string, value string) bool {
	return attribute == nil || strings.TrimRight(*attribute, " ") == strings.TrimRight(value, " ")
}

// checkLogin says why a login must not be tried.
func checkLogin(info pkcs11.TokenInfo, hasPIN bool) error {
	switch {
	case info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0:
		return nil
	case !hasPIN:
		return errors.New("the token wants a PIN: add pin-source")
	case info.Flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0:
		return errors.New("the token's user has no PIN yet: initialize it")
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return errors.New("the token's PIN is locked: its security officer can set a new one")
	case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return errors.New("one more wrong PIN locks the token, so it is not tried: log in by hand once (pkcs11-tool --login --test), which resets the count")
	}
	return nil
}

// discover returns the private keys that a target names, each with its problem
// if it has one.
func (t *target) discover(s *session, want demands) ([]*privateKey, error) {
	filter := &privateKey{ckaID: t.uri.ID}
	if t.uri.Object != nil {
		filter.label = []byte(*t.uri.Object)
	}
	handles, err := s.findAll(filter.template()...)
	switch {
	case err != nil:
		return nil, err
	case len(handles) == 0:
		return nil, t.none(s)
	}
	certificates, err := s.certificates()
	if err != nil {
		return nil, err
	}
	var keys []*privateKey
	for _, handle := range handles {
		k, err := t.read(s, handle)
		if err != nil {
			return nil, err
		}
		switch err := t.complete(s, k, handle, want); {
		case isLost(err):
			return nil, fmt.Errorf("the key %s: %w", k.describe(), err)
		case err != nil:
			k.info.Problem = err
		case len(handles) > 1 && t.one():
			k.info.Problem = fmt.Errorf("the URI fits %d private keys of the token: add id or object to tell them apart", len(handles))
		}
		k.info.Certificates = certificates[k.info.ID]
		if t.cert != nil && ski.CertificateKeyID(t.cert) == k.info.ID {
			k.info.Certificates = append(slices.Clip(k.info.Certificates), t.cert)
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b *privateKey) int {
		return cmp.Or(strings.Compare(a.info.Label, b.info.Label), strings.Compare(a.info.CKAID, b.info.CKAID))
	})
	return keys, nil
}

// errNone says that a token has no such private key. errNothing says that it shows
// no object at all, which may be its own fault: see find.
var (
	errNone    = errors.New("it has no such private key")
	errNothing = errors.New("it shows no object at all")
)

// none returns why there is no key of the target.
func (t *target) none(s *session) error {
	if t.token.login {
		if loggedIn, err := s.loggedIn(); err != nil || !loggedIn { // Who is logged out does not see private keys.
			return &lostError{errors.New("the token has logged us out")}
		}
	}
	why := errNone
	if others, err := s.findAll(); err != nil {
		return err
	} else if len(others) == 0 {
		why = errNothing
	}
	if t.one() {
		return &noKeyError{why, fmt.Sprintf("%s has no such private key: see skictl key list", t.token)}
	}
	return &noKeyError{why, fmt.Sprintf("%s has no private key: make one with skictl key generate", t.token)}
}

// noKeyError is an errNone or errNothing that says what to do at the start.
type noKeyError struct {
	why  error
	text string
}

func (e *noKeyError) Error() string { return e.text }

func (e *noKeyError) Unwrap() error { return e.why }

// certificates returns those of the token by the fingerprint of their keys.
func (s *session) certificates() (map[ski.KeyID][]*x509.Certificate, error) {
	handles, err := s.findAll(pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE))
	if err != nil {
		return nil, err
	}
	all := make(map[ski.KeyID][]*x509.Certificate)
	for _, handle := range handles {
		cert, err := s.certificate(handle)
		if err != nil {
			return nil, err
		}
		if cert != nil {
			id := ski.CertificateKeyID(cert)
			all[id] = append(all[id], cert)
		}
	}
	return all, nil
}

// read reads what the token says of a private key.
func (t *target) read(s *session, handle pkcs11.ObjectHandle) (*privateKey, error) {
	k := &privateKey{target: t, token: t.token}
	i := &k.info
	var err error
	if k.label, err = s.attribute(handle, pkcs11.CKA_LABEL); err != nil {
		return nil, err
	}
	if k.ckaID, err = s.attribute(handle, pkcs11.CKA_ID); err != nil {
		return nil, err
	}
	if err := s.keeping(handle, i); err != nil {
		return nil, err
	}
	i.Label, i.CKAID = string(k.label), hex.EncodeToString(k.ckaID)
	i.Module, i.Token, i.Serial, i.Slot = t.token.mod.file, t.token.label, t.token.serial, t.token.slotNow()
	uri := URI{Token: &i.Token, Serial: &i.Serial, ID: k.ckaID, ModulePath: t.uri.ModulePath}
	if i.Label != "" {
		uri.Object = &i.Label
	}
	if len(uri.ID) == 0 {
		uri.ID = nil
	}
	i.URI = uri.String()
	if i.Name = t.key.Name; i.Name == "" {
		if i.Name = i.Label; i.Name == "" {
			i.Name = i.CKAID
		}
	}
	return k, nil
}

// describe names the key in an error.
func (k *privateKey) describe() string {
	return fmt.Sprintf("%q (id %s)", k.info.Label, k.info.CKAID)
}

// complete finds the public half and all the reasons not to use the key, of
// which it returns the first.
func (t *target) complete(s *session, k *privateKey, handle pkcs11.ObjectHandle, want demands) error {
	if len(k.ckaID) == 0 && len(k.label) == 0 {
		return errors.New("it has neither a label nor an id: give it one")
	}
	kind, err := s.keyType(handle)
	if err != nil {
		return err
	}
	k.info.Decrypts = k.info.Decrypts && kind == pkcs11.CKK_RSA // Some tokens say so of every key.
	if contextual, err := s.flag(handle, pkcs11.CKA_ALWAYS_AUTHENTICATE, false); err != nil {
		return err
	} else if contextual {
		return errors.New("it wants the PIN for each operation (CKA_ALWAYS_AUTHENTICATE), which is not supported")
	}
	if twins, err := s.findAll((&privateKey{ckaID: k.ckaID, label: k.labelUnlessID()}).template()...); err != nil {
		return err
	} else if len(twins) > 1 {
		return fmt.Errorf("%d private keys of the token have this id, so that it is not known which is meant: give each its own (pkcs11-tool --set-id)", len(twins))
	}
	k.public = t.public
	if k.public == nil {
		if k.public, err = s.publicHalf(k, handle); err != nil {
			return err
		}
	}
	if err := checkPublic(k.public); err != nil {
		return err
	}
	k.info.Public, k.info.Type = k.public, TypeOf(k.public)
	if k.info.ID, err = ski.PublicKeyID(k.public); err != nil {
		return err
	}
	if err := t.mechanisms(s, k, kind); err != nil {
		return err
	}
	if err := checkName(k.info.Name); err != nil {
		return err
	}
	if err := want.of(&k.info); err != nil {
		return err
	}
	if err := k.prove(s); err != nil {
		return err
	}
	return nil
}

// labelUnlessID returns the label where it is all that the key is known by.
func (k *privateKey) labelUnlessID() []byte {
	if len(k.ckaID) > 0 {
		return nil
	}
	return k.label
}

// publicHalf finds the public half on the token: a public key with the same
// CKA_ID (the label, where there is none), a certificate, or the private key
// itself if it is RSA.
func (s *session) publicHalf(k *privateKey, handle pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	same := pkcs11.NewAttribute(pkcs11.CKA_ID, k.ckaID)
	if len(k.ckaID) == 0 {
		same = pkcs11.NewAttribute(pkcs11.CKA_LABEL, k.label)
	}
	handles, err := s.findAll(pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), same)
	if err != nil {
		return nil, err
	}
	for _, h := range handles {
		if pub, err := s.publicKey(h); err != nil || pub != nil {
			return pub, err
		}
	}
	if handles, err = s.findAll(pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), same); err != nil {
		return nil, err
	}
	for _, h := range handles {
		cert, err := s.certificate(h)
		if err != nil {
			return nil, err
		}
		if cert != nil {
			return cert.PublicKey, nil
		}
	}
	if pub, err := s.publicKey(handle); err != nil || pub != nil {
		return pub, err
	}
	return nil, errors.New("the token has neither a public key nor a certificate with the same id: put one there, or name a PEM file that has it")
}

// mechanisms finds out what the token can do with the key.
func (t *target) mechanisms(s *session, k *privateKey, kind uint) error {
	can := func(mechanism, flag uint) bool {
		if k.info.Mechanisms != nil && !slices.Contains(k.info.Mechanisms, mechanismName(mechanism)) {
			return false
		}
		info, err := s.GetMechanismInfo(t.token.slotNow(), []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)})
		return err == nil && info.Flags&flag != 0
	}
	switch kind {
	case pkcs11.CKK_EC:
		if !can(pkcs11.CKM_ECDSA, pkcs11.CKF_SIGN) {
			return errors.New("the token has no ECDSA signatures (CKM_ECDSA)")
		}
	case ckkECEdwards:
		if !can(ckmEdDSA, pkcs11.CKF_SIGN) {
			return errors.New("the token has no EdDSA signatures (CKM_EDDSA)")
		}
	case pkcs11.CKK_RSA:
		k.pkcs1 = can(pkcs11.CKM_RSA_PKCS, pkcs11.CKF_SIGN)
		k.pss = can(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.CKF_SIGN)
		k.raw = can(pkcs11.CKM_RSA_X_509, pkcs11.CKF_DECRYPT)
		if k.info.Signs && !k.pkcs1 && !k.pss {
			return errors.New("the token has no RSA signatures (CKM_RSA_PKCS, CKM_RSA_PKCS_PSS)")
		}
	}
	allowed := k.info.Decrypts
	k.info.Decrypts = allowed && k.raw
	switch {
	case k.info.Signs || k.info.Decrypts:
	case allowed:
		return errors.New("it is for decryption only, and the token has no raw RSA decryption (CKM_RSA_X_509)")
	default:
		return errors.New("the token lets it neither sign nor decrypt (CKA_SIGN and CKA_DECRYPT are false)")
	}
	k.noRaw = allowed && !k.raw
	return nil
}

// checkTogether says why a key cannot be used beside those before it.
func checkTogether(keys []*privateKey, k *privateKey) error {
	for _, other := range keys {
		switch {
		case other.token == k.token && bytes.Equal(other.ckaID, k.ckaID) && bytes.Equal(other.label, k.label):
			return errors.New("two URIs name it: take one away")
		case other.info.ID == k.info.ID:
			return fmt.Errorf("it is the same key as %q on %s: name only one of them", other.info.Name, other.token)
		case other.info.Name == k.info.Name:
			return fmt.Errorf("the key with id %s on %s has the name %q too: name the keys one by one, with id and name", other.info.CKAID, other.token, other.info.Name)
		}
	}
	return nil
}

// within calls f, which calls into a module, and waits for it no longer than
// ctx allows. A module that hangs then stays loaded.
func within(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the module does not return: %w", ctx.Err())
	}
}
