package keyserver

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// Every length of every format but the right one is malformed.
func TestWrongLengths(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	formats := []struct {
		name  string
		req   ski.Request
		valid []byte
		right []int // other lengths that are valid too
	}{
		{"ECDHE P-256", ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256}, ecdhe(secp256r1, basePoint(secp256r1)), nil},
		{"ECDHE P-384", ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256}, ecdhe(secp384r1, basePoint(secp384r1)), nil},
		{"ECDHE P-521", ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256}, ecdhe(secp521r1, basePoint(secp521r1)), nil},
		{"ECDHE x25519", ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256}, ecdhe(x25519, basePoint(x25519)), nil},
		{"TLS 1.3", ski.Request{Protocol: ski.TLS13, SPKI: keys.id(p256), Scheme: tls.ECDSAWithP256AndSHA256}, certificateVerify(48), []int{130}},
		{"RSA", ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA}, make([]byte, 256), nil},
	}
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			for n := 1; n < len(f.valid)+70; n++ {
				req := f.req
				req.Input = append(bytes.Clone(f.valid), make([]byte, 70)...)[:n]
				resp, rec := s.ask(edgePeer, &req)
				if n == len(f.valid) || contains(f.right, n) {
					require.Empty(t, resp.Error, "%d bytes: %s", n, rec.Reason)
					continue
				}
				require.Equal(t, ski.MalformedRequest, resp.Error, "%d bytes", n)
				require.NotEmpty(t, rec.Reason)
			}
			req := f.req // and none at all, which only a program can ask
			s.refuses(&req, ski.MalformedRequest, "'input' is missing")
		})
	}
}

func contains(lengths []int, n int) bool {
	for _, l := range lengths {
		if l == n {
			return true
		}
	}
	return false
}

// A point's length that agrees with the input, but not with the group.
func TestWrongPointLengths(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	for _, group := range []uint16{secp256r1, secp384r1, secp521r1, x25519} {
		right := basePoint(group)
		for n := range 256 {
			if n == len(right) {
				continue
			}
			point := append(bytes.Clone(right), make([]byte, 256)...)[:n]
			req := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256, Input: ecdhe(group, point)}
			s.refuses(req, ski.MalformedRequest, "the point of ServerECDHParams")
		}
	}
}

func TestBadPoints(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	refuses := func(t *testing.T, group uint16, point []byte, reason string) {
		t.Helper()
		req := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256, Input: ecdhe(group, point)}
		s.refuses(req, ski.MalformedRequest, reason)
	}
	for group, curve := range map[uint16]elliptic.Curve{
		secp256r1: elliptic.P256(), secp384r1: elliptic.P384(), secp521r1: elliptic.P521(),
	} {
		t.Run(curve.Params().Name, func(t *testing.T) {
			g := basePoint(group)
			size := len(g) / 2
			for form := range 256 { // of the point, in its first byte
				if form != 4 {
					bad := bytes.Clone(g)
					bad[0] = byte(form)
					refuses(t, group, bad, "not on its curve")
				}
			}
			bad := bytes.Clone(g)
			bad[len(bad)-1] ^= 1
			refuses(t, group, bad, "not on its curve")
			refuses(t, group, append([]byte{4}, make([]byte, 2*size)...), "not on its curve")
			refuses(t, group, []byte{0}, "not on its curve") // infinity
			p := curve.Params().P
			if x := new(big.Int).Add(curve.Params().Gx, p); x.BitLen() <= 8*size { // not reduced
				bad := append([]byte{4}, x.FillBytes(make([]byte, size))...)
				refuses(t, group, append(bad, g[1+size:]...), "not on its curve")
			}
		})
	}
	t.Run("x25519", func(t *testing.T) {
		scalar, err := ecdh.X25519().GenerateKey(rand.Reader)
		require.NoError(t, err)
		for _, low := range x25519LowOrder {
			for _, lastBit := range []byte{0, 0x80} {
				point := bytes.Clone(low[:])
				point[31] |= lastBit
				pub, err := ecdh.X25519().NewPublicKey(point)
				require.NoError(t, err)
				_, err = scalar.ECDH(pub)
				require.Error(t, err, "%x has not a low order", point)
				refuses(t, x25519, point, "low order")
			}
		}
		// The prime and its neighbours are -1, 0 and 1.
		prime := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
		for _, offset := range []int64{-1, 0, 1} {
			point := new(big.Int).Add(prime, big.NewInt(offset)).FillBytes(make([]byte, 32))
			slices.Reverse(point)
			refuses(t, x25519, point, "low order")
		}
		// Values above the prime are valid otherwise (RFC 7748, Section 5).
		point := bytes.Repeat([]byte{0xff}, 32)
		req := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256, Input: ecdhe(x25519, point)}
		resp, _ := s.ask(edgePeer, req)
		require.Empty(t, resp.Error)
	})
	t.Run("unknown groups", func(t *testing.T) {
		for group := range uint16(0x200) {
			if group < secp256r1 || (group > secp521r1 && group != x25519) {
				refuses(t, group, basePoint(x25519), "not one of those served")
			}
		}
		for _, group := range []uint16{0x11ec, 0xff01, 0xff02, 0xffff} {
			refuses(t, group, basePoint(x25519), "not one of those served")
		}
	})
	t.Run("curve types", func(t *testing.T) {
		for curveType := range 256 {
			if curveType == curveTypeNamedCurve {
				continue
			}
			in := ecdhe(x25519, basePoint(x25519))
			in[curveTypeOffset] = byte(curveType)
			req := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256, Input: in}
			s.refuses(req, ski.MalformedRequest, "named_curve")
		}
	})
}

