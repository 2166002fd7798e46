package cmd_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// renew puts a certificate with key, which ends after life, in the place of the one
// that the edge has for a name of skictl dev, as a renewal does.
func (f *fleet) renew(name string, key crypto.Signer, life time.Duration) ski.KeyID {
	f.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		DNSNames:     []string{name, "split." + name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(f.t, err)
	file := filepath.Join(f.dir, "edge/sites", name+".pem")
	require.NoError(f.t, os.WriteFile(file+".new", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(f.t, os.Rename(file+".new", file))
	id, err := ski.PublicKeyID(key.Public())
	require.NoError(f.t, err)
	return id
}

// grant lets the edge use keys as it uses that of a name, once they are there.
func (f *fleet) grant(name, as string) {
	f.t.Helper()
	policy := strings.Replace(f.read("keyserver/policy.yaml"), "keys: ["+name, "keys: ["+name+", "+as, 1)
	file := filepath.Join(f.dir, "keyserver/policy.yaml")
	require.NoError(f.t, os.WriteFile(file+".new", []byte(policy), 0o600))
	require.NoError(f.t, os.Rename(file+".new", file))
}

// give gives the key servers a key, which they find by themselves.
func (f *fleet) give(as string, key crypto.Signer) {
	f.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(f.t, err)
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	require.NoError(f.t, os.WriteFile(filepath.Join(f.dir, "keyserver/keys", as+".pem"), data, 0o600))
}

// shows returns the key of the certificate that clients get.
func (f *fleet) shows(name string) (id ski.KeyID, err error) {
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 20 * time.Second}, Config: &tls.Config{ServerName: name, InsecureSkipVerify: true}}
	c, err := dialer.DialContext(f.t.Context(), "tcp", f.edgeAt)
	if err != nil {
		return id, err
	}
	defer c.Close()
	return ski.CertificateKeyID(c.(*tls.Conn).ConnectionState().PeerCertificates[0]), nil
}

// says returns what the edge answers to load balancers and Prometheus.
func (f *fleet) says(path string) string {
	f.t.Helper()
	addr := regexp.MustCompile(`msg=metrics addr=(\S+)`).FindStringSubmatch(f.read(f.edgeLog))[1]
	resp, err := http.Get("http://" + addr + path)
	require.NoError(f.t, err)
	defer resp.Body.Close()
	assert.Equal(f.t, http.StatusOK, resp.StatusCode)
	body, err := io.ReadAll(resp.Body)
	require.NoError(f.t, err)
	return string(body)
}

// Certificates are renewed with new keys: of one site the key servers have it, of
// the other nobody does. Nothing is started again, and the edge is not told when the
// key is there.
func TestARenewedCertificateIsTakenUpOnceItsKeyIsServed(t *testing.T) {
	const (
		waits = "the renewed certificate waits until it can be used: the one before stays"
		taken = "the renewed certificate is taken up: a key server has its key"
	)
	ecdsaSites, rsaSites := []string{"ecdsa.localhost", "split.ecdsa.localhost"}, []string{"rsa.localhost", "split.rsa.localhost"}
	f := startFleet(t, "  balance: round-robin\n")
	shown := func(want ski.KeyID, sites []string) {
		t.Helper()
		for _, name := range sites {
			for range 3 { // at either key server
				got, err := f.shows(name)
				require.NoError(t, err, name)
				assert.Equal(t, want, got, name)
			}
		}
	}
	before, err := f.shows("ecdsa.localhost")
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)

	f.grant("rsa.localhost", "rsa-2")
	f.grant("ecdsa.localhost", "ecdsa-2")
	f.give("rsa-2", rsaKey)
	renewed := f.renew("ecdsa.localhost", key, 90*24*time.Hour)
	rsaRenewed := f.renew("rsa.localhost", rsaKey, 90*24*time.Hour)
	f.logged(waits, len(ecdsaSites))
	f.logged(taken, len(rsaSites)) // by static RSA, when both key servers have the key, and so the policy
	shown(before, ecdsaSites)
	shown(rsaRenewed, rsaSites)
	ready := f.says("/readyz")
	assert.True(t, strings.HasPrefix(ready, "ok\n"), ready)
	assert.Regexp(t, `\ncertificate pending: site "ecdsa.localhost", file ".*/ecdsa.localhost.pem", spki `+renewed.String()+
		`, since \S+Z: coaps://\S+: spki not found, coaps://\S+: spki not found\n`, ready)
	metrics := f.says("/metrics")
	assert.Contains(t, metrics, `ski_edgeserver_certificates_pending{site="ecdsa.localhost"} 1`)
	assert.Contains(t, metrics, `ski_edgeserver_certificates_pending{site="rsa.localhost"} 0`)

	reloads := strings.Count(f.read(f.edgeLog), `msg="configuration loaded"`)
	f.give("ecdsa-2", key)
	f.logged(taken, len(rsaSites)+len(ecdsaSites))
	shown(renewed, ecdsaSites)
	assert.Equal(t, "ok\n", f.says("/readyz"))
	assert.Contains(t, f.says("/metrics"), `ski_edgeserver_certificates_pending{site="ecdsa.localhost"} 0`)
	assert.Equal(t, reloads, strings.Count(f.read(f.edgeLog), `msg="configuration loaded"`), "there has been another reload")
	assert.NotContains(t, f.read(f.edgeLog), "handshake failed: no answer")

	// Its last hour is no reason to keep a certificate.
	f.renew("ecdsa.localhost", key, 59*time.Minute)
	f.logged(`msg="configuration loaded"`, reloads+1)
	shown(renewed, ecdsaSites)
	nobodys, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	f.renew("ecdsa.localhost", nobodys, 90*24*time.Hour)
	f.logged("the renewed certificate is taken up at once: the one before ends within the hour", len(ecdsaSites))
	f.logged("the key server does not serve the key: handshakes will fail", 2*len(ecdsaSites))
	_, err = f.shows("ecdsa.localhost")
	assert.ErrorContains(t, err, "remote error: tls: internal error")
	shown(rsaRenewed, rsaSites)
}
