//go:build cgo

package hsm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// importKey puts a private key on the token, with nothing else.
func (s *softToken) importKey(t testing.TB, private any, label, id string) {
	t.Helper()
	s.importKeyWith(t, private, label, id, "--extractable")
}

// importKeyWith is importKey with options of pkcs11-tool. Without any, the key
// cannot be taken off the token again.
func (s *softToken) importKeyWith(t testing.TB, private any, label, id string, options ...string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "key.der")
	require.NoError(t, os.WriteFile(file, der, 0o600))
	s.tool(t, append([]string{"--write-object", file, "--type", "privkey", "--label", label, "--id", id, "--usage-sign", "--usage-decrypt"}, options...)...)
}

// generateForNothing makes a key that may neither sign nor decrypt.
func (s *softToken) generateForNothing(t testing.TB, label string) {
	t.Helper()
	g, err := newGeneration(Template{Type: "ec-p256", Sign: true})
	require.NoError(t, err)
	g.Sign = false
	cfg := &Config{Keys: []Key{{URI: s.uri(";object=" + label)}}}
	target, err := newTarget(cfg, cfg.Keys[0])
	require.NoError(t, err)
	store := new(Store)
	_, err = store.generate(t.Context(), cfg, target, g, loadModule)
	require.ErrorContains(t, err, "neither sign nor decrypt")
	require.NoError(t, store.Close())
}

func selfSigned(t testing.TB, key crypto.Signer, name string) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return der
}

func (s *softToken) importCertificate(t testing.TB, der []byte, label, id string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "cert.der")
	require.NoError(t, os.WriteFile(file, der, 0o600))
	s.tool(t, "--write-object", file, "--type", "cert", "--label", label, "--id", id)
}

func (s *softToken) importPublic(t testing.TB, pub any, label, id string) {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "pub.der")
	require.NoError(t, os.WriteFile(file, der, 0o600))
	s.tool(t, "--write-object", file, "--type", "pubkey", "--label", label, "--id", id)
}

func writePEM(t testing.TB, kind string, der []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "public.pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return file
}

func newECKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	require.NoError(t, err)
	return key
}

func TestWhereThePublicHalfComesFrom(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	byObject, byCertificate, byPEM := newECKey(t, elliptic.P256()), newECKey(t, elliptic.P384()), newECKey(t, elliptic.P521())
	byItself, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	token.importKey(t, byObject, "object", "01")
	token.importPublic(t, byObject.Public(), "object", "01")
	token.importKey(t, byCertificate, "certificate", "02")
	token.importCertificate(t, selfSigned(t, byCertificate, "www.example.com"), "certificate", "02")
	token.importKey(t, byPEM, "pem", "03")
	token.importKey(t, byItself, "itself", "04")
	spki, err := x509.MarshalPKIXPublicKey(byPEM.Public())
	require.NoError(t, err)

	store := openStore(t, Config{MaxSessions: 1, Keys: []Key{
		{URI: token.uri(";object=object")},
		{URI: token.uri(";id=%02"), Name: "www"},
		{URI: token.uri(";object=pem;type=private"), PublicKey: writePEM(t, "PUBLIC KEY", spki)},
		{URI: token.uri(";object=itself")},
	}})
	names := map[string]crypto.Signer{"object": byObject, "www": byCertificate, "pem": byPEM, "itself": byItself}
	require.Len(t, store.Keys(), len(names))
	for _, info := range store.Keys() {
		want, err := ski.PublicKeyID(names[info.Name].Public())
		require.NoError(t, err)
		assert.Equal(t, want, info.ID, info.Name)
		require.NoError(t, signs(t, store, info.ID))
		assert.True(t, info.Extractable)
		assert.False(t, info.NeverExtractable)
		assert.False(t, info.Local)
	}
	// Keys that can be taken away are worth a word.
	assert.Len(t, store.Warnings(), 4)
	assert.Contains(t, store.Warnings()[0], `the key "object": it can be taken off the token `)
	// The certificate of a PEM beside it serves too, and is looked at only by
	// its key.
	require.Len(t, store.Keys()[1].Certificates, 1)
	assert.Equal(t, store.Keys()[1].Certificates, store.Certificates(store.Keys()[1].ID))
	assert.Empty(t, store.Certificates(store.Keys()[0].ID))
	assert.Equal(t, "CN=www.example.com", store.Keys()[1].Certificates[0].Subject.String())
}

