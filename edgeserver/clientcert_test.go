package edgeserver

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// clientCA is an authority of clients, with one between it and them.
type clientCA struct {
	file               string
	root, intermediate *x509.Certificate
	rootKey, key       crypto.Signer // key is the intermediate's
}

func newClientCA(t *testing.T, name string) *clientCA {
	ca := &clientCA{file: filepath.Join(t.TempDir(), "client-ca.pem")}
	authority := func(name string, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer) {
		return sign(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}, parent, parentKey)
	}
	ca.root, ca.rootKey = authority(name, nil, nil)
	ca.intermediate, ca.key = authority(name+" for clients", ca.root, ca.rootKey)
	require.NoError(t, os.WriteFile(ca.file, pemOf(ca.root), 0o600))
	return ca
}

// sign returns a certificate and its key; without a parent it signs itself.
func sign(t *testing.T, template, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	if parent == nil {
		parent, parentKey = template, key
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert, key
}

func pemOf(certs ...*x509.Certificate) []byte {
	var all []byte
	for _, cert := range certs {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return all
}

// client returns a client's certificate, with the intermediate's. It ends after
// life.
func (ca *clientCA) client(t *testing.T, life time.Duration, usage x509.ExtKeyUsage) tls.Certificate {
	cert, key := sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "alice"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, ca.intermediate, ca.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw, ca.intermediate.Raw}, PrivateKey: key, Leaf: cert}
}

func (ca *clientCA) alice(t *testing.T) tls.Certificate {
	return ca.client(t, time.Hour, x509.ExtKeyUsageClientAuth)
}

// dialAndRead does a handshake and a request. In TLS 1.3 it is only then that a
// client learns what the server thinks of its certificate.
func (e *edge) dialAndRead(p *testPKI, c *tls.Config) (*tls.ConnectionState, error) {
	conn, err := e.dial(p, c)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", c.ServerName); err != nil {
		return nil, err
	}
	if _, err := io.ReadAll(conn); err != nil {
		return nil, err
	}
	state := conn.ConnectionState()
	return &state, nil
}

// ways are the engines and versions of TLS that a site can speak.
var ways = []struct {
	name, engine string
	version      uint16
}{
	{"standard TLS 1.2", EngineStandard, tls.VersionTLS12},
	{"standard TLS 1.3", EngineStandard, tls.VersionTLS13},
	{"split TLS 1.2", EngineSplit, tls.VersionTLS12},
}

func TestClientCertificates(t *testing.T) {
	const (
		handshakeFailure    = 40
		badCertificate      = 42
		unsupported         = 43
		expired             = 45
		unknownCA           = 48
		certificateRequired = 116 // RFC 8446, Section 6.2
	)
	p, ca, other := newPKI(t), newClientCA(t, "authority"), newClientCA(t, "another authority")
	long := ca.alice(t)
	for range maxClientChain {
		long.Certificate = append(long.Certificate, other.intermediate.Raw)
	}
	stolen := ca.alice(t)
	stolen.PrivateKey = other.key
	tests := []struct {
		name   string
		cert   *tls.Certificate
		alerts [3]uint8 // of the ways
		reason string
	}{
		{"valid", ptr(ca.alice(t)), [3]uint8{}, ""},
		{"of another authority", ptr(other.alice(t)), [3]uint8{unknownCA, unknownCA, unknownCA}, "unknown authority"},
		{"expired", ptr(ca.client(t, -time.Minute, x509.ExtKeyUsageClientAuth)), [3]uint8{expired, expired, expired}, "expired or not yet valid"},
		{"for servers", ptr(ca.client(t, time.Hour, x509.ExtKeyUsageServerAuth)), [3]uint8{badCertificate, badCertificate, unsupported}, "not for clients"},
		{"with another key", &stolen, [3]uint8{51, 51, 51}, "not valid"}, // decrypt_error
		{"with much beside it", &long, [3]uint8{badCertificate, badCertificate, badCertificate}, "not valid"},
	}
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			site := func(name, mode string) Site {
				return Site{Names: []string{name}, Certificates: []string{p.ecdsa(t, name)}, Static: p.dir, Engine: way.engine,
					ClientCertificates: ClientCertificates{Mode: mode, CA: ca.file}}
			}
			e := start(t, Config{Sites: []Site{site("required.test", "required"), site("optional.test", "optional"), site("off.test", "off")}}, p.transport())
			client := func(name string, cert *tls.Certificate) *tls.Config {
				return &tls.Config{ServerName: name, MaxVersion: way.version, MinVersion: way.version,
					GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
						if cert == nil {
							return new(tls.Certificate), nil
						}
						return cert, nil // also one that the server will not like
					}}
			}
			for _, name := range []string{"optional.test", "off.test"} {
				_, err := e.dialAndRead(p, client(name, nil))
				assert.NoError(t, err, name)
			}
			_, err := e.dialAndRead(p, client("off.test", ptr(other.alice(t))))
			assert.NoError(t, err, "it is not asked for")
			assert.NotContains(t, e.log.String(), "client's certificate")

			_, err = e.dialAndRead(p, client("required.test", nil))
			assertAlert(t, map[bool]uint8{false: handshakeFailure, true: certificateRequired}[way.version == tls.VersionTLS13], err)
			require.Eventually(t, func() bool { return strings.Contains(e.log.String(), `reason="no certificate"`) }, time.Minute, time.Millisecond)
			assert.Regexp(t, `level=INFO msg="handshake refused: the site does not accept the client's certificate".* site=required.test .*reason="no certificate"`, e.log.String())

			for _, tt := range tests {
				for _, name := range []string{"required.test", "optional.test"} {
					_, err := e.dialAndRead(p, client(name, tt.cert))
					if tt.reason == "" {
						assert.NoError(t, err, name)
						continue
					}
					if assert.Error(t, err, tt.name) {
						assertAlert(t, tt.alerts[i], err)
					}
					want := fmt.Sprintf(`level=INFO msg="handshake refused.* site=%s .*reason="%s"`, name, tt.reason)
					require.Eventually(t, func() bool { return containsMatch(e.log.String(), want) }, time.Minute, time.Millisecond, "%s: %s", tt.name, e.log)
				}
			}
			assert.NotContains(t, e.log.String(), "level=WARN")
		})
	}
}

