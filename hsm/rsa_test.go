package hsm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"math/big"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// plainUnpad is the same as unpadPreMasterSecret, step by step as RFC 8017,
// Section 7.2.2, has it.
func plainUnpad(raw []byte, size int, secret []byte) {
	em := append(make([]byte, size-len(raw)), raw...)
	if em[0] != 0 || em[1] != 2 {
		return
	}
	separator := bytes.IndexByte(em[2:], 0)
	if separator < 8 {
		return
	}
	if m := em[2+separator+1:]; len(m) == len(secret) {
		copy(secret, m)
	}
}

func block(size int, change func(em []byte)) []byte {
	em := bytes.Repeat([]byte{0xa5}, size)
	em[0], em[1], em[size-49] = 0, 2, 0
	copy(em[size-48:], "\x03\x03 the forty-eight bytes of a premaster secret ")
	change(em)
	return em
}

var blocks = map[string]func(em []byte){
	"right":                        func([]byte) {},
	"secret with zeros":            func(em []byte) { clear(em[len(em)-48:]) },
	"block type 1":                 func(em []byte) { em[1] = 1 },
	"block type 0":                 func(em []byte) { em[1] = 0 },
	"first byte":                   func(em []byte) { em[0] = 1 },
	"no separator":                 func(em []byte) { em[len(em)-49] = 1 },
	"zero in the first 8":          func(em []byte) { em[5] = 0 },
	"zero after the first 8":       func(em []byte) { em[10] = 0 },
	"a plaintext of 49":            func(em []byte) { em[len(em)-50] = 0 },
	"a plaintext of 49, not of 48": func(em []byte) { em[len(em)-50], em[len(em)-49] = 0, 1 },
	"a plaintext of 47":            func(em []byte) { em[len(em)-49], em[len(em)-48] = 1, 0 },
	"an empty plaintext":           func(em []byte) { em[len(em)-49] = 1; em[len(em)-1] = 0 },
	"zero":                         func(em []byte) { clear(em) },
	"one":                          func(em []byte) { clear(em); em[len(em)-1] = 1 },
	"only zeros in front":          func(em []byte) { clear(em[:len(em)-49]) },
}

// What comes out is what crypto/rsa makes of the same ciphertext, and also
// where the token leaves out zeros in front.
func TestUnpaddingIsThatOfCryptoRSA(t *testing.T) {
	for _, bits := range []int{1024, 2048, 3072} {
		private, err := rsa.GenerateKey(rand.Reader, bits)
		require.NoError(t, err)
		size := private.Size()
		for name, change := range blocks {
			em := block(size, change)
			m := new(big.Int).SetBytes(em)
			if m.Cmp(private.N) >= 0 {
				continue
			}
			ciphertext := new(big.Int).Exp(m, big.NewInt(int64(private.E)), private.N).FillBytes(make([]byte, size))
			want := bytes.Repeat([]byte{0x5a}, 48)
			fallback := bytes.Clone(want)
			//lint:ignore SA1019 It is what is compared with.
			require.NoError(t, rsa.DecryptPKCS1v15SessionKey(nil, private, ciphertext, want))
			for _, raw := range [][]byte{em, bytes.TrimLeft(em, "\x00")} {
				got := bytes.Clone(fallback)
				require.NoError(t, unpadPreMasterSecret(raw, size, got))
				assert.Equal(t, want, got, "%s %d/%d", name, len(raw), size)
			}
		}
	}
}

func TestUnpaddingRefusesWhatHasNoRoom(t *testing.T) {
	assert.ErrorIs(t, unpadPreMasterSecret(make([]byte, 257), 256, make([]byte, 48)), errRawLength)
	assert.Error(t, unpadPreMasterSecret(make([]byte, 58), 58, make([]byte, 48)))
	assert.Error(t, unpadPreMasterSecret(make([]byte, 256), 256, make([]byte, 47)))
	secret := make([]byte, 48)
	em := block(59, func([]byte) {})
	require.NoError(t, unpadPreMasterSecret(em, 59, secret))
	assert.Equal(t, em[11:], secret)
}

func FuzzUnpad(f *testing.F) {
	for _, change := range blocks {
		f.Add(block(128, change), uint16(0))
		f.Add(bytes.TrimLeft(block(128, change), "\x00"), uint16(3))
	}
	f.Fuzz(func(t *testing.T, raw []byte, more uint16) {
		size := len(raw) + int(more%512)
		if size < minRawLen || size > 1024 {
			return
		}
		got := bytes.Repeat([]byte{0x5a}, 48)
		want := bytes.Clone(got)
		before := bytes.Clone(raw)
		require.NoError(t, unpadPreMasterSecret(raw, size, got))
		plainUnpad(raw, size, want)
		require.Equal(t, want, got)
		require.Equal(t, before, raw)
	})
}

func TestECDSASignaturesBecomeDER(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		private, err := ecdsa.GenerateKey(curve, rand.Reader)
		require.NoError(t, err)
		n := (curve.Params().N.BitLen() + 7) / 8
		digest := sha256.Sum256([]byte("x"))
		for range 300 { // some with zeros in front
			r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
			require.NoError(t, err)
			raw := append(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))...)
			der, err := ecdsaToDER(raw, &private.PublicKey)
			require.NoError(t, err)
			require.True(t, ecdsa.VerifyASN1(&private.PublicKey, digest[:], der))
		}
		order := curve.Params().N.FillBytes(make([]byte, n))
		one := big.NewInt(1).FillBytes(make([]byte, n))
		for name, raw := range map[string][]byte{
			"empty":       nil,
			"short":       make([]byte, 2*n-1),
			"long":        make([]byte, 2*n+1),
			"r is zero":   append(make([]byte, n), one...),
			"s is zero":   append(bytes.Clone(one), make([]byte, n)...),
			"r too large": append(bytes.Clone(order), one...),
			"s too large": append(bytes.Clone(one), order...),
		} {
			_, err := ecdsaToDER(raw, &private.PublicKey)
			assert.Error(t, err, name)
		}
	}
}