// Each mistake is one line that says which URI and what to do, and costs one
// attempt to log in at most.
func TestMistakesAtTheStart(t *testing.T) {
	tokens := newSoftHSM(t, "site-keys", "broken", "empty", "odd")
	token, broken, empty, odd := tokens[0], tokens[1], tokens[2], tokens[3]
	token.generate(t, "good", "ec-p256", Template{Sign: true})
	key, other := newECKey(t, elliptic.P256()), newECKey(t, elliptic.P256())
	token.importKey(t, key, "loose", "a1")
	otherCert := writePEM(t, "CERTIFICATE", selfSigned(t, other, "other"))
	twin, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)

	broken.importKey(t, key, "one", "01")
	broken.importKey(t, other, "two", "01")
	broken.importKey(t, twin, "label", "02")
	broken.importKey(t, stranger, "label", "03")
	broken.importKey(t, key, "misfit", "04")
	broken.importPublic(t, other.Public(), "misfit", "04")
	broken.importKey(t, twin, "rsa-misfit", "05")
	broken.importPublic(t, stranger.Public(), "rsa-misfit", "05")
	broken.tool(t, "--keypairgen", "--key-type", "EC:secp256k1", "--label", "bitcoin", "--id", "06", "--usage-sign")
	broken.importKey(t, newECKey(t, elliptic.P224()), "p224", "07")
	broken.tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "www.*", "--id", "08", "--usage-sign")
	broken.generateForNothing(t, "idle")
	odd.generate(t, "same", "ec-p256", Template{Sign: true})
	odd.importKey(t, twin, "same", "55")

	wrong := filepath.Join(t.TempDir(), "wrong")
	require.NoError(t, os.WriteFile(wrong, []byte("wrong-9999"), 0o600))
	text := filepath.Join(t.TempDir(), "text.so")
	require.NoError(t, os.WriteFile(text, []byte("not a module"), 0o600))
	wrongPIN := func(s *softToken) string { return strings.ReplaceAll(s.uri(""), s.pin, wrong) }
	strict := func(uri string) Config { return Config{Keys: []Key{{URI: uri}}, RequireNonExtractable: true} }
	one := func(uri string) Config { return Config{Keys: []Key{{URI: uri}}} }

	for name, tc := range map[string]struct {
		cfg    Config
		want   string
		logins int
	}{
		"nothing":          {Config{}, "no PKCS #11 URI is given", 0},
		"no URI":           {one("softhsm"), `does not begin with "pkcs11:"`, 0},
		"PIN in the path":  {one("pkcs11:token=a;pin-value=" + userPIN), "belongs after", 0},
		"PIN, misspelt":    {one("pkcs11:token=a;PIN_Value=" + userPIN), "is not known", 0},
		"PIN after a &":    {one("pkcs11:token=a&pin-value=" + userPIN), "it has no module-path", 0},
		"bad PIN":          {one("pkcs11:token=a?pin-value=" + userPIN + "%zz"), "hexadecimal", 0},
		"no module":        {one("pkcs11:token=a"), "it has no module-path", 0},
		"missing module":   {one("pkcs11:token=a?module-path=/none.so"), "the module cannot be loaded: lstat /none.so: no such file", 0},
		"text as module":   {one("pkcs11:token=a?module-path=" + text), "it is not a PKCS #11 module", 0},
		"other library":    {one("pkcs11:token=a?module-path=/lib/x86_64-linux-gnu/libc.so.6"), "it is not a PKCS #11 module", 0},
		"folder as module": {one("pkcs11:token=a?module-path=/tmp"), "it is not a regular file", 0},
		"wrong token":      {one(strings.Replace(token.uri(""), "site-keys", "sight-keys", 1)), `no token fits: the module has "`, 0},
		"wrong serial":     {one(token.uri(";serial=1")), "no token fits", 0},
		"wrong slot":       {one(token.uri(";slot-id=7")), "no token fits", 0},
		"wrong library":    {one(token.uri(";library-version=1")), "the module is another one", 0},
		"any token":        {one("pkcs11:?module-path=" + softHSM), "4 tokens fit: add token or serial", 0},
		"no PIN":           {one("pkcs11:token=site-keys?module-path=" + softHSM), "the token wants a PIN: add pin-source", 0},
		"wrong PIN":        {one(wrongPIN(token)), "does not take the PIN (C_Login: pkcs11: 0xA0: CKR_PIN_INCORRECT)", 1},
		"no such key":      {one(token.uri(";object=bad")), "has no such private key: see skictl key list", 1},
		"no such id":       {one(token.uri(";object=good;id=%01")), "has no such private key", 1},
		"no keys":          {one(empty.uri("")), "has no private key: make one with skictl key generate", 1},
		"a public key":     {one(token.uri(";object=good;type=public")), "it names no private key", 0},
		"no public half":   {one(token.uri(";object=loose")), `the key "loose" (id a1): the token has neither a public key nor a certificate`, 1},
		"wrong PEM":        {Config{Keys: []Key{{URI: token.uri(";object=loose"), PublicKey: otherCert}}}, `the key "loose" (id a1): its public half does not fit`, 1},
		"no PEM":           {Config{Keys: []Key{{URI: token.uri(";object=loose"), PublicKey: wrong}}}, "neither a certificate nor a public key in PEM form", 0},
		"PEM for all":      {Config{Keys: []Key{{URI: token.uri(""), PublicKey: otherCert}}}, "has the public half of one", 0},
		"name for all":     {Config{Keys: []Key{{URI: token.uri(""), Name: "x"}}}, "cannot all be called", 0},
		"bad name":         {Config{Keys: []Key{{URI: token.uri(";object=good"), Name: "*"}}}, `a key cannot have the name "*"`, 1},
		"bad label":        {one(broken.uri(";id=%08")), `a key cannot have the name "www.*": choose another`, 1},
		"control in name":  {Config{Keys: []Key{{URI: token.uri(";object=good"), Name: "a\nb"}}}, `a key cannot have the name "a\nb"`, 1},
		"Latin-1 name":     {Config{Keys: []Key{{URI: token.uri(";object=good"), Name: "K\xf6ln"}}}, `a key cannot have the name "K\xf6ln"`, 1},
		"fingerprint":      {Config{Keys: []Key{{URI: token.uri(";object=good"), Name: strings.Repeat("0", 64)}}}, "looks like a fingerprint", 1},
		"one id":           {one(broken.uri(";object=one")), `the key "one" (id 01): 2 private keys of the token have this id`, 1},
		"one label":        {one(broken.uri(";object=label")), "the URI fits 2 private keys", 1},
		"one label, all":   {one(odd.uri("")), `has the name "same" too`, 1},
		"misfit":           {one(broken.uri(";object=misfit")), `the key "misfit" (id 04): its public half does not fit`, 1},
		"RSA misfit":       {one(broken.uri(";object=rsa-misfit")), `the key "rsa-misfit" (id 05): its public half does not fit`, 1},
		"another curve":    {one(broken.uri(";object=bitcoin")), "its type is not supported", 1},
		"P-224":            {one(broken.uri(";object=p224")), "the token has neither", 1},
		"of no use":        {one(broken.uri(";object=idle")), "neither sign nor decrypt", 1},
		"extractable":      {strict(odd.uri(";id=%55")), "which require_non_extractable forbids", 1},
		"named twice":      {Config{Keys: []Key{{URI: odd.uri(";id=%55")}, {URI: odd.uri(";object=same;id=%55")}}}, "two URIs name it", 1},
		"two PINs": {Config{Keys: []Key{{URI: token.uri(";object=good")}, {URI: wrongPIN(token)}}},
			"give each the same pin-source", 1},
		"PIN file": {one("pkcs11:token=site-keys?module-path=" + softHSM + "&pin-source=file:/none"), "pin-source: lstat /none: no such file", 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := new(faults)
			store, err := open(t.Context(), tc.cfg, f.load, false)
			if err == nil {
				store.Close()
			}
			require.ErrorContains(t, err, tc.want)
			assert.NotContains(t, err.Error(), "\n")
			assert.NotContains(t, err.Error(), userPIN)
			assert.NotContains(t, err.Error(), "wrong-9999")
			if len(tc.cfg.Keys) > 0 {
				assert.Regexp(t, `^"?(pkcs11:|softhsm)`, err.Error())
			}
			assert.Equal(t, tc.logins, f.counted("Login"))
		})
	}
	// What has gone wrong has left nothing behind.
	assert.Empty(t, modules.byFile)
}

