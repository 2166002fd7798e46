package ski_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func TestProtocol(t *testing.T) {
	wire := map[ski.Protocol]uint16{
		ski.TLS10: 0x0301, ski.TLS11: 0x0302, ski.TLS12: 0x0303, ski.TLS13: 0x0304,
		ski.DTLS10: 0xFEFF, ski.DTLS12: 0xFEFD, ski.DTLS13: 0xFEFC,
	}
	assert.Len(t, ski.Protocols(), len(wire))
	for _, p := range ski.Protocols() {
		assert.True(t, p.Valid(), p)
		assert.Equal(t, wire[p], p.Wire(), p)
		assert.Equal(t, strings.HasSuffix(string(p), "1.3"), p.Is13(), p)
		assert.Equal(t, strings.HasSuffix(string(p), "1.2"), p.Is12(), p)
	}
	for _, p := range []ski.Protocol{"", "TLS 1.4", "tls 1.2"} {
		assert.False(t, p.Valid() || p.Is12() || p.Is13() || p.Wire() != 0, p)
	}
}

func TestMethod(t *testing.T) {
	for _, m := range ski.Methods() {
		assert.True(t, m.Valid(), m)
		assert.Equal(t, m, (&ski.Request{Method: m}).KeyExchange())
	}
	assert.False(t, ski.Method("").Valid(), "an absent method is ECDHE, an empty one is nothing")
	assert.Equal(t, ski.MethodECDHE, (&ski.Request{}).KeyExchange())
}

func TestHash(t *testing.T) {
	for name, h := range map[ski.Hash]crypto.Hash{
		ski.SHA224: crypto.SHA224, ski.SHA256: crypto.SHA256, ski.SHA384: crypto.SHA384, ski.SHA512: crypto.SHA512,
	} {
		assert.True(t, name.Valid())
		assert.Equal(t, h, name.Func())
		got, ok := ski.HashOf(h)
		assert.True(t, ok)
		assert.Equal(t, name, got)
	}
	assert.True(t, ski.HashDefault.Valid())
	assert.Zero(t, ski.HashDefault.Func())
	assert.False(t, ski.Hash("SHA-1").Valid())
	sha1, ok := ski.HashOf(crypto.SHA1)
	assert.True(t, ok)
	assert.Equal(t, ski.HashDefault, sha1)
	for _, h := range []crypto.Hash{0, crypto.MD5, crypto.MD5SHA1, crypto.SHA512_256} {
		_, ok := ski.HashOf(h)
		assert.False(t, ok, h)
	}
}

func TestError(t *testing.T) {
	all := []ski.Error{ski.RequestDenied, ski.SPKINotFound, ski.MalformedRequest, ski.UnspecifiedError}
	for _, e := range all {
		assert.True(t, e.Valid())
		err := ski.Failed(e).Err()
		for _, other := range all {
			assert.Equal(t, e == other, errors.Is(err, other))
		}
	}
	assert.False(t, ski.Error("").Valid())
	assert.NoError(t, (&ski.Response{Output: []byte{1}}).Err())
	assert.EqualError(t, ski.RequestDenied, "ski: the key server answered 'request denied'")
}

func TestTransportError(t *testing.T) {
	err := &ski.TransportError{Endpoint: "coaps://[::1]:5684/ski", Op: "request", Err: fmt.Errorf("no answer: %w", context.DeadlineExceeded)}
	assert.EqualError(t, err, "ski: request coaps://[::1]:5684/ski: no answer: context deadline exceeded")
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.True(t, err.Timeout())
	err.Err = errors.New("connection refused")
	assert.False(t, err.Timeout())
}

func TestKeyID(t *testing.T) {
	id := ski.KeyID(spki)
	const text = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	assert.Equal(t, text, id.String())
	for _, s := range []string{text, strings.ToUpper(text)} {
		got, err := ski.ParseKeyID(s)
		require.NoError(t, err)
		assert.Equal(t, id, got)
	}
	for _, s := range []string{"", text[:62], text[:63], text + "0", text + "00", "sha256//" + text[8:], text[:62] + "0g", " " + text[1:]} {
		got, err := ski.ParseKeyID(s)
		assert.Error(t, err, s)
		assert.Zero(t, got, s)
	}
	data, err := json.Marshal(map[string]ski.KeyID{"spki": id})
	require.NoError(t, err)
	assert.JSONEq(t, `{"spki":"`+text+`"}`, string(data))
	var back map[string]ski.KeyID
	require.NoError(t, json.Unmarshal(data, &back))
	assert.Equal(t, id, back["spki"])
	assert.Error(t, json.Unmarshal([]byte(`{"spki":"00"}`), &back))
	assert.False(t, id.IsZero())
	assert.True(t, ski.KeyID{}.IsZero())
}

// TestKeyIDOfCertificate holds that a certificate and its bare public key have
// one name.
func TestKeyIDOfCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert := selfSigned(t, key, "www.example.com")
	id, err := ski.PublicKeyID(key.Public())
	require.NoError(t, err)
	assert.Equal(t, ski.CertificateKeyID(cert), id)
	_, err = ski.PublicKeyID("no key")
	assert.Error(t, err)
}