// Each byte of the CertificateVerify content before the transcript hash is
// checked.
func TestCertificateVerifyContent(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	req := ski.Request{Protocol: ski.TLS13, SPKI: keys.id(p256), Scheme: tls.ECDSAWithP256AndSHA256}
	for i := range certificateVerifyPrefix {
		r := req
		r.Input = certificateVerify(32)
		r.Input[i] ^= 1
		s.refuses(&r, ski.MalformedRequest, "CertificateVerify")
	}
	r := req
	r.Input = append(bytes.Repeat([]byte{0x20}, 64), "TLS 1.3, client CertificateVerify\x00"...)
	r.Input = append(r.Input, make([]byte, 32)...)
	s.refuses(&r, ski.MalformedRequest, "CertificateVerify")
}

// No input is valid for both kinds of protocol.
func TestInputOfOtherProtocol(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	for _, p := range []ski.Protocol{ski.TLS12, ski.DTLS12} {
		for _, n := range []int{32, 48} {
			s.refuses(&ski.Request{Protocol: p, SPKI: keys.id(p256), Hash: ski.SHA256, Input: certificateVerify(n)},
				ski.MalformedRequest, "named_curve")
		}
	}
	for _, p := range []ski.Protocol{ski.TLS13, ski.DTLS13} {
		for _, group := range []uint16{secp256r1, x25519} {
			s.refuses(&ski.Request{Protocol: p, SPKI: keys.id(p256), Scheme: tls.ECDSAWithP256AndSHA256, Input: ecdhe(group, basePoint(group))},
				ski.MalformedRequest, "CertificateVerify")
		}
	}
}