// A key is the same wherever it is.
func TestTheSameKeyOnTwoTokens(t *testing.T) {
	tokens := newSoftHSM(t, "first", "second")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	tokens[0].importKey(t, key, "a", "01")
	tokens[1].importKey(t, key, "b", "02")
	_, err = Open(t.Context(), Config{Keys: []Key{{URI: tokens[0].uri("")}, {URI: tokens[1].uri("")}}})
	assert.ErrorContains(t, err, `the key "b" (id 02): it is the same key as "a" on token "first"`)
}

// The last attempt before the token locks is left to a person: a service
// manager that starts the server again and again would take it.
func TestTheLastAttemptIsNotTaken(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	token.generate(t, "ec", "ec-p256", Template{Sign: true})
	for flag, want := range map[uint]string{
		pkcs11.CKF_USER_PIN_FINAL_TRY: "one more wrong PIN locks the token",
		pkcs11.CKF_USER_PIN_LOCKED:    "the token's PIN is locked",
	} {
		f := new(faults)
		_, err := open(t.Context(), Config{Keys: []Key{{URI: token.uri("")}}}, func(file string) (module, error) {
			m, err := f.load(file)
			return &changedToken{m, func(info *pkcs11.TokenInfo) { info.Flags |= flag }}, err
		}, false)
		assert.ErrorContains(t, err, want)
		assert.Zero(t, f.counted("Login"))
	}
}

