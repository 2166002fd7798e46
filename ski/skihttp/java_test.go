package skihttp

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

func TestTheKeyServerInJavaIsAsked(t *testing.T) {
	ca := newTestCA(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, ca.cert, ca.cert, &key.PublicKey, ca.key)
	require.NoError(t, err)
	site, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	id := ski.CertificateKeyID(site)
	sha1Name, err := CertificateNames(site)(id)
	require.NoError(t, err)
	assert.Regexp(t, "^[0-9A-F]{40}$", sha1Name)

	for name, tc := range map[string]struct {
		stored  string
		keyName func(ski.KeyID) (string, error)
	}{
		"SPKI fingerprint":        {id.String(), nil},
		"certificate fingerprint": {sha1Name, CertificateNames(site)},
	} {
		t.Run(name, func(t *testing.T) {
			java := skitest.NewJavaKeyServer(map[string]*rsa.PrivateKey{tc.stored: key})
			url := foreignServer(t, ca, java.ServeHTTP)
			c, err := NewClient(url, ClientConfig{
				Certificate: ca.edge(), RootCAs: ca.pool, Logger: quiet, Java: &JavaKeyServer{KeyName: tc.keyName, UnsafeStaticRSA: true},
			})
			require.NoError(t, err)
			defer c.Close()
			input := make([]byte, 133)
			copy(input[64:], []byte{3, 0, 23, 65, 4})

			// A signature, with a hash that has a name in the draft, and with the
			// default.
			resp, err := c.RoundTrip(t.Context(), &ski.Request{Protocol: ski.TLS12, SPKI: id, Hash: ski.SHA256, Input: input, ServerName: "www.example.com"})
			require.NoError(t, err)
			digest := sha256.Sum256(input)
			assert.NoError(t, rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest[:], resp.Output))
			assert.Equal(t, map[string]string{
				"protocol": "TLS 1.2", "spki": tc.stored, "method": "ECDHE", "hash": "SHA-256", "input": base64.StdEncoding.EncodeToString(input),
			}, java.Last(), "all attributes of the draft, and no others")
			resp, err = c.RoundTrip(t.Context(), &ski.Request{Protocol: ski.TLS12, SPKI: id, Input: input})
			require.NoError(t, err)
			assert.NotEmpty(t, resp.Output)
			assert.Equal(t, "SHA1", java.Last()["hash"])

			// A PreMasterSecret.
			secret := append([]byte{3, 3}, make([]byte, 46)...)
			//lint:ignore SA1019 this is TLS's static RSA key exchange
			encrypted, err := rsa.EncryptPKCS1v15(rand.Reader, &key.PublicKey, secret)
			require.NoError(t, err)
			resp, err = c.RoundTrip(t.Context(), &ski.Request{Protocol: ski.TLS12, SPKI: id, Method: ski.MethodRSA, ClientVersion: 0x0303, Input: encrypted})
			require.NoError(t, err)
			assert.Equal(t, secret, resp.Output)
			assert.NotContains(t, java.Last(), "hash")

			// Errors, whose status is 200.
			resp, err = c.RoundTrip(t.Context(), &ski.Request{Protocol: ski.TLS12, SPKI: id, Method: ski.MethodRSA, Input: []byte{1}})
			require.NoError(t, err)
			assert.Equal(t, ski.MalformedRequest, resp.Error)
			java.Remove(tc.stored)
			resp, err = c.RoundTrip(t.Context(), &ski.Request{Protocol: ski.TLS12, SPKI: id, Hash: ski.SHA256, Input: input})
			require.NoError(t, err)
			assert.Equal(t, ski.SPKINotFound, resp.Error)

			// What is not base64 gets no SKI message, as a client that tests it sees.
			_, err = c.Exchange(t.Context(), ski.JSON, []byte(`{"protocol":"TLS 1.2","spki":"x","method":"RSA","input":"!"}`))
			te := (*ski.TransportError)(nil)
			require.ErrorAs(t, err, &te)
			assert.ErrorContains(t, err, "500 Internal Server Error without an SKI message")
		})
	}
}

// What that key server cannot do fails before it is asked.
func TestTheKeyServerInJavaIsNotAskedForWhatItCannotDo(t *testing.T) {
	java := &JavaKeyServer{KeyName: CertificateNames()}
	input := make([]byte, 133)
	for want, req := range map[string]*ski.Request{
		"'protocol' is not one":     {Protocol: ski.TLS13, Input: input},
		"'scheme' is an extension":  {Protocol: ski.TLS12, Scheme: 0x0403, Input: input},
		"alone the key server":      {Protocol: ski.TLS12, Input: input[1:]},
		"'method' is not one":       {Protocol: ski.TLS12, Method: ski.MethodDHE, Input: input},
		"'method' is RSA":           {Protocol: ski.TLS12, Method: ski.MethodRSA, Input: input},
		"none of the certificates":  {Protocol: ski.TLS12, Input: input},
		"'input' is missing":        {Protocol: ski.TLS12},
		"one of the known versions": {Protocol: "SSL", Input: input},
	} {
		_, err := java.EncodeRequest(req)
		malformed := (*ski.MalformedError)(nil)
		require.ErrorAs(t, err, &malformed, want)
		assert.ErrorContains(t, err, want)
	}
}
