package edgeserver

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestAClientCertificateThatHasExpiredIsNotResumed: a session ends with it.
func TestAClientCertificateThatHasExpiredIsNotResumed(t *testing.T) {
	p, ca := newPKI(t), newClientCA(t, "authority")
	for _, way := range ways {
		e := start(t, Config{Sites: []Site{{
			Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir, Engine: way.engine,
			ClientCertificates: ClientCertificates{Mode: ClientCertificatesRequired, CA: ca.file},
		}}}, p.transport())
		cache, alice, later := new(oneSession), ca.alice(t), time.Duration(0)
		clock := func() time.Time { return time.Now().Add(later) }
		site := e.current().sites.all[0]
		site.config.Time = clock
		if site.split != nil {
			site.served.Load().split.Time = clock
		}
		visits := func() (resumed bool, err error) {
			e := e.on(e.also(t, "127.0.0.1:0")) // which serves after what was set before
			state, err := e.dialAndRead(p, &tls.Config{
				ServerName: "a.test", MaxVersion: way.version, ClientSessionCache: cache, Certificates: []tls.Certificate{alice}})
			if err != nil {
				return false, err
			}
			return state.DidResume, nil
		}
		for _, want := range []bool{false, true} {
			resumed, err := visits()
			require.NoError(t, err)
			assert.Equal(t, want, resumed, way.name)
		}
		later = 2 * time.Hour
		_, err := visits()
		assertAlert(t, 45, err) // certificate_expired, of a full handshake
	}
}

// TestResumptionDoesNotGetAroundClientCertificates: a session is worth what it
// was made with, measured by what the site wants now.
func TestResumptionDoesNotGetAroundClientCertificates(t *testing.T) {
	p, ca, other := newPKI(t), newClientCA(t, "authority"), newClientCA(t, "another authority")
	both := filepath.Join(t.TempDir(), "both.pem")
	require.NoError(t, os.WriteFile(both, pemOf(other.root, ca.root), 0o600))
	file := p.ecdsa(t, "a.test", "open.test")
	alice := ca.alice(t)
	const (
		off, optional, required = ClientCertificatesOff, ClientCertificatesOptional, ClientCertificatesRequired
		refused                 = "refused"
	)
	for _, way := range ways {
		config := func(mode, ca string) Config {
			return Config{Sites: []Site{
				{Names: []string{"a.test"}, Certificates: []string{file}, Static: p.dir, Engine: way.engine, ClientCertificates: ClientCertificates{Mode: mode, CA: ca}},
				{Names: []string{"open.test"}, Certificates: []string{file}, Static: p.dir, Engine: way.engine},
			}}
		}
		for name, tt := range map[string]struct {
			site          string // of the first visit
			before, after string // the mode
			cert          bool   // the client has one
			ca            string // of the second visit; the first has ca
			want          string
		}{
			"nothing has changed":            {"a.test", required, required, true, ca.file, "resumed"},
			"an authority more":              {"a.test", required, required, true, both, "resumed"},
			"another authority":              {"a.test", required, required, true, other.file, refused},
			"another authority, optional":    {"a.test", optional, optional, true, other.file, refused},
			"required now":                   {"a.test", optional, required, false, ca.file, refused},
			"required now, and had one":      {"a.test", optional, required, true, ca.file, "resumed"},
			"asked now":                      {"a.test", off, required, false, ca.file, refused},
			"not asked any more":             {"a.test", required, off, true, "", "full"},
			"optional still":                 {"a.test", optional, optional, false, other.file, "resumed"},
			"a ticket of an open site":       {"open.test", required, required, false, ca.file, refused},
			"a ticket of an open site, cert": {"open.test", required, required, true, ca.file, "full"},
		} {
			t.Run(way.name+" "+name, func(t *testing.T) {
				e := start(t, config(tt.before, ca.file), p.transport())
				cache := new(oneSession)
				visit := func(name string) (*tls.ConnectionState, error) {
					c := &tls.Config{ServerName: name, MaxVersion: way.version, ClientSessionCache: cache}
					if tt.cert {
						c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &alice, nil }
					}
					return e.dialAndRead(p, c)
				}
				state, err := visit(tt.site)
				require.NoError(t, err)
				require.False(t, state.DidResume)
				_, err = e.Reload(config(tt.after, tt.ca), over(p.transport()))
				require.NoError(t, err)
				state, err = visit("a.test")
				if tt.want == refused {
					assert.Error(t, err)
					require.Eventually(t, func() bool {
						return containsMatch(e.log.String(), `handshake refused: the site does not accept.*site=a.test .*reason="(no certificate|unknown authority)"`)
					}, time.Minute, time.Millisecond)
					return
				}
				require.NoError(t, err)
				assert.Equal(t, tt.want == "resumed", state.DidResume)
			})
		}
	}
}

// TestAReloadKeepsTheTicketsOfEachTripleApart, whose sites have one name.
func TestAReloadKeepsTheTicketsOfEachTripleApart(t *testing.T) {
	for _, way := range ways {
		p := newPKI(t)
		cfg := triples(t, p, way.engine)
		e := start(t, cfg, p.transport())
		two, three := e.on(e.also(t, "127.0.0.2:0")), e.on(e.also(t, "127.0.0.3:0"))
		cache := new(oneSession)
		visit := func(e *edge) bool {
			state, err := e.dialAndRead(p, &tls.Config{ServerName: "a.test", MaxVersion: way.version, ClientSessionCache: cache})
			require.NoError(t, err)
			return state.DidResume
		}
		assert.False(t, visit(two), way.name)
		_, err := e.Reload(cfg, over(p.transport()))
		require.NoError(t, err)
		assert.True(t, visit(two), way.name)
		assert.False(t, visit(three), way.name)
	}
}
