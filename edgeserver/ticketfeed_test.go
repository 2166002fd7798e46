package edgeserver

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
)

// fleet is key servers and edge servers of two sites, a.test and b.test, which
// the same certificate would do for.
type fleet struct {
	t           *testing.T
	pki         *testPKI
	certificate string
	store       *keyserver.MemoryStore
	policy      string

	channelKey *ecdsa.PrivateKey // of the authority of the SKI channel
	channelCA  *x509.Certificate
	roots      *x509.CertPool
}

const fleetPolicy = `
edges:
  - {name: one, dns: [one.edge]}
  - {name: two, dns: [two.edge]}
  - {name: three, dns: [three.edge]}
rules:
  - {edges: [one, two, three], keys: ["*"], methods: [ECDHE]}
tickets:
  - {name: a.test, edges: [one, two, three]}
  - {name: b.test, edges: [one, two]}
`

func newFleet(t *testing.T) *fleet {
	f := &fleet{t: t, pki: newPKI(t), store: new(keyserver.MemoryStore), policy: fleetPolicy, roots: x509.NewCertPool()}
	site, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	require.NoError(t, f.store.Add("site", site))
	f.certificate = f.pki.issue(t, site, time.Hour, "a.test", "b.test")
	f.channelKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	f.channelCA = f.issue(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, &f.channelKey.PublicKey)
	f.roots.AddCert(f.channelCA)
	return f
}

func (f *fleet) issue(template *x509.Certificate, public *ecdsa.PublicKey) *x509.Certificate {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: "channel"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent := f.channelCA
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, f.channelKey)
	require.NoError(f.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(f.t, err)
	return cert
}

func (f *fleet) identity(usage x509.ExtKeyUsage, name string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(f.t, err)
	cert := f.issue(&x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)},
	}, &key.PublicKey)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// fleetKeyServer is a key server that counts the requests for its private keys.
type fleetKeyServer struct {
	*keyserver.Server
	fleet *fleet
	asked atomic.Int64
	wire  *skicoap.Server
	ended chan error
}

func (k *fleetKeyServer) ServeSKI(ctx context.Context, peer ski.Peer, req *ski.Request) *ski.Response {
	k.asked.Add(1)
	return k.Server.ServeSKI(ctx, peer, req)
}

func (f *fleet) parse(policy string) *keyserver.Policy {
	p, err := keyserver.ParsePolicy("policy.yaml", []byte(policy), f.store)
	require.NoError(f.t, err)
	return p
}

// keyServer starts one at an address, with a secret of the fleet, or one of its
// own.
func (f *fleet) keyServer(addr string, secret []byte) *fleetKeyServer {
	quiet := slog.New(slog.DiscardHandler)
	ratchet, err := keyserver.OpenTicketRatchet("", secret, time.Now())
	require.NoError(f.t, err)
	server, err := keyserver.New(keyserver.Options{
		Keys: f.store, Policy: f.parse(f.policy), Audit: keyserver.NewAuditLog(io.Discard), TicketRatchet: ratchet, Logger: quiet,
	})
	require.NoError(f.t, err)
	k := &fleetKeyServer{Server: server, fleet: f, ended: make(chan error, 1)}
	k.wire, err = skicoap.Listen(addr, skicoap.ServerConfig{
		Handler: k, Admit: server.Admit, Certificate: f.identity(x509.ExtKeyUsageServerAuth, "ks"), ClientCAs: f.roots, Logger: quiet,
	})
	require.NoError(f.t, err)
	server.SetSessions(k.wire)
	go func() { k.ended <- k.wire.Serve() }()
	f.t.Cleanup(k.kill)
	return k
}

// kill ends it as when its process dies, but for a close_notify.
func (k *fleetKeyServer) kill() {
	if k.ended != nil {
		assert.NoError(k.fleet.t, k.wire.Close())
		assert.NoError(k.fleet.t, <-k.ended)
		k.ended = nil
	}
}

func (k *fleetKeyServer) addr() string { return k.wire.Addr().String() }

var fleetSecret = bytes.Repeat([]byte{7}, keyserver.MinTicketSecret)

