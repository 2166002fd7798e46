package keyserver

import (
	"bytes"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// A plaintext, and what is to be found in it with TLS 1.2.
type plaintext struct {
	name  string
	em    []byte
	found string
}

func plaintexts(pub *rsa.PublicKey) []plaintext {
	valid := encodedMessage(pub, preMasterSecret(0x0303))
	changed := func(at int, to byte) []byte {
		em := bytes.Clone(valid)
		em[at] = to
		return em
	}
	zero := len(valid) - ski.PreMasterSecretLen - 1
	return []plaintext{
		{"valid", valid, "correct"},
		{"another secret", changed(len(valid)-1, 0), "correct"},
		{"version TLS 1.1", encodedMessage(pub, preMasterSecret(0x0302)), "version"},
		{"version TLS 1.3", encodedMessage(pub, preMasterSecret(0x0304)), "version"},
		{"version swapped", encodedMessage(pub, preMasterSecret(0x0003)), "version"},
		{"version of DTLS", encodedMessage(pub, preMasterSecret(0xFEFD)), "version"},
		{"47 bytes", encodedMessage(pub, preMasterSecret(0x0303)[:47]), "padding"},
		{"49 bytes", encodedMessage(pub, append(preMasterSecret(0x0303), 0)), "padding"},
		{"0 bytes", encodedMessage(pub, nil), "padding"},
		{"whole block", encodedMessage(pub, make([]byte, len(valid)-11)), "padding"},
		{"first byte", changed(0, 1), "padding"},
		{"block type 1", changed(1, 1), "padding"},
		{"block type 0", changed(1, 0), "padding"},
		{"zero in the first eight", changed(9, 0), "padding"},
		{"zero in the padding", changed(10, 0), "padding"},
		{"no zero after the padding", changed(zero, 1), "padding"},
		{"all zero", make([]byte, len(valid)), "padding"},
	}
}

func TestRSAFailure(t *testing.T) {
	keys := testKeys()
	pub := rsaPublic(keys)
	for _, mode := range []RSAFailure{"", RSAFailureRandom, RSAFailureError} {
		s := newTestServer(t, keys, func(o *Options) { o.RSAFailure = mode })
		for _, p := range plaintexts(pub) {
			t.Run(string(mode)+" "+p.name, func(t *testing.T) {
				req := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: rawEncrypt(pub, p.em)}
				resp, rec := s.ask(edgePeer, req)
				require.Equal(t, p.found, rec.PreMasterSecret)
				if mode == RSAFailureError && p.found != "correct" {
					require.Equal(t, ski.MalformedRequest, resp.Error)
					require.NotEmpty(t, rec.Reason)
					return
				}
				require.Empty(t, resp.Error)
				require.Len(t, resp.Output, ski.PreMasterSecretLen)
				require.Equal(t, []byte{3, 3}, resp.Output[:2], "a failure has the version of a success")
				require.Equal(t, outcomeOutput, rec.Outcome)
				require.Empty(t, rec.Reason)
				require.Equal(t, p.found == "correct", bytes.HasSuffix(p.em, resp.Output))

				again, _ := s.ask(edgePeer, req)
				require.Equal(t, resp.Output, again.Output, "one question, one answer")
			})
		}
	}
}

// What crypto/rsa encrypts, and not only what the tests do.
func TestRSADecryptsTheStandardLibrarys(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	secret := preMasterSecret(0x0303)
	//lint:ignore SA1019 It is what TLS clients do.
	ciphertext, err := rsa.EncryptPKCS1v15(rand.Reader, rsaPublic(keys), secret)
	require.NoError(t, err)
	resp, rec := s.ask(edgePeer, &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: ciphertext})
	require.Empty(t, resp.Error, rec.Reason)
	require.Equal(t, secret, resp.Output)
}

func TestFallback(t *testing.T) {
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	store := new(MemoryStore)
	require.NoError(t, store.Add("other", other))
	test := testKeys()
	require.NoError(t, store.Add("test", test.keys[test.id(rsa2048)].private))
	keys := named(store)

	secret := bytes.Repeat([]byte{7}, MinRSAFailureSecret)
	withSecret := func(o *Options) { o.RSAFailureSecret = secret }
	one, two := newTestServer(t, store, withSecret), newTestServer(t, store, withSecret)
	stranger := newTestServer(t, store, func(o *Options) { o.RSAFailureSecret = bytes.Repeat([]byte{8}, MinRSAFailureSecret) })

	ask := func(s testServer, key string, version uint16, lastByte byte) []byte {
		input := make([]byte, 256)
		input[255] = lastByte
		resp, rec := s.ask(edgePeer, &ski.Request{
			Protocol: ski.TLS12, SPKI: keys.id(key), Method: ski.MethodRSA, ClientVersion: version, Input: input,
		})
		require.Empty(t, resp.Error, rec.Reason)
		require.Equal(t, "padding", rec.PreMasterSecret)
		return resp.Output
	}
	answer := ask(one, "test", 0, 5)
	require.Equal(t, answer, ask(two, "test", 0, 5), "a fleet answers alike")
	require.Equal(t, answer, ask(one, "test", 0x0303, 5), "a version said is the version implied")
	for name, differs := range map[string][]byte{
		"secret":     ask(stranger, "test", 0, 5),
		"ciphertext": ask(one, "test", 0, 6),
		"key":        ask(one, "other", 0, 5),
		"version":    ask(one, "test", 0x0304, 5),
	} {
		require.NotEqual(t, answer[2:], differs[2:], name)
	}
}