// changedToken is a module whose tokens say other things of themselves.
type changedToken struct {
	module
	change func(*pkcs11.TokenInfo)
}

func (m *changedToken) GetTokenInfo(slot uint) (pkcs11.TokenInfo, error) {
	info, err := m.module.GetTokenInfo(slot)
	m.change(&info)
	return info, err
}

func TestTheTokenLimitsTheSessions(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	key := token.generate(t, "ec", "ec-p256", Template{Sign: true})
	store := openStoreWith(t, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 5}, func(file string) (module, error) {
		m, err := loadModule(file)
		return &changedToken{m, func(info *pkcs11.TokenInfo) { info.MaxSessionCount, info.MaxRwSessionCount = 3, 1 }}, err
	})
	assert.Equal(t, 3, store.Stats()[0].Sessions)
	require.Len(t, store.Warnings(), 1)
	assert.Contains(t, store.Warnings()[0], "the token has 3 sessions and not 5")
	require.NoError(t, signs(t, store, key.ID))
}

// withoutMechanism is a module whose tokens lack one.
type withoutMechanism struct {
	module
	lacks uint
}

func (m *withoutMechanism) GetMechanismInfo(slot uint, mech []*pkcs11.Mechanism) (pkcs11.MechanismInfo, error) {
	if mech[0].Mechanism == m.lacks {
		return pkcs11.MechanismInfo{}, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)
	}
	return m.module.GetMechanismInfo(slot, mech)
}

