package ski_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// answering returns a Key for one of privateKeys whose requests end in got and
// are answered with resp and err.
func answering(t *testing.T, name string, got *ski.Request, resp *ski.Response, err error) *ski.Key {
	t.Helper()
	k, keyErr := ski.NewKey(ski.TransportFunc(func(_ context.Context, req *ski.Request) (*ski.Response, error) {
		*got = *req
		return resp, err
	}), privateKeys()[name].Public())
	require.NoError(t, keyErr)
	return k
}

func pss(h crypto.Hash, salt int) *rsa.PSSOptions { return &rsa.PSSOptions{Hash: h, SaltLength: salt} }

// TestSignMessage holds which 'hash' or 'scheme' is asked for: the draft's own
// where it has a name for it.
func TestSignMessage(t *testing.T) {
	const equalsHash = rsa.PSSSaltLengthEqualsHash
	output := &ski.Response{Output: make([]byte, 256)}
	for _, v := range []struct {
		name     string
		key      string
		protocol ski.Protocol
		input    []byte
		opts     crypto.SignerOpts
		hash     ski.Hash
		scheme   tls.SignatureScheme
		beyond   bool // beyond the draft
	}{
		{"P-256 in 1.2", "P-256", ski.TLS12, ecdheInput, crypto.SHA256, ski.SHA256, 0, false},
		{"P-256 with SHA-384 in 1.2", "P-256", ski.TLS12, ecdheInput, crypto.SHA384, ski.SHA384, 0, false},
		{"P-384 in 1.2", "P-384", ski.TLS12, ecdheInput, crypto.SHA384, ski.SHA384, 0, false},
		{"P-521 in 1.2", "P-521", ski.TLS12, ecdheInput, crypto.SHA512, ski.SHA512, 0, false},
		{"SHA-1 in 1.2", "P-256", ski.TLS12, ecdheInput, crypto.SHA1, ski.HashDefault, 0, false},
		{"RSA in 1.2", "RSA", ski.TLS12, ecdheInput, crypto.SHA512, ski.SHA512, 0, false},
		{"RSA-PSS in 1.2", "RSA", ski.TLS12, ecdheInput, pss(crypto.SHA256, equalsHash), "", tls.PSSWithSHA256, true},
		{"RSA-PSS, salt in bytes", "RSA", ski.TLS12, ecdheInput, pss(crypto.SHA384, 48), "", tls.PSSWithSHA384, true},
		{"Ed25519 in 1.2", "Ed25519", ski.TLS12, ecdheInput, crypto.Hash(0), "", tls.Ed25519, true},
		{"P-256 in 1.3", "P-256", ski.TLS13, tls13Input, crypto.SHA256, "", tls.ECDSAWithP256AndSHA256, true},
		{"P-384 in 1.3", "P-384", ski.TLS13, tls13Input, crypto.SHA384, "", tls.ECDSAWithP384AndSHA384, true},
		{"P-521 in 1.3", "P-521", ski.TLS13, tls13Input, crypto.SHA512, "", tls.ECDSAWithP521AndSHA512, true},
		{"RSA-PSS in 1.3", "RSA", ski.TLS13, tls13Input, pss(crypto.SHA512, equalsHash), "", tls.PSSWithSHA512, true},
		{"Ed25519 in 1.3", "Ed25519", ski.TLS13, tls13Input, crypto.Hash(0), "", tls.Ed25519, true},
		{"RSA in 1.1", "RSA", ski.TLS11, ecdheInput, crypto.MD5SHA1, ski.HashDefault, 0, false},
		{"ECDSA in DTLS 1.0", "P-256", ski.DTLS10, ecdheInput, crypto.SHA1, ski.HashDefault, 0, false},
		{"DTLS 1.2", "P-256", ski.DTLS12, ecdheInput, crypto.SHA256, ski.SHA256, 0, false},
		{"DTLS 1.3", "P-256", ski.DTLS13, tls13Input, crypto.SHA256, "", tls.ECDSAWithP256AndSHA256, true},
	} {
		t.Run(v.name, func(t *testing.T) {
			var got ski.Request
			unbound := answering(t, v.key, &got, output, nil)
			bound := unbound.ForConnection(t.Context(), ski.Connection{Protocol: v.protocol, ClientVersion: 0x0303, ServerName: "a.example"})
			want := ski.Request{
				Protocol: v.protocol, SPKI: unbound.ID(), Method: ski.MethodECDHE,
				Hash: v.hash, Scheme: v.scheme, Input: v.input, ServerName: "a.example",
			}

			signature, err := bound.SignMessage(nil, v.input, v.opts)
			require.NoError(t, err)
			assert.Equal(t, output.Output, signature)
			assert.Equal(t, want, got)

			// Without a connection, what is signed tells the version.
			if v.protocol == ski.TLS12 || v.protocol == ski.TLS13 {
				_, err = unbound.SignMessage(nil, v.input, v.opts)
				require.NoError(t, err)
				want.ServerName = ""
				assert.Equal(t, want, got)
			}

			got = ski.Request{}
			_, err = bound.DraftOnly().SignMessage(nil, v.input, v.opts)
			if v.beyond {
				assert.ErrorContains(t, err, "beyond the draft")
				assert.Zero(t, got, "the key server was asked")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, want.Hash, got.Hash)
			assert.Empty(t, got.ServerName)
		})
	}
}

