package edgeserver

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// bothSites has ECDSA and RSA at one site, and each alone at others.
func bothSites(t *testing.T, p *testPKI, staticRSA bool) Config {
	dir := htdocs(t, "hello")
	return Config{Sites: []Site{
		{Names: []string{"both.test"}, Certificates: []string{p.ecdsa(t, "both.test"), p.rsa(t, "both.test")}, StaticRSA: staticRSA, Static: dir},
		{Names: []string{"ecdsa.test"}, Certificates: []string{p.ecdsa(t, "ecdsa.test")}, Static: dir},
		{Names: []string{"rsa.test"}, Certificates: []string{p.rsa(t, "rsa.test")}, StaticRSA: staticRSA, Static: dir},
	}}
}

func only(suites ...uint16) *tls.Config {
	return &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: suites}
}

func TestHandshakes(t *testing.T) {
	p := newPKI(t)
	e := start(t, bothSites(t, p, true), p.transport())
	tests := []struct {
		name   string
		site   string
		client *tls.Config
		suite  uint16      // 0: any
		want   ski.Request // but SPKI and Input
	}{
		{"TLS 1.2 ECDHE_ECDSA", "both.test", only(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, ski.Request{Protocol: ski.TLS12, Hash: ski.SHA256}},
		{"TLS 1.2 ECDHE_RSA", "both.test", only(tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, ski.Request{Protocol: ski.TLS12, Scheme: tls.PSSWithSHA256}},
		{"TLS 1.2 RSA", "both.test", only(tls.TLS_RSA_WITH_AES_128_GCM_SHA256),
			tls.TLS_RSA_WITH_AES_128_GCM_SHA256, ski.Request{Protocol: ski.TLS12, Method: ski.MethodRSA, ClientVersion: tls.VersionTLS12}},
		{"TLS 1.2 RSA, ECDHE offered for ECDSA only", "rsa.test", only(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384),
			tls.TLS_RSA_WITH_AES_256_GCM_SHA384, ski.Request{Protocol: ski.TLS12, Method: ski.MethodRSA, ClientVersion: tls.VersionTLS12}},
		{"ECDHE goes before RSA", "rsa.test", only(tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, ski.Request{Protocol: ski.TLS12, Scheme: tls.PSSWithSHA256}},
		{"TLS 1.3 ECDSA", "ecdsa.test", &tls.Config{MinVersion: tls.VersionTLS13}, 0,
			ski.Request{Protocol: ski.TLS13, Scheme: tls.ECDSAWithP256AndSHA256}},
		{"TLS 1.3 RSA", "rsa.test", &tls.Config{MinVersion: tls.VersionTLS13}, 0,
			ski.Request{Protocol: ski.TLS13, Scheme: tls.PSSWithSHA256}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.client.ServerName = tt.site
			tt.client.NextProtos = []string{"h2", "http/1.1"}
			c, err := e.dial(p, tt.client)
			require.NoError(t, err)
			defer c.Close()
			if tt.suite != 0 {
				assert.Equal(t, tls.CipherSuiteName(tt.suite), tls.CipherSuiteName(c.ConnectionState().CipherSuite))
			}
			asked := p.keys.Forget()
			require.Len(t, asked, 1)
			assert.Equal(t, tt.site, asked[0].ServerName)
			assert.Equal(t, ski.CertificateKeyID(c.ConnectionState().PeerCertificates[0]), asked[0].SPKI)
			got := ski.Request{
				Protocol: asked[0].Protocol, Hash: asked[0].Hash, Scheme: asked[0].Scheme, ClientVersion: asked[0].ClientVersion,
			}
			if asked[0].KeyExchange() != ski.MethodECDHE {
				got.Method = asked[0].Method
			}
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestStaticRSASpeaksHTTP(t *testing.T) {
	p := newPKI(t)
	e := start(t, bothSites(t, p, true), p.transport())
	c := e.client(t, p)
	c.Transport.(*http.Transport).TLSClientConfig.CipherSuites = []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
	c.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS12
	resp, body := get(t, c, "https://rsa.test/")
	assert.Equal(t, "hello", body)
	assert.Equal(t, 1, resp.ProtoMajor, "HTTP/2 forbids static RSA")
}

func TestStaticRSAOff(t *testing.T) {
	p := newPKI(t)
	e := start(t, bothSites(t, p, false), p.transport())
	client := only(tls.TLS_RSA_WITH_AES_128_GCM_SHA256)
	client.ServerName = "rsa.test"
	_, err := e.dial(p, client)
	assertAlert(t, 40, err) // handshake_failure
	assert.Empty(t, p.keys.Forget())
}

func TestUnknownName(t *testing.T) {
	p := newPKI(t)
	e := start(t, bothSites(t, p, false), p.transport())
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, name := range []string{"unknown.test", "127.0.0.1"} { // Go sends no address as server name
			_, err := e.dial(p, &tls.Config{ServerName: name, MaxVersion: version})
			assertAlert(t, 112, err) // unrecognized_name
		}
	}
	assert.Empty(t, p.keys.Forget())
	assert.NotContains(t, e.log.String(), "level=WARN")
	e.untilLogged(t, `msg="handshake refused: no site has the server name"`)
}

// TestAServerNameThatIsNone: the default site is for any name, but not for what
// the key server would not take and the log should not.
func TestAServerNameThatIsNone(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		p := newPKI(t)
		var asked atomic.Int64
		e := start(t, Config{Sites: []Site{{Default: true, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir, Engine: engine}}},
			ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
				asked.Add(1)
				return p.transport().RoundTrip(ctx, req)
			}))
		before := asked.Load()
		for _, name := range []string{strings.Repeat("a", 254), strings.Repeat("a", 16_000), "a\nlevel=ERROR", "a b", "\xff.test"} {
			_, err := e.dial(p, &tls.Config{ServerName: name, InsecureSkipVerify: true})
			require.Error(t, err, name)
			if engine == EngineStandard {
				assertAlert(t, 112, err) // unrecognized_name
			}
		}
		assert.Equal(t, before, asked.Load())
		assert.NotContains(t, e.log.String(), "aaaa")
		assert.NotContains(t, e.log.String(), "level=ERROR")
		c, err := e.dial(p, &tls.Config{ServerName: "any.test", InsecureSkipVerify: true})
		require.NoError(t, err)
		c.Close()
		assert.Greater(t, asked.Load(), before)
	}
}

func TestDraftOnly(t *testing.T) {
	p := newPKI(t)
	cfg := bothSites(t, p, true)
	cfg.KeyServer.DraftOnly = true
	e := start(t, cfg, p.transport())
	for _, site := range []string{"ecdsa.test", "rsa.test"} {
		c, err := e.dial(p, &tls.Config{ServerName: site})
		require.NoError(t, err)
		c.Close()
		assert.EqualValues(t, tls.VersionTLS12, c.ConnectionState().Version)
		asked := p.keys.Forget()
		require.Len(t, asked, 1)
		assert.Zero(t, asked[0].Scheme)
		assert.Empty(t, asked[0].ServerName)
		assert.Equal(t, ski.SHA256, asked[0].Hash)
	}
}

// TestResumption has one session cache for two sites: a client that is wrong,
// or that means to get from one site into the other.
func TestResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			p := newPKI(t)
			file := p.ecdsa(t, "a.test", "b.test")
			e := start(t, Config{Sites: []Site{
				{Names: []string{"a.test"}, Certificates: []string{file}, Static: p.dir},
				{Names: []string{"b.test"}, Certificates: []string{file}, Static: p.dir},
			}}, p.transport())
			cache := new(oneSession)
			visit := func(name string) bool {
				c, err := e.dial(p, &tls.Config{ServerName: name, MaxVersion: version, ClientSessionCache: cache})
				require.NoError(t, err)
				defer c.Close()
				_, err = c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
				require.NoError(t, err)
				_, err = io.ReadAll(c) // takes in the ticket of TLS 1.3
				require.NoError(t, err)
				return c.ConnectionState().DidResume
			}
			assert.False(t, visit("a.test"))
			assert.True(t, visit("a.test"))
			assert.Len(t, p.keys.Forget(), 1)
			assert.False(t, visit("b.test"), "a ticket of site a is good at site b")
			assert.True(t, visit("b.test"))
			assert.Len(t, p.keys.Forget(), 1)

			_, err := e.dial(p, &tls.Config{ServerName: "unknown.test", MaxVersion: version, ClientSessionCache: cache})
			assertAlert(t, 112, err)
		})
	}
}

