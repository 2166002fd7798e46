package tlsprf

import (
	"crypto/tls"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The first vectors of NIST's CAVS for the TLS key derivation (SP 800-135): one
// for TLS 1.0 and 1.1, one for each hash of TLS 1.2 that a cipher suite names.
// NIST draws the randoms of the two steps apart.
// https://csrc.nist.gov/projects/cryptographic-algorithm-validation-program/component-testing
var nistVectors = []struct {
	prf                                    PRF
	preMasterSecret                        string
	clientHelloRandom, serverHelloRandom   string
	masterSecret                           string
	clientRandom, serverRandom, derivedKey string
}{
	{
		MD5SHA1,
		"bded7fa5c1699c010be23dd06ada3a48349f21e5f86263d512c0c5cc379f0e780ec55d9844b2f1db02a96453513568d0",
		"e5acaf549cd25c22d964c0d930fa4b5261d2507fad84c33715b7b9a864020693",
		"135e4d557fdf3aa6406d82975d5c606a9734c9334b42136e96990fbd5358cdb2",
		"2f6962dfbc744c4b2138bb6b3d33054c5ecc14f24851d9896395a44ab3964efc2090c5bf51a0891209f46c1e1e998f62",
		"d58a7b1cd4fedaa232159df652ce188f9d997e061b9bf48e83b62990440931f6",
		"67267e650eb32444119d222a368c191af3082888dc35afe8368e638c828874be",
		"3088825988e77fce68d19f756e18e43eb7fe672433504feaf99b3c503d9091b164f166db301d70c9fc0870b4a9456390" +
			"7bee1a61fb786cb717576890bcc51cb9ead97e01d0a2fea99c953377b195205ff07b369589178796edc963fd80fdbe518a2fc1c35c18ae8d",
	},
	{
		SHA256,
		"f8938ecc9edebc5030c0c6a441e213cd24e6f770a50dda07876f8d55da062bcadb386b411fd4fe4313a604fce6c17fbc",
		"36c129d01a3200894b9179faac589d9835d58775f9b5ea3587cb8fd0364cae8c",
		"f6c9575ed7ddd73e1f7d16eca115415812a43c2b747daaaae043abfb50053fce",
		"202c88c00f84a17a20027079604787461176455539e705be730890602c289a5001e34eeb3a043e5d52a65e66125188bf",
		"62e1fd91f23f558a605f28478c58cf72637b89784d959df7e946d3f07bd1b616",
		"ae6c806f8ad4d80784549dff28a4b58fd837681a51d928c3e30ee5ff14f39868",
		"d06139889fffac1e3a71865f504aa5d0d2a2e89506c6f2279b670c3e1b74f531016a2530c51a3a0f7e1d6590d0f0566b" +
			"2f387f8d11fd4f731cdd572d2eae927f6f2f81410b25e6960be68985add6c38445ad9f8c64bf8068bf9a6679485d966f" +
			"1ad6f68b43495b10a683755ea2b858d70ccac7ec8b053c6bd41ca299d4e51928",
	},
	{
		SHA384,
		"a5e2642633f5b8c81ad3fe0c2fe3a8e5ef806b06121dd10df4bb0fe857bfdcf522558e05d2682c9a80c741a3aab1716f",
		"abe4bf5527429ac8eb13574d2709e8012bd1a113c6d3b1d3aa2c3840518778ac",
		"cb6e0b3eb02976b6466dfa9651c2919414f1648fd3a7838d02153e5bd39535b6",
		"b4d49bfa87747fe815457bc3da15073d6ac73389e703079a3503c09e14bd559a5b3c7c601c7365f6ea8c68d3d9596827",
		"954b5fe1849c2ede177438261f099a2fcd884d001b9fe1de754364b1f6a6dd8e",
		"1b1c8568344a65c30828e7483c0e353e2c68641c9551efae6927d9cd627a107c",
		"10fd89ef689c7ef033387b8a8f3e5e8e7c11f680f6bdd71fbac3246a73e98d45d03185dde686e6b2369e4503e9dc5a6d" +
			"2cee3e2bf2fa3f41d3de57dff3e197c8a9d5f74cc2d277119d894f8584b07a0a5822f0bd68b3433ec6adaf5c9406c5f3" +
			"ddbb71bbe17ce98f3d4d5893d3179ef369f57aad908e2bf710639100c3ce7e0c",
	},
}

// suiteOf names, for each PRF, a version and a suite that use it, one with as
// long a key block as there is.
var suiteOf = map[PRF]struct{ version, suite uint16 }{
	MD5SHA1: {tls.VersionTLS10, tls.TLS_RSA_WITH_AES_256_CBC_SHA},
	SHA256:  {tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256},
	SHA384:  {tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384},
}

func TestMasterSecretAndKeys(t *testing.T) {
	for _, v := range nistVectors {
		t.Run(v.prf.String(), func(t *testing.T) {
			s, err := New(suiteOf[v.prf].version, suiteOf[v.prf].suite)
			require.NoError(t, err)
			require.Equal(t, v.prf, s.PRF())

			master, err := s.MasterSecret(unhex(t, v.preMasterSecret), unhex(t, v.clientHelloRandom), unhex(t, v.serverHelloRandom))
			require.NoError(t, err)
			assert.Equal(t, v.masterSecret, hex.EncodeToString(master))

			k, err := s.Keys(master, unhex(t, v.clientRandom), unhex(t, v.serverRandom))
			require.NoError(t, err)
			block := hex.EncodeToString(keyBlock(k))
			n := min(len(block), len(v.derivedKey))
			assert.Equal(t, v.derivedKey[:n], block[:n])

			whole, err := s.PRF().Derive(len(v.derivedKey)/2, master, "key expansion", unhex(t, v.serverRandom), unhex(t, v.clientRandom))
			require.NoError(t, err)
			assert.Equal(t, v.derivedKey, hex.EncodeToString(whole))
		})
	}
}

// keyBlock puts the parts together again, in the order of RFC 5246, Section
// 6.3.
func keyBlock(k *Keys) []byte {
	return slices.Concat(k.ClientMACKey, k.ServerMACKey, k.ClientKey, k.ServerKey, k.ClientIV, k.ServerIV)
}

// The first vectors of NIST's ACVP for "TLS v1.2 KDF RFC7627", as its server
// generates them:
// https://github.com/usnistgov/ACVP-Server/tree/master/gen-val/json-files/TLS-v1.2-KDF-RFC7627
func TestExtendedMasterSecret(t *testing.T) {
	for _, v := range []struct {
		prf                                        PRF
		preMasterSecret, sessionHash, masterSecret string
	}{
		{
			SHA256,
			"8252b983a6459a6fb3b9debe8725247e276139ebf7c9adccdd7d240f3ada7f5e3351b2769b6c8dc169a6d799c3c0ffeb",
			"1359d7df74cb27c67f74c98d521d442b887eaf0decf6e382c62434d6c3dd7d0d",
			"43a5e821fcf5446c712207f7cd161ed213ee3b9d001d418c57231befd596b583ecd55ab2c4456b02738698f90bc59ac0",
		},
		{
			SHA384,
			"cf2e5dbd54d46999c3134963316e5c057acf0dfee24cdf60118faa2fd60eeb005af0be437c6551cb2b124c006125b22f",
			"69c2f2484f0de94ce2e03e196ece7cb103533ad5c63d4bd7b6f7be4fe677ea82bd2c2f0020001423850f229990f39013",
			"b0bd142d364b148c9b81515dc0c96e76004f0535963ba85559ddaa6a697df83e5dff14d64354ab374d96b06574f00723",
		},
	} {
		s, err := New(suiteOf[v.prf].version, suiteOf[v.prf].suite)
		require.NoError(t, err)
		master, err := s.ExtendedMasterSecret(unhex(t, v.preMasterSecret), unhex(t, v.sessionHash))
		require.NoError(t, err)
		assert.Equal(t, v.masterSecret, hex.EncodeToString(master))
	}
}

func TestKeyLengths(t *testing.T) {
	for _, v := range []struct {
		version, suite  uint16
		prf             PRF
		mac, key, ivLen int
	}{
		{tls.VersionTLS10, tls.TLS_RSA_WITH_AES_128_CBC_SHA, MD5SHA1, 20, 16, 16},
		{tls.VersionTLS11, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, MD5SHA1, 20, 32, 0},
		{0xFEFF, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, MD5SHA1, 20, 16, 0},
		{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, SHA256, 20, 32, 0},
		{tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, SHA256, 0, 16, 4},
		{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, SHA384, 0, 32, 4},
		{0xFEFD, TLS_ECDHE_ECDSA_WITH_AES_128_CCM, SHA256, 0, 16, 4},
		{0xFEFD, TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, SHA256, 0, 16, 4},
		{0xFEFD, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, SHA256, 0, 32, 12},
	} {
		s, err := New(v.version, v.suite)
		require.NoError(t, err)
		assert.Equal(t, v.prf, s.PRF())
		k, err := s.Keys(make([]byte, 48), make([]byte, 32), make([]byte, 32))
		require.NoError(t, err)
		for _, part := range []struct {
			b    []byte
			want int
		}{
			{k.ClientMACKey, v.mac}, {k.ServerMACKey, v.mac},
			{k.ClientKey, v.key}, {k.ServerKey, v.key},
			{k.ClientIV, v.ivLen}, {k.ServerIV, v.ivLen},
		} {
			assert.Len(t, part.b, part.want)
			assert.Equal(t, len(part.b), cap(part.b), "an append must not reach the next part")
		}
	}
}

// TestSuites holds that the table has the suites of crypto/tls whose hash and
// cipher a key server's edge may negotiate, and their PRF as named there.
func TestSuites(t *testing.T) {
	for _, s := range tls.CipherSuites() {
		if !slices.Contains(s.SupportedVersions, tls.VersionTLS12) {
			continue
		}
		got, ok := suites[s.ID]
		assert.True(t, ok, s.Name)
		want := SHA256
		if s.Name[len(s.Name)-6:] == "SHA384" {
			want = SHA384
		}
		assert.Equal(t, want, got.prf, s.Name)
		only12 := !slices.Contains(s.SupportedVersions, tls.VersionTLS11)
		assert.Equal(t, only12, got.macKeyLen == 0, s.Name)
	}
}

func TestNewErrors(t *testing.T) {
	for _, v := range []struct {
		version, suite uint16
		want           error
	}{
		{tls.VersionTLS13, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, ErrVersion},
		{0x0300, tls.TLS_RSA_WITH_AES_128_CBC_SHA, ErrVersion}, // SSL 3.0
		{0xFEFC, TLS_ECDHE_ECDSA_WITH_AES_128_CCM, ErrVersion}, // DTLS 1.3
		{0xFEFE, TLS_ECDHE_ECDSA_WITH_AES_128_CCM, ErrVersion}, // never assigned
		{0, tls.TLS_RSA_WITH_AES_128_CBC_SHA, ErrVersion},
		{tls.VersionTLS12, tls.TLS_AES_128_GCM_SHA256, ErrSuite},
		{tls.VersionTLS12, tls.TLS_RSA_WITH_RC4_128_SHA, ErrSuite},
		{tls.VersionTLS12, 0, ErrSuite},
		{tls.VersionTLS11, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, ErrSuite},
		{0xFEFF, TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, ErrSuite},
	} {
		_, err := New(v.version, v.suite)
		assert.ErrorIs(t, err, v.want, "%04x %04x", v.version, v.suite)
	}
}

func TestWrongLengths(t *testing.T) {
	s, err := New(tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384)
	require.NoError(t, err)
	b := make([]byte, 48)
	for name, f := range map[string]func() error{
		"empty PreMasterSecret":      func() error { _, err := s.MasterSecret(nil, b[:32], b[:32]); return err },
		"short ClientRandom":         func() error { _, err := s.MasterSecret(b, b[:31], b[:32]); return err },
		"long ServerRandom":          func() error { _, err := s.MasterSecret(b, b[:32], b[:33]); return err },
		"empty PreMasterSecret, EMS": func() error { _, err := s.ExtendedMasterSecret(nil, b); return err },
		"session_hash of SHA-256":    func() error { _, err := s.ExtendedMasterSecret(b, b[:32]); return err },
		"short master_secret":        func() error { _, err := s.Keys(b[:47], b[:32], b[:32]); return err },
		"no ClientRandom":            func() error { _, err := s.Keys(b, nil, b[:32]); return err },
		"no ServerRandom":            func() error { _, err := s.Keys(b, b[:32], nil); return err },
		"no master_secret":           func() error { _, err := s.ClientFinished(nil, b); return err },
		"no handshake hash":          func() error { _, err := s.ServerFinished(b, nil); return err },
		"Schedule not made by New":   func() error { _, err := Schedule{}.Keys(b, b[:32], b[:32]); return err },
	} {
		assert.Error(t, f(), name)
	}
}
