package edgeserver

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

const month = 30 * 24 * time.Hour

// pair is a certificate's file and its key.
type pair struct {
	file string
	key  crypto.Signer
}

func (p pair) id() ski.KeyID {
	id, err := ski.PublicKeyID(p.key.Public())
	if err != nil {
		panic(err)
	}
	return id
}

// lasting makes a pair that ends after life, whose key the key server has.
func (p *testPKI) lasting(t *testing.T, life time.Duration, names ...string) pair {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return pair{p.issue(t, key, life, names...), key}
}

// unknown makes a pair whose key no key server has.
func (p *testPKI) unknown(t *testing.T, names ...string) pair {
	made := p.lasting(t, month, names...)
	p.keys.Remove(made.id())
	return made
}

// renew puts another pair's certificate in the place of a file.
func (p pair) renew(t *testing.T, by pair) {
	data, err := os.ReadFile(by.file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(p.file, data, 0o600))
}

// shows returns the key of the certificate that clients get.
func (e *edge) shows(t *testing.T, p *testPKI, c *tls.Config) ski.KeyID {
	t.Helper()
	conn, err := e.dial(p, c)
	require.NoError(t, err)
	defer conn.Close()
	return ski.CertificateKeyID(conn.ConnectionState().PeerCertificates[0])
}

func (e *edge) untilLogged(t *testing.T, lines ...string) {
	t.Helper()
	require.Eventually(t, func() bool {
		log := e.log.String()
		for _, line := range lines {
			if !strings.Contains(log, line) {
				return false
			}
		}
		return true
	}, time.Minute, time.Millisecond, "%v", lines)
}

const (
	waits     = "the renewed certificate waits until it can be used: the one before stays"
	isTakenUp = "the renewed certificate is taken up: a key server has its key"
)

// fixed are a configuration's addresses of key servers, which do not change.
var fixed = KeyServer{URL: "coaps://ks.test/ski"}

// A certificate whose key no key server has does not take the place of a pair
// that works, until a key server has it; sites do not wait for each other.
func TestARenewedCertificateWaitsForItsKey(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		t.Run(engine, func(t *testing.T) {
			p := newPKI(t)
			a, b := p.lasting(t, month, "a.test"), p.lasting(t, month, "b.test")
			cfg := Config{KeyServer: fixed, Sites: []Site{
				{Names: []string{"a.test"}, Certificates: []string{a.file}, Static: htdocs(t, "old"), Engine: engine},
				{Names: []string{"b.test"}, Certificates: []string{b.file}, Static: p.dir, Engine: engine},
			}}
			e := start(t, cfg, p.transport())
			assert.Empty(t, e.Pending())
			nextA, nextB := p.unknown(t, "a.test"), p.lasting(t, month, "b.test")
			a.renew(t, nextA)
			b.renew(t, nextB)
			cfg.Sites[0].Static = htdocs(t, "new")
			_, err := e.Reload(cfg, over(p.transport()))
			require.NoError(t, err)

			e.untilLogged(t, waits, isTakenUp)
			assert.Equal(t, nextB.id(), e.shows(t, p, &tls.Config{ServerName: "b.test"}), "the other site has its own")
			assert.Equal(t, a.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
			_, body := get(t, e.client(t, p), "https://a.test/")
			assert.Equal(t, "new", body, "all else is as configured")
			require.Len(t, e.Pending(), 1)
			pending := e.Pending()[0]
			assert.WithinDuration(t, time.Now(), pending.Since, time.Minute)
			pending.Since = time.Time{}
			assert.Equal(t, PendingCertificate{Site: "a.test", File: a.file, SPKI: nextA.id(), Reason: "spki not found"}, pending)
			info := e.Sites()[0]
			assert.Equal(t, nextA.id(), ski.CertificateKeyID(info.Leaves[0]))
			assert.Equal(t, a.id(), ski.CertificateKeyID(info.Served[0]))
			assert.Equal(t, 1., e.value(t, "certificates_pending", "site", "a.test"))
			assert.Equal(t, 0., e.value(t, "certificates_pending", "site", "b.test"))
			assert.Equal(t, float64(e.Pending()[0].Since.Unix()), e.value(t, "certificate_pending_timestamp_seconds", "site", "a.test"))
			assert.NoError(t, e.Ready(t.Context()))
			assert.Equal(t, 1, strings.Count(e.log.String(), waits))

			p.keys.Add(nextA.key)
			require.Eventually(t, func() bool { return len(e.Pending()) == 0 }, time.Minute, time.Millisecond)
			assert.Equal(t, nextA.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}), "without another reload")
			assert.Equal(t, 0., e.value(t, "certificates_pending", "site", "a.test"))
			assert.Equal(t, 0., e.value(t, "certificate_pending_timestamp_seconds", "site", "a.test"))
			assert.NotContains(t, e.log.String(), "handshake failed: no answer")
		})
	}
}

