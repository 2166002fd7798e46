//go:build cgo

package hsm

import (
	"crypto/rand"
	"crypto/rsa"
	"slices"
	"testing"

	"github.com/miekg/pkcs11"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// inSession calls f in a session that may write, as another program that has the
// PIN has one, with the handle of a private key.
func (s *softToken) inSession(t testing.TB, label string, f func(m *pkcs11.Ctx, session pkcs11.SessionHandle, key pkcs11.ObjectHandle)) {
	t.Helper()
	cfg := &Config{Keys: []Key{{URI: s.uri("")}}}
	withSession(t, cfg, label, f)
}

func withSession(t testing.TB, cfg *Config, label string, f func(m *pkcs11.Ctx, session pkcs11.SessionHandle, key pkcs11.ObjectHandle)) {
	t.Helper()
	target, err := newTarget(cfg, cfg.Keys[0])
	require.NoError(t, err)
	store := new(Store)
	defer func() { require.NoError(t, store.Close()) }()
	mod, err := store.module(t.Context(), target.uri.ModulePath, loadModule)
	require.NoError(t, err)
	m := mod.module.(*pkcs11.Ctx)
	slot, _, err := slotOf(t.Context(), mod, target.uri)
	require.NoError(t, err)
	session, err := m.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	require.NoError(t, err)
	require.NoError(t, m.Login(session, pkcs11.CKU_USER, target.pin.last))
	require.NoError(t, m.FindObjectsInit(session, (&privateKey{label: []byte(label)}).template()))
	found, _, err := m.FindObjects(session, 2)
	require.NoError(t, err)
	require.NoError(t, m.FindObjectsFinal(session))
	require.Len(t, found, 1)
	f(m, session, found[0])
	require.NoError(t, m.Logout(session))
	require.NoError(t, m.CloseSession(session))
}

// Whoever has the PIN uses the key, as long as they have the token. They do not
// make it one that can be taken along, or that does more.
func TestAGeneratedKeyCannotBeChanged(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	for kind, allowed := range map[string][]string{
		"rsa-2048": {"CKM_RSA_PKCS", "CKM_RSA_PKCS_PSS"}, "ec-p256": {"CKM_ECDSA"}, "ed25519": {"CKM_EDDSA"},
	} {
		info := token.generate(t, kind, kind, Template{Sign: true})
		assert.False(t, info.Modifiable, kind)
		assert.False(t, info.Copyable, kind)
		assert.ElementsMatch(t, allowed, info.Mechanisms, kind)
		assert.Empty(t, info.Untold, kind)
		token.inSession(t, kind, func(m *pkcs11.Ctx, session pkcs11.SessionHandle, key pkcs11.ObjectHandle) {
			for name, attribute := range map[string]*pkcs11.Attribute{
				"DECRYPT":     pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
				"UNWRAP":      pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, true),
				"DERIVE":      pkcs11.NewAttribute(pkcs11.CKA_DERIVE, true),
				"EXTRACTABLE": pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
				"SENSITIVE":   pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false),
				"MODIFIABLE":  pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, true),
				"COPYABLE":    pkcs11.NewAttribute(pkcs11.CKA_COPYABLE, true),
				"MECHANISMS":  pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, nil),
				"LABEL":       pkcs11.NewAttribute(pkcs11.CKA_LABEL, "other"),
				"ID":          pkcs11.NewAttribute(pkcs11.CKA_ID, []byte{1}),
			} {
				require.Error(t, m.SetAttributeValue(session, key, []*pkcs11.Attribute{attribute}), name)
			}
			_, err := m.CopyObject(session, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, true)})
			require.Error(t, err)
			require.Error(t, m.DecryptInit(session, []*pkcs11.Mechanism{mechRawRSA}, key))
			if kind == "rsa-2048" { // a mechanism of the key's type that it is not made for
				require.ErrorIs(t, m.SignInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_SHA256_RSA_PKCS, nil)}, key),
					pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID))
			}
		})
	}
	store := openStore(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1, RequireNonExtractable: true, RequireGenerated: true})
	assert.Empty(t, store.Warnings())
	for _, info := range store.Keys() {
		assert.Contains(t, info.Type, info.Name, "its attributes are as they were")
	}
}