func TestAlgorithms(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	tls12 := ecdhe(x25519, basePoint(x25519))
	tls13 := certificateVerify(32)
	anyHash := []ski.Hash{ski.SHA224, ski.SHA256, ski.SHA384, ski.SHA512}

	for _, name := range []string{p256, p384, p521, rsa2048} {
		for _, hash := range anyHash {
			t.Run(fmt.Sprintf("%s %s", name, hash), func(t *testing.T) {
				req := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(name), Hash: hash, Input: tls12}
				resp, rec := s.ask(edgePeer, req)
				require.Empty(t, resp.Error, rec.Reason)
				verify(t, keys, req, resp.Output)
				require.Equal(t, string(hash), rec.Hash)
				require.Empty(t, rec.Scheme)
			})
		}
	}

	fits12 := map[string][]tls.SignatureScheme{
		p256:    {0x0403, 0x0503, 0x0603},
		p384:    {0x0403, 0x0503, 0x0603},
		p521:    {0x0403, 0x0503, 0x0603},
		rsa2048: {0x0401, 0x0501, 0x0601, 0x0804, 0x0805, 0x0806},
		ed:      {0x0807},
	}
	fits13 := map[string][]tls.SignatureScheme{
		p256: {0x0403}, p384: {0x0503}, p521: {0x0603}, rsa2048: {0x0804, 0x0805, 0x0806}, ed: {0x0807},
	}
	// Those served, SHA-1 and SHA-224, EdDSA 448, rsa_pss_pss, brainpool, GREASE.
	schemes := []tls.SignatureScheme{
		0x0401, 0x0501, 0x0601, 0x0804, 0x0805, 0x0806, 0x0403, 0x0503, 0x0603, 0x0807,
		0x0201, 0x0203, 0x0301, 0x0303, 0x0808, 0x0809, 0x080a, 0x080b, 0x081a, 0x0a0a, 0xffff,
	}
	for protocol, fits := range map[ski.Protocol]map[string][]tls.SignatureScheme{
		ski.TLS12: fits12, ski.DTLS12: fits12, ski.TLS13: fits13, ski.DTLS13: fits13,
	} {
		for name, right := range fits {
			for _, scheme := range schemes {
				t.Run(fmt.Sprintf("%s %s 0x%04x", protocol, name, uint16(scheme)), func(t *testing.T) {
					req := &ski.Request{Protocol: protocol, SPKI: keys.id(name), Scheme: scheme, Hash: ski.SHA224, Input: tls12}
					if protocol.Is13() {
						req.Input = tls13
					}
					resp, rec := s.ask(edgePeer, req)
					require.NotEmpty(t, rec.Scheme)
					for _, r := range right {
						if scheme == r {
							require.Empty(t, resp.Error, rec.Reason)
							verify(t, keys, req, resp.Output)
							return
						}
					}
					require.Equal(t, ski.MalformedRequest, resp.Error)
					require.Contains(t, rec.Reason, "'scheme'")
				})
			}
		}
	}

	t.Run("scheme missing", func(t *testing.T) {
		s.refuses(&ski.Request{Protocol: ski.TLS13, SPKI: keys.id(p256), Hash: ski.SHA256, Input: tls13},
			ski.MalformedRequest, "'scheme' is missing")
		s.refuses(&ski.Request{Protocol: ski.TLS12, SPKI: keys.id(ed), Hash: ski.SHA256, Input: tls12},
			ski.MalformedRequest, "'scheme' is missing")
	})
}

// RSA-PSS needs room for hash and salt; the shortest keys have none for
// SHA-512.
func TestPSSNeedsLength(t *testing.T) {
	var store MemoryStore
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	require.NoError(t, store.Add("short", key))
	s := newTestServer(t, &store)
	req := &ski.Request{Protocol: ski.TLS12, SPKI: named(&store).id("short"), Input: ecdhe(x25519, basePoint(x25519))}

	req.Scheme = tls.PSSWithSHA384
	resp, rec := s.ask(legacyPeer, req)
	require.Empty(t, resp.Error, rec.Reason)
	verify(t, &store, req, resp.Output)

	req.Scheme = tls.PSSWithSHA512
	resp, rec = s.ask(legacyPeer, req)
	require.Equal(t, ski.MalformedRequest, resp.Error)
	require.Equal(t, "'scheme' is for a longer key", rec.Reason)

	s.refuses(req, ski.RequestDenied, "legacy") // for who may not use short keys
}