// edge starts an edge server that asks key servers.
func (f *fleet) edge(name, engine string, versions []string, servers ...*fleetKeyServer) *edge {
	return start(f.t, f.config(engine, versions), f.client(name, servers...))
}

// client is what an edge asks key servers with.
func (f *fleet) client(name string, servers ...*fleetKeyServer) *ski.Client {
	client := &ski.Client{}
	identity := f.identity(x509.ExtKeyUsageClientAuth, name+".edge")
	for _, k := range servers {
		c, err := skicoap.NewClient(fmt.Sprintf("coaps://%s/ski", k.addr()), skicoap.ClientConfig{
			Certificate: identity, RootCAs: f.roots, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(f.t, err)
		f.t.Cleanup(func() { c.Close() })
		client.Transports = append(client.Transports, c)
	}
	f.t.Cleanup(func() { client.Close() })
	return client
}

func (f *fleet) config(engine string, versions []string) Config {
	var sites []Site
	for _, site := range []string{"a.test", "b.test"} {
		sites = append(sites, Site{Names: []string{site}, Certificates: []string{f.certificate}, Static: htdocs(f.t, site),
			Engine: engine, Versions: versions, Tickets: TicketsShared})
	}
	return Config{Sites: sites, KeyServer: KeyServer{Timeout: time.Minute}}
}

func (e *edge) store(i int) *sharedTickets { return &e.Server.current().sites.all[i].tickets.shared }

// ids returns the ids of the keys that an edge has for a site.
func (e *edge) ids(i int) string {
	s := e.store(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	return ticketIDs(s.keys)
}

// synced waits until edges have the keys of a.test, which are the same, and returns
// their ids.
func (f *fleet) synced(edges ...*edge) (ids string) {
	f.t.Helper()
	require.Eventually(f.t, func() bool {
		ids = edges[0].ids(0)
		for _, e := range edges {
			if e.ids(0) != ids {
				return false
			}
		}
		return ids != ""
	}, 3*time.Minute, time.Millisecond)
	return ids
}

// visit makes a request with a client of this TLS version at an edge, and reports
// whether it has resumed a session of its cache.
func (f *fleet) visit(e *edge, site string, version uint16, cache tls.ClientSessionCache) (resumed bool) {
	f.t.Helper()
	c, err := e.dial(f.pki, &tls.Config{ServerName: site, MaxVersion: version, MinVersion: version, ClientSessionCache: cache})
	require.NoError(f.t, err)
	defer c.Close()
	_, err = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", site)
	require.NoError(f.t, err)
	answer, err := io.ReadAll(c) // with the tickets of TLS 1.3
	require.NoError(f.t, err)
	require.True(f.t, strings.HasSuffix(string(answer), site), string(answer))
	return c.ConnectionState().DidResume
}

// sharing are the ways to make a session that edges share.
var sharing = []struct {
	name, engine string
	versions     []string
	version      uint16
}{
	{"TLS 1.2", EngineStandard, nil, tls.VersionTLS12},
	{"TLS 1.3", EngineStandard, nil, tls.VersionTLS13},
	{"split", EngineSplit, nil, tls.VersionTLS12},
	{"TLS 1.3 beside split", EngineSplit, []string{"TLS 1.2", "TLS 1.3"}, tls.VersionTLS13},
}

func TestAClientResumesAtAnotherEdgeOfTheSite(t *testing.T) {
	f := newFleet(t)
	k := f.keyServer("127.0.0.1:0", fleetSecret)
	for _, tt := range sharing {
		t.Run(tt.name, func(t *testing.T) {
			one, two := f.edge("one", tt.engine, tt.versions, k), f.edge("two", tt.engine, tt.versions, k)
			f.synced(one, two)
			cache := new(oneSession)
			require.False(t, f.visit(one, "a.test", tt.version, cache))
			asked := k.asked.Load()
			assert.True(t, f.visit(two, "a.test", tt.version, cache))
			assert.True(t, f.visit(one, "a.test", tt.version, cache), "and back, with the other's ticket")
			assert.Equal(t, asked, k.asked.Load(), "the key server was not asked")

			for _, e := range []*edge{one, two} {
				cache := new(oneSession)
				require.False(t, f.visit(one, "a.test", tt.version, cache))
				asked := k.asked.Load()
				assert.False(t, f.visit(e, "b.test", tt.version, cache), "a ticket of another site is useless")
				assert.Equal(t, asked+1, k.asked.Load())
			}
		})
	}
}

func TestASuspendedEdgeLosesTheSharedTickets(t *testing.T) {
	f := newFleet(t)
	k := f.keyServer("127.0.0.1:0", fleetSecret)
	one, two, three := f.edge("one", EngineStandard, nil, k), f.edge("two", EngineStandard, nil, k), f.edge("three", EngineStandard, nil, k)
	before := f.synced(one, two, three)
	require.Eventually(t, func() bool { return one.ids(1) != "" }, 3*time.Minute, time.Millisecond)
	otherSite := one.ids(1)
	cache := new(oneSession)
	f.visit(three, "a.test", tls.VersionTLS13, cache)
	three.until(t, 1, "shared_ticket_key", "site", "a.test")

	_, err := k.Suspend(keyserver.Suspension{Edge: "three", By: "a test"})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return three.ids(0) == "" }, 3*time.Minute, time.Millisecond)
	three.untilLogged(t, "the key server denies the site's ticket keys")
	three.until(t, 0, "shared_ticket_key", "site", "a.test")
	require.Eventually(t, func() bool { return one.ids(0) != before && two.ids(0) != before }, 3*time.Minute, time.Millisecond)
	f.synced(one, two)
	for id := range strings.SplitSeq(before, ",") {
		assert.NotContains(t, one.ids(0), id)
	}
	assert.Equal(t, otherSite, one.ids(1), "a site that it had no part in")
	assert.False(t, f.visit(one, "a.test", tls.VersionTLS13, cache), "what it knows opens nothing any more")
	assert.True(t, f.visit(two, "a.test", tls.VersionTLS13, cache))

	require.NoError(t, k.Resume("three", "a test"))
	f.synced(one, two, three)
}

func TestTheKeyServersPolicyRotatesSharedTickets(t *testing.T) {
	f := newFleet(t)
	k := f.keyServer("127.0.0.1:0", fleetSecret)
	one, two := f.edge("one", EngineSplit, nil, k), f.edge("two", EngineSplit, nil, k)
	before := f.synced(one, two)
	k.SetPolicy(f.parse(strings.Replace(fleetPolicy, "{name: a.test,", "{name: a.test, generation: 1,", 1)))
	require.Eventually(t, func() bool { return one.ids(0) != before && two.ids(0) != before }, 3*time.Minute, time.Millisecond)
	f.synced(one, two)

	// A site that is no longer granted is this edge's own business again.
	cache := new(oneSession)
	k.SetPolicy(f.parse(strings.Replace(fleetPolicy, "edges: [one, two, three]}\n  - {name: b.test", "edges: [two, three]}\n  - {name: b.test", 1)))
	require.Eventually(t, func() bool { return one.ids(0) == "" }, 3*time.Minute, time.Millisecond)
	f.visit(one, "a.test", tls.VersionTLS12, cache)
	assert.True(t, f.visit(one, "a.test", tls.VersionTLS12, cache))
	assert.False(t, f.visit(two, "a.test", tls.VersionTLS12, cache))
}

func TestSharedTicketsGoOnWithoutAKeyServer(t *testing.T) {
	f := newFleet(t)
	k := f.keyServer("127.0.0.2:0", fleetSecret) // whose ports no client's socket takes while it is gone
	one, two := f.edge("one", EngineStandard, nil, k), f.edge("two", EngineStandard, nil, k)
	ids := f.synced(one, two)
	caches := map[uint16]*oneSession{tls.VersionTLS12: new(oneSession), tls.VersionTLS13: new(oneSession)}
	for version, cache := range caches {
		f.visit(one, "a.test", version, cache)
	}
	k.kill()
	for version, cache := range caches {
		for range 2 {
			assert.True(t, f.visit(two, "a.test", version, cache))
			assert.True(t, f.visit(one, "a.test", version, cache))
		}
	}
	require.Eventually(t, func() bool { return strings.Contains(one.log.String(), "no ticket keys from the key server") }, 3*time.Minute, time.Millisecond)
	assert.Equal(t, ids, one.ids(0))

	// One with the same secret has the same keys; one with a secret of its own
	// has others, and the edges follow.
	same := f.keyServer(k.addr(), fleetSecret)
	require.Eventually(t, func() bool { return strings.Count(one.log.String(), "msg=\"ticket keys\"") > 2 }, 3*time.Minute, time.Millisecond)
	assert.Equal(t, ids, one.ids(0))
	same.kill()
	f.keyServer(k.addr(), nil)
	require.Eventually(t, func() bool { return one.ids(0) != ids && two.ids(0) != ids }, 3*time.Minute, time.Millisecond)
	f.synced(one, two)
}

func TestTwoKeyServersWithOneSecretShareTickets(t *testing.T) {
	f := newFleet(t)
	first, second := f.keyServer("127.0.0.1:0", fleetSecret), f.keyServer("127.0.0.1:0", fleetSecret)
	one, two := f.edge("one", EngineStandard, nil, first), f.edge("two", EngineStandard, nil, second)
	f.synced(one, two)
	cache := new(oneSession)
	f.visit(one, "a.test", tls.VersionTLS13, cache)
	assert.True(t, f.visit(two, "a.test", tls.VersionTLS13, cache))

	// An edge with both goes over from the one that is lost.
	both := f.edge("three", EngineStandard, nil, first, second)
	f.synced(one, two, both)
	first.kill()
	second.SetPolicy(f.parse(strings.Replace(fleetPolicy, "{name: a.test,", "{name: a.test, generation: 1,", 1)))
	f.synced(two, both)
}

func TestSharedTicketsOutlastAReload(t *testing.T) {
	f := newFleet(t)
	first, second := f.keyServer("127.0.0.1:0", fleetSecret), f.keyServer("127.0.0.1:0", fleetSecret)
	cfg := f.config(EngineStandard, nil)
	e := start(t, cfg, f.client("one", first))
	ids := f.synced(e)
	cache := new(oneSession)
	f.visit(e, "a.test", tls.VersionTLS13, cache)
	first.kill() // so that they are not there anew
	before, lost := e.store(0), e.store(1)

	// Other key servers for the same sites.
	_, err := e.Reload(cfg, map[string]ski.Transport{"": f.client("one", second)})
	require.NoError(t, err)
	assert.Same(t, before, e.store(0))
	assert.Equal(t, ids, e.ids(0))
	assert.True(t, f.visit(e, "a.test", tls.VersionTLS13, cache))
	second.SetPolicy(f.parse(strings.Replace(fleetPolicy, "{name: a.test,", "{name: a.test, generation: 1,", 1)))
	require.Eventually(t, func() bool { return e.ids(0) != ids && e.ids(0) != "" }, time.Minute, time.Millisecond, "they are followed")

	// A site that shares no more, and one that is gone.
	cfg = f.config(EngineStandard, nil)
	cfg.Sites[0].Tickets, cfg.Sites = TicketsLocal, cfg.Sites[:1]
	_, err = e.Reload(cfg, map[string]ski.Transport{"": f.client("one", second)})
	require.NoError(t, err)
	assert.Equal(t, derivedTickets{}, before.current())
	assert.Equal(t, derivedTickets{}, lost.current())
}

// TestASharedTicketIsNoWayAroundClientCertificates has edges of one site that do not
// want the same of clients, as while the configuration is being changed.
func TestASharedTicketIsNoWayAroundClientCertificates(t *testing.T) {
	f := newFleet(t)
	k := f.keyServer("127.0.0.1:0", fleetSecret)
	ca, other := newClientCA(t, "clients"), newClientCA(t, "others")
	for _, tt := range sharing {
		t.Run(tt.name, func(t *testing.T) {
			asking := func(name string, clients ClientCertificates) *edge {
				cfg := f.config(tt.engine, tt.versions)
				cfg.Sites = cfg.Sites[:1]
				cfg.Sites[0].ClientCertificates = clients
				return start(t, cfg, f.client(name, k))
			}
			open := asking("one", ClientCertificates{})
			closed := asking("two", ClientCertificates{Mode: ClientCertificatesRequired, CA: ca.file})
			others := asking("three", ClientCertificates{Mode: ClientCertificatesRequired, CA: other.file})
			f.synced(open, closed, others)
			client := func(certs ...tls.Certificate) *tls.Config {
				return &tls.Config{ServerName: "a.test", MinVersion: tt.version, MaxVersion: tt.version,
					Certificates: certs, ClientSessionCache: new(oneSession)}
			}
			anonymous := client()
			_, err := open.dialAndRead(f.pki, anonymous)
			require.NoError(t, err)
			_, err = closed.dialAndRead(f.pki, anonymous)
			require.Error(t, err, "a session without a certificate")

			alice := client(ca.alice(t))
			_, err = closed.dialAndRead(f.pki, alice)
			require.NoError(t, err)
			state, err := closed.dialAndRead(f.pki, alice)
			require.NoError(t, err)
			assert.True(t, state.DidResume)
			_, err = others.dialAndRead(f.pki, alice)
			require.Error(t, err, "a session with a certificate of another authority")
		})
	}
}

func TestTicketsOff(t *testing.T) {
	for _, tt := range sharing {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(t)
			e := start(t, Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{f.pki.ecdsa(t, "a.test")}, Static: htdocs(t, "a.test"),
				Engine: tt.engine, Versions: tt.versions, Tickets: TicketsOff}}}, f.pki.transport())
			cache := new(oneSession)
			for range 2 {
				assert.False(t, f.visit(e, "a.test", tt.version, cache))
			}
		})
	}
}

