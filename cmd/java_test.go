package cmd_test

import (
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// The edge server and skictl request, with a stand-in for the key server in
// Java whose operator has named the keys in one way or the other.
func TestTheKeyServerInJavaServesTheCommands(t *testing.T) {
	shared := newConformanceSetup(t)
	require.NoError(t, os.Mkdir(shared.path("site"), 0o755))
	pair, err := tls.LoadX509KeyPair(shared.path("rsa.crt"), shared.path("keys/rsa.pem"))
	require.NoError(t, err)
	for names, name := range map[string]string{
		"sha256": ski.CertificateKeyID(pair.Leaf).String(),
		"sha1":   fmt.Sprintf("%X", sha1.Sum(pair.Leaf.Raw)),
	} {
		t.Run(names, func(t *testing.T) {
			c := &conformanceSetup{t, shared.dir}
			java := skitest.NewJavaKeyServer(map[string]*rsa.PrivateKey{name: pair.PrivateKey.(*rsa.PrivateKey)})
			url := c.serveHTTPS(java)

			input := append(make([]byte, 64), 3, 0, 23, 65)
			request := func(args ...string) (string, string, int) {
				return run(t, "", filepath.Join(bin, "skictl"), append(append([]string{"request", "--endpoint", url, "--java", names,
					"--protocol", "TLS 1.2", "--spki", "@" + c.path("rsa.crt"), "--input", fmt.Sprintf("%x%0130x", input, 1)}, c.channel("edge")...), args...)...)
			}
			out, all, status := request("--diag")
			require.Zero(t, status, all)
			assert.Contains(t, out, `"output":"`)
			assert.Contains(t, all, `request: {"protocol":"TLS 1.2","spki":"`+name+`","method":"ECDHE","hash":"SHA1","input":"`)
			_, all, status = request("--scheme", "0x0804")
			assert.Equal(t, 1, status)
			assert.Contains(t, all, "'scheme' is an extension that the key server does not know")
			_, all, status = request("--input", "00")
			assert.Equal(t, 1, status)
			assert.Contains(t, all, "not of the curve P-256")

			for _, engine := range []string{"standard", "split"} {
				config := "java-" + names + "-" + engine + ".yaml"
				c.write(config, `
listen: ["127.0.0.1:0"]
keyserver: {url: "`+url+`", certificate: edge.pem, key: edge.key, ca: pki/ca.pem, java_names: `+names+`, unsafe_java_static_rsa: true}
sites:
  - {names: [rsa.test], certificates: [rsa.crt], static: site, static_rsa: true, engine: `+engine+`}
`)
				_, all, status = run(t, "", filepath.Join(bin, "ski-edgeserver"), "-check", "-config", c.path(config))
				require.Zero(t, status, all)
				assert.Contains(t, all, "warning: unsafe_java_static_rsa lets clients have the key server decrypt recorded connections")
				_, addr := c.start("msg=listening addr=", "ski-edgeserver", "-config", c.path(config))
				for _, cipher := range []string{"ECDHE-RSA-AES128-GCM-SHA256", "AES128-GCM-SHA256"} {
					_, all, status = run(t, "", "openssl", "s_client", "-connect", addr, "-servername", "rsa.test", "-CAfile", c.path("rsa.crt"),
						"-verify_return_error", "-brief", "-tls1_2", "-cipher", cipher)
					assert.Zero(t, status, "%s: %s", engine, all)
					assert.Contains(t, all, "Ciphersuite: "+cipher)
					assert.Equal(t, name, java.Last()["spki"])
				}
			}
		})
	}
	for _, tc := range []struct{ scheme, names, site, more, want string }{
		{"https", "md5", "rsa", "", "keyserver.java_names: 'md5' is not sha256 or sha1"},
		{"https", "sha1", "ecdsa", "", "sites[0].certificates[0]: the key server in Java has RSA keys alone"},
		{"coaps", "sha1", "rsa", "", "keyserver.url: coaps://127.0.0.1:1: the key server in Java is at https://"},
		{"https", "sha1", "rsa", ", static_rsa: true", "sites[0].static_rsa: the key server in Java tells TLS clients by its time"},
		{"https", "sha1", "rsa", ", static_rsa: true", "say keyserver.unsafe_java_static_rsa: true"},
	} {
		shared.write("java-wrong.yaml", fmt.Sprintf(`
keyserver: {url: "%s://127.0.0.1:1", certificate: edge.pem, key: edge.key, ca: pki/ca.pem, java_names: %s}
sites: [{names: [%s.test], certificates: [%[3]s.crt], static: site%s}]
`, tc.scheme, tc.names, tc.site, tc.more))
		_, all, status := run(t, "", filepath.Join(bin, "ski-edgeserver"), "-check", "-config", shared.path("java-wrong.yaml"))
		assert.Equal(t, 1, status)
		assert.Contains(t, all, tc.want)
	}
}

// The key server in Java for one site, and ours for those beside it, one of which
// has a certificate of its own for the same key.
func TestAKeyServerInJavaBesideOurs(t *testing.T) {
	c := newConformanceSetup(t)
	require.NoError(t, os.Mkdir(c.path("site"), 0o755))
	c.must("openssl", "req", "-x509", "-new", "-key", c.path("keys/rsa.pem"), "-subj", "/CN=other.test",
		"-addext", "subjectAltName=DNS:other.test", "-days", "2", "-out", c.path("other.crt"))
	pair, err := tls.LoadX509KeyPair(c.path("rsa.crt"), c.path("keys/rsa.pem"))
	require.NoError(t, err)
	java := skitest.NewJavaKeyServer(map[string]*rsa.PrivateKey{
		fmt.Sprintf("%X", sha1.Sum(pair.Leaf.Raw)): pair.PrivateKey.(*rsa.PrivateKey),
	})
	c.write("keyserver.yaml", `
listen: 127.0.0.1:0
certificate: ks.pem
key: ks.key
client_ca: pki/ca.pem
keys: keys
policy: policy.yaml
audit: {file: audit.log}
`)
	_, ours := c.start("msg=listening addr=", "ski-keyserver", "-config", c.path("keyserver.yaml"))
	for _, engine := range []string{"standard", "split"} {
		c.write("edge.yaml", `
listen: ["127.0.0.1:0"]
keyserver: {url: "coaps://`+ours+`/ski", certificate: edge.pem, key: edge.key, ca: pki/ca.pem}
keyservers:
  java: {url: "`+c.serveHTTPS(java)+`", java_names: sha1, unsafe_java_static_rsa: true}
sites:
  - {names: [rsa.test], certificates: [rsa.crt], static: site, keyserver: java, static_rsa: true, engine: `+engine+`}
  - {names: [other.test], certificates: [other.crt], static: site}
  - {names: [ecdsa.test], certificates: [ecdsa.crt], static: site}
`)
		start := java.Last()["input"]
		_, addr := c.start("msg=listening addr=", "ski-edgeserver", "-config", c.path("edge.yaml"))
		require.Eventually(t, func() bool { return java.Last()["input"] != start }, time.Minute, time.Millisecond, "the question at the start")
		for _, tc := range []struct {
			site string
			args string // of s_client
			want string
		}{
			{"rsa", "", "ECDHE-RSA-AES128-GCM-SHA256"},
			{"rsa", "-tls1_2 -groups X25519:P-256", "ECDHE-RSA-AES128-GCM-SHA256"},
			{"rsa", "-tls1_2 -groups X25519", "AES128-GCM-SHA256"}, // It has P-256 alone.
			{"rsa", "-tls1_2 -cipher AES128-GCM-SHA256", "AES128-GCM-SHA256"},
			{"rsa", "-cipher AES128-GCM-SHA256", "AES128-GCM-SHA256"}, // of a client that knows TLS 1.3
			{"other", "-groups X25519", "TLS_AES_128_GCM_SHA256"},
			{"other", "-tls1_2 -groups X25519", "ECDHE-RSA-AES128-GCM-SHA256"},
			{"ecdsa", "", "TLS_AES_128_GCM_SHA256"},
		} {
			before := java.Last()
			_, all, status := run(t, "", "openssl", append([]string{"s_client", "-connect", addr, "-servername", tc.site + ".test",
				"-CAfile", c.path(tc.site + ".crt"), "-verify_return_error", "-brief"}, strings.Fields(tc.args)...)...)
			assert.Zero(t, status, "%s %+v: %s", engine, tc, all)
			assert.Contains(t, all, "Ciphersuite: "+tc.want+"\n", "%s %+v", engine, tc)
			if tc.site != "rsa" {
				assert.Equal(t, before, java.Last(), "the key server of another site is not asked")
			}
		}
	}
}

// serveHTTPS serves a handler with the key server's certificate.
func (c *conformanceSetup) serveHTTPS(h http.Handler) (url string) {
	c.t.Helper()
	identity, err := tls.LoadX509KeyPair(c.path("ks.pem"), c.path("ks.key"))
	require.NoError(c.t, err)
	ca, err := os.ReadFile(c.path("pki/ca.pem"))
	require.NoError(c.t, err)
	block, _ := pem.Decode(ca)
	authority, err := x509.ParseCertificate(block.Bytes)
	require.NoError(c.t, err)
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(c.t, err)
	server := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	go func() {
		_ = server.Serve(tls.NewListener(l, &tls.Config{
			Certificates: []tls.Certificate{identity}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		}))
	}()
	c.t.Cleanup(func() { _ = server.Close() })
	return "https://" + l.Addr().String()
}