func TestTokensThatLackMechanisms(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	both := token.generate(t, "both", "rsa-2048", Template{Sign: true, Decrypt: true})
	lacking := func(mechanism uint) loader {
		return func(file string) (module, error) {
			m, err := loadModule(file)
			return &withoutMechanism{m, mechanism}, err
		}
	}
	cfg := Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1}
	t.Run("raw RSA", func(t *testing.T) {
		store := openStoreWith(t, cfg, lacking(pkcs11.CKM_RSA_X_509))
		assert.False(t, store.Decrypts(both.ID))
		assert.Equal(t, []string{`the key "both": the token has no raw RSA decryption (CKM_RSA_X_509): the method RSA is off for it`}, store.Warnings())
		assert.ErrorContains(t, store.DecryptPreMasterSecret(t.Context(), both.ID, random(256), make([]byte, 48)), "CKM_RSA_X_509")
		require.NoError(t, signs(t, store, both.ID))
	})
	t.Run("PSS", func(t *testing.T) {
		store := openStoreWith(t, cfg, lacking(pkcs11.CKM_RSA_PKCS_PSS))
		require.Len(t, store.Warnings(), 1)
		assert.Contains(t, store.Warnings()[0], "it cannot be used with TLS 1.3")
		device, n := store.Device(both.ID)
		assert.Contains(t, device, both.Token)
		assert.Positive(t, n)
		assert.True(t, store.Signs(both.ID, crypto.SHA256))
		assert.False(t, store.Signs(both.ID, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}))
		assert.False(t, store.Signs(both.ID, crypto.MD5))
		assert.False(t, store.Signs(both.ID, crypto.Hash(0)))
		assert.False(t, store.Signs(ski.KeyID{1}, crypto.SHA256))
		_, n = store.Device(ski.KeyID{1})
		assert.Zero(t, n)
		_, err := store.Sign(t.Context(), both.ID, random(32), &rsa.PSSOptions{Hash: crypto.SHA256})
		assert.ErrorContains(t, err, "CKM_RSA_PKCS_PSS")
		require.NoError(t, signs(t, store, both.ID))
	})
	t.Run("PKCS #1 v1.5", func(t *testing.T) {
		store := openStoreWith(t, cfg, lacking(pkcs11.CKM_RSA_PKCS))
		_, err := store.Sign(t.Context(), both.ID, random(32), crypto.SHA256)
		assert.ErrorContains(t, err, "CKM_RSA_PKCS")
		_, err = store.Sign(t.Context(), both.ID, random(32), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
		assert.NoError(t, err)
	})
	t.Run("raw RSA and nothing else to do", func(t *testing.T) {
		token.generate(t, "decrypts", "rsa-2048", Template{Decrypt: true})
		_, err := open(t.Context(), cfg, lacking(pkcs11.CKM_RSA_X_509), false)
		assert.ErrorContains(t, err, `the key "decrypts"`)
		assert.ErrorContains(t, err, "for decryption only, and the token has no raw RSA decryption")
	})
}

// A module that hangs at the start is waited for as long as the context allows.
func TestAStartThatHangsEnds(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	token.generate(t, "ec", "ec-p256", Template{Sign: true})
	for _, call := range []string{"GetSlotList", "Login", "FindObjects", "Sign"} {
		f := new(faults)
		hang := make(chan struct{})
		f.set(&fault{calls: []string{call}, hang: hang})
		ctx, cancel := context.WithCancel(t.Context())
		closed := make(chan struct{})
		go func() { // Close waits too.
			for f.counted(call) == 0 { // A module that is given up while it is loaded stays so, for all tests that follow.
				time.Sleep(time.Millisecond)
			}
			cancel()
			time.Sleep(200 * time.Millisecond) // so that it is this end that is seen, and not the call's
			close(hang)
			close(closed)
		}()
		_, err := open(ctx, Config{Keys: []Key{{URI: token.uri("")}}}, f.load, false)
		assert.ErrorIs(t, err, context.Canceled, call)
		<-closed
	}
}

