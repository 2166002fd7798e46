//go:build cgo

package hsm

import (
	"crypto"
	"crypto/rsa"
	"os"
	"os/exec"
	"path/filepath"
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
	}
	t.Run("operations", func(t *testing.T) {
		store := openStore(t, Config{Keys: []Key{{URI: uri("")}}, MaxSessions: 4, RequireNonExtractable: true})
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