func TestRSAInput(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	pub := rsaPublic(keys)
	req := func(p ski.Protocol, version uint16, input []byte) *ski.Request {
		return &ski.Request{Protocol: p, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, ClientVersion: version, Input: input}
	}
	valid := make([]byte, 256)
	s.refuses(req(ski.TLS12, 0, pub.N.Bytes()), ski.MalformedRequest, "below the modulus")
	s.refuses(req(ski.TLS12, 0, bytes.Repeat([]byte{0xff}, 256)), ski.MalformedRequest, "below the modulus")
	s.refuses(req(ski.TLS12, 0, append([]byte{0}, valid...)), ski.MalformedRequest, "modulus' 256 bytes")
	s.refuses(req(ski.TLS13, 0, valid), ski.MalformedRequest, "no RSA key exchange")
	s.refuses(req(ski.DTLS13, 0, valid), ski.MalformedRequest, "no RSA key exchange")
	for _, version := range []uint16{0x0302, 0x0200, 0x0002, 0xfefd, 0xffff} {
		s.refuses(req(ski.TLS12, version, valid), ski.MalformedRequest, "'client_version'")
	}
	for _, version := range []uint16{0xfeff, 0x0303, 0x0001} {
		s.refuses(req(ski.DTLS12, version, valid), ski.MalformedRequest, "'client_version'")
	}
	for _, name := range []string{p256, ed} {
		s.refuses(&ski.Request{Protocol: ski.TLS12, SPKI: keys.id(name), Method: ski.MethodRSA, Input: valid},
			ski.MalformedRequest, "not an RSA key")
	}
}

// FuzzInput puts anything through what decides whether a key is used. What
// passes is looked at again in another way than the parser's.
func FuzzInput(f *testing.F) {
	keys := testKeys()
	names := []string{p256, p384, p521, rsa2048, ed}
	for _, v := range readVectors(f) {
		for i, name := range names {
			if keys.id(name) == v.Request.SPKI {
				r := v.Request
				f.Add(string(r.Protocol), string(r.Method), string(r.Hash), uint16(r.Scheme), r.ClientVersion, uint8(i), []byte(r.Input))
			}
		}
	}
	scalar, err := ecdh.X25519().GenerateKey(rand.Reader)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, protocol, method, hash string, scheme, version uint16, which uint8, input []byte) {
		k, _ := lookup(keys, keys.id(names[int(which)%len(names)]))
		req := &ski.Request{
			Protocol: ski.Protocol(protocol), SPKI: k.id, Method: ski.Method(method), Hash: ski.Hash(hash),
			Scheme: tls.SignatureScheme(scheme), ClientVersion: version, Input: input,
		}
		if req.Validate() != nil {
			return
		}
		alg, algErr := chooseAlgorithm(req, k.public)
		op, err := parseOperation(req, k, alg, algErr, pmsExchange{})
		if err != nil {
			return
		}
		switch op := op.(type) {
		case *decryption:
			pub := k.public.(*rsa.PublicKey)
			require.Len(t, op.epms.ciphertext, 256)
			require.Negative(t, new(big.Int).SetBytes(op.epms.ciphertext).Cmp(pub.N))
			require.LessOrEqual(t, op.epms.versions.lowest, op.epms.versions.highest)
		case *signing:
			content := op.tbs.content
			require.Equal(t, input, content)
			require.NoError(t, ski.CheckForm(content)) // FuzzCheckForm looks at more
			require.Equal(t, hasGroup(req.KeyExchange(), req.Protocol), groupAsked(req) != "", "a policy judges the group of all that is signed")
			if req.Method == ski.MethodDHE {
				require.NoError(t, checkServerDHParams(content)) // FuzzServerDHParams looks at more
				require.Error(t, checkServerKeyExchange(content))
				require.Equal(t, rsa2048, k.name)
				return
			}
			require.Error(t, checkServerDHParams(content))
			if req.Protocol.Is13() {
				require.Equal(t, certificateVerify(len(content) - 98)[:98], content[:98])
				require.Contains(t, []int{130, 146}, len(content))
				return
			}
			group, point := binary.BigEndian.Uint16(content[65:]), content[68:]
			require.Equal(t, append(append(bytes.Clone(content[:64]), 3, byte(group>>8), byte(group), byte(len(point))), point...), content)
			if group == x25519 {
				pub, err := ecdh.X25519().NewPublicKey(point)
				require.NoError(t, err)
				_, err = scalar.ECDH(pub)
				require.NoError(t, err)
				return
			}
			curve := map[uint16]elliptic.Curve{23: elliptic.P256(), 24: elliptic.P384(), 25: elliptic.P521()}[group]
			require.NotNil(t, curve)
			_, err := ecdsa.ParseUncompressedPublicKey(curve, point)
			require.NoError(t, err)
		}
	})
}
