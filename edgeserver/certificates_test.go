package edgeserver

import (
	"crypto/tls"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// The same file at another site says nothing of its key: that site may be new, and
// have taken up what nobody has the key of.
func TestAFileOfAnotherSiteIsAskedForToo(t *testing.T) {
	p := newPKI(t)
	a, nobodys := p.lasting(t, month, "a.test"), p.unknown(t, "a.test", "b.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{a.file}, Static: p.dir}}}
	e := start(t, cfg, p.transport())
	cfg.Sites = append(cfg.Sites, Site{Names: []string{"b.test"}, Certificates: []string{nobodys.file}, Static: p.dir})
	_, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	cfg.Sites = []Site{cfg.Sites[0], cfg.Sites[1]}
	cfg.Sites[0].Certificates = []string{nobodys.file}
	_, err = e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	e.untilLogged(t, waits)
	assert.Equal(t, a.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
}

// A site whose first name is another one keeps what its file had.
func TestASiteWithAnotherFirstNameKeepsItsPair(t *testing.T) {
	p := newPKI(t)
	a, next := p.lasting(t, month, "a.test", "b.test"), p.unknown(t, "a.test", "b.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test", "b.test"}, Certificates: []string{a.file}, Static: p.dir}}}
	e := start(t, cfg, p.transport())
	cfg.Sites = []Site{cfg.Sites[0]}
	cfg.Sites[0].Names = []string{"b.test", "a.test"}
	_, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	assert.Empty(t, e.Pending(), "the key is the same")
	cfg.Sites = []Site{cfg.Sites[0]}
	cfg.Sites[0].Names = []string{"a.test", "b.test"}
	a.renew(t, next)
	_, err = e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	e.untilLogged(t, waits)
	assert.Equal(t, a.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
}

// An authority's client that changes from RSA to ECDSA by itself is no fault of the
// configuration, which would keep the certificates of all other sites as they are.
func TestAnECDSACertificateAtASiteWithStaticRSAHoldsNoOtherSiteUp(t *testing.T) {
	p := newPKI(t)
	a, b := pair{p.issue(t, sharedRSA(), month, "a.test"), sharedRSA()}, p.lasting(t, month, "b.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{a.file}, Static: p.dir, StaticRSA: true},
		{Names: []string{"b.test"}, Certificates: []string{b.file}, Static: p.dir},
	}}
	e := start(t, cfg, p.transport())
	nextA, nextB := p.lasting(t, month, "a.test"), p.lasting(t, month, "b.test")
	a.renew(t, nextA)
	b.renew(t, nextB)
	for range 2 {
		_, err := e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return len(e.Pending()) == 1 }, time.Minute, time.Millisecond)
		assert.Contains(t, e.Pending()[0].Reason, "static_rsa")
		assert.Equal(t, a.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
		assert.Equal(t, nextB.id(), e.shows(t, p, &tls.Config{ServerName: "b.test"}))
	}
	// What has never worked is refused.
	cfg.Sites = []Site{cfg.Sites[0], cfg.Sites[1]}
	cfg.Sites[1].StaticRSA = true
	_, err := e.Reload(cfg, over(p.transport()))
	assert.ErrorContains(t, err, "sites[1].static_rsa: needs an RSA certificate")
}

// A file that is broken while its certificate waits does not take that certificate away.
func TestACertificateThatWaitsGoesOnWaitingWhileItsFileIsBroken(t *testing.T) {
	for _, isAdded := range []bool{false, true} {
		p := newPKI(t)
		old, next, b := pair{p.issue(t, sharedRSA(), month, "a.test"), sharedRSA()}, p.unknown(t, "a.test"), p.lasting(t, month, "b.test")
		file := p.lasting(t, month, "a.test").file
		cfg := Config{KeyServer: fixed, Sites: []Site{
			{Names: []string{"a.test"}, Certificates: []string{old.file}, Static: p.dir},
			{Names: []string{"b.test"}, Certificates: []string{b.file}, Static: p.dir},
		}}
		e := start(t, cfg, p.transport())
		slot := old
		if isAdded {
			slot = pair{file: file}
			cfg.Sites = []Site{cfg.Sites[0], cfg.Sites[1]}
			cfg.Sites[0].Certificates = []string{file, old.file}
		}
		slot.renew(t, next)
		_, err := e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return len(e.Pending()) == 1 && e.Pending()[0].Reason == "spki not found" }, time.Minute, time.Millisecond)
		require.NoError(t, os.WriteFile(slot.file, nil, 0o600))
		nextB := p.lasting(t, month, "b.test")
		b.renew(t, nextB)
		_, err = e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return len(e.Pending()) == 1 }, time.Minute, time.Millisecond)
		assert.Equal(t, nextB.id(), e.shows(t, p, &tls.Config{ServerName: "b.test"}))
		assert.Equal(t, old.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
		p.keys.Add(next.key)
		require.Eventually(t, func() bool { return ski.CertificateKeyID(e.Sites()[0].Served[0]) == next.id() }, time.Minute, time.Millisecond)
		require.Len(t, e.Pending(), 1, "the file cannot be used all the same")
		assert.Contains(t, e.Pending()[0].Reason, "no PEM block of type CERTIFICATE")
	}
}