// Without a secret to share, key servers with the same key answer alike; and
// those whose store cannot derive one still give away nothing that can be
// computed.
func TestFallbackWithoutASecret(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	load := func() testStore { // as after a restart
		store, err := LoadFolder(folder(t, map[string][]byte{
			"a.pem": pkcs8(t, rsaKey), "b.pem": pkcs8(t, newRSA(t, 2048)), "c.pem": pkcs8(t, newECDSA(t, elliptic.P256())),
		}))
		require.NoError(t, err)
		return named(store)
	}
	var log bytes.Buffer
	logged := func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) }
	answer := func(keys testStore, store KeyStore) []byte {
		resp, rec := newTestServer(t, store, logged).ask(edgePeer, &ski.Request{
			Protocol: ski.TLS12, SPKI: keys.id("a"), Method: ski.MethodRSA, Input: make([]byte, 256),
		})
		require.Empty(t, resp.Error, rec.Reason)
		require.Equal(t, "padding", rec.PreMasterSecret)
		return resp.Output
	}
	one, two := load(), load()
	require.Equal(t, answer(one, one), answer(two, two))
	require.Empty(t, log.String())

	// A hookStore hides what the MemoryStore can do.
	hidden, again := answer(one, hookStore{KeyStore: one}), answer(one, hookStore{KeyStore: one})
	require.NotEqual(t, hidden, again)
	require.Equal(t, 4, strings.Count(log.String(), "level=WARN"), "two RSA keys, two servers")
	require.Contains(t, log.String(), "set an RSA failure secret")
}

func TestFailureKey(t *testing.T) {
	keys := testKeys()
	a, ok := keys.FailureKey(keys.id(rsa2048))
	require.True(t, ok)
	private := keys.keys[keys.id(rsa2048)].private.(*rsa.PrivateKey)
	hashed := sha256.Sum256(private.D.FillBytes(make([]byte, 256)))
	mac := hmac.New(sha256.New, hashed[:])
	mac.Write([]byte("tlsski RSA failure key"))
	require.Equal(t, mac.Sum(nil), a[:])
	for _, id := range []ski.KeyID{keys.id(p256), {1}} {
		_, ok = keys.FailureKey(id)
		require.False(t, ok)
	}
}

func TestClientVersions(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	pub := rsaPublic(keys)
	for _, c := range []struct {
		protocol ski.Protocol
		sent     uint16
		right    []uint16
		wrong    []uint16
	}{
		{ski.TLS12, 0, []uint16{0x0303}, []uint16{0x0302, 0x0304, 0xFEFD}},
		{ski.TLS12, 0x0303, []uint16{0x0303}, []uint16{0x0302, 0x0304}},
		{ski.TLS12, 0x0304, []uint16{0x0304}, []uint16{0x0303}},
		{ski.TLS11, 0, []uint16{0x0302, 0x0303}, []uint16{0x0301, 0x0304}},
		{ski.TLS10, 0, []uint16{0x0301, 0x0302, 0x0303}, []uint16{0x0300, 0x0304, 0xFEFF}},
		{ski.TLS10, 0x0303, []uint16{0x0303}, []uint16{0x0301, 0x0302}},
		{ski.DTLS12, 0, []uint16{0xFEFD}, []uint16{0xFEFF, 0xFEFC, 0x0303}},
		{ski.DTLS10, 0, []uint16{0xFEFF, 0xFEFD}, []uint16{0xFEFC, 0xFF00, 0x0301}},
		{ski.DTLS10, 0xFEFD, []uint16{0xFEFD}, []uint16{0xFEFF}},
	} {
		ask := func(version uint16) Record {
			resp, rec := s.ask(legacyPeer, &ski.Request{
				Protocol: c.protocol, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, ClientVersion: c.sent,
				Input: rawEncrypt(pub, encodedMessage(pub, preMasterSecret(version))),
			})
			require.Empty(t, resp.Error, rec.Reason)
			if rec.PreMasterSecret == "correct" {
				require.Equal(t, version, binary.BigEndian.Uint16(resp.Output))
			}
			return rec
		}
		for _, v := range c.right {
			require.Equal(t, "correct", ask(v).PreMasterSecret, "%s %#04x: %#04x", c.protocol, c.sent, v)
		}
		for _, v := range c.wrong {
			require.Equal(t, "version", ask(v).PreMasterSecret, "%s %#04x: %#04x", c.protocol, c.sent, v)
		}
	}
}

// The audit lines of success and failure have one length.
func TestVerdictsHaveOneLength(t *testing.T) {
	seen := make(map[string]bool)
	for _, paddingWrong := range []int{0, 1} {
		for _, versionRight := range []int{0, 1} {
			found := verdictOf(paddingWrong, versionRight)
			require.Len(t, found, len(preMasterSecretCorrect))
			seen[found] = true
		}
	}
	require.Len(t, seen, 3)
}