// settled waits until no certificate is pending.
func (e *edge) settled(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return len(e.Pending()) == 0 }, time.Minute, time.Millisecond)
}

// pendingSite starts an edge with one site, renews its certificate with a key that no
// key server has, and waits until that is known.
func pendingSite(t *testing.T, p *testPKI, old, next pair, transport ski.Transport) (*edge, Config) {
	cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{old.file}, Static: p.dir}}}
	e := start(t, cfg, transport)
	old.renew(t, next)
	_, err := e.Reload(cfg, over(transport))
	require.NoError(t, err)
	e.untilLogged(t, waits)
	return e, cfg
}

func TestACertificateWithTheSameKeyIsTakenUpUnasked(t *testing.T) {
	p := newPKI(t)
	a := p.lasting(t, month, "a.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{a.file}, Static: p.dir}}}
	e := start(t, cfg, p.transport())
	p.keys.Refuse(ski.UnspecifiedError)
	again := pair{p.issue(t, a.key, 2*month, "a.test"), a.key}
	a.renew(t, again)
	p.keys.Forget()
	_, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	assert.Empty(t, e.Pending())
	assert.Empty(t, p.keys.Forget())
	assert.WithinDuration(t, time.Now().Add(2*month), e.Sites()[0].Served[0].NotAfter, time.Minute)
}

// What clients would not accept yet, or any more, takes the place of nothing that
// they accept.
func TestACertificateThatIsNotValidNowWaits(t *testing.T) {
	for _, sameKey := range []bool{true, false} {
		p := newPKI(t)
		old := p.lasting(t, 3*month, "a.test")
		key := old.key
		if !sameKey {
			key = p.lasting(t, month, "a.test").key
		}
		next := pair{p.issueFrom(t, key, time.Now().Add(time.Hour), 3*month, "a.test"), key}
		cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{old.file}, Static: p.dir}}}
		e := start(t, cfg, p.transport())
		before := e.Sites()[0].Served[0]
		var clock atomic.Int64
		e.clock = func() time.Time { return time.Now().Add(time.Duration(clock.Load())) }
		old.renew(t, next)
		_, err := e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
		e.untilLogged(t, waits)
		require.Len(t, e.Pending(), 1)
		assert.Contains(t, e.Pending()[0].Reason, "not valid before ")
		assert.Equal(t, before.Raw, e.Sites()[0].Served[0].Raw)
		clock.Store(int64(2 * time.Hour))
		e.settled(t)
		assert.NotEqual(t, before.Raw, e.Sites()[0].Served[0].Raw)

		expired := pair{p.issue(t, old.key, -time.Minute, "a.test"), old.key}
		old.renew(t, expired)
		_, err = e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
		require.Len(t, e.Pending(), 1)
		require.Eventually(t, func() bool { return strings.Contains(e.Pending()[0].Reason, "expired at ") }, time.Minute, time.Millisecond)
		assert.Equal(t, next.id(), ski.CertificateKeyID(e.Sites()[0].Served[0]))
		clock.Store(int64(3*month - 30*time.Minute))
		e.site("a.test").kick()
		n := strings.Count(e.log.String(), waits)
		_, err = e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return strings.Count(e.log.String(), waits) > n }, time.Minute, time.Millisecond)
		require.Len(t, e.Pending(), 1, "the last half hour of the one before is better")
	}
}