func ptr[T any](v T) *T { return &v }

func containsMatch(text, pattern string) bool { return regexp.MustCompile(pattern).MatchString(text) }

// originOf returns an origin server, and what it has been asked.
func originOf(t *testing.T) (url string, seen chan *http.Request) {
	seen = make(chan *http.Request, 10)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		seen <- r
		w.Header().Set("Vary", "Accept, client-cert")
		io.WriteString(w, "from the origin")
	}))
	t.Cleanup(origin.Close)
	return origin.URL, seen
}

func bytesOf(t *testing.T, sequence string) []byte {
	require.Regexp(t, "^:.*:$", sequence)
	b, err := base64.StdEncoding.Strict().DecodeString(strings.Trim(sequence, ":"))
	require.NoError(t, err)
	return b
}

// TestTheOriginGetsTheClientsCertificate: and the same in a session that was
// resumed.
func TestTheOriginGetsTheClientsCertificate(t *testing.T) {
	p, ca := newPKI(t), newClientCA(t, "authority")
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			url, seen := originOf(t)
			site := func(name string, chain bool) Site {
				return Site{Names: []string{name}, Certificates: []string{p.ecdsa(t, name)}, Proxy: url, Engine: way.engine,
					ClientCertificates: ClientCertificates{Mode: "optional", CA: ca.file, ForwardChain: chain}}
			}
			e := start(t, Config{Sites: []Site{site("a.test", false), site("chain.test", true)}}, p.transport())
			alice := ca.alice(t)
			for _, name := range []string{"a.test", "chain.test"} {
				cache := tls.NewLRUClientSessionCache(1)
				for i, http2 := range []bool{true, false} {
					c := e.client(t, p)
					transport := c.Transport.(*http.Transport)
					transport.ForceAttemptHTTP2 = http2
					transport.TLSClientConfig.Certificates = []tls.Certificate{alice}
					transport.TLSClientConfig.MaxVersion = way.version
					transport.TLSClientConfig.ClientSessionCache = cache
					resp, body := get(t, c, "https://"+name)
					assert.Equal(t, "from the origin", body)
					assert.Equal(t, "*", resp.Header.Get("Vary"))
					assert.Equal(t, i == 1, resp.TLS.DidResume)
					r := <-seen
					require.Len(t, r.Header["Client-Cert"], 1)
					assert.Equal(t, alice.Leaf.Raw, bytesOf(t, r.Header.Get("Client-Cert")))
					if name == "chain.test" {
						require.Len(t, r.Header["Client-Cert-Chain"], 1)
						assert.Equal(t, ca.intermediate.Raw, bytesOf(t, r.Header.Get("Client-Cert-Chain")))
					} else {
						assert.Empty(t, r.Header["Client-Cert-Chain"])
					}
					transport.CloseIdleConnections()
				}
			}
			get(t, e.client(t, p), "https://chain.test")
			r := <-seen
			assert.Empty(t, r.Header["Client-Cert"], "the client has none")
			assert.Empty(t, r.Header["Client-Cert-Chain"])
		})
	}
}