// What decrypts does nothing else, and what does both does that.
func TestAGeneratedKeyHasTheMechanismsOfItsUse(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	both := token.generate(t, "both", "rsa-2048", Template{Sign: true, Decrypt: true})
	assert.ElementsMatch(t, []string{"CKM_RSA_PKCS", "CKM_RSA_PKCS_PSS", "CKM_RSA_X_509"}, both.Mechanisms)
	decrypts := token.generate(t, "decrypts", "rsa-2048", Template{Decrypt: true})
	assert.Equal(t, []string{"CKM_RSA_X_509"}, decrypts.Mechanisms)
	store := openStore(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1})
	require.NoError(t, signs(t, store, both.ID))
	for _, info := range store.Keys() {
		require.NoError(t, decryptsLikeGo(t.Context(), store, info.ID, info.Public.(*rsa.PublicKey)))
	}
}

// pickyToken does not know some attributes.
type pickyToken struct {
	module
	unknown []uint
	refusal pkcs11.Error
	asked   int
}

func (m *pickyToken) GenerateKeyPair(s pkcs11.SessionHandle, mech []*pkcs11.Mechanism, public, private []*pkcs11.Attribute) (pkcs11.ObjectHandle, pkcs11.ObjectHandle, error) {
	m.asked++
	for _, a := range private {
		if slices.Contains(m.unknown, a.Type) {
			return 0, 0, m.refusal
		}
	}
	return m.module.GenerateKeyPair(s, mech, public, private)
}

func (m *pickyToken) GetAttributeValue(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	for _, one := range a {
		if slices.Contains(m.unknown, one.Type) {
			return nil, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)
		}
	}
	return m.module.GetAttributeValue(s, o, a)
}

// A token that does not know an attribute gets a key without that one alone.
func TestAKeyIsGeneratedWithWhatTheTokenKnows(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	for _, tc := range []struct {
		name     string
		unknown  []uint
		refusal  pkcs11.Error
		untold   []string
		attempts int
	}{
		{"all", nil, 0, nil, 1},
		{"mechanisms", []uint{pkcs11.CKA_ALLOWED_MECHANISMS}, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, nil, 2},
		{"copyable", []uint{pkcs11.CKA_COPYABLE}, pkcs11.CKR_TEMPLATE_INCONSISTENT, []string{"CKA_COPYABLE"}, 3},
		{"modifiable", []uint{pkcs11.CKA_MODIFIABLE}, pkcs11.CKR_ATTRIBUTE_READ_ONLY, []string{"CKA_MODIFIABLE"}, 4},
		{"both", []uint{pkcs11.CKA_MODIFIABLE, pkcs11.CKA_COPYABLE}, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, []string{"CKA_MODIFIABLE", "CKA_COPYABLE"}, 7},
		{"none", []uint{pkcs11.CKA_MODIFIABLE, pkcs11.CKA_COPYABLE, pkcs11.CKA_ALLOWED_MECHANISMS}, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID,
			[]string{"CKA_MODIFIABLE", "CKA_COPYABLE"}, 8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &pickyToken{unknown: tc.unknown, refusal: tc.refusal}
			info, err := generate(t.Context(), Config{Keys: []Key{{URI: token.uri(";object=" + tc.name)}}}, Template{Type: "ec-p256", Sign: true},
				func(file string) (_ module, err error) { m.module, err = loadModule(file); return m, err })
			require.NoError(t, err)
			assert.Equal(t, tc.untold, info.Untold)
			assert.Equal(t, tc.attempts, m.asked)
			assert.Equal(t, slices.Contains(tc.unknown, pkcs11.CKA_MODIFIABLE), info.Modifiable)
			assert.Equal(t, slices.Contains(tc.unknown, pkcs11.CKA_COPYABLE), info.Copyable)
			assert.Equal(t, slices.Contains(tc.unknown, pkcs11.CKA_ALLOWED_MECHANISMS), info.Mechanisms == nil)
			assert.True(t, info.Sensitive && !info.Extractable)
		})
	}
	// What is wrong with the rest is the token's own message.
	m := &pickyToken{unknown: []uint{pkcs11.CKA_SENSITIVE}, refusal: pkcs11.CKR_TEMPLATE_INCONSISTENT}
	_, err := generate(t.Context(), Config{Keys: []Key{{URI: token.uri(";object=bad")}}}, Template{Type: "ec-p256", Sign: true},
		func(file string) (_ module, err error) { m.module, err = loadModule(file); return m, err })
	require.ErrorIs(t, err, pkcs11.Error(pkcs11.CKR_TEMPLATE_INCONSISTENT))
}

