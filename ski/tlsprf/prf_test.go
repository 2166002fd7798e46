package tlsprf

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	require.NoError(t, err)
	return b
}

// The vectors for the PRF of TLS 1.2 that the IETF's TLS working group uses:
// https://www.ietf.org/mail-archive/web/tls/current/msg03416.html
func TestPHash(t *testing.T) {
	for _, v := range []struct {
		name               string
		hash               func() hash.Hash
		secret, seed, want string
	}{
		{
			"SHA256", sha256.New,
			"9bbe436ba940f017b17652849a71db35", "a0ba9f936cda311827a6f796ffd5198c",
			"e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a" +
				"6b301791e90d35c9c9a46b4e14baf9af0fa022f7077def17abfd3797c0564bab" +
				"4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff701" +
				"87347b66",
		},
		{
			"SHA384", sha512.New384,
			"b80b733d6ceefcdc71566ea48e5567df", "cd665cf6a8447dd6ff8b27555edb7465",
			"7b0c18e9ced410ed1804f2cfa34a336a1c14dffb4900bb5fd7942107e81c83cd" +
				"e9ca0faa60be9fe34f82b1233c9146a0e534cb400fed2700884f9dc236f80edd" +
				"8bfa961144c9e8d792eca722a7b32fc3d416d473ebc2c5fd4abfdad05d918425" +
				"9b5bf8cd4d90fa0d31e2dec479e4f1a26066f2eea9a69236a3e52655c9e9aee6" +
				"91c8f3a26854308d5eaa3be85e0990703d73e56f",
		},
		{
			"SHA512", sha512.New,
			"b0323523c1853599584d88568bbb05eb", "d4640e12e4bcdbfb437f03e6ae418ee5",
			"1261f588c798c5c201ff036e7a9cb5edcd7fe3f94c669a122a4638d7d508b283" +
				"042df6789875c7147e906d868bc75c45e20eb40c1cf4a1713b27371f68432592" +
				"f7dc8ea8ef223e12ea8507841311bf68653d0cfc4056d811f025c45ddfa6e6fe" +
				"c702f054b409d6f28dd0a3233e498da41a3e75c5630eedbe22fe254e33a1b0e9" +
				"f6b9826675bec7d01a845658dc9c397545401d40b9f46c7a400ee1b8f81ca0a6" +
				"0d1a397a1028bff5d2ef5066126842fb8da4197632bdb54ff6633f86bbc836e6" +
				"40d4d898",
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			out := make([]byte, len(v.want)/2)
			pHash(v.hash, out, unhex(t, v.secret), "test label", [][]byte{unhex(t, v.seed)})
			assert.Equal(t, v.want, hex.EncodeToString(out))
		})
	}
}

// TestDeriveOpenSSL compares Derive with an implementation of other authors,
// at the lengths where the blocks of the hashes end and where the secret is cut
// in halves.
func TestDeriveOpenSSL(t *testing.T) {
	secret := []byte("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-+" +
		"longer than a block of any hash, so that HMAC hashes it first: it is longer than 128 bytes")
	seed := [][]byte{[]byte("client random"), nil, []byte("server random")}
	const label = "some label"
	for _, prf := range []PRF{MD5SHA1, SHA256, SHA384} {
		for _, c := range []struct{ secretLen, length int }{
			{48, 12}, {48, 48}, {47, 136}, {1, 16}, {32, 20}, {66, 32}, {len(secret), 1000},
		} {
			t.Run(prf.String()+"/"+strconv.Itoa(c.secretLen)+"/"+strconv.Itoa(c.length), func(t *testing.T) {
				got, err := prf.Derive(c.length, secret[:c.secretLen], label, seed...)
				require.NoError(t, err)
				out, err := exec.Command("openssl", "kdf", "-keylen", strconv.Itoa(c.length),
					"-kdfopt", "digest:"+prf.String(),
					"-kdfopt", "hexsecret:"+hex.EncodeToString(secret[:c.secretLen]),
					"-kdfopt", "seed:"+label+"client randomserver random",
					"TLS1-PRF").Output()
				require.NoError(t, err, "openssl 3 is needed")
				want := strings.ToLower(strings.ReplaceAll(strings.TrimSpace(string(out)), ":", ""))
				assert.Equal(t, want, hex.EncodeToString(got))
			})
		}
	}
}

func TestDeriveBounds(t *testing.T) {
	for _, length := range []int{-1, 0, MaxOutputLen + 1} {
		_, err := SHA256.Derive(length, []byte("secret"), "label")
		assert.ErrorContains(t, err, "between 1 and 65535")
	}
	out, err := SHA256.Derive(MaxOutputLen, []byte("secret"), "label")
	require.NoError(t, err)
	assert.Len(t, out, MaxOutputLen)

	_, err = PRF(9).Derive(12, []byte("secret"), "label")
	assert.Error(t, err)
	assert.Nil(t, PRF(9).New())
	assert.Zero(t, PRF(9).Size())
}

func TestHandshakeHash(t *testing.T) {
	for prf, want := range map[PRF]string{
		// echo -n abc | openssl md5, sha1, sha256, sha384
		MD5SHA1: "900150983cd24fb0d6963f7d28e17f72" + "a9993e364706816aba3e25717850c26c9cd0d89d",
		SHA256:  "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		SHA384: "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed" +
			"8086072ba1e7cc2358baeca134c825a7",
	} {
		h := prf.New()
		h.Write([]byte("lost"))
		h.Reset()
		h.Write([]byte("abc"))
		assert.Equal(t, want, hex.EncodeToString(h.Sum(nil)), prf)
		assert.Equal(t, h.Size(), prf.Size(), prf)
		assert.Equal(t, h.Sum([]byte("x")), append([]byte("x"), h.Sum(nil)...), "Sum appends, and changes nothing")
	}
}
