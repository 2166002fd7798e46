package main

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAuthority(t *testing.T) {
	now := time.Now()
	authority, err := newAuthority(now, 365*day)
	require.NoError(t, err)
	require.NoError(t, authority.cert.CheckSignatureFrom(authority.cert))
	other, err := newAuthority(now, 365*day)
	require.NoError(t, err)
	assert.NotEqual(t, authority.cert.Subject.String(), other.cert.Subject.String())
	assert.NotEqual(t, authority.cert.SerialNumber, other.cert.SerialNumber)

	verify := func(cert *x509.Certificate, name string, usage x509.ExtKeyUsage, at time.Time, with *identity) error {
		roots := x509.NewCertPool()
		roots.AddCert(with.cert)
		_, err := cert.Verify(x509.VerifyOptions{
			Roots: roots, DNSName: name, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
		})
		return err
	}
	const client, server = x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	ks, err := authority.issue(leaf{
		name: "ks-1", usage: server, dns: []string{"ks-1.example"}, ips: []net.IP{net.IPv6loopback}, life: 90 * day,
	}, now)
	require.NoError(t, err)
	edge, err := authority.issue(leaf{name: "edge-1", usage: client, dns: []string{"ks-1.example"}, life: 90 * day}, now)
	require.NoError(t, err)

	assert.NoError(t, verify(ks.cert, "ks-1.example", server, now, authority))
	assert.NoError(t, verify(ks.cert, "[::1]", server, now, authority))
	assert.NoError(t, verify(edge.cert, "", client, now, authority))

	assert.Error(t, verify(edge.cert, "ks-1.example", server, now, authority), "an edge poses as the key server")
	assert.Error(t, verify(ks.cert, "", client, now, authority), "a key server poses as an edge")
	assert.Error(t, verify(ks.cert, "ks-2.example", server, now, authority))
	assert.Error(t, verify(ks.cert, "ks-1.example", server, now, other))
	assert.Error(t, verify(ks.cert, "ks-1.example", server, now.Add(91*day), authority))
	assert.NoError(t, verify(ks.cert, "ks-1.example", server, now.Add(-backdating/2), authority))

	// Who has the key of a leaf, or of an authority below the authority, still
	// cannot make others.
	forged, err := ks.issue(leaf{name: "edge-2", usage: client, life: day}, now)
	require.NoError(t, err)
	assert.Error(t, forged.cert.CheckSignatureFrom(ks.cert))
	below, err := newAuthority(now, day)
	require.NoError(t, err)
	below, err = sign(below.cert, authority.cert, below.key, authority.key)
	require.NoError(t, err)
	forged, err = below.issue(leaf{name: "edge-2", usage: client, life: day / 2}, now)
	require.NoError(t, err)
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(authority.cert)
	between.AddCert(below.cert)
	_, err = forged.cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{client}})
	assert.Error(t, err)

	_, err = authority.issue(leaf{name: "edge-1", usage: client, life: 366 * day}, now)
	assert.ErrorContains(t, err, "outlive")
}

func TestWrite(t *testing.T) {
	id, err := newAuthority(time.Now(), day)
	require.NoError(t, err)
	dir := t.TempDir()
	prefix := filepath.Join(dir, "ca")
	mode := func(file string) os.FileMode {
		info, err := os.Stat(file)
		require.NoError(t, err)
		return info.Mode().Perm()
	}

	// A file that is there, as open to others as can be.
	require.NoError(t, os.WriteFile(prefix+".key", []byte("precious"), 0o600))
	require.NoError(t, os.Chmod(prefix+".key", 0o666))
	assert.ErrorContains(t, id.write(prefix, false), "--force")
	kept, err := os.ReadFile(prefix + ".key")
	require.NoError(t, err)
	assert.Equal(t, "precious", string(kept))
	assert.NoFileExists(t, prefix+".pem")

	require.NoError(t, id.write(prefix, true))
	assert.Equal(t, os.FileMode(0o600), mode(prefix+".key"))
	assert.Equal(t, os.FileMode(0o644), mode(prefix+".pem"))
	loaded, err := loadAuthority(dir)
	require.NoError(t, err)
	assert.Equal(t, id.cert.Raw, loaded.cert.Raw)
	assert.Equal(t, id.key, loaded.key)

	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, left, 2, "nothing else is left behind")

	// A dangling link is in the way, too.
	require.NoError(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "link.pem")))
	assert.ErrorContains(t, id.write(filepath.Join(dir, "link"), false), "link.pem exists")
	assert.Error(t, id.write(filepath.Join(dir, "none", "ca"), false))
}