// oneSession is a tls.ClientSessionCache that has the last session of all.
type oneSession struct{ last *tls.ClientSessionState }

func (o *oneSession) Get(string) (*tls.ClientSessionState, bool) { return o.last, o.last != nil }
func (o *oneSession) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		o.last = s
	}
}

func TestKeyServerFails(t *testing.T) {
	const timeout = 300 * time.Millisecond
	denying := skitest.Always(nil, skitest.Refused(ski.RequestDenied))
	hanging := skitest.Always(nil, skitest.Silent())
	unreachable := skitest.Always(nil, skitest.Failed("dial"))
	clients := map[string]*tls.Config{
		"TLS 1.2 ECDHE": only(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
		"TLS 1.2 RSA":   only(tls.TLS_RSA_WITH_AES_128_GCM_SHA256),
		"TLS 1.3":       {MinVersion: tls.VersionTLS13},
	}
	p := newPKI(t)
	cfg := bothSites(t, p, true)
	cfg.KeyServer.Timeout = timeout
	for reason, transport := range map[string]ski.Transport{
		"denied":      denying,
		"timeout":     hanging,
		"unreachable": unreachable,
	} {
		for name, client := range clients {
			if reason == "denied" && name == "TLS 1.2 RSA" {
				continue // an answer, see TestTheEdgeIsNoPaddingOracleWhateverTheKeyServerAnswers
			}
			t.Run(reason+" "+name, func(t *testing.T) {
				e := start(t, cfg, transport)
				client.ServerName = "rsa.test"
				begin := time.Now()
				_, err := e.dial(p, client)
				assertAlert(t, internalError, err)
				assert.Less(t, time.Since(begin), timeout+cfg.withDefaults().Limits.HandshakeTimeout, "with an alert, not by the end of the handshake's time")
				require.Eventually(t, func() bool {
					return strings.Contains(e.log.String(), "reason="+reason)
				}, time.Minute, time.Millisecond)
				assert.Regexp(t, "level=WARN .*site=rsa.test .*reason="+reason, e.log.String())
			})
		}
	}
}

func TestMalformedPreMasterSecretLooksLikeAnyOther(t *testing.T) {
	p := newPKI(t)
	e := start(t, bothSites(t, p, true), p.transport())
	p.keys.Refuse(ski.MalformedRequest)
	client := only(tls.TLS_RSA_WITH_AES_128_GCM_SHA256)
	client.ServerName = "rsa.test"
	_, err := e.dial(p, client)
	assertAlert(t, 20, err) // bad_record_mac, of the client's Finished
}

func assertAlert(t *testing.T, code uint8, err error) {
	t.Helper()
	assert.EqualError(t, err, "remote error: "+tls.AlertError(code).Error())
}