func TestSignMessageRefuses(t *testing.T) {
	for _, v := range []struct {
		name, key string
		protocol  ski.Protocol
		input     []byte
		opts      crypto.SignerOpts
	}{
		{"1.3 content in 1.2", "P-256", ski.TLS12, tls13Input, crypto.SHA256},
		{"1.2 content in 1.3", "P-256", ski.TLS13, ecdheInput, crypto.SHA256},
		{"PKCS #1 in 1.3", "RSA", ski.TLS13, tls13Input, crypto.SHA256},
		{"SHA-1 in 1.3", "P-256", ski.TLS13, tls13Input, crypto.SHA1},
		{"SHA-224 in 1.3", "P-256", ski.TLS13, tls13Input, crypto.SHA224},
		{"long salt", "RSA", ski.TLS12, ecdheInput, pss(crypto.SHA256, 64)},
		{"longest salt", "RSA", ski.TLS12, ecdheInput, pss(crypto.SHA256, rsa.PSSSaltLengthAuto)},
		{"RSA-PSS with SHA-1", "RSA", ski.TLS12, ecdheInput, pss(crypto.SHA1, 20)},
		{"MD5 and SHA-1 in 1.2", "RSA", ski.TLS12, ecdheInput, crypto.MD5SHA1},
		{"MD5 and SHA-1 with ECDSA", "P-256", ski.TLS11, ecdheInput, crypto.MD5SHA1},
		{"Ed25519ph", "Ed25519", ski.TLS12, ecdheInput, crypto.SHA3_512},
		{"no hash with ECDSA", "P-256", ski.TLS12, ecdheInput, crypto.Hash(0)},
	} {
		t.Run(v.name, func(t *testing.T) {
			var got ski.Request
			k := answering(t, v.key, &got, &ski.Response{Output: []byte{1}}, nil).
				ForConnection(t.Context(), ski.Connection{Protocol: v.protocol})
			_, err := k.SignMessage(nil, v.input, v.opts)
			assert.Error(t, err)
			assert.Zero(t, got, "the key server was asked")
		})
	}
}

func TestSignMessageErrors(t *testing.T) {
	var got ski.Request
	k := answering(t, "P-256", &got, ski.Failed(ski.RequestDenied), nil)
	_, err := k.SignMessage(nil, ecdheInput, crypto.SHA256)
	assert.ErrorIs(t, err, ski.RequestDenied)

	lost := &ski.TransportError{Endpoint: "coaps://ks", Op: "dial", Err: errors.New("no route")}
	_, err = answering(t, "P-256", &got, nil, lost).SignMessage(nil, ecdheInput, crypto.SHA256)
	assert.Same(t, lost, err)

	_, err = answering(t, "RSA", &got, &ski.Response{Output: make([]byte, 255)}, nil).SignMessage(nil, ecdheInput, crypto.SHA256)
	assert.ErrorContains(t, err, "255 bytes")
}

func TestSignIsRefused(t *testing.T) {
	var got ski.Request
	for name := range privateKeys() {
		k := answering(t, name, &got, &ski.Response{Output: []byte{1}}, nil)
		_, err := k.Sign(nil, make([]byte, 32), crypto.SHA256)
		assert.ErrorIs(t, err, ski.ErrBareDigest)
		assert.Zero(t, got, "the key server was asked")
	}
}

func TestNewKey(t *testing.T) {
	for name, key := range privateKeys() {
		k, err := ski.NewKey(nil, key.Public())
		require.NoError(t, err, name)
		assert.Equal(t, key.Public(), k.Public())
		id, err := ski.PublicKeyID(key.Public())
		require.NoError(t, err)
		assert.Equal(t, id, k.ID())
	}
	x25519, err := ecdh.X25519().NewPublicKey(bytes.Repeat([]byte{9}, 32))
	require.NoError(t, err)
	for _, pub := range []any{nil, "key", x25519, privateKeys()["P-256"], *privateKeys()["P-256"].Public().(*ecdsa.PublicKey)} {
		_, err := ski.NewKey(nil, pub)
		assert.Error(t, err, "%T", pub)
	}
}

