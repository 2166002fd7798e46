package cmd_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/internal/netlab"
)

// farSite is a site with an RSA-4096 key, whose edge server and key server are on
// hosts of their own.
type farSite struct {
	t          *testing.T
	dir        string
	edge, keys *netlab.Host
	path       *netlab.Path
	roots      *x509.CertPool
}

const farName = "www.example.com"

// rsa4096 makes the key once: it takes its time.
var rsa4096 = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 4096) })

// newFarSite makes hosts and folders. The edge server can use the key by each method,
// and shares tickets.
func newFarSite(t *testing.T) *farSite {
	network := netlab.New()
	s := &farSite{t: t, dir: t.TempDir(), roots: x509.NewCertPool()}
	t.Cleanup(network.Close)
	var err error
	s.edge, err = network.Host("edge")
	require.NoError(t, err)
	s.keys, err = network.Host("key server")
	require.NoError(t, err)
	s.path = network.Between(s.edge, s.keys)

	key, err := rsa4096()
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: farName}, DNSNames: []string{farName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	s.roots.AddCert(cert)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	s.write("site.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	s.write("site.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
	require.NoError(t, os.Mkdir(s.at("htdocs"), 0o755))
	s.write("htdocs/index.html", "hello")
	out, err := exec.Command(filepath.Join(bin, "skictl"), "setup", "--dir", s.at("www"), "--static", s.at("htdocs"),
		"--keyserver", s.keys.Addr().String(), s.at("site.pem"), s.at("site.key")).CombinedOutput()
	require.NoError(t, err, string(out))
	s.replace("www/edge/edge.yaml", "    static:", "    engine: split\n    versions: [TLS 1.2, TLS 1.3]\n    static_rsa: true\n    tickets: shared\n    static:")
	s.replace("www/keyserver/policy.yaml", "methods: [ECDHE]", "methods: [ECDHE, RSA]")
	s.replace("www/keyserver/policy.yaml", "rules:", "tickets: [{name: "+farName+", edges: [edge-1], rotate: 1m, lifetime: 6m}]\nrules:")
	return s
}

func (s *farSite) at(name string) string { return filepath.Join(s.dir, name) }

func (s *farSite) read(name string) string {
	data, err := os.ReadFile(s.at(name))
	require.NoError(s.t, err)
	return string(data)
}

func (s *farSite) write(name, text string) {
	require.NoError(s.t, os.WriteFile(s.at(name), []byte(text), 0o600))
}

func (s *farSite) replace(name, old, new string) {
	s.t.Helper()
	text := s.read(name)
	require.Contains(s.t, text, old)
	s.write(name, strings.Replace(text, old, new, 1))
}

// start starts both servers, and ends them with the test.
func (s *farSite) start() {
	s.t.Helper()
	s.run(s.keys, "keyserver.log", "ski-keyserver", "www/keyserver/keyserver.yaml")
	s.run(s.edge, "edge.log", "ski-edgeserver", "www/edge/edge.yaml")
}

func (s *farSite) run(h *netlab.Host, log, program, config string) {
	s.t.Helper()
	file, err := os.Create(s.at(log))
	require.NoError(s.t, err)
	defer file.Close()
	cmd := h.Command(filepath.Join(bin, program), "-config", s.at(config))
	cmd.Stderr = file
	require.NoError(s.t, cmd.Start())
	s.t.Cleanup(func() {
		assert.NoError(s.t, cmd.Process.Signal(os.Interrupt))
		assert.NoError(s.t, cmd.Wait(), "%s has been up to the end", program)
		if s.t.Failed() {
			s.t.Logf("%s:\n%s", log, tail(s.read(log), 40))
		}
	})
	s.logged(log, "msg=listening")
}

func (s *farSite) logged(log, text string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool { return strings.Contains(s.read(log), text) }, time.Minute, 5*time.Millisecond, text)
}

// get fetches the page from the edge server's own host.
func (s *farSite) get(c *tls.Config) (tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	conn, err := s.edge.DialContext(ctx, "tcp", "127.0.0.1:8443")
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	c.RootCAs, c.ServerName = s.roots, farName
	client := tls.Client(conn, c)
	if err := client.HandshakeContext(ctx); err != nil {
		return tls.ConnectionState{}, err
	}
	if _, err := fmt.Fprintf(client, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", farName); err != nil {
		return tls.ConnectionState{}, err
	}
	var page bytes.Buffer
	if _, err := page.ReadFrom(client); err != nil || !strings.HasSuffix(page.String(), "hello") {
		return tls.ConnectionState{}, fmt.Errorf("%w: %q", err, page.String())
	}
	return client.ConnectionState(), nil
}

