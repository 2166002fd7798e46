package main

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
)

// TestEncodeMessage holds that a request without mistakes is the one that an
// edge server sends.
func TestEncodeMessage(t *testing.T) {
	req := &ski.Request{
		Protocol: ski.TLS12, Method: ski.MethodRSA, SPKI: ski.KeyID{1, 2, 3}, Input: []byte{0xE5, 0xE6},
		Scheme: tls.PSSWithSHA256, ClientVersion: 0x0303, ServerName: "www.example.com",
		Group: tls.X25519, State: []byte{0x57},
	}
	for _, format := range []ski.Format{ski.CBOR, ski.JSON} {
		cmd := new(cobra.Command)
		addMessageFlags(cmd)
		require.NoError(t, cmd.ParseFlags([]string{
			"--protocol", "TLS 1.2", "--method", "RSA", "--spki", req.SPKI.String(), "--input", "e5:E6",
			"--scheme", "PSSWithSHA256", "--client-version", "0x0303", "--sni", "www.example.com",
			"--group", "x25519", "--state", "57",
		}))
		got, err := encodeMessage(cmd, format)
		require.NoError(t, err)
		decoded, err := ski.DecodeRequest(format, got)
		require.NoError(t, err)
		assert.Equal(t, req, decoded)
		if format == ski.CBOR {
			want, err := ski.EncodeRequest(format, req)
			require.NoError(t, err)
			assert.Equal(t, want, got)
		}
	}
}

// TestRequest asks a key server that grants www.example.com and denies the
// rest.
func TestRequest(t *testing.T) {
	server := startKeyServer(t, func(req *ski.Request) *ski.Response {
		if req.ServerName != "www.example.com" {
			return ski.Failed(ski.RequestDenied)
		}
		return &ski.Response{Output: append([]byte("signed "), req.Input...)}
	})
	spki := ski.KeyID{1}.String()
	attributes := []string{"--protocol", "TLS 1.2", "--spki", spki, "--input", "-"}

	status, stdout, stderr := skictl(t, "\x00\xff", append(server("--sni", "www.example.com"), attributes...)...)
	assert.Equal(t, 0, status, stderr)
	assert.Equal(t, `{"output":"`+hex.EncodeToString([]byte("signed \x00\xff"))+`"}`+"\n", stdout)
	assert.Empty(t, stderr)

	status, stdout, stderr = skictl(t, "\x00\xff", append(server("--json", "--diag"), attributes...)...)
	assert.Equal(t, 3, status)
	assert.Equal(t, `{"error":"request denied"}`+"\n", stdout)
	assert.Equal(t, `request: {"input":"AP8=","protocol":"TLS 1.2","spki":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`+"\n"+
		`answer: {"error":"request denied"}`+"\n", stderr)

	for name, v := range map[string]struct {
		args []string
		diag string
	}{
		"no attributes":  {nil, "{}"},
		"wrong":          {[]string{"--protocol", "SSL", "--spki", "00", "--scheme", "-1"}, `{"spki": h'00', "scheme": -1, "protocol": "SSL"}`},
		"not CBOR":       {[]string{"--raw", "5bffffffffffffffff"}, "h'5bffffffffffffffff' (not well-formed CBOR)"},
		"array":          {[]string{"--raw", "80"}, "[]"},
		"nothing at all": {[]string{"--raw", ""}, "h'' (not well-formed CBOR)"},
	} {
		status, stdout, stderr := skictl(t, "", server(append(v.args, "--diag")...)...)
		assert.Equal(t, 3, status, name)
		assert.Equal(t, `{"error":"malformed request"}`+"\n", stdout, name)
		assert.Equal(t, "request: "+v.diag+"\nanswer: {\"error\": \"malformed request\"}\n", stderr, name)
	}

	// The certificate of the key server has another name.
	status, stdout, stderr = skictl(t, "", server("--server-name", "ks-2.example", "--raw", "a0")...)
	assert.Equal(t, 1, status)
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, "ks-2.example")
}