func TestWhatIsWrongWithSharedTickets(t *testing.T) {
	site := func(change func(*Config, *Site)) error {
		cfg := Config{KeyServer: KeyServer{URL: "coaps://ks"}, Sites: []Site{
			{Names: []string{"a.test"}, Certificates: []string{"a.pem"}, Static: ".", Tickets: TicketsShared},
			{Names: []string{"b.test"}, Certificates: []string{"b.pem"}, Static: ".", Tickets: TicketsShared},
		}}
		change(&cfg, &cfg.Sites[1])
		cfg = cfg.withDefaults()
		return cfg.validate()
	}
	require.NoError(t, site(func(*Config, *Site) {}))
	tests := []struct {
		want   string
		change func(*Config, *Site)
	}{
		{"sites[1].tickets: 'on' is not local, shared or off", func(_ *Config, s *Site) { s.Tickets = "on" }},
		{"sites[1].ticket_site: is for tickets: shared", func(_ *Config, s *Site) { s.Tickets, s.TicketSite = "", "b" }},
		{"sites[1].ticket_site: 'a.test' is that of sites[0] already", func(_ *Config, s *Site) { s.TicketSite = "a.test" }},
		{"sites[1].ticket_site: 'a.test' is that of sites[0] already", func(c *Config, s *Site) {
			c.KeyServers = map[string]KeyServer{"another": c.KeyServer} // which is the same
			s.KeyServer, s.TicketSite = "another", "a.test"
		}},
		{"sites[1].ticket_site: 'a b' is not a name", func(_ *Config, s *Site) { s.TicketSite = "a b" }},
		{"sites[1].ticket_site: '' is not a name", func(_ *Config, s *Site) { s.Names, s.Default = nil, true }},
		{"sites[0].tickets: shared needs a key server at coaps:// or coaps+tcp://", func(c *Config, _ *Site) { c.KeyServer.URL = "https://ks/ski" }},
		{"sites[0].tickets: a key server that is draft_only has no ticket keys", func(c *Config, _ *Site) { c.KeyServer.DraftOnly = true }},
	}
	for _, tt := range tests {
		require.ErrorContains(t, site(tt.change), tt.want)
	}
	require.NoError(t, site(func(c *Config, _ *Site) {
		c.KeyServer.URL, c.KeyServer.URLs = "", []string{"https://ks/ski", "coaps+tcp://ks"}
	}), "one of several is enough")

	p := newPKI(t)
	cfg := Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: t.TempDir(), Tickets: TicketsShared}}}
	_, err := New(cfg, ski.TransportFunc(nil), nil)
	require.ErrorContains(t, err, "sites[0].tickets: the Transport to its key server is no ski.TicketSource")
}

