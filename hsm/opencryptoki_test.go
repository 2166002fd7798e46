//go:build cgo

package hsm

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/miekg/pkcs11"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The opencryptoki software token shares nothing with SoftHSM. It has RSA only,
// and PINs of at most 8 characters.
const (
	openCryptoki    = "/usr/lib/*/pkcs11/libopencryptoki.so"
	openCryptokiPIN = "12345678"
	inside          = "TLSSKI_INSIDE_OPENCRYPTOKI"
)

// importedRSA is the template of a private key from elsewhere, which cannot be
// taken off the token again.
func importedRSA(t *testing.T, label string) []*pkcs11.Attribute {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte{7}),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS, key.N.Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE_EXPONENT, key.D.Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_PRIME_1, key.Primes[0].Bytes()), pkcs11.NewAttribute(pkcs11.CKA_PRIME_2, key.Primes[1].Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_EXPONENT_1, key.Precomputed.Dp.Bytes()), pkcs11.NewAttribute(pkcs11.CKA_EXPONENT_2, key.Precomputed.Dq.Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_COEFFICIENT, key.Precomputed.Qinv.Bytes()),
	}
}

// TestOpenCryptoki runs itself again with opencryptoki's daemon beside it. Both
// have mounts, shared memory and process numbers of their own, so that nothing
// of the machine is touched and nothing is left.
func TestOpenCryptoki(t *testing.T) {
	if os.Getenv(inside) != "" {
		testOpenCryptoki(t)
		return
	}
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command("sh", "testdata/opencryptoki.sh", self, "-test.run=^TestOpenCryptoki$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "PASS: TestOpenCryptoki/two_modules")
}

func testOpenCryptoki(t *testing.T) {
	if info, err := os.Stat("/"); err == nil && info.Sys().(*syscall.Stat_t).Uid != 0 {
		checkPath = filepath.EvalSymlinks // a user name space without root
	}
	found, err := filepath.Glob(openCryptoki)
	require.NoError(t, err)
	require.Len(t, found, 1, "opencryptoki is not installed")
	module := found[0]
	pin := filepath.Join(t.TempDir(), "pin")
	require.NoError(t, os.WriteFile(pin, []byte(openCryptokiPIN), 0o600))
	uri := func(attributes string) string {
		return "pkcs11:token=ock;manufacturer=IBM%20Corp." + attributes + "?module-path=" + module + "&pin-source=file:" + pin
	}
	for label, template := range map[string]Template{
		"both":  {Type: "rsa-2048", Sign: true, Decrypt: true},
		"signs": {Type: "rsa-3072", Sign: true},
	} {
		info, err := Generate(t.Context(), Config{Keys: []Key{{URI: uri(";object=" + label)}}}, template)
		require.NoError(t, err)
		assert.Equal(t, template.Type, info.Type)
		assert.True(t, info.Sensitive && !info.Extractable && info.Local, "%+v", info)
		assert.True(t, info.AlwaysSensitive && info.NeverExtractable, "%+v", info)
		// Of what keeps the key as it is, this token knows one.
		assert.False(t, info.Modifiable)
		assert.Equal(t, []string{"CKA_COPYABLE"}, info.Untold)
		assert.Nil(t, info.Mechanisms)
		cfg := &Config{Keys: []Key{{URI: uri("")}}}
		withSession(t, cfg, label, func(m *pkcs11.Ctx, session pkcs11.SessionHandle, key pkcs11.ObjectHandle) {
			for _, attribute := range []*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
				pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
				pkcs11.NewAttribute(pkcs11.CKA_LABEL, "other"),
			} {
				require.Error(t, m.SetAttributeValue(session, key, []*pkcs11.Attribute{attribute}))
			}
		})
	}
	t.Run("imported", func(t *testing.T) {
		cfg := Config{Keys: []Key{{URI: uri(";object=imported")}}, MaxSessions: 1}
		withSession(t, &Config{Keys: []Key{{URI: uri("")}}}, "both", func(m *pkcs11.Ctx, session pkcs11.SessionHandle, _ pkcs11.ObjectHandle) {
			imported, err := m.CreateObject(session, importedRSA(t, "imported"))
			require.NoError(t, err)
			defer func() { require.NoError(t, m.DestroyObject(session, imported)) }()
			// This token says of every key that it was never extractable.
			cfg.RequireNonExtractable = true
			store, err := Open(t.Context(), cfg)
			require.NoError(t, err)
			assert.Contains(t, fmt.Sprint(store.Warnings()), "CKA_LOCAL is false")
			require.NoError(t, store.Close())
			cfg.RequireGenerated = true
			_, err = Open(t.Context(), cfg)
			require.ErrorContains(t, err, "it was not made on the token (CKA_LOCAL is false): there may be copies of it, which require_generated forbids")
		})
	})
	t.Run("operations", func(t *testing.T) {
		store := openStore(t, Config{Keys: []Key{{URI: uri("")}}, MaxSessions: 4, RequireNonExtractable: true, RequireGenerated: true})
		require.Len(t, store.Keys(), 2)
		assert.Empty(t, store.Warnings())
		for _, info := range store.Keys() {
			pub := info.Public.(*rsa.PublicKey)
			for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.MD5SHA1} {
				digest := random(h.Size())
				sig, err := store.Sign(t.Context(), info.ID, digest, h)
				require.NoError(t, err, h)
				assert.NoError(t, rsa.VerifyPKCS1v15(pub, h, digest, sig), h)
			}
			for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
				opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
				digest := random(h.Size())
				sig, err := store.Sign(t.Context(), info.ID, digest, opts)
				require.NoError(t, err, h)
				assert.NoError(t, rsa.VerifyPSS(pub, h, digest, sig, opts), h)
			}
			assert.Equal(t, info.Name == "both", store.Decrypts(info.ID))
			if store.Decrypts(info.ID) {
				assert.NoError(t, decryptsLikeGo(t.Context(), store, info.ID, pub))
			}
		}
	})
	t.Run("lost sessions", func(t *testing.T) {
		store, f := openFaulty(t, Config{Keys: []Key{{URI: uri("")}}, MaxSessions: 3})
		eventually(t, "sessions", func() bool { return store.Stats()[0].Open == 3 })
		slots, err := f.real[0].GetSlotList(true)
		require.NoError(t, err)
		require.NoError(t, f.real[0].CloseAllSessions(slots[0]))
		for range 10 {
			require.NoError(t, signs(t, store, store.Keys()[0].ID))
		}
	})
	t.Run("mistakes", func(t *testing.T) {
		_, err := Generate(t.Context(), Config{Keys: []Key{{URI: uri(";object=ec")}}}, Template{Type: "ec-p256", Sign: true})
		assert.ErrorContains(t, err, "the token cannot make keys of the type ec-p256")
		_, err = Open(t.Context(), Config{Keys: []Key{{URI: "pkcs11:token=ock?module-path=" + module + "&pin-value=1234"}}})
		assert.ErrorContains(t, err, "does not take the PIN")
		require.ErrorIs(t, err, pkcs11.Error(pkcs11.CKR_PIN_INCORRECT))
	})
	t.Run("two modules", func(t *testing.T) {
		soft := newSoftHSM(t, "site-keys")[0]
		ec := soft.generate(t, "ec", "ec-p256", Template{Sign: true})
		store := openStore(t, Config{Keys: []Key{{URI: uri(";object=both")}, {URI: soft.uri("")}, {URI: uri(";object=signs")}}, MaxSessions: 2})
		require.Len(t, store.Stats(), 2)
		require.NoError(t, signs(t, store, ec.ID))
		for _, info := range store.Keys() {
			require.NoError(t, signs(t, store, info.ID))
		}
	})
}
