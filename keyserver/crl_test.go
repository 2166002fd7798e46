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

func newAuthority(t *testing.T, name string) *authority { return authorityUnder(t, nil, name, 1) }

// authorityUnder returns an authority whose certificate another has issued, or
// itself.
func authorityUnder(t *testing.T, above *authority, name string, serial int64) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return authorityWith(t, key, above, name, serial)
}

// authorityWith is authorityUnder for a key that there is.
func authorityWith(t *testing.T, key *ecdsa.PrivateKey, above *authority, name string, serial int64) *authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign,
	}
	issuer, signer := template, key
	if above != nil {
		issuer, signer = above.cert, above.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, signer)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{t, cert, key}
}

// edge returns the certificate of an edge.
func (a *authority) edge(serial int64) *x509.Certificate {
	return authorityUnder(a.t, a, "edge", serial).cert
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
	const revoked = "the certificate was revoked at 2026-02-03T04:05:06Z"
	require.Equal(t, revoked, r.revoked(one.issued(42)))
	require.Equal(t, revoked, r.revoked(one.issued(1<<40)))
	require.Empty(t, r.revoked(one.issued(43)))
	require.Empty(t, r.revoked(two.issued(42)), "the other authority's certificate with the same number")

	changed, err := r.Reload()
	require.NoError(t, err)
	require.False(t, changed)

	// In DER, of one authority only, and more than there was.
	write(one.crl(7, 42))
	r, err = OpenRevocations(file, authorities)
	require.NoError(t, err)
	write(one.crl(8, 42, 43, 44))
	changed, err = r.Reload()
	require.NoError(t, err)
	require.True(t, changed)
	require.Equal(t, revoked, r.revoked(one.issued(43)))
	require.Len(t, r.Warnings(time.Now()), 1)
	require.Contains(t, r.Warnings(time.Now())[0], `no CRL of "CN=two"`)
	require.Contains(t, r.Warnings(time.Now().Add(2 * time.Hour))[0], `number 8 of "CN=one" should have been replaced by`)

	// What cannot be used leaves things as they were, and is told once.
	for name, data := range map[string][]byte{
		"number":           one.crl(7),
		"empty":            {},
		"no CRL":           pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: one.cert.Raw}),
		"cut short":        inPEM(one.crl(9, 42))[:200],
		"second cut short": append(inPEM(one.crl(9)), inPEM(two.crl(9))[:200]...),
		"another's":        two.crl(9),
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
			require.Equal(t, name == "number" || name == "another's", err == nil)
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

// A file that others could replace is refused, and read when that is put right.
func TestACRLThatOthersCanReplace(t *testing.T) {
	one := newAuthority(t, "one")
	file := filepath.Join(t.TempDir(), "crl.pem")
	require.NoError(t, os.WriteFile(file, one.crl(1), 0o600))
	r, err := OpenRevocations(file, []*x509.Certificate{one.cert})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, one.crl(2, 42, 43), 0o600))
	for _, name := range []string{file, filepath.Dir(file)} {
		require.NoError(t, os.Chmod(name, 0o777))
		_, err = r.Reload()
		require.ErrorContains(t, err, "group or others can write")
		changed, err := r.Reload()
		require.NoError(t, err, "told once")
		require.False(t, changed)
		require.NoError(t, os.Chmod(name, 0o700))
	}
	changed, err := r.Reload()
	require.NoError(t, err)
	require.True(t, changed)
	require.NotEmpty(t, r.revoked(one.issued(42)))
}

// A CRL that has gone from the file would let in whom it revokes.
func TestACRLCannotBeLeftOut(t *testing.T) {
	one, two := newAuthority(t, "one"), newAuthority(t, "two")
	file := filepath.Join(t.TempDir(), "crl.pem")
	require.NoError(t, os.WriteFile(file, inPEM(one.crl(1, 42), two.crl(1, 43)), 0o600))
	r, err := OpenRevocations(file, []*x509.Certificate{one.cert, two.cert})
	require.NoError(t, err)

	require.NoError(t, os.WriteFile(file, inPEM(two.crl(2)), 0o600))
	_, err = r.Reload()
	require.ErrorContains(t, err, "the CRL is missing that comes after number 1 of an authority")
	require.NotEmpty(t, r.revoked(one.issued(42)))
	require.NotEmpty(t, r.revoked(two.issued(43)), "all or nothing")

	// The old one may stay in the file beside the new one.
	require.NoError(t, os.WriteFile(file, inPEM(one.crl(1, 42), two.crl(1, 43), two.crl(2)), 0o600))
	for range 2 {
		_, err = r.Reload()
		require.NoError(t, err)
		require.NoError(t, os.Chtimes(file, time.Now(), time.Now().Add(time.Minute)))
	}
}

// While a new authority takes the place of an old one of the same name, each
// numbers its CRLs.
func TestCRLsOfTwoAuthoritiesWithOneName(t *testing.T) {
	old, successor := newAuthority(t, "edges"), newAuthority(t, "edges")
	file := filepath.Join(t.TempDir(), "crl.pem")
	require.NoError(t, os.WriteFile(file, inPEM(old.crl(100, 42), successor.crl(1)), 0o600))
	r, err := OpenRevocations(file, []*x509.Certificate{old.cert, successor.cert})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, inPEM(old.crl(100, 42), successor.crl(2, 7)), 0o600))
	changed, err := r.Reload()
	require.NoError(t, err)
	require.True(t, changed)
	require.NotEmpty(t, r.revoked(successor.issued(7)))
	require.NoError(t, os.WriteFile(file, inPEM(old.crl(99), successor.crl(3)), 0o600))
	_, err = r.Reload()
	require.ErrorContains(t, err, "number 99, which is before 100")
}

// With an authority, all that it has issued is revoked; and one that no CRL can
// be of does not get around them.
func TestRevokedAuthority(t *testing.T) {
	root := newAuthority(t, "root")
	sound, broken := authorityUnder(t, root, "edges", 2), authorityUnder(t, root, "edges", 3)
	below, unknown := authorityUnder(t, broken, "below", 4), authorityUnder(t, root, "unknown", 5)
	file := filepath.Join(t.TempDir(), "crl.pem")
	require.NoError(t, os.WriteFile(file, root.crl(1, 3), 0o600))
	r, err := OpenRevocations(file, []*x509.Certificate{root.cert, sound.cert, broken.cert, below.cert})
	require.NoError(t, err)
	require.Empty(t, r.revoked(root.edge(10)))
	require.Empty(t, r.revoked(sound.edge(10)))
	for _, a := range []*authority{broken, below} {
		require.Equal(t, "the certificate's authority was revoked at 2026-02-03T04:05:06Z", r.revoked(a.edge(10)))
	}
	require.Contains(t, r.revoked(unknown.edge(10)), "not in client_ca")
}