// A module that hangs while it is loaded keeps neither the modules beside it
// from being closed nor others from being loaded.
func TestAModuleThatDoesNotStartHoldsUpNobodyElse(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	token.generate(t, "ec", "ec-p256", Template{Sign: true})
	other := filepath.Join(t.TempDir(), "other.so")
	require.NoError(t, os.WriteFile(other, nil, 0o600))
	hang, hung := make(chan struct{}), make(chan struct{})
	load := func(file string) (module, error) {
		if file != other {
			return loadModule(file)
		}
		defer close(hung)
		<-hang
		return nil, errors.New("no module")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := open(ctx, Config{Keys: []Key{
			{URI: token.uri("")}, {URI: "pkcs11:token=a?module-path=" + other},
		}}, load, false)
		ended <- err
	}()
	select {
	case err := <-ended:
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, other)
		openStore(t, Config{Keys: []Key{{URI: token.uri("")}}})
	case <-time.After(patience):
		t.Error("the start does not end")
	}
	close(hang)
	<-hung
}

func TestListShowsAlsoWhatCannotBeUsed(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	made := token.generate(t, "good", "ec-p256", Template{Sign: true})
	key := newECKey(t, elliptic.P256())
	token.importKey(t, key, "loose", "a1")
	token.importKey(t, key, "fitting", "a2")
	token.importCertificate(t, selfSigned(t, key, "www.example.com"), "fitting", "a2")
	all, err := List(t.Context(), Config{Keys: []Key{{URI: token.uri("")}}, RequireNonExtractable: true})
	require.NoError(t, err)
	require.Len(t, all, 3)
	assert.Equal(t, "fitting", all[0].Name)
	assert.ErrorContains(t, all[0].Problem, "require_non_extractable")
	assert.Len(t, all[0].Certificates, 1)
	assert.Equal(t, "good", all[1].Name)
	assert.NoError(t, all[1].Problem)
	assert.Equal(t, made.ID, all[1].ID)
	assert.True(t, all[1].Sensitive && all[1].AlwaysSensitive && !all[1].Extractable && all[1].NeverExtractable && all[1].Local)
	assert.Equal(t, "loose", all[2].Name)
	assert.ErrorContains(t, all[2].Problem, "neither a public key nor a certificate")
	assert.Zero(t, all[2].ID)
	// The URI of one key names it alone.
	store := openStore(t, Config{Keys: []Key{{URI: all[1].URI + "&pin-source=file:" + token.pin}}, MaxSessions: 1})
	assert.Equal(t, []ski.KeyID{made.ID}, store.IDs())
}

func TestGenerateRefuses(t *testing.T) {
	token := newSoftHSM(t, "site-keys")[0]
	made := token.generate(t, "taken", "ec-p256", Template{Sign: true})
	for _, tc := range []struct {
		uri      string
		template Template
		want     string
	}{
		{token.uri(";object=taken"), Template{Type: "ec-p256", Sign: true}, "private key with this object already"},
		{token.uri(";object=new;id=" + escapeID(unhex(t, made.CKAID))), Template{Type: "ec-p256", Sign: true}, "private key with this id already"},
		{token.uri(""), Template{Type: "ec-p256", Sign: true}, "it has no object"},
		{token.uri(";object="), Template{Type: "ec-p256", Sign: true}, "it has no object"},
		{token.uri(";object=new"), Template{Type: "ec-p256"}, "for signing, for decryption, or both"},
		{token.uri(";object=new"), Template{Type: "ec-p256", Decrypt: true}, "only RSA keys decrypt"},
		{token.uri(";object=new"), Template{Type: "rsa-1024", Sign: true}, `the type "rsa-1024" is none of ec-p256, `},
		{token.uri(";object=new*"), Template{Type: "ec-p256", Sign: true}, `a key cannot have the name "new*"`},
	} {
		_, err := Generate(t.Context(), Config{Keys: []Key{{URI: tc.uri}}}, tc.template)
		assert.ErrorContains(t, err, tc.want)
	}
	all, err := List(t.Context(), Config{Keys: []Key{{URI: token.uri("")}}})
	require.NoError(t, err)
	assert.Len(t, all, 1)
}
