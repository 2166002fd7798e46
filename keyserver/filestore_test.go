package keyserver

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func pkcs8(t *testing.T, key any) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return pemBlock("PRIVATE KEY", der)
}

func newECDSA(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	require.NoError(t, err)
	return key
}

func newRSA(t *testing.T, bits int) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	require.NoError(t, err)
	return key
}

func certificateOf(t *testing.T, key *ecdsa.PrivateKey) []byte {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	return pemBlock("CERTIFICATE", der)
}

// folder makes a folder of files with mode 0600.
func folder(t *testing.T, files map[string][]byte) string {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	for name, data := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	return dir
}

func TestLoadFolder(t *testing.T) {
	ec, ec2 := newECDSA(t, elliptic.P256()), newECDSA(t, elliptic.P384())
	sec1, err := x509.MarshalECPrivateKey(ec2)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	parameters := pemBlock("EC PARAMETERS", []byte{6, 5, 0x2b, 0x81, 4, 0, 34})

	dir := folder(t, map[string][]byte{
		"www.example.com.pem": append(certificateOf(t, ec), pkcs8(t, ec)...),
		"sec1.key":            append(parameters, pemBlock("EC PRIVATE KEY", sec1)...),
		"pkcs1.pem":           pemBlock("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)),
		"notes.txt":           []byte("not a key"),
		".hidden.pem":         []byte("not a key"),
	})
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder.pem"), 0o700))
	require.NoError(t, os.Chmod(filepath.Join(dir, "notes.txt"), 0o644))

	store, err := LoadFolder(dir)
	require.NoError(t, err)
	keys := named(store)
	require.Len(t, keys.byName, 3)
	require.Equal(t, &ec.PublicKey, keys.public("www.example.com"))
	require.Equal(t, &ec2.PublicKey, keys.public("sec1"))
	require.Equal(t, &rsaKey.PublicKey, keys.public("pkcs1"))
	require.Len(t, store.IDs(), 3)
	_, _, ok := store.Lookup(ski.KeyID{1})
	require.False(t, ok)
	_, err = store.Sign(t.Context(), ski.KeyID{1}, nil, nil)
	require.ErrorIs(t, err, errNotInStore)
	require.ErrorIs(t, store.DecryptPreMasterSecret(t.Context(), keys.id("sec1"), nil, nil), errNotInStore)
}

// A key file as openssl writes it, encrypted the old and the new way, and of
// kinds that Go or this project does not know.
func TestLoadFolderRefusesKeys(t *testing.T) {
	ec := newECDSA(t, elliptic.P256())
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	require.NoError(t, err)
	tooLong := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), maxRSABits), E: 65537}}
	require.ErrorContains(t, checkKeyType(tooLong), "8193 bits")
	require.ErrorContains(t, checkKeyType(&rsa.PrivateKey{PublicKey: rsa.PublicKey{N: big.NewInt(1 << 32), E: 3}}), "33 bits")

	ed448, err := base64.StdEncoding.DecodeString("MEcCAQAwBQYDK2VxBDsEOQ" + strings.Repeat("A", 74) + "AA==")
	require.NoError(t, err)
	oldEncrypted := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte{1}, Headers: map[string]string{
		"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00",
	}})
	for name, c := range map[string]struct {
		data   []byte
		reason string
	}{
		"empty":             {nil, "no private key"},
		"certificate alone": {certificateOf(t, ec), "no private key"},
		"spoilt key":        {append(pkcs8(t, ec), "-----BEGIN PRIVATE KEY-----\nnot base64!\n-----END PRIVATE KEY-----\n"...), "PEM block that cannot be read"},
		"torn key":          {append(pkcs8(t, ec), "-----BEGIN PRIVATE KEY-----\nMIG"...), "PEM block that cannot be read"},
		"two keys":          {append(pkcs8(t, ec), pkcs8(t, newECDSA(t, elliptic.P256()))...), "more than one private key"},
		"other certificate": {append(certificateOf(t, newECDSA(t, elliptic.P256())), pkcs8(t, ec)...), "of another key"},
		"broken":            {pemBlock("PRIVATE KEY", []byte{1, 2, 3}), "asn1"},
		"bad certificate":   {append(pemBlock("CERTIFICATE", []byte{1}), pkcs8(t, ec)...), "certificate"},
		"encrypted":         {pemBlock("ENCRYPTED PRIVATE KEY", []byte{1}), "encrypted with a passphrase"},
		"encrypted, old":    {oldEncrypted, "encrypted with a passphrase"},
		"P-224":             {pkcs8(t, newECDSA(t, elliptic.P224())), "P-224 is not supported"},
		"X25519":            {pkcs8(t, x), "not supported"},
		"Ed448":             {pemBlock("PRIVATE KEY", ed448), "1.3.101.113"},
		"DSA":               {pemBlock("DSA PRIVATE KEY", []byte{1}), `"DSA PRIVATE KEY" is not supported`},
		"OpenSSH":           {pemBlock("OPENSSH PRIVATE KEY", []byte{1}), "not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadFolder(folder(t, map[string][]byte{"bad.pem": c.data}))
			require.ErrorContains(t, err, "bad.pem: ")
			require.ErrorContains(t, err, c.reason)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestLoadFolderRefusesFiles(t *testing.T) {
	key := pkcs8(t, newECDSA(t, elliptic.P256()))

	t.Run("modes", func(t *testing.T) {
		dir := folder(t, map[string][]byte{"a.pem": key})
		for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o660} {
			require.NoError(t, os.Chmod(filepath.Join(dir, "a.pem"), mode))
			_, err := LoadFolder(dir)
			require.ErrorContains(t, err, "a.pem: group or others have rights to it")
		}
		for _, mode := range []os.FileMode{0o600, 0o400} {
			require.NoError(t, os.Chmod(filepath.Join(dir, "a.pem"), mode))
			_, err := LoadFolder(dir)
			require.NoError(t, err)
		}
		for _, mode := range []os.FileMode{0o770, 0o707, 0o722, 0o777 | os.ModeSticky} {
			require.NoError(t, os.Chmod(dir, mode))
			_, err := LoadFolder(dir)
			require.ErrorContains(t, err, "can write the folder")
		}
	})
	t.Run("links", func(t *testing.T) {
		elsewhere := folder(t, map[string][]byte{"key": key})
		dir := folder(t, nil)
		require.NoError(t, os.Symlink(filepath.Join(elsewhere, "key"), filepath.Join(dir, "a.pem")))
		_, err := LoadFolder(dir)
		require.NoError(t, err)

		for _, d := range []string{elsewhere, dir} {
			require.NoError(t, os.Chmod(d, 0o770))
			_, err = LoadFolder(dir)
			require.ErrorContains(t, err, d+": group or others can write the folder")
			require.NoError(t, os.Chmod(d, 0o700))
		}

		require.NoError(t, os.Chmod(elsewhere, 0o700))
		require.NoError(t, os.Chmod(filepath.Join(elsewhere, "key"), 0o644))
		_, err = LoadFolder(dir)
		require.ErrorContains(t, err, "group or others")

		require.NoError(t, os.Remove(filepath.Join(elsewhere, "key")))
		_, err = LoadFolder(dir)
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	t.Run("owner", func(t *testing.T) {
		dir := folder(t, map[string][]byte{"a.pem": key})
		if os.Geteuid() != 0 {
			return // Only root can give files away.
		}
		for _, name := range []string{filepath.Join(dir, "a.pem"), dir} {
			require.NoError(t, os.Chown(name, 12345, -1))
			_, err := LoadFolder(dir)
			require.ErrorContains(t, err, name+": it belongs to another user (uid 12345)")
			require.NoError(t, os.Chown(name, 0, -1))
		}
	})
	t.Run("pipe", func(t *testing.T) {
		dir := folder(t, nil)
		require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "a.pem"), 0o600))
		_, err := LoadFolder(dir)
		require.ErrorContains(t, err, "not a regular file")
	})
	t.Run("too long", func(t *testing.T) {
		_, err := LoadFolder(folder(t, map[string][]byte{"a.pem": make([]byte, maxFile+1)}))
		require.ErrorContains(t, err, "more than")
	})
	t.Run("same key", func(t *testing.T) {
		_, err := LoadFolder(folder(t, map[string][]byte{"a.pem": key, "b.key": key}))
		require.ErrorContains(t, err, `b.key: it is the same key as "a"`)
	})
	t.Run("same name", func(t *testing.T) {
		_, err := LoadFolder(folder(t, map[string][]byte{"a.key": key, "a.pem": pkcs8(t, newECDSA(t, elliptic.P256()))}))
		require.ErrorContains(t, err, `another key has the name "a"`)
	})
	t.Run("names", func(t *testing.T) {
		for _, name := range []string{strings.Repeat("a", 64) + ".pem", "*.pem"} {
			_, err := LoadFolder(folder(t, map[string][]byte{name: key}))
			require.ErrorContains(t, err, "name")
		}
	})
	t.Run("none", func(t *testing.T) {
		_, err := LoadFolder(folder(t, nil))
		require.ErrorContains(t, err, "no file with a key")
		_, err = LoadFolder(filepath.Join(t.TempDir(), "missing"))
		require.ErrorIs(t, err, os.ErrNotExist)
	})
}