// getByEachMethod has the key sign for TLS 1.3 and 1.2, and decrypt, each at the
// first attempt, and resumes a session.
func (s *farSite) getByEachMethod() {
	s.t.Helper()
	for name, c := range map[string]*tls.Config{
		"TLS 1.3": {},
		"ECDHE":   {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}},
		"RSA":     {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
	} {
		began := time.Now()
		_, err := s.get(c)
		require.NoError(s.t, err, name)
		s.t.Logf("%s: %v", name, time.Since(began).Round(time.Millisecond))
	}
	cache := tls.NewLRUClientSessionCache(1)
	for _, resumed := range []bool{false, true} {
		state, err := s.get(&tls.Config{ClientSessionCache: cache})
		require.NoError(s.t, err)
		assert.Equal(s.t, resumed, state.DidResume)
	}
}

func (s *farSite) tooLarge() (lost uint64) {
	up, down := s.path.From(s.edge).Counts(), s.path.From(s.keys).Counts()
	return up.TooLarge + down.TooLarge + up.Dropped + down.Dropped
}

// An edge server that is configured for nothing is served across a path on which
// packets of more than 576 bytes vanish without an ICMP message, in both
// directions or in one.
func TestAPathWithoutPacketsAbove576Bytes(t *testing.T) {
	t.Parallel()
	small := netlab.Conditions{MaxPacket: 576, Delay: 10 * time.Millisecond}
	for name, set := range map[string]func(*farSite){
		"both ways":         func(s *farSite) { s.path.Set(small) },
		"to the key server": func(s *farSite) { s.path.From(s.edge).Set(small) },
		"to the edge":       func(s *farSite) { s.path.From(s.keys).Set(small) },
		"both ways, with devices of 576 bytes and a firewall that drops fragments": func(s *farSite) {
			for _, h := range []*netlab.Host{s.edge, s.keys} {
				_, err := h.IP("link", "set", "tun0", "mtu", "576")
				require.NoError(s.t, err)
			}
			s.path.Set(netlab.Conditions{Delay: small.Delay, Drop: func(packet []byte) bool {
				const flagsAndOffset, dontFragment = 6, 0x40 // RFC 791, Section 3.1
				return packet[flagsAndOffset]&^dontFragment != 0 || packet[flagsAndOffset+1] != 0
			}})
		},
		"both ways, with a pre-shared key": func(s *farSite) {
			s.path.Set(small)
			psk := "edge-1:" + strings.Repeat("0f", 32) + "\n"
			s.write("www/edge/edge.psk", psk)
			s.write("www/keyserver/edges.psk", psk)
			s.replace("www/edge/edge.yaml", "  certificate: edge.pem\n  key: edge.key\n  ca: ca.pem\n", "  psk: edge.psk\n")
			s.replace("www/keyserver/keyserver.yaml", "policy:", "psk: edges.psk\npolicy:")
			s.replace("www/keyserver/policy.yaml", "    dns: [edge-1.ski.internal]", "    psk: [edge-1]")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFarSite(t)
			set(s)
			s.start()
			s.getByEachMethod()
			s.logged("edge.log", `msg="ticket keys"`)
			assert.NotContains(t, s.read("edge.log"), "no session")
			assert.NotZero(t, s.tooLarge(), "the path is tried with longer packets")
			s.getByEachMethod()
		})
	}
}

// The path becomes small while a session is in use.
func TestAPathThatLosesLargePacketsFromNowOn(t *testing.T) {
	t.Parallel()
	s := newFarSite(t)
	s.path.Set(netlab.Conditions{Delay: 10 * time.Millisecond})
	s.start()
	s.getByEachMethod()
	s.logged("edge.log", `msg="ticket keys"`)
	s.path.Set(netlab.Conditions{Delay: 10 * time.Millisecond, MaxPacket: 576})
	s.getByEachMethod()
	s.getByEachMethod()
	assert.NotZero(t, s.tooLarge())
}

// With the setting on both sides no packet is tried that is too large.
func TestAConfiguredMTUOfThePathToTheKeyServer(t *testing.T) {
	t.Parallel()
	s := newFarSite(t)
	s.replace("www/edge/edge.yaml", "  ca: ca.pem\n", "  ca: ca.pem\n  mtu: 576\n")
	s.replace("www/keyserver/keyserver.yaml", "policy:", "mtu: 576\npolicy:")
	s.path.Set(netlab.Conditions{MaxPacket: 576})
	s.start()
	s.getByEachMethod()
	s.logged("edge.log", `msg="ticket keys"`)
	assert.Zero(t, s.tooLarge())
}