func TestFieldsAboutTheClientAreNotTheClientsToSend(t *testing.T) {
	p, ca := newPKI(t), newClientCA(t, "authority")
	url, seen := originOf(t)
	site := func(name, mode string) Site {
		return Site{Names: []string{name}, Certificates: []string{p.ecdsa(t, name)}, Proxy: url,
			ClientCertificates: ClientCertificates{Mode: mode, CA: ca.file}}
	}
	sites := []Site{site("off.test", "off"), site("optional.test", "optional"), site("required.test", "required")}
	for _, trusted := range [][]string{nil, {"127.0.0.0/8"}} {
		e := start(t, Config{Sites: sites, TrustedProxies: trusted}, p.transport())
		alice := ca.alice(t)
		for _, name := range []string{"off.test", "optional.test", "required.test"} {
			client := &tls.Config{ServerName: name}
			if name == "required.test" {
				client.Certificates = []tls.Certificate{alice}
			}
			c, err := e.dial(p, client)
			require.NoError(t, err)
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: "+name+"\r\nConnection: close, Client-Cert, Forwarded, X-Request-Id\r\n"+
				"Client-Cert: :Zm9yZ2Vk:\r\nclient-cert: :Zm9yZ2Vk:\r\nClient_Cert: :Zm9yZ2Vk:\r\nCLIENT-CERT_CHAIN: :Zm9yZ2Vk:\r\nClient-Cert-Chain: :Zm9yZ2Vk:\r\n"+
				"X_Forwarded_For: forged\r\nX.Forwarded-For: forged\r\nX_Request_Id: forged\r\nX.Request-Id: forged\r\nClient.Cert: forged\r\nClient~Cert: forged\r\nProxy: forged\r\nX-Other: kept\r\nTransfer-Encoding: chunked\r\nTrailer: Client-Cert\r\n\r\n"+
				"1\r\nx\r\n0\r\nClient-Cert: :Zm9yZ2Vk:\r\n\r\n")
			_, err = io.ReadAll(c)
			require.NoError(t, err)
			c.Close()
			r := <-seen
			var got bytes.Buffer
			require.NoError(t, r.Header.Write(&got))
			require.NoError(t, r.Trailer.Write(&got))
			assert.NotContains(t, got.String(), "Zm9yZ2Vk")
			assert.NotContains(t, got.String(), "forged")
			assert.NotContains(t, got.String(), "_")
			assert.Equal(t, "kept", r.Header.Get("X-Other"))
			assert.Empty(t, r.Trailer)
			if name == "required.test" {
				assert.Equal(t, []string{byteSequence(alice.Leaf.Raw)}, r.Header["Client-Cert"])
			} else {
				assert.NotContains(t, r.Header, "Client-Cert")
			}
		}
	}
}

// TestAClientsCertificateDoesNotFillTheLog: crypto/x509 quotes the names in it.
func TestAClientsCertificateDoesNotFillTheLog(t *testing.T) {
	p, ca := newPKI(t), newClientCA(t, "authority")
	forger := newClientCA(t, strings.Repeat("x", 5_000)) // its intermediate is not the one that has signed
	alice := forger.alice(t)
	template := *forger.intermediate
	template.PublicKey, template.SubjectKeyId = nil, nil
	other, _ := sign(t, &template, nil, nil)
	alice.Certificate[1] = other.Raw
	for _, way := range ways {
		e := start(t, Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir, Engine: way.engine,
			ClientCertificates: ClientCertificates{Mode: ClientCertificatesRequired, CA: ca.file}}}}, p.transport())
		_, err := e.dialAndRead(p, &tls.Config{ServerName: "a.test", MaxVersion: way.version,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &alice, nil }})
		require.Error(t, err)
		require.Eventually(t, func() bool {
			return containsMatch(e.log.String(), `handshake refused: .* reason="unknown authority" error=.*\n`)
		}, time.Minute, time.Millisecond)
		for line := range strings.Lines(e.log.String()) {
			assert.Less(t, len(line), 1000, way.name)
		}
	}
}