// Both settings, and the tokens that do not tell what they ask for.
func TestWhatIsAskedOfAToken(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	token.generate(t, "good", "rsa-2048", Template{Sign: true})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	token.importKeyWith(t, key, "imported", "02") // sensitive, not extractable
	loose, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	token.importKey(t, loose, "loose", "03")
	token.tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "once", "--id", "04", "--usage-sign", "--extractable")
	token.inSession(t, "once", func(m *pkcs11.Ctx, session pkcs11.SessionHandle, key pkcs11.ObjectHandle) {
		require.NoError(t, m.SetAttributeValue(session, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false)}))
	})
	const (
		can       = "it can be taken off the token (CKA_EXTRACTABLE is true or CKA_SENSITIVE false), which require_non_extractable forbids: make another with skictl key generate"
		could     = "it was not always on the token alone, or could be taken off it before (CKA_NEVER_EXTRACTABLE or CKA_ALWAYS_SENSITIVE is false), which require_non_extractable forbids"
		imported  = "it was not made on the token (CKA_LOCAL is false): there may be copies of it, which require_generated forbids"
		untold    = "the token does not tell "
		nonExtr   = "which require_non_extractable forbids"
		generated = "which require_generated forbids"
	)
	for _, tc := range []struct {
		key            string
		nonExtractable string
		generated      string
	}{
		{"good", "", ""},
		{"imported", could, imported},
		{"loose", can, imported},
		{"once", could, ""},
	} {
		for want, cfg := range map[string]Config{
			tc.nonExtractable: {RequireNonExtractable: true},
			tc.generated:      {RequireGenerated: true},
		} {
			if tc.nonExtractable == tc.generated {
				cfg = Config{RequireNonExtractable: true, RequireGenerated: true}
			}
			cfg.Keys, cfg.MaxSessions = []Key{{URI: token.uri(";object=" + tc.key)}}, 1
			store, err := Open(t.Context(), cfg)
			if want != "" {
				require.ErrorContains(t, err, want, tc.key)
				continue
			}
			require.NoError(t, err, tc.key)
			require.NoError(t, store.Close())
		}
	}
	for attribute, want := range map[uint]string{
		pkcs11.CKA_EXTRACTABLE:       untold + "CKA_EXTRACTABLE: perhaps the key can be taken off it, " + nonExtr,
		pkcs11.CKA_SENSITIVE:         untold + "CKA_SENSITIVE: perhaps the key can be taken off it, " + nonExtr,
		pkcs11.CKA_NEVER_EXTRACTABLE: untold + "CKA_NEVER_EXTRACTABLE: perhaps the key could be taken off it before, " + nonExtr,
		pkcs11.CKA_ALWAYS_SENSITIVE:  untold + "CKA_ALWAYS_SENSITIVE: perhaps the key could be taken off it before, " + nonExtr,
		pkcs11.CKA_LOCAL:             untold + "CKA_LOCAL: perhaps the key was not made on it, " + generated,
	} {
		_, err := open(t.Context(), Config{Keys: []Key{{URI: token.uri(";object=good")}}, MaxSessions: 1, RequireNonExtractable: true, RequireGenerated: true},
			func(file string) (module, error) {
				m, err := loadModule(file)
				return &pickyToken{module: m, unknown: []uint{attribute}}, err
			}, false)
		require.ErrorContains(t, err, want)
	}
}

// A key that is not to be used with PSS, says the token, is not.
func TestAllowedMechanismsAreKept(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	token.generate(t, "decrypts", "rsa-2048", Template{Decrypt: true})
	assert.Nil(t, mechanismNames(nil))
	assert.Nil(t, mechanismNames([]byte{1}))
	assert.Equal(t, []string{"0x00000040"}, mechanismNames(pkcs11.NewAttribute(0, uint(pkcs11.CKM_SHA256_RSA_PKCS)).Value))
	store := openStore(t, Config{Keys: []Key{{URI: token.uri(";object=decrypts")}}, MaxSessions: 1})
	k := store.now.Load().all[0]
	assert.False(t, k.pkcs1)
	assert.False(t, k.pss)
	assert.True(t, k.raw)
}