func TestMemoryStoreAdd(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	var store MemoryStore
	require.Error(t, store.Add("", key))
	require.NoError(t, store.Add("a", key))
	require.ErrorContains(t, store.Add("b", key), `same key as "a"`)
}

// What a program hands over need not be what a file holds.
func TestMemoryStoreRefusesIncompleteKeys(t *testing.T) {
	good := newRSA(t, 2048)
	wrong := &rsa.PrivateKey{PublicKey: good.PublicKey, D: new(big.Int).Add(good.D, big.NewInt(2)), Primes: good.Primes}
	for name, key := range map[string]crypto.Signer{
		"no key":               nil,
		"nil RSA":              (*rsa.PrivateKey)(nil),
		"empty RSA":            &rsa.PrivateKey{},
		"RSA without exponent": &rsa.PrivateKey{PublicKey: good.PublicKey},
		"wrong RSA exponent":   wrong,
		"nil ECDSA":            (*ecdsa.PrivateKey)(nil),
		"empty ECDSA":          &ecdsa.PrivateKey{},
		"ECDSA without point":  &ecdsa.PrivateKey{PublicKey: ecdsa.PublicKey{Curve: elliptic.P256()}},
		"short Ed25519":        ed25519.PrivateKey{1, 2, 3},
		"nil Ed25519":          ed25519.PrivateKey(nil),
	} {
		var store MemoryStore
		require.Error(t, store.Add("a", key), name)
		require.Empty(t, store.IDs(), name)
	}
}

// An RSA key without the values that make it fast gets them, in a copy.
func TestMemoryStorePrecomputes(t *testing.T) {
	full := newRSA(t, 2048)
	bare := &rsa.PrivateKey{PublicKey: full.PublicKey, D: full.D, Primes: full.Primes}
	var store MemoryStore
	require.NoError(t, store.Add("a", bare))
	kept := store.keys[named(&store).id("a")].private.(*rsa.PrivateKey)
	require.NotNil(t, kept.Precomputed.Dp)
	require.Nil(t, bare.Precomputed.Dp)
}
