package split

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestAClientGetsAChainThatItCanVerify (RFC 5246, Section 7.4.2): one site key
// with certificates of two authorities, the first of which has an RSA key.
func TestAClientGetsAChainThatItCanVerify(t *testing.T) {
	rsaCA := &world{caKey: must(rsa.GenerateKey(rand.Reader, 2048))}
	rsaCA.ca = rsaCA.issue(rsaCA.caKey, "an authority with RSA", time.Hour, nil, true)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	chain := func(w *world) *Chain {
		c := w.identity(key, time.Hour).chain
		c.Certificates = append(c.Certificates, w.ca.Raw)
		c.SignedBy = must(SignedBy(c.Certificates))
		return c
	}
	byRSA, byECDSA := chain(rsaCA), chain(theWorld())
	assert.Equal(t, []x509.SignatureAlgorithm{x509.SHA256WithRSA}, byRSA.SignedBy, "a root's own signature counts for nothing")
	assert.Equal(t, []x509.SignatureAlgorithm{x509.ECDSAWithSHA256}, byECDSA.SignedBy)
	_, err := SignedBy([][]byte{{1}})
	assert.Error(t, err)

	const ecdsa256, rsa256 = tls.ECDSAWithP256AndSHA256, tls.PKCS1WithSHA256
	for _, tt := range []struct {
		what       string
		chains     []*Chain
		key, certs []tls.SignatureScheme // signature_algorithms, signature_algorithms_cert
		want       *Chain
	}{
		{"both, so the first", []*Chain{byRSA, byECDSA}, []tls.SignatureScheme{ecdsa256, rsa256}, nil, byRSA},
		{"only ECDSA", []*Chain{byRSA, byECDSA}, []tls.SignatureScheme{ecdsa256}, nil, byECDSA},
		{"only ECDSA, and no such chain", []*Chain{byRSA}, []tls.SignatureScheme{ecdsa256}, nil, byRSA},
		{"only ECDSA, and no such chain of two", []*Chain{byRSA, byRSA}, []tls.SignatureScheme{ecdsa256}, nil, byRSA},
		{"another list for certificates", []*Chain{byECDSA, byRSA}, []tls.SignatureScheme{ecdsa256}, []tls.SignatureScheme{rsa256}, byRSA},
	} {
		cfg := &Config{Chains: tt.chains}
		a, err := cfg.negotiate(&ClientHello{
			CipherSuites: []uint16{gcm().id}, Schemes: tt.key, CertSchemes: tt.certs, extendedMasterSecret: true,
		})
		require.Nil(t, err, tt.what)
		assert.Same(t, tt.want, a.chain, tt.what)
	}

	for algorithms, want := range map[string]*Chain{"ECDSA+SHA256": byECDSA, "ECDSA+SHA256:RSA+SHA256": byRSA} {
		server := serve(t, &Config{Chains: []*Chain{byRSA, byECDSA}})
		cmd := exec.Command("openssl", "s_client", "-connect", server.addr, "-tls1_2", "-sigalgs", algorithms)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		assert.Contains(t, string(out), "i:CN = "+must(x509.ParseCertificate(want.Certificates[0])).Issuer.CommonName, algorithms)
		server.outcome(t)
	}
}