// When the pair before is of no use any more, a renewed certificate is taken up
// whether or not its key is there.
func TestARenewedCertificateIsTakenUpInTheLastHourOfTheOneBefore(t *testing.T) {
	p := newPKI(t)
	old, next := p.lasting(t, 2*time.Hour, "a.test"), p.unknown(t, "a.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{old.file}, Static: p.dir}}}
	e := start(t, cfg, p.transport())
	var later atomic.Int64
	e.clock = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	old.renew(t, next)
	_, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	e.untilLogged(t, waits)
	later.Store(int64(59 * time.Minute))
	e.site("a.test").kick()
	n := len(p.keys.Requests())
	require.Eventually(t, func() bool { return len(p.keys.Requests()) >= n+2 }, time.Minute, time.Millisecond)
	require.Len(t, e.Pending(), 1, "there is more than an hour")

	later.Store(int64(61 * time.Minute))
	e.site("a.test").kick()
	e.settled(t)
	e.untilLogged(t, `level=WARN msg="the renewed certificate is taken up, though no key server is known to have its key`)
	assert.Equal(t, next.id(), ski.CertificateKeyID(e.Sites()[0].Served[0]))

	// So it is where it is known at once.
	last := p.unknown(t, "a.test")
	old.renew(t, last)
	later.Store(int64(month))
	_, err = e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	assert.Empty(t, e.Pending())
	assert.Equal(t, last.id(), ski.CertificateKeyID(e.Sites()[0].Served[0]))
}

// The operator has replaced the key rather than added one: handshakes fail until
// the next question, which is not waited for.
func TestAKeyThatIsReplacedIsNoticedByTheNextHandshake(t *testing.T) {
	p := newPKI(t)
	old, next := p.lasting(t, month, "a.test"), p.unknown(t, "a.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{old.file}, Static: p.dir}}}
	e := start(t, cfg, p.transport())
	e.renewalPause = time.Hour
	old.renew(t, next)
	_, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	e.untilLogged(t, waits)
	p.keys.Remove(old.id())
	p.keys.Add(next.key)
	_, err = e.dial(p, &tls.Config{ServerName: "a.test"})
	require.Error(t, err)
	e.settled(t)
	assert.Equal(t, next.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
}

// unreachable is a key server that is gone for good.
var unreachable = ski.TransportFunc(func(context.Context, *ski.Request) (*ski.Response, error) {
	return nil, &ski.TransportError{Endpoint: "coaps://gone.test/ski", Op: "dial", Err: errors.New("nobody there"), Permanent: true}
})

// One of several key servers with the new key is enough, since others are asked when
// one does not find it. With static RSA they are not: there each that has the key
// before needs the new one. One that does not answer, or that has neither, is not
// waited for.
func TestOneOfSeveralKeyServersIsEnoughButForStaticRSA(t *testing.T) {
	for _, staticRSA := range []bool{false, true} {
		p := newPKI(t)
		old, next := pair{p.issue(t, sharedRSA(), month, "a.test"), sharedRSA()}, pair{p.issue(t, otherRSA(), month, "a.test"), otherRSA()}
		first, second, empty := skitest.NewKeyServer(old.key), skitest.NewKeyServer(old.key), skitest.NewKeyServer()
		client := &ski.Client{}
		for _, ks := range []*skitest.KeyServer{first, second, empty} {
			client.Transports = append(client.Transports, ski.Direct(ks, ski.Peer{}))
		}
		client.Transports = append(client.Transports, unreachable)
		t.Cleanup(func() { client.Close() })
		cfg := Config{KeyServer: fixed, Sites: []Site{{
			Names: []string{"a.test"}, Certificates: []string{old.file}, Static: p.dir, StaticRSA: staticRSA,
		}}}
		e := start(t, cfg, client)
		e.renewalPause = 20 * time.Millisecond
		pendingFor := func(reason string) {
			require.Eventually(t, func() bool { return e.Pending()[0].Reason == reason }, time.Minute, time.Millisecond)
		}
		old.renew(t, next)
		_, err := e.Reload(cfg, over(client))
		require.NoError(t, err)
		e.untilLogged(t, waits)
		assert.Equal(t, "0: spki not found, 1: spki not found, 2: spki not found, 3: unreachable", e.Pending()[0].Reason)
		client.Replace(client.Members()[:3])
		pendingFor("0: spki not found, 1: spki not found, 2: spki not found")
		assert.Equal(t, old.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))

		second.Add(next.key)
		if staticRSA {
			pendingFor("0: spki not found, 2: spki not found")
			assert.Equal(t, old.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
			require.Eventually(t, func() bool { return strings.Count(e.log.String(), waits) == 3 }, time.Minute, time.Millisecond, "what has changed is said")
			first.Add(next.key)
		}
		e.settled(t)
		assert.Equal(t, next.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
		e.untilLogged(t, `level=WARN msg="not each key server is known to have the key of the certificate that is taken up"`)
		first.Add(next.key)
		empty.Add(next.key)
	}
}

// No answer says nothing of the key.
func TestARenewedCertificateWaitsWhileNoKeyServerAnswers(t *testing.T) {
	p := newPKI(t)
	old, next := p.lasting(t, month, "a.test"), p.lasting(t, month, "a.test")
	var down atomic.Bool
	down.Store(true)
	e, _ := pendingSite(t, p, old, next, ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
		if down.Load() {
			return unreachable.RoundTrip(ctx, req)
		}
		return p.transport().RoundTrip(ctx, req)
	}))
	assert.Equal(t, "unreachable", e.Pending()[0].Reason)
	down.Store(false)
	e.settled(t)
}

// So it does while there is none: a name of theirs has no addresses.
func TestARenewedCertificateWaitsWhileThereIsNoKeyServer(t *testing.T) {
	p := newPKI(t)
	old, next := p.lasting(t, month, "a.test"), p.lasting(t, month, "a.test")
	client := &ski.Client{}
	defer client.Close()
	e, _ := pendingSite(t, p, old, next, client)
	assert.Equal(t, "there is no key server", e.Pending()[0].Reason)
	client.Replace([]ski.Transport{p.transport()})
	e.settled(t)
}

// A key that the policy does not let the edge use is as good as none; what it denied
// for the key before, too, is no worse than it was.
func TestARenewedCertificateWaitsForThePolicy(t *testing.T) {
	p := newPKI(t)
	old, next := p.lasting(t, month, "a.test"), p.lasting(t, month, "a.test")
	var granted atomic.Bool
	policy := ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
		secp384r1 := len(req.Input) > 66 && req.Input[66] == 24
		if secp384r1 || req.Protocol.Is13() && req.SPKI == next.id() && !granted.Load() {
			return &ski.Response{Error: ski.RequestDenied}, nil
		}
		return p.transport().RoundTrip(ctx, req)
	})
	e, _ := pendingSite(t, p, old, next, policy)
	assert.Equal(t, "denied", e.Pending()[0].Reason)
	assert.Equal(t, old.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
	granted.Store(true)
	e.settled(t)
	assert.Equal(t, next.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
}

// otherRSA is made once.
var otherRSA = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// Of a site's two certificates each waits for its own key, whatever their files are
// called and in which order they come.
func TestEachCertificateOfASiteWaitsForItsOwnKey(t *testing.T) {
	rsaOnly := &tls.Config{ServerName: "a.test", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}
	for _, renamed := range []bool{false, true} {
		p := newPKI(t)
		oldECDSA, oldRSA := p.lasting(t, month, "a.test"), pair{p.issue(t, sharedRSA(), month, "a.test"), sharedRSA()}
		newECDSA, newRSA := p.unknown(t, "a.test"), pair{p.issue(t, otherRSA(), month, "a.test"), otherRSA()}
		cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{oldECDSA.file, oldRSA.file}, Static: p.dir}}}
		e := start(t, cfg, p.transport())
		if renamed {
			cfg.Sites = []Site{cfg.Sites[0]}
			cfg.Sites[0].Certificates = []string{newRSA.file, newECDSA.file}
		} else {
			oldECDSA.renew(t, newECDSA)
			oldRSA.renew(t, newRSA)
		}
		_, err := e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
		e.untilLogged(t, waits, isTakenUp)
		require.Len(t, e.Pending(), 1)
		assert.Equal(t, newECDSA.id(), e.Pending()[0].SPKI)
		assert.Equal(t, newRSA.id(), e.shows(t, p, rsaOnly.Clone()))
		if !renamed { // Otherwise RSA is preferred.
			assert.Equal(t, oldECDSA.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
		}
		p.keys.Add(newECDSA.key)
		e.settled(t)
		if !renamed {
			assert.Equal(t, newECDSA.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
		}
	}
}

// One that comes first does not take the chain of another's file.
func TestACertificateThatIsAddedLeavesTheOthersTheirs(t *testing.T) {
	p := newPKI(t)
	old := pair{p.issue(t, sharedRSA(), month, "a.test"), sharedRSA()}
	newRSA := pair{p.issue(t, otherRSA(), month, "a.test"), otherRSA()}
	p.keys.Remove(newRSA.id())
	added := p.lasting(t, month, "a.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{old.file}, Static: p.dir}}}
	e := start(t, cfg, p.transport())
	cfg.Sites = []Site{cfg.Sites[0]}
	cfg.Sites[0].Certificates = []string{added.file, old.file}
	old.renew(t, newRSA)
	_, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	e.untilLogged(t, isTakenUp, waits)
	assert.Equal(t, added.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
	assert.Equal(t, old.id(), e.shows(t, p, &tls.Config{ServerName: "a.test", MaxVersion: tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}))
}

// A certificate that is added is not shown to anybody until it is of use.
func TestACertificateThatIsAddedWaitsForItsKey(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		p := newPKI(t)
		old := pair{p.issue(t, sharedRSA(), month, "a.test"), sharedRSA()}
		added := p.unknown(t, "a.test")
		cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{old.file}, Static: p.dir, Engine: engine}}}
		e := start(t, cfg, p.transport())
		cfg.Sites = []Site{cfg.Sites[0]}
		cfg.Sites[0].Certificates = []string{added.file, old.file}
		for range 2 {
			_, err := e.Reload(cfg, over(p.transport()))
			require.NoError(t, err)
			e.untilLogged(t, "the certificate waits until it can be used: clients get the site's others")
			assert.Equal(t, old.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
		}
		p.keys.Add(added.key)
		e.settled(t)
		assert.Equal(t, added.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
	}
}

// The pair before stays over any number of reloads, with another type of key in
// another file too; going back to it ends the wait.
func TestThePairBeforeStaysOverReloads(t *testing.T) {
	p := newPKI(t)
	old := pair{p.issue(t, sharedRSA(), month, "a.test"), sharedRSA()}
	cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{old.file}, Static: p.dir}}}
	e := start(t, cfg, p.transport())
	var start time.Time
	var later atomic.Int64
	e.clock = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	next := p.unknown(t, "a.test")
	changed := cfg
	changed.Sites = []Site{cfg.Sites[0]}
	changed.Sites[0].Certificates = []string{next.file}
	for i := range 3 {
		_, err := e.Reload(changed, over(p.transport()))
		require.NoError(t, err)
		later.Add(int64(time.Minute))
		require.Len(t, e.Pending(), 1)
		if i == 0 {
			start = e.Pending()[0].Since
		}
		assert.Equal(t, start, e.Pending()[0].Since, "it is the same that waits")
		assert.Equal(t, old.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
	}
	_, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	assert.Empty(t, e.Pending())
	assert.Equal(t, old.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
	p.keys.Add(next.key)
	_, err = e.Reload(changed, over(p.transport()))
	require.NoError(t, err)
	e.settled(t)
	assert.Equal(t, next.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
}

// A site that comes has nothing better than what it comes with.
func TestASiteThatIsNewTakesItsCertificatesUp(t *testing.T) {
	p := newPKI(t)
	a, b := p.lasting(t, month, "a.test"), p.unknown(t, "b.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{a.file}, Static: p.dir}}}
	e := start(t, cfg, p.transport())
	cfg.Sites = append(cfg.Sites, Site{Names: []string{"b.test"}, Certificates: []string{b.file}, Static: p.dir})
	_, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	assert.Empty(t, e.Pending())
	e.Probe(t.Context())
	assert.Contains(t, e.log.String(), `level=WARN msg="the key server does not serve the key: handshakes will fail" site=b.test`)
}

// A key that is in use at another site may be one that nobody has, where that site is
// new.
func TestAKeyOfAnotherSiteIsAskedForToo(t *testing.T) {
	p := newPKI(t)
	a, nobodys := p.lasting(t, month, "a.test"), p.unknown(t, "a.test", "b.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{a.file}, Static: p.dir}}}
	e := start(t, cfg, p.transport())
	cfg.Sites = append(cfg.Sites, Site{Names: []string{"b.test"}, Certificates: []string{nobodys.file}, Static: p.dir})
	_, err := e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	a.renew(t, nobodys)
	_, err = e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	e.untilLogged(t, waits)
	assert.Equal(t, a.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
}

// Where the key servers are others too, nothing says that they have the key before:
// no handshake is lost while that is asked, over another reload either.
func TestARenewalWithAnotherKeyServerCostsNoHandshake(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		for _, reloads := range []int{1, 2} {
			p, other := newPKI(t), newPKI(t)
			old, next := p.lasting(t, month, "a.test"), other.lasting(t, month, "a.test")
			cfg := Config{KeyServer: fixed, Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{old.file}, Static: p.dir, Engine: engine}}}
			e := start(t, cfg, p.transport())
			slow := &waiting{other.transport(), make(chan struct{}, 100), make(chan struct{})}
			cfg.KeyServer = KeyServer{URL: "coaps://other.test/ski", Timeout: time.Minute}
			old.renew(t, next)
			for range reloads {
				_, err := e.Reload(cfg, over(slow))
				require.NoError(t, err)
				<-slow.asked
			}
			shaken := make(chan error, 1)
			go func() {
				c, err := e.dial(other, &tls.Config{ServerName: "a.test"})
				if err == nil {
					c.Close()
				}
				shaken <- err
			}()
			require.Eventually(t, func() bool { return e.Usage().Handshakes == 1 }, time.Minute, time.Millisecond)
			close(slow.answer)
			require.NoError(t, <-shaken)
			assert.Equal(t, next.id(), e.shows(t, other, &tls.Config{ServerName: "a.test"}))
		}
	}
}

// A file that is broken is an error of its site alone; what the configuration says
// is refused as a whole.
func TestABrokenCertificateFileHoldsNoOtherSiteUp(t *testing.T) {
	p := newPKI(t)
	a, b := p.lasting(t, month, "a.test"), p.lasting(t, month, "b.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{a.file}, Static: p.dir},
		{Names: []string{"b.test"}, Certificates: []string{b.file}, Static: p.dir},
	}}
	e := start(t, cfg, p.transport())
	next := p.lasting(t, month, "b.test")
	b.renew(t, next)
	good, err := os.ReadFile(a.file)
	require.NoError(t, err)
	for _, broken := range []string{"", string(good[:len(good)-40]), string(good) + string(good[:100]), "-----BEGIN PRIVATE KEY-----\n"} {
		require.NoError(t, os.WriteFile(a.file, []byte(broken), 0o600))
		for range 2 {
			_, err = e.Reload(cfg, over(p.transport()))
			require.NoError(t, err)
		}
		require.Eventually(t, func() bool { return len(e.Pending()) == 1 }, time.Minute, time.Millisecond)
		pending := e.Pending()[0]
		assert.Equal(t, "a.test", pending.Site)
		assert.Contains(t, pending.Reason, "edgeserver: sites[0].certificates[0]: "+a.file)
		assert.Equal(t, a.id(), e.shows(t, p, &tls.Config{ServerName: "a.test"}))
		assert.Equal(t, next.id(), e.shows(t, p, &tls.Config{ServerName: "b.test"}))
	}
	assert.Contains(t, e.log.String(), `level=ERROR msg="a certificate file cannot be used: the certificate before stays" site=a.test`)

	// A name that the certificate has never had is the configuration's fault.
	wrong := cfg
	wrong.Sites = []Site{cfg.Sites[0], cfg.Sites[1]}
	wrong.Sites[1].Names = []string{"b.test", "c.test"}
	_, err = e.Reload(wrong, over(p.transport()))
	assert.ErrorContains(t, err, "does not cover 'c.test'")
	wrong.Sites[1] = cfg.Sites[1]
	wrong.Sites[1].Certificates = []string{b.file + ".none"}
	_, err = e.Reload(wrong, over(p.transport()))
	assert.ErrorIs(t, err, os.ErrNotExist)

	require.NoError(t, os.WriteFile(a.file, good, 0o600))
	_, err = e.Reload(cfg, over(p.transport()))
	require.NoError(t, err)
	assert.Empty(t, e.Pending())
}

// Clients visit while certificates are taken up all the time: nobody notices, and
// who comes back resumes its session.
func TestManyRenewalsUnderLoad(t *testing.T) {
	p := newPKI(t)
	a, b := p.lasting(t, month, "a.test"), p.lasting(t, month, "b.test")
	cfg := Config{KeyServer: fixed, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{a.file}, Static: p.dir},
		{Names: []string{"b.test"}, Certificates: []string{b.file}, Static: p.dir, Engine: EngineSplit},
	}}
	e := start(t, cfg, p.transport())
	ctx, stop := context.WithCancel(t.Context())
	var visitors sync.WaitGroup
	for range 2 {
		for _, name := range []string{"a.test", "b.test"} {
			visitors.Go(func() {
				for ctx.Err() == nil {
					// p.roots grows meanwhile.
					c, err := tls.Dial("tcp", e.addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
					if assert.NoError(t, err, name) {
						c.Close()
					}
				}
			})
		}
	}
	cache := tls.NewLRUClientSessionCache(1)
	come := func() bool {
		c, err := tls.Dial("tcp", e.addr, &tls.Config{ServerName: "b.test", InsecureSkipVerify: true, ClientSessionCache: cache})
		require.NoError(t, err)
		defer c.Close()
		return c.ConnectionState().DidResume
	}
	assert.False(t, come())
	for range 5 {
		nextA, nextB := p.lasting(t, month, "a.test"), p.lasting(t, month, "b.test")
		a.renew(t, nextA)
		b.renew(t, nextB)
		_, err := e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
		e.settled(t)
		assert.True(t, come())
	}
	stop()
	visitors.Wait()
	require.Eventually(t, func() bool { return strings.Count(e.log.String(), isTakenUp) == 10 }, time.Minute, time.Millisecond)
}