// TestSharedTicketKeysComeAndGoWithTime has a clock of its own.
func TestSharedTicketKeysComeAndGoWithTime(t *testing.T) {
	noon := time.Unix(1_800_000_000, 0)
	clock := noon
	s := &sharedTickets{now: func() time.Time { return clock }}
	old := s.become("b.test")
	set := s.become("a.test")
	assert.Equal(t, derivedTickets{}, s.current())
	var keys []ski.TicketKey
	for i := range 3 { // a former one, that of now, and the next
		from := noon.Add(time.Duration(i-1)*time.Hour - time.Minute)
		k := ski.TicketKey{ID: ski.TicketKeyID{byte(i)}, From: from, To: from.Add(time.Hour), Until: from.Add(2 * time.Hour)}
		k.Secret[0] = byte(i + 1)
		keys = append(keys, k)
	}
	others := slices.Clone(keys)
	old(others)
	assert.Empty(t, s.current().split, "those of another site")
	assert.Zero(t, others[0].Secret, "what is not used is cleared")
	set(keys)
	now := s.current()
	require.Len(t, now.split, 3)
	assert.True(t, now.makes)
	next := now.split[2]

	clock = noon.Add(time.Hour)
	now = s.current()
	require.Len(t, now.split, 2, "one has expired")
	assert.True(t, now.makes)
	assert.Equal(t, next, now.split[0], "the next has become the one that makes tickets")
	assert.Zero(t, keys[2].Secret, "the place of the expired one is cleared")

	clock = noon.Add(2 * time.Hour)
	now = s.current()
	require.Len(t, now.split, 1)
	assert.False(t, now.makes, "it only opens tickets")
	require.NotNil(t, now.standard)

	clock = noon.Add(3 * time.Hour)
	assert.Equal(t, derivedTickets{}, s.current())
}

