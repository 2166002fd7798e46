package keyserver

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// certified is a KeyStore of another kind, such as a token, that knows a
// certificate of each of its keys.
type certified struct {
	KeyStore
	cert *x509.Certificate
}

func (c certified) Certificates(ski.KeyID) []*x509.Certificate {
	return []*x509.Certificate{c.cert, c.cert}
}

// A key whose certificate verifies more than TLS is worth a line, wherever the
// certificate was found, and with it that TLS 1.3 leaves an edge nothing to
// choose, where the policy grants more than that.
func TestACertificateForMoreThanTLSIsWarnedOf(t *testing.T) {
	file := func(template x509.Certificate) []byte {
		key := newECDSA(t, elliptic.P256())
		template.SerialNumber, template.NotAfter = big.NewInt(1), time.Now().Add(time.Hour)
		cert, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
		require.NoError(t, err)
		private, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(t, err)
		return slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	}
	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	files, err := LoadFolder(folder(t, map[string][]byte{
		"site.pem":      file(x509.Certificate{ExtKeyUsage: server}),
		"authority.pem": file(x509.Certificate{ExtKeyUsage: server, BasicConstraintsValid: true, IsCA: true}),
		"any.pem":       file(x509.Certificate{}),
	}))
	require.NoError(t, err)
	token := new(MemoryStore)
	require.NoError(t, token.Add("token", newECDSA(t, elliptic.P256())))
	mail := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageEmailProtection}}
	unknown := new(MemoryStore)
	require.NoError(t, unknown.Add("unknown", newECDSA(t, elliptic.P256())))
	keys, err := JoinKeyStores(files, certified{token, mail}, unknown)
	require.NoError(t, err)

	const more = ": what is signed with it could be taken for something else than a TLS handshake. Give the site a key whose only certificates are for serverAuth"
	const recommended = more + "; where its clients can do with TLS 1.3, grant it for that alone (protocols: [TLS 1.3])"
	policy, err := ParsePolicy("policy.yaml", []byte(oneRule("ECDHE", "not_after: 2999-01-01T00:00:00Z")), keys)
	require.NoError(t, err)
	require.Equal(t, []string{
		"key any: its certificate has no extended key usage, which stands for every use" + recommended,
		"key authority: its certificate is a certificate authority's" + recommended,
		"key token: its certificate has the extended key usage emailProtection" + recommended,
	}, policy.Warnings(time.Now()))

	policy, err = ParsePolicy("policy.yaml", []byte(oneRule("ECDHE", "protocols: [TLS 1.3]")), keys)
	require.NoError(t, err)
	require.Contains(t, policy.Warnings(time.Now()), "key authority: its certificate is a certificate authority's"+more, "which has followed the recommendation")
}
