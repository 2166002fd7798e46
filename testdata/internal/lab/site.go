package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// SiteName is the name of the site that NewSite makes.
const SiteName = "www.example.com"

// Site is a site with an ECDSA P-256 and an RSA-2048 certificate, and the
// folders that skictl setup makes of it.
type Site struct {
	Dir   string // has keyserver and edge, and ecdsa.pem, ecdsa.key, rsa.pem and rsa.key
	Roots *x509.CertPool
}

// At returns the path of a file in the site's folder.
func (s *Site) At(name string) string { return filepath.Join(s.Dir, filepath.FromSlash(name)) }

// KeyServerConfig is the key server's configuration file.
func (s *Site) KeyServerConfig() string { return s.At("www/keyserver/keyserver.yaml") }

// NewSite makes the site in dir with bin/skictl. It has a folder of files with one
// page. An edge server listens at edge and asks at keyServer.
func NewSite(dir, keyServer, edge string) (*Site, error) {
	s := &Site{Dir: dir, Roots: x509.NewCertPool()}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{SiteName}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	args := []string{"setup", "--dir", s.At("www"), "--static", s.At("htdocs"), "--keyserver", keyServer, "--listen", edge}
	for name, key := range map[string]crypto.Signer{"ecdsa": ec, "rsa": private} {
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return nil, err
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		s.Roots.AddCert(cert)
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		for file, block := range map[string]*pem.Block{
			name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: keyDER},
		} {
			if err := os.WriteFile(s.At(file), pem.EncodeToMemory(block), 0o600); err != nil {
				return nil, err
			}
			args = append(args, s.At(file))
		}
	}
	if err := os.Mkdir(s.At("htdocs"), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.At("htdocs/index.html"), []byte("Hello, world!\n"), 0o644); err != nil {
		return nil, err
	}
	_, err = Run("bin/skictl", args...)
	return s, err
}

// EdgeConfig writes another configuration file for the edge server, with lines
// added to those of the site, and returns its name.
func (s *Site) EdgeConfig(name string, lines ...string) (string, error) {
	data, err := os.ReadFile(s.At("www/edge/edge.yaml"))
	if err != nil {
		return "", err
	}
	for _, line := range lines {
		data = fmt.Appendf(data, "    %s\n", line) // sites comes last
	}
	file := s.At("www/edge/" + name + ".yaml")
	return file, os.WriteFile(file, data, 0o644)
}

// Grant lets the edge servers use methods other than ECDHE.
func (s *Site) Grant(methods ...string) error {
	file := s.At("www/keyserver/policy.yaml")
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	old := "methods: [ECDHE]"
	if !strings.Contains(string(data), old) {
		return fmt.Errorf("%s has no %q", file, old)
	}
	return os.WriteFile(file, []byte(strings.Replace(string(data), old, "methods: ["+strings.Join(methods, ", ")+"]", 1)), 0o644)
}

// FreeAddrs returns two loopback addresses on which nothing listens, the first
// for UDP, the second for TCP.
func FreeAddrs() (udp, tcp string, err error) {
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer u.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer l.Close()
	return u.LocalAddr().String(), l.Addr().String(), nil
}