// A connection that ends takes its requests with it.
func TestForConnectionContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	k, err := ski.NewKey(ski.TransportFunc(func(ctx context.Context, _ *ski.Request) (*ski.Response, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}), privateKeys()["P-256"].Public())
	require.NoError(t, err)
	cancel()
	_, err = k.ForConnection(ctx, ski.Connection{}).SignMessage(nil, ecdheInput, crypto.SHA256)
	assert.ErrorIs(t, err, context.Canceled)
}

func TestForClientHello(t *testing.T) {
	for _, v := range []struct {
		name    string
		offered []uint16
		want    uint16
	}{
		{"TLS 1.2 alone", []uint16{0x0303}, 0x0303},
		{"up to TLS 1.3", []uint16{0x0304, 0x0303}, 0x0303},
		{"with GREASE", []uint16{0xFAFA, 0x0A0A, 0x0304, 0x0303, 0x0302}, 0x0303},
		{"oldest first", []uint16{0x0301, 0x0302, 0x0303}, 0x0303},
		{"up to TLS 1.1", []uint16{0x0302, 0x0301}, 0x0302},
		{"up to TLS 1.3, but not TLS 1.2", []uint16{0x0304, 0x0302}, 0x0303},
		{"TLS 1.3 alone", []uint16{0x0304}, 0x0303},
		{"nothing", nil, 0},
	} {
		t.Run(v.name, func(t *testing.T) {
			var got ski.Request
			k := answering(t, "RSA", &got, &ski.Response{Output: make([]byte, 48)}, nil)
			h := &tls.ClientHelloInfo{SupportedVersions: v.offered, ServerName: "www.example.com"}
			_, err := k.ForClientHello(h).PrivateKey().(crypto.Decrypter).Decrypt(nil, rsaInput, sessionKey(48))
			require.NoError(t, err)
			assert.Equal(t, v.want, got.ClientVersion)
			assert.Equal(t, "www.example.com", got.ServerName)

			_, err = k.ForClientHello(h).DraftOnly().PrivateKey().(crypto.Decrypter).Decrypt(nil, rsaInput, sessionKey(48))
			require.NoError(t, err)
			assert.Zero(t, got.ClientVersion)
			assert.Zero(t, got.ServerName)
		})
	}
}

func sessionKey(n int) crypto.DecrypterOpts {
	//lint:ignore SA1019 It is what crypto/tls uses.
	return &rsa.PKCS1v15DecryptOptions{SessionKeyLen: n}
}

func TestDecrypt(t *testing.T) {
	var got ski.Request
	secret := skitest.PreMasterSecret(0x0303)
	answer := bytes.Clone(secret)
	k := answering(t, "RSA", &got, &ski.Response{Output: answer}, nil)
	output, err := k.PrivateKey().(crypto.Decrypter).Decrypt(nil, rsaInput, sessionKey(48))
	require.NoError(t, err)
	assert.Equal(t, secret, output)
	assert.Zero(t, string(bytes.Trim(answer, "\x00")), "the answer is cleared")
	assert.Equal(t, ski.Request{Protocol: ski.TLS12, SPKI: k.ID(), Method: ski.MethodRSA, Input: rsaInput}, got)

	bound := k.ForConnection(t.Context(), ski.Connection{Protocol: ski.TLS11, ClientVersion: 0x0303, ServerName: "a.example"})
	_, err = bound.PrivateKey().(crypto.Decrypter).Decrypt(nil, rsaInput, sessionKey(48))
	require.NoError(t, err)
	assert.Equal(t, ski.Request{
		Protocol: ski.TLS11, SPKI: k.ID(), Method: ski.MethodRSA, Input: rsaInput,
		ClientVersion: 0x0303, ServerName: "a.example",
	}, got)
}

// Whatever the key server answers that is no PreMasterSecret of the client, the
// result is a secret like any other, and never the same (RFC 5246, Section
// 7.4.7.1).
func TestDecryptWrongAnswers(t *testing.T) {
	var got ski.Request
	for _, wrong := range skitest.WrongPreMasterSecrets() {
		t.Run(wrong.Name, func(t *testing.T) {
			seen := map[string]bool{}
			for range 10 {
				resp, err := &ski.Response{Output: bytes.Clone(wrong.Response.Output), Error: wrong.Response.Error}, error(nil)
				if wrong.Body != nil {
					_, err = ski.DecodeResponse(ski.CBOR, wrong.Body)
					require.Error(t, err)
					resp, err = nil, &ski.TransportError{Endpoint: "coaps://ks", Op: "answer", Err: err}
				}
				k := answering(t, "RSA", &got, resp, err).ForConnection(t.Context(), ski.Connection{ClientVersion: 0x0303})
				secret, err := k.PrivateKey().(crypto.Decrypter).Decrypt(nil, rsaInput, sessionKey(48))
				require.NoError(t, err)
				require.Len(t, secret, 48)
				seen[string(secret)] = true
				assert.False(t, len(wrong.Response.Output) > 2 && bytes.Contains(wrong.Response.Output, secret[2:]))
				if resp != nil {
					assert.Equal(t, make([]byte, len(resp.Output)), append([]byte{}, resp.Output...), "what may be a secret is cleared")
				}
			}
			assert.Len(t, seen, 10)
		})
	}
}

