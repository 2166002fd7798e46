package skihttp

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// javaStandIn behaves like the key server in Java: POST / alone, a database of
// RSA keys by any text, errors in answers of status 200, and Jetty's page for what
// it throws an exception at.
type javaStandIn struct {
	t    *testing.T
	keys map[string]*rsa.PrivateKey
	last map[string]string // the last request
}

func (j *javaStandIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" || r.Method != http.MethodPost {
		http.Error(w, "<h1>Not Found</h1>", http.StatusNotFound)
		return
	}
	var m map[string]string
	data, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(data, &m)
	j.last = m
	answer := func(key, text string) {
		w.Header().Set("Content-Type", "application/json;charset=utf-8")
		// Its library escapes the slash.
		fmt.Fprintf(w, "{\"%s\":\"%s\"}\n", key, strings.ReplaceAll(text, "/", `\/`))
	}
	protocols := map[string]bool{"TLS 1.0": true, "TLS 1.1": true, "TLS 1.2": true, "DTLS 1.0": true, "DTLS 1.2": true}
	hashes := map[string]crypto.Hash{"SHA1": crypto.SHA1, "SHA-224": crypto.SHA224, "SHA-256": crypto.SHA256, "SHA-384": crypto.SHA384, "SHA-512": crypto.SHA512}
	if !protocols[m["protocol"]] || m["spki"] == "" || m["method"] == "" || m["input"] == "" {
		answer("error", "malformed request")
		return
	}
	input, err := base64.StdEncoding.DecodeString(strings.TrimSpace(m["input"]))
	if err != nil {
		w.Header().Set("Content-Type", "text/html;charset=iso-8859-1")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, "<html><h2>HTTP ERROR 500</h2></html>")
		return
	}
	hash, known := hashes[m["hash"]]
	switch {
	case m["method"] == "ECDHE" && (!known || len(input) != 133), m["method"] == "RSA" && len(input) < 10:
		answer("error", "malformed request")
		return
	}
	key := j.keys[m["spki"]]
	if key == nil {
		answer("error", "spki not found")
		return
	}
	var output []byte
	if m["method"] == "RSA" {
		//lint:ignore SA1019 this is what that key server does
		output, err = rsa.DecryptPKCS1v15(nil, key, input)
	} else {
		digest := hash.New()
		digest.Write(input)
		output, err = rsa.SignPKCS1v15(rand.Reader, key, hash, digest.Sum(nil))
	}
	if err != nil {
		answer("error", "unspecified error")
		return
	}
	answer("output", base64.StdEncoding.EncodeToString(output))
}

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
			java := &javaStandIn{t: t, keys: map[string]*rsa.PrivateKey{tc.stored: key}}
			url := foreignServer(t, ca, java.ServeHTTP)
			c, err := NewClient(url, ClientConfig{
				Certificate: ca.edge(), RootCAs: ca.pool, Logger: quiet, Java: &JavaKeyServer{KeyName: tc.keyName},
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
			}, java.last, "all attributes of the draft, and no others")
			resp, err = c.RoundTrip(t.Context(), &ski.Request{Protocol: ski.TLS12, SPKI: id, Input: input})
			require.NoError(t, err)
			assert.NotEmpty(t, resp.Output)
			assert.Equal(t, "SHA1", java.last["hash"])

			// A PreMasterSecret.
			secret := append([]byte{3, 3}, make([]byte, 46)...)
			//lint:ignore SA1019 this is TLS's static RSA key exchange
			encrypted, err := rsa.EncryptPKCS1v15(rand.Reader, &key.PublicKey, secret)
			require.NoError(t, err)
			resp, err = c.RoundTrip(t.Context(), &ski.Request{Protocol: ski.TLS12, SPKI: id, Method: ski.MethodRSA, ClientVersion: 0x0303, Input: encrypted})
			require.NoError(t, err)
			assert.Equal(t, secret, resp.Output)
			assert.NotContains(t, java.last, "hash")

			// Errors, whose status is 200.
			resp, err = c.RoundTrip(t.Context(), &ski.Request{Protocol: ski.TLS12, SPKI: id, Method: ski.MethodRSA, Input: []byte{1}})
			require.NoError(t, err)
			assert.Equal(t, ski.MalformedRequest, resp.Error)
			delete(java.keys, tc.stored)
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
		"none of the certificates":  {Protocol: ski.TLS12, Input: input},
		"'input' is missing":        {Protocol: ski.TLS12},
		"one of the known versions": {Protocol: "SSL", Input: input},
	} {
		_, err := java.encode(ski.JSON, req)
		malformed := (*ski.MalformedError)(nil)
		require.ErrorAs(t, err, &malformed, want)
		assert.ErrorContains(t, err, want)
	}
}