// TestTwoSitesWithOneKeyShareNoTickets has a key server that has lost its way.
func TestTwoSitesWithOneKeyShareNoTickets(t *testing.T) {
	f := newFleet(t)
	now := time.Now()
	office := ski.Direct(officeOf{{Secret: [32]byte{1}, From: now.Add(-time.Hour), To: now.Add(time.Hour), Until: now.Add(time.Hour)}}, ski.Peer{})
	transport := struct {
		ski.Transport
		ski.TicketSource
	}{f.client("one", f.keyServer("127.0.0.1:0", nil)), office.(ski.TicketSource)}
	for _, tt := range sharing {
		t.Run(tt.name, func(t *testing.T) {
			e := start(t, f.config(tt.engine, tt.versions), transport)
			require.Eventually(t, func() bool { return e.store(0).current().makes && e.store(1).current().makes }, 3*time.Minute, time.Millisecond)
			cache := new(oneSession)
			assert.False(t, f.visit(e, "a.test", tt.version, cache))
			assert.True(t, f.visit(e, "a.test", tt.version, cache))
			assert.False(t, f.visit(e, "b.test", tt.version, cache))
		})
	}
}

// TestSharedTicketsAreOfOneTriple has sites of one name and one certificate at two
// addresses.
func TestSharedTicketsAreOfOneTriple(t *testing.T) {
	for _, tt := range sharing {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(t)
			cfg := triples(t, f.pki, tt.engine)
			cfg.Sites = cfg.Sites[:2]
			f.policy, _, _ = strings.Cut(fleetPolicy, "tickets:")
			f.policy += "tickets:\n"
			for i := range cfg.Sites {
				s := &cfg.Sites[i]
				s.Certificates, s.Versions, s.Tickets, s.TicketSite = []string{f.certificate}, tt.versions, TicketsShared, fmt.Sprint("triple-", i)
				f.policy += fmt.Sprintf("  - {name: triple-%d, edges: [one, two]}\n", i)
			}
			k := f.keyServer("127.0.0.1:0", nil)
			var places [2][2]*edge // of each edge server, at two addresses
			for n, name := range []string{"one", "two"} {
				e := start(t, cfg, f.client(name, k))
				require.Eventually(t, func() bool {
					return !slices.ContainsFunc(e.Server.current().sites.all, func(s *site) bool { return !s.tickets.shared.current().makes })
				}, 3*time.Minute, time.Millisecond)
				places[n] = [2]*edge{e.on(e.also(t, "127.0.0.2:0")), e.on(e.also(t, "127.0.0.3:0"))}
			}
			visit := func(e *edge, cache *oneSession) bool {
				state, err := e.dialAndRead(f.pki, &tls.Config{ServerName: "a.test", MinVersion: tt.version, MaxVersion: tt.version, ClientSessionCache: cache})
				require.NoError(t, err)
				return state.DidResume
			}
			for from := range 2 {
				cache := new(oneSession)
				assert.False(t, visit(places[0][from], cache))
				assert.True(t, visit(places[1][from], cache), "another edge server, the same address")
				assert.False(t, visit(places[1][1-from], cache), "another address")
			}
		})
	}
}