// A PreMasterSecret begins with the client's version, or with one that the client
// may have where it is not known.
func TestDecryptVersions(t *testing.T) {
	var got ski.Request
	for _, v := range []struct {
		conn ski.Connection
		ok   []uint16
	}{
		{ski.Connection{}, []uint16{0x0303}},
		{ski.Connection{Protocol: ski.TLS12}, []uint16{0x0303}},
		{ski.Connection{Protocol: ski.TLS11}, []uint16{0x0302, 0x0303}},
		{ski.Connection{Protocol: ski.TLS10}, []uint16{0x0301, 0x0302, 0x0303}},
		{ski.Connection{Protocol: ski.TLS10, ClientVersion: 0x0302}, []uint16{0x0302}},
		{ski.Connection{Protocol: ski.TLS12, ClientVersion: 0x0304}, []uint16{0x0304}},
		{ski.Connection{Protocol: ski.DTLS10}, []uint16{0xFEFD, 0xFEFF}},
		{ski.Connection{Protocol: ski.DTLS12}, []uint16{0xFEFD}},
		{ski.Connection{Protocol: ski.DTLS12, ClientVersion: 0xFEFD}, []uint16{0xFEFD}},
	} {
		for _, version := range []uint16{0, 0x0002, 0x0300, 0x0301, 0x0302, 0x0303, 0x0304, 0xFEFC, 0xFEFD, 0xFEFF, 0xFFFF} {
			secret := skitest.PreMasterSecret(version)
			k := answering(t, "RSA", &got, &ski.Response{Output: bytes.Clone(secret)}, nil).ForConnection(t.Context(), v.conn)
			output, err := k.PrivateKey().(crypto.Decrypter).Decrypt(nil, rsaInput, sessionKey(48))
			require.NoError(t, err)
			assert.Equal(t, slices.Contains(v.ok, version), bytes.Equal(secret, output), "%+v: %04x", v.conn, version)
		}
	}
}

func TestDecryptErrors(t *testing.T) {
	var got ski.Request
	timeOut := &ski.TransportError{Endpoint: "coaps://ks", Op: "answer", Err: context.DeadlineExceeded}
	for _, none := range []error{
		&ski.TransportError{Endpoint: "coaps://ks", Op: "dial", Err: io.EOF},
		&ski.TransportError{Endpoint: "coaps://ks", Op: "request", Err: io.EOF},
		timeOut, fmt.Errorf("twice: %w", timeOut), context.Canceled, context.DeadlineExceeded,
		// Nothing that the client encrypts makes a request impossible in this way.
		&ski.MalformedError{Attribute: "spki", Reason: "has no name"},
	} {
		output, err := answering(t, "RSA", &got, nil, none).PrivateKey().(crypto.Decrypter).Decrypt(nil, rsaInput, sessionKey(48))
		assert.Equal(t, none, err)
		assert.Nil(t, output)
	}

	// A ciphertext that cannot even be sent is the client's fault.
	for _, attribute := range []string{"input", ""} {
		malformed := &ski.MalformedError{Attribute: attribute, Reason: "is empty"}
		output, err := answering(t, "RSA", &got, nil, malformed).PrivateKey().(crypto.Decrypter).Decrypt(nil, nil, sessionKey(48))
		require.NoError(t, err)
		assert.Len(t, output, 48)
	}
}

// The decryptions that a TLS server never asks for are not passed on.
func TestDecryptIsNoOracle(t *testing.T) {
	var got ski.Request
	resp := &ski.Response{Output: make([]byte, 48)}
	for name, opts := range map[string]crypto.DecrypterOpts{
		"nil":            nil,
		"OAEP":           &rsa.OAEPOptions{Hash: crypto.SHA256},
		"any length":     sessionKey(0),
		"32 bytes":       sessionKey(32),
		"something else": io.Discard,
	} {
		_, err := answering(t, "RSA", &got, resp, nil).PrivateKey().(crypto.Decrypter).Decrypt(nil, rsaInput, opts)
		assert.Error(t, err, name)
	}
	// crypto/tls would refuse TLS 1.2 to them.
	for _, name := range []string{"P-256", "Ed25519"} {
		_, decrypts := answering(t, name, &got, resp, nil).PrivateKey().(crypto.Decrypter)
		assert.False(t, decrypts, name)
	}
	assert.Zero(t, got, "the key server was asked")
}
