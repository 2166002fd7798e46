package keyserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// authority issues CRLs and certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{t, cert, key}
}

// revokedAt is when the CRLs of the tests say that a certificate was revoked.
var revokedAt = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

// crl returns a CRL in DER.
func (a *authority) crl(number int64, serials ...int64) []byte {
	return a.signCRL(&x509.RevocationList{Number: big.NewInt(number), NextUpdate: time.Now().Add(time.Hour)}, serials...)
}

func (a *authority) signCRL(template *x509.RevocationList, serials ...int64) []byte {
	a.t.Helper()
	template.ThisUpdate = time.Now().Add(-2 * time.Hour)
	for _, s := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: revokedAt})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	require.NoError(a.t, err)
	return der
}

// issued returns as much of a certificate as a revocation depends on.
func (a *authority) issued(serial int64) *x509.Certificate {
	return &x509.Certificate{RawIssuer: a.cert.RawSubject, SerialNumber: big.NewInt(serial)}
}

func inPEM(ders ...[]byte) (text []byte) {
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return text
}

func TestRevocations(t *testing.T) {
	one, two := newAuthority(t, "one"), newAuthority(t, "two")
	authorities := []*x509.Certificate{one.cert, two.cert}
	file := filepath.Join(t.TempDir(), "crl.pem")
	write := func(data []byte) { require.NoError(t, os.WriteFile(file, data, 0o600)) }

	write(inPEM(one.crl(7, 42, 1<<40), two.crl(1)))
	r, err := OpenRevocations(file, authorities)
	require.NoError(t, err)
	require.Equal(t, 2, r.Len())
	require.Empty(t, r.Warnings(time.Now()))
	since, ok := r.revoked(one.issued(42))
	require.True(t, ok)
	require.Equal(t, revokedAt, since)
	_, ok = r.revoked(one.issued(1 << 40))
	require.True(t, ok)
	_, ok = r.revoked(one.issued(43))
	require.False(t, ok)
	_, ok = r.revoked(two.issued(42))
	require.False(t, ok, "the other authority's certificate with the same number")

	changed, err := r.Reload()
	require.NoError(t, err)
	require.False(t, changed)

	// In DER, of one authority only, and more than there was.
	write(one.crl(8, 42, 43, 44))
	changed, err = r.Reload()
	require.NoError(t, err)
	require.True(t, changed)
	_, ok = r.revoked(one.issued(43))
	require.True(t, ok)
	require.Len(t, r.Warnings(time.Now()), 1)
	require.Contains(t, r.Warnings(time.Now())[0], `no CRL of "CN=two"`)
	require.Contains(t, r.Warnings(time.Now().Add(2 * time.Hour))[0], "number 8 should have been replaced by")

	// What cannot be used leaves things as they were, and is told once.
	for name, data := range map[string][]byte{
		"number":           one.crl(7),
		"empty":            {},
		"no CRL":           pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: one.cert.Raw}),
		"cut short":        inPEM(one.crl(9, 42))[:200],
		"second cut short": append(inPEM(one.crl(9)), inPEM(two.crl(9))[:200]...),
		"other authority":  newAuthority(t, "three").crl(9),
		"other key":        newAuthority(t, "one").crl(9, 1),
		"delta": one.signCRL(&x509.RevocationList{
			Number: big.NewInt(9), NextUpdate: time.Now().Add(time.Hour),
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 8}}},
		}),
	} {
		t.Run(name, func(t *testing.T) {
			write(data)
			changed, err := r.Reload()
			require.ErrorContains(t, err, file)
			require.False(t, changed)
			require.Equal(t, 3, r.Len())
			_, err = r.Reload()
			require.NoError(t, err)
			_, err = OpenRevocations(file, authorities)
			require.Equal(t, name == "number", err == nil)
		})
	}

	require.NoError(t, os.Remove(file))
	_, err = r.Reload()
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = r.Reload()
	require.NoError(t, err)
	require.Equal(t, 3, r.Len())
	write(one.crl(9))
	changed, err = r.Reload()
	require.NoError(t, err)
	require.True(t, changed)
	require.Zero(t, r.Len())
}