// TestClientCertificatesOfCurlAndOpenSSL: the alerts, the authorities that a
// client is told, and resumption, as others see them.
func TestClientCertificatesOfCurlAndOpenSSL(t *testing.T) {
	p, ca, other := newPKI(t), newClientCA(t, "authority"), newClientCA(t, "another authority")
	alice, dir := ca.alice(t), t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(alice.PrivateKey)
	require.NoError(t, err)
	certFile, keyFile, session := filepath.Join(dir, "alice.pem"), filepath.Join(dir, "alice.key"), filepath.Join(dir, "session")
	require.NoError(t, os.WriteFile(certFile, pemOf(alice.Leaf, ca.intermediate), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	for _, way := range ways {
		version, alert := "1.2", "handshake failure"
		if way.version == tls.VersionTLS13 {
			version, alert = "1.3", "certificate required"
		}
		site := p.ecdsa(t, "a.test")
		config := func(ca *clientCA) Config {
			return Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{site}, Static: htdocs(t, "hello"), Engine: way.engine,
				ClientCertificates: ClientCertificates{Mode: "required", CA: ca.file}}}}
		}
		e := start(t, config(ca), p.transport())
		_, port, err := net.SplitHostPort(e.addr)
		require.NoError(t, err)
		curl := func(more ...string) string {
			out, err := exec.Command("curl", append([]string{"--silent", "--show-error", "--cacert", site, "--tlsv" + version, "--tls-max", version,
				"--max-time", "60", "--resolve", "a.test:" + port + ":127.0.0.1", "https://a.test:" + port + "/"}, more...)...).CombinedOutput()
			assert.Equal(t, len(more) == 0, err != nil, string(out))
			return string(out)
		}
		assert.Equal(t, "hello", curl("--cert", certFile, "--key", keyFile), way.name)
		assert.Contains(t, curl(), alert, way.name)

		openssl := func(more ...string) string {
			cmd := exec.Command("timeout", append([]string{"60", "openssl", "s_client", "-connect", e.addr, "-servername", "a.test", "-CAfile", site, "-tls" + strings.ReplaceAll(version, ".", "_"),
				"-cert", certFile, "-cert_chain", certFile, "-key", keyFile, "-ign_eof"}, more...)...)
			cmd.Stdin = strings.NewReader("GET / HTTP/1.0\r\n\r\n")
			out, _ := cmd.CombinedOutput()
			return string(out)
		}
		out := openssl("-sess_out", session)
		assert.Contains(t, out, "Acceptable client certificate CA names\nCN = authority\n", way.name)
		assert.Contains(t, out, "hello", way.name)
		out = openssl("-sess_in", session)
		assert.Contains(t, out, "Reused, TLSv"+version, way.name)
		assert.Contains(t, out, "hello", way.name)
		_, err = e.Reload(config(other), over(p.transport()))
		require.NoError(t, err)
		out = openssl("-sess_in", session)
		assert.NotContains(t, out, "Reused, TLSv", way.name)
		assert.Contains(t, out, "alert unknown ca", way.name)
		assert.NotContains(t, out, "hello", way.name)
	}
}

func TestClientCertificateOfAConnection(t *testing.T) {
	ca := newClientCA(t, "authority")
	alice := ca.alice(t)
	subject, fingerprint := new(conn).clientCertificate()
	assert.Empty(t, subject+fingerprint)
	c := &conn{state: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{alice.Leaf, ca.intermediate, ca.root}}}}
	subject, fingerprint = c.clientCertificate()
	assert.Equal(t, "CN=alice", subject)
	assert.Equal(t, fmt.Sprintf("%x", sha256.Sum256(alice.Leaf.Raw)), fingerprint)
}

func TestAuthoritiesOfClients(t *testing.T) {
	p, ca := newPKI(t), newClientCA(t, "authority")
	write := func(name string, data []byte) string {
		file := filepath.Join(p.dir, name)
		require.NoError(t, os.WriteFile(file, data, 0o600))
		return file
	}
	key, err := x509.MarshalPKCS8PrivateKey(ca.key)
	require.NoError(t, err)
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	cert := p.ecdsa(t, "a.test")
	for name, tt := range map[string]struct {
		clients ClientCertificates
		want    string
	}{
		"mode":           {ClientCertificates{Mode: "on", CA: ca.file}, "mode: 'on' is not off, optional or required"},
		"no mode":        {ClientCertificates{CA: ca.file}, "mode: is missing: optional or required"},
		"no authority":   {ClientCertificates{Mode: "required"}, "ca: is missing"},
		"no file":        {ClientCertificates{Mode: "required", CA: p.dir + "/none.pem"}, "ca: open "},
		"empty":          {ClientCertificates{Mode: "required", CA: write("empty.pem", nil)}, "has no PEM block of type CERTIFICATE"},
		"private key":    {ClientCertificates{Mode: "required", CA: write("key.pem", append(pemOf(ca.root), keyPEM...))}, "contains a private key"},
		"no authority's": {ClientCertificates{Mode: "required", CA: write("alice.pem", pemOf(ca.alice(t).Leaf))}, "the certificate of 'CN=alice' is not that of an authority"},
		"static":         {ClientCertificates{Mode: "required", CA: ca.file, ForwardChain: true}, "forward_chain: is for sites with proxy"},
	} {
		_, err := New(Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{cert}, Static: p.dir, ClientCertificates: tt.clients}}}, p.transport(), nil)
		if assert.Error(t, err, name) {
			assert.Contains(t, err.Error(), "sites[0].client_certificates.", name)
			assert.Contains(t, err.Error(), tt.want, name)
		}
	}
}