// TestAKeyOfAnotherTimeMakesNoTickets has a key server whose clock is wrong.
func TestAKeyOfAnotherTimeMakesNoTickets(t *testing.T) {
	for name, from := range map[string]time.Duration{"far behind": -1000 * time.Hour, "far ahead": 1000 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			start := time.Now().Add(from)
			keys := []ski.TicketKey{{Secret: [32]byte{1}, From: start, To: start.Add(time.Hour), Until: start.Add(time.Hour)}}
			source := ski.Direct(officeOf(keys), ski.Peer{}).(ski.TicketSource)
			var log bytes.Buffer
			ctx, cancel := context.WithCancel(t.Context())
			s := new(sharedTickets)
			set := s.become("a.test")
			followTickets(ctx, "a.test", source, func(keys []ski.TicketKey) {
				set(keys)
				cancel()
			}, slog.New(slog.NewTextHandler(&log, nil)))
			assert.False(t, s.current().makes)
			assert.Contains(t, log.String(), "none of the ticket keys makes tickets now")
			s.become("")
		})
	}
}

// officeOf is a key server that hands out these ticket keys.
type officeOf []ski.TicketKey

func (o officeOf) ServeSKI(context.Context, ski.Peer, *ski.Request) *ski.Response {
	return ski.Failed(ski.RequestDenied)
}