// TestRequestECDHEPMS does both exchanges by hand, with a real key server.
func TestRequestECDHEPMS(t *testing.T) {
	site, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	keys := new(keyserver.MemoryStore)
	require.NoError(t, keys.Add("www.example.com", site))
	policy, err := keyserver.ParsePolicy("policy.yaml", []byte(`
edges: [{name: edge, dns: [edge]}]
rules: [{edges: [edge], keys: [www.example.com], methods: [ECDHE-PMS]}]
`), keys)
	require.NoError(t, err)
	ks, err := keyserver.New(keyserver.Options{Keys: keys, Policy: policy, Audit: keyserver.NewAuditLog(io.Discard)})
	require.NoError(t, err)
	server := startKeyServer(t, func(req *ski.Request) *ski.Response {
		return ks.ServeSKI(t.Context(), ski.Peer{DNSNames: []string{"edge"}}, req)
	})
	request := func(args ...string) (answer struct{ Output, Params, State string }) {
		spki, err := ski.PublicKeyID(site.Public())
		require.NoError(t, err)
		status, stdout, stderr := skictl(t, "", append(server("--method", "ECDHE-PMS", "--protocol", "TLS 1.2", "--spki", spki.String()), args...)...)
		require.Zero(t, status, stdout+stderr)
		require.NoError(t, json.Unmarshal([]byte(stdout), &answer))
		return answer
	}
	first := request("--group", "secp256r1", "--hash", "SHA-256", "--input", strings.Repeat("c15e", 32))
	client, err := ecdh.P256().GenerateKey(rand.Reader)
	require.NoError(t, err)
	params, err := hex.DecodeString(first.Params)
	require.NoError(t, err)
	public, err := ecdh.P256().NewPublicKey(params[4:])
	require.NoError(t, err)
	secret, err := client.ECDH(public)
	require.NoError(t, err)
	second := request("--state", first.State, "--input", hex.EncodeToString(client.PublicKey().Bytes()))
	require.Equal(t, hex.EncodeToString(secret), second.Output)
	require.Empty(t, second.Params+second.State)
}

// startKeyServer serves answer over CoAP and DTLS, and returns a function that
// makes the command line of a request to it.
func startKeyServer(t *testing.T, answer func(*ski.Request) *ski.Response) func(more ...string) []string {
	t.Helper()
	flags := startHandler(t, ski.HandlerFunc(func(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
		return answer(req)
	}))
	return func(more ...string) []string { return append(append([]string{"request"}, flags...), more...) }
}

// startHandler serves h over CoAP and DTLS, and returns the flags that say how an
// edge server called edge asks it.
func startHandler(t *testing.T, h ski.Handler) []string {
	t.Helper()
	dir, now := t.TempDir(), time.Now()
	authority, err := newAuthority(now, day)
	require.NoError(t, err)
	ks, err := authority.issue(leaf{
		name: "ks", usage: x509.ExtKeyUsageServerAuth, ips: []net.IP{net.IPv4(127, 0, 0, 1)}, life: day,
	}, now)
	require.NoError(t, err)
	edge, err := authority.issue(leaf{name: "edge", usage: x509.ExtKeyUsageClientAuth, dns: []string{"edge"}, life: day}, now)
	require.NoError(t, err)
	require.NoError(t, authority.write(filepath.Join(dir, "ca"), false))
	require.NoError(t, edge.write(filepath.Join(dir, "edge"), false))

	clients := x509.NewCertPool()
	clients.AddCert(authority.cert)
	server, err := skicoap.Listen("127.0.0.1:0", skicoap.ServerConfig{
		Handler:     h,
		Certificate: tls.Certificate{Certificate: [][]byte{ks.cert.Raw}, PrivateKey: ks.key},
		ClientCAs:   clients,
	})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	t.Cleanup(func() {
		assert.NoError(t, server.Close())
		assert.NoError(t, <-served)
	})
	return []string{
		"--timeout", "1m",
		"--endpoint", fmt.Sprintf("coaps://%s/ski", server.Addr()),
		"--ca", filepath.Join(dir, "ca.pem"),
		"--cert", filepath.Join(dir, "edge.pem"),
		"--key", filepath.Join(dir, "edge.key"),
	}
}
