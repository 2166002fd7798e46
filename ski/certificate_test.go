package ski_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// handshake runs a TLS handshake over a pipe and returns what the client got
// to.
func handshake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	clientSide, serverSide := net.Pipe()
	defer clientSide.Close()
	served := make(chan error, 1)
	go func() {
		defer serverSide.Close()
		served <- tls.Server(serverSide, server).HandshakeContext(ctx)
	}()
	conn := tls.Client(clientSide, client)
	err := conn.HandshakeContext(ctx)
	clientSide.Close()
	return conn.ConnectionState(), err, <-served
}

// TestHandshakes runs every kind of key through crypto/tls, which verifies the
// signatures and the Finished messages.
func TestHandshakes(t *testing.T) {
	for _, v := range []struct {
		key     string
		version uint16
		suite   uint16 // 0: what crypto/tls picks
		draft   bool
		want    ski.Request
	}{
		{"P-256", tls.VersionTLS12, 0, false, ski.Request{Protocol: ski.TLS12, Hash: ski.SHA256}},
		{"P-256", tls.VersionTLS12, 0, true, ski.Request{Protocol: ski.TLS12, Hash: ski.SHA256}},
		{"P-384", tls.VersionTLS12, 0, true, ski.Request{Protocol: ski.TLS12, Hash: ski.SHA256}},
		{"RSA", tls.VersionTLS12, 0, false, ski.Request{Protocol: ski.TLS12, Scheme: tls.PSSWithSHA256}},
		{"RSA", tls.VersionTLS12, 0, true, ski.Request{Protocol: ski.TLS12, Hash: ski.SHA256}},
		{"RSA", tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, false, ski.Request{Protocol: ski.TLS12, Method: ski.MethodRSA, ClientVersion: 0x0303}},
		{"RSA", tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, true, ski.Request{Protocol: ski.TLS12, Method: ski.MethodRSA}},
		{"RSA", tls.VersionTLS11, tls.TLS_RSA_WITH_AES_128_CBC_SHA, false, ski.Request{Protocol: ski.TLS11, Method: ski.MethodRSA, ClientVersion: 0x0302}},
		{"RSA", tls.VersionTLS10, tls.TLS_RSA_WITH_AES_128_CBC_SHA, false, ski.Request{Protocol: ski.TLS10, Method: ski.MethodRSA, ClientVersion: 0x0301}},
		{"Ed25519", tls.VersionTLS12, 0, false, ski.Request{Protocol: ski.TLS12, Scheme: tls.Ed25519}},
		{"P-256", tls.VersionTLS13, 0, false, ski.Request{Protocol: ski.TLS13, Scheme: tls.ECDSAWithP256AndSHA256}},
		{"P-384", tls.VersionTLS13, 0, false, ski.Request{Protocol: ski.TLS13, Scheme: tls.ECDSAWithP384AndSHA384}},
		{"P-521", tls.VersionTLS13, 0, false, ski.Request{Protocol: ski.TLS13, Scheme: tls.ECDSAWithP521AndSHA512}},
		{"RSA", tls.VersionTLS13, 0, false, ski.Request{Protocol: ski.TLS13, Scheme: tls.PSSWithSHA256}},
		{"Ed25519", tls.VersionTLS13, 0, false, ski.Request{Protocol: ski.TLS13, Scheme: tls.Ed25519}},
	} {
		name := v.key + " " + tls.VersionName(v.version)
		if v.draft {
			name += " draft"
		}
		if v.suite != 0 {
			name += " " + tls.CipherSuiteName(v.suite)
		}
		t.Run(name, func(t *testing.T) {
			key := privateKeys()[v.key]
			ks := skitest.NewKeyServer(key)
			leaf := selfSigned(t, key, "www.example.com")
			cert, err := ski.NewCertificate(ski.Direct(ks, peer), leaf.Raw)
			require.NoError(t, err)
			if v.draft {
				cert = cert.DraftOnly()
			}
			server := &tls.Config{GetCertificate: cert.GetCertificate, MaxVersion: v.version}
			client := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "www.example.com"}
			client.RootCAs.AddCert(leaf)
			if v.version < tls.VersionTLS12 {
				server.MinVersion, client.MinVersion, client.MaxVersion = v.version, v.version, v.version
			}
			if v.suite != 0 {
				server.CipherSuites, client.CipherSuites = []uint16{v.suite}, []uint16{v.suite}
			}
			state, clientErr, serverErr := handshake(t, server, client)
			require.NoError(t, serverErr)
			require.NoError(t, clientErr)
			assert.Equal(t, v.version, state.Version)

			require.Len(t, ks.Requests(), 1)
			got := ks.Requests()[0]
			assert.NotEmpty(t, got.Input)
			want := v.want
			want.SPKI, want.Method, want.Input = ski.CertificateKeyID(leaf), want.KeyExchange(), got.Input
			if !v.draft {
				want.ServerName = "www.example.com"
			}
			assert.Equal(t, want, got)
		})
	}
}

// A key server that refuses ends the handshake with an alert, not with a
// signature of somebody else.
func TestHandshakeRefused(t *testing.T) {
	leaf := selfSigned(t, privateKeys()["P-256"], "www.example.com")
	cert, err := ski.NewCertificate(ski.Direct(handler(ski.Failed(ski.RequestDenied)), peer), leaf.Raw)
	require.NoError(t, err)
	_, clientErr, serverErr := handshake(t, &tls.Config{GetCertificate: cert.GetCertificate}, &tls.Config{InsecureSkipVerify: true})
	assert.ErrorContains(t, serverErr, ski.RequestDenied.Error())
	assert.ErrorContains(t, clientErr, "internal error")
}

func TestNewCertificate(t *testing.T) {
	_, err := ski.NewCertificate(nil)
	assert.ErrorContains(t, err, "at least one")
	_, err = ski.NewCertificate(nil, []byte("not DER"))
	assert.Error(t, err)

	leaf := selfSigned(t, privateKeys()["P-256"], "a.example")
	cert, err := ski.NewCertificate(nil, leaf.Raw, []byte("the issuer"))
	require.NoError(t, err)
	assert.Equal(t, ski.CertificateKeyID(leaf), cert.Key.ID())
	got := cert.ForClientHello(&tls.ClientHelloInfo{})
	assert.Equal(t, [][]byte{leaf.Raw, []byte("the issuer")}, got.Certificate)
	assert.Equal(t, leaf.Raw, got.Leaf.Raw)
}

func TestLoadCertificate(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, blocks ...*pem.Block) string {
		var data []byte
		for _, b := range blocks {
			data = append(data, pem.EncodeToMemory(b)...)
		}
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, data, 0o600))
		return file
	}
	leaf := selfSigned(t, privateKeys()["P-384"], "a.example")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}
	other := &pem.Block{Type: "EC PARAMETERS", Bytes: []byte{5, 0}}

	cert, err := ski.LoadCertificate(nil, write("chain.pem", other, block, block))
	require.NoError(t, err)
	assert.Equal(t, leaf.Raw, cert.Leaf.Raw)
	assert.Len(t, cert.ForClientHello(&tls.ClientHelloInfo{}).Certificate, 2)

	_, err = ski.LoadCertificate(nil, filepath.Join(dir, "none.pem"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = ski.LoadCertificate(nil, write("none.pem", other))
	assert.ErrorContains(t, err, "no PEM block of type CERTIFICATE")
	_, err = ski.LoadCertificate(nil, write("bad.pem", &pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}))
	assert.ErrorContains(t, err, "bad.pem")
}