func (o officeOf) ServeTickets(_ context.Context, _ ski.Peer, site string, _ ski.TicketTag) *ski.TicketAnswer {
	return &ski.TicketAnswer{Keys: &ski.TicketKeys{Site: site, Keys: slices.Clone(o)}, Next: time.Now().Add(time.Hour)}
}

// TestAnEngineMakesTicketsOfItsOwnWithoutASharedKey follows the order of keys.
func TestAnEngineMakesTicketsOfItsOwnWithoutASharedKey(t *testing.T) {
	s := &site{Site: Site{Tickets: TicketsShared}, tickets: new(tickets)}
	set := s.tickets.shared.become("a.test")
	use := s.splitTickets()
	own := use()
	require.Len(t, own, 1)
	now := time.Now().Truncate(time.Second)
	key := func(from time.Duration) []ski.TicketKey {
		return []ski.TicketKey{{From: now.Add(from), To: now.Add(from + time.Hour), Until: now.Add(from + 9*time.Hour)}}
	}
	set(key(-time.Minute))
	require.Len(t, use(), 2)
	assert.Equal(t, own[0], use()[1], "what was made before is still opened")
	set(key(-2 * time.Hour))
	assert.Equal(t, own[0], use()[0])
	s.tickets.shared.become("")
	assert.Equal(t, own, use())
}
