package skicoap

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pion/dtls/v2"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// withRSA is a certificate like another, with an RSA key and of an authority
// with one: pion/dtls v2 goes by the signature on the certificate where it
// should by that on the handshake.
func (ca *testCA) withRSA(usage x509.ExtKeyUsage) tls.Certificate {
	ca.t.Helper()
	sign := func(template, parent *x509.Certificate, pub, key any) []byte {
		template.PublicKey, template.SignatureAlgorithm, template.AuthorityKeyId = nil, 0, nil
		der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
		require.NoError(ca.t, err)
		return der
	}
	authorityKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(ca.t, err)
	template := *ca.cert
	template.SubjectKeyId, template.Subject.CommonName, template.RawSubject = nil, "test RSA CA", nil
	authority, err := x509.ParseCertificate(sign(&template, &template, authorityKey.Public(), authorityKey))
	require.NoError(ca.t, err)
	ca.pool.AddCert(authority)
	leaf, err := x509.ParseCertificate(ca.issue(usage).Certificate[0])
	require.NoError(ca.t, err)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(ca.t, err)
	return tls.Certificate{Certificate: [][]byte{sign(leaf, authority, key.Public(), authorityKey)}, PrivateKey: key}
}

// pion/dtls v2 is what is in use elsewhere: it has another handshake than v3.
func TestAPionV2ClientIsServed(t *testing.T) {
	ca := newTestCA(t)
	servers := map[string]tls.Certificate{"ECDSA": ca.keyServer(), "RSA": ca.withRSA(x509.ExtKeyUsageServerAuth)}
	edges := map[string]tls.Certificate{"ECDSA": ca.edge(), "RSA": ca.withRSA(x509.ExtKeyUsageClientAuth)}
	body, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)
	for _, tc := range []struct {
		suite        dtls.CipherSuiteID
		server, edge string
	}{
		{dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, "ECDSA", "ECDSA"},
		{dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, "ECDSA", "RSA"},
		{dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM, "ECDSA", "ECDSA"},
		{dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "ECDSA", "ECDSA"},
		{dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "ECDSA", "ECDSA"},
		{dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "RSA", "ECDSA"},
		{dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "RSA", "RSA"},
		{dtls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "RSA", "ECDSA"},
	} {
		t.Run(fmt.Sprintf("%s, edge with %s", tc.suite, tc.edge), func(t *testing.T) {
			s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: servers[tc.server], ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			conn, err := dtls.DialWithContext(ctx, "udp", net.UDPAddrFromAddrPort(s.Addr()), &dtls.Config{
				Certificates: []tls.Certificate{edges[tc.edge]}, RootCAs: ca.pool, ServerName: "localhost",
				CipherSuites: []dtls.CipherSuiteID{tc.suite}, ExtendedMasterSecret: dtls.RequireExtendedMasterSecret,
			})
			require.NoError(t, err)
			defer conn.Close()
			datagram, err := encode(message.Message{
				Type: message.Confirmable, Code: codes.POST, MessageID: 1, Token: []byte{1}, Options: with(), Payload: body,
			})
			require.NoError(t, err)
			_, err = conn.Write(datagram)
			require.NoError(t, err)
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
			buf := make([]byte, maxDatagram)
			n, err := conn.Read(buf)
			require.NoError(t, err)
			answer := message.Message{Options: make(message.Options, 0, 16)}
			_, err = coder.DefaultCoder.Decode(buf[:n], &answer)
			require.NoError(t, err)
			assert.Equal(t, codes.Changed, answer.Code)
		})
	}
}

// pemFile writes a certificate with its key for other programs.
func pemFile(t testing.TB, cert tls.Certificate) string {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	var text bytes.Buffer
	require.NoError(t, pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	require.NoError(t, pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
	file := filepath.Join(t.TempDir(), "cert.pem")
	require.NoError(t, os.WriteFile(file, text.Bytes(), 0o600))
	return file
}

// Each cipher suite that is on is one that OpenSSL agrees on with us, and none
// that is off is.
func TestOpenSSLNegotiatesEachCipherSuite(t *testing.T) {
	ca := newTestCA(t)
	const key = "000102030405060708090a0b0c0d0e0f"
	psk, err := hex.DecodeString(key)
	require.NoError(t, err)
	servers := map[string]*Server{}
	for name, cert := range map[string]tls.Certificate{"ECDSA": ca.keyServer(), "RSA": ca.withRSA(x509.ExtKeyUsageServerAuth)} {
		servers[name] = serve(t, "127.0.0.1:0", ServerConfig{
			Certificate: cert, ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), PSK: func(string) []byte { return psk },
		})
	}
	servers["PSK"] = serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo),
		PSK: func(string) []byte { return psk }, PSKWithoutForwardSecrecy: true,
	})
	edge := pemFile(t, ca.edge())
	for _, tc := range []struct {
		server, suite string
		refused       bool
	}{
		{server: "ECDSA", suite: "ECDHE-ECDSA-AES128-GCM-SHA256"},
		{server: "ECDSA", suite: "ECDHE-ECDSA-AES256-GCM-SHA384"},
		{server: "ECDSA", suite: "ECDHE-ECDSA-CHACHA20-POLY1305"},
		{server: "ECDSA", suite: "ECDHE-ECDSA-AES128-CCM"},
		{server: "ECDSA", suite: "ECDHE-ECDSA-AES128-CCM8"},
		{server: "RSA", suite: "ECDHE-RSA-AES128-GCM-SHA256"},
		{server: "RSA", suite: "ECDHE-RSA-AES256-GCM-SHA384"},
		{server: "RSA", suite: "ECDHE-RSA-CHACHA20-POLY1305"},
		{server: "ECDSA", suite: "ECDHE-PSK-CHACHA20-POLY1305"},
		{server: "PSK", suite: "PSK-AES128-GCM-SHA256"},
		{server: "PSK", suite: "PSK-AES128-CCM"},
		{server: "PSK", suite: "PSK-AES128-CCM8"},
		{server: "ECDSA", suite: "PSK-AES128-CCM8", refused: true},
		{server: "ECDSA", suite: "ECDHE-ECDSA-AES256-SHA", refused: true},
		{server: "ECDSA", suite: "ECDHE-PSK-AES128-CBC-SHA256", refused: true},
		{server: "PSK", suite: "PSK-CHACHA20-POLY1305", refused: true},
	} {
		t.Run(tc.server+" "+tc.suite, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if tc.refused {
				ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second) // nothing is answered before the cookie
				defer cancel()
			}
			args := []string{"s_client", "-dtls1_2", "-connect", servers[tc.server].Addr().String(), "-brief", "-cipher", tc.suite + ":@SECLEVEL=0"}
			if bytes.Contains([]byte(tc.suite), []byte("PSK")) {
				args = append(args, "-psk", key, "-psk_identity", "edge-1")
			} else {
				args = append(args, "-cert", edge)
			}
			cmd := exec.CommandContext(ctx, "openssl", args...)
			out, err := cmd.CombinedOutput()
			if tc.refused {
				require.Error(t, err, string(out))
				return
			}
			require.NoError(t, err, string(out))
			assert.Contains(t, string(out), "Ciphersuite: "+tc.suite)
		})
	}
}
