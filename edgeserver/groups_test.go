package edgeserver

import (
	"context"
	"crypto/tls"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// groupOf returns the group of what the edge has asked to be signed.
func groupOf(t *testing.T, req ski.Request) tls.CurveID {
	require.Greater(t, len(req.Input), 67)
	return tls.CurveID(req.Input[65])<<8 | tls.CurveID(req.Input[66])
}

// A client that offers nothing but a group that the site does not have ends
// there: the key server, whose policy would refuse it, hears nothing of it. With
// either engine.
func TestGroupsOfASite(t *testing.T) {
	p := newPKI(t)
	only := func(groups ...tls.CurveID) []tls.CurveID { return groups }
	cfg := Config{Sites: []Site{
		{Names: []string{"default.test"}, Certificates: []string{p.rsa(t, "default.test")}},
		{Names: []string{"all.test"}, Certificates: []string{p.rsa(t, "all.test")}, Groups: []string{"secp521r1", "secp256r1", "x25519", "secp384r1"}},
		{Names: []string{"one.test"}, Certificates: []string{p.rsa(t, "one.test")}, Groups: []string{"secp384r1"}},
	}}
	for _, engine := range []string{EngineStandard, EngineSplit} {
		for i := range cfg.Sites {
			cfg.Sites[i].Engine, cfg.Sites[i].Static = engine, p.dir
		}
		e := start(t, cfg, p.transport())
		for _, tt := range []struct {
			site   string
			client []tls.CurveID
			group  tls.CurveID // 0 for none
		}{
			{"default.test", only(tls.X25519), tls.X25519},
			{"default.test", only(tls.CurveP256), tls.CurveP256},
			{"default.test", only(tls.CurveP384), tls.CurveP384},
			{"default.test", only(tls.CurveP521), 0},
			{"default.test", only(tls.CurveP521, tls.CurveP384), tls.CurveP384},
			{"all.test", only(tls.CurveP521), tls.CurveP521},
			{"all.test", only(tls.CurveP521, tls.CurveP384, tls.CurveP256, tls.X25519), tls.X25519},
			{"one.test", only(tls.CurveP521, tls.CurveP384, tls.CurveP256, tls.X25519), tls.CurveP384},
			{"one.test", only(tls.X25519, tls.CurveP256), 0},
		} {
			p.keys.Forget()
			c, err := e.dial(p, &tls.Config{ServerName: tt.site, MaxVersion: tls.VersionTLS12, CurvePreferences: tt.client})
			asked := p.keys.Forget()
			if tt.group == 0 {
				assertAlert(t, 40, err) // handshake_failure
				assert.Empty(t, asked, "%s %v", tt.site, tt.client)
				continue
			}
			require.NoError(t, err, "%s %s %v", engine, tt.site, tt.client)
			c.Close()
			require.Len(t, asked, 1)
			assert.Equal(t, tt.group, groupOf(t, asked[0]), "%s %s %v", engine, tt.site, tt.client)
		}
	}
}

// In TLS 1.3 a site has the same groups, and their hybrids.
func TestGroupsOfASiteInTLS13(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"default.test"}, Certificates: []string{p.ecdsa(t, "default.test")}, Static: p.dir},
		{Names: []string{"one.test"}, Certificates: []string{p.ecdsa(t, "one.test")}, Static: p.dir, Groups: []string{"secp384r1"}},
	}}, p.transport())
	for _, tt := range []struct {
		site   string
		client []tls.CurveID // nil for crypto/tls's
		group  tls.CurveID   // 0 for none
	}{
		{"default.test", nil, tls.X25519MLKEM768},
		{"default.test", []tls.CurveID{tls.SecP256r1MLKEM768}, tls.SecP256r1MLKEM768},
		{"default.test", []tls.CurveID{tls.X25519}, tls.X25519},
		{"default.test", []tls.CurveID{tls.CurveP521}, 0},
		{"one.test", nil, tls.SecP384r1MLKEM1024},
		{"one.test", []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP384}, tls.CurveP384},
		{"one.test", []tls.CurveID{tls.X25519MLKEM768, tls.X25519}, 0},
	} {
		c, err := e.dial(p, &tls.Config{ServerName: tt.site, MinVersion: tls.VersionTLS13, CurvePreferences: tt.client})
		if tt.group == 0 {
			assertAlert(t, 40, err) // handshake_failure
			continue
		}
		require.NoError(t, err, "%s %v", tt.site, tt.client)
		assert.Equal(t, tt.group, c.ConnectionState().CurveID, "%s %v", tt.site, tt.client)
		c.Close()
	}
}

// The groups are those of ephemeral keys. A certificate on another curve is used
// as before, by clients that support its curve.
func TestGroupsDoNotTakeCertificatesAway(t *testing.T) {
	p := newPKI(t)
	cfg := Config{Sites: []Site{{
		Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test"), p.rsa(t, "a.test")}, // on P-256
		Static: p.dir, StaticRSA: true, Groups: []string{"secp384r1"},
	}}}
	for _, engine := range []string{EngineStandard, EngineSplit} {
		cfg.Sites[0].Engine = engine
		e := start(t, cfg, p.transport())
		dial := func(suites []uint16, groups ...tls.CurveID) (suite uint16, asked []ski.Request) {
			p.keys.Forget()
			c, err := e.dial(p, &tls.Config{ServerName: "a.test", MaxVersion: tls.VersionTLS12, CurvePreferences: groups, CipherSuites: suites})
			require.NoError(t, err, engine)
			defer c.Close()
			return c.ConnectionState().CipherSuite, p.keys.Forget()
		}
		suite, asked := dial(nil, tls.CurveP256, tls.CurveP384)
		assert.Contains(t, tls.CipherSuiteName(suite), "ECDHE_ECDSA", engine)
		assert.Equal(t, tls.CurveP384, groupOf(t, asked[0]), engine)

		suite, _ = dial(nil, tls.CurveP384) // which cannot verify with the ECDSA key
		assert.Contains(t, tls.CipherSuiteName(suite), "ECDHE_RSA", engine)

		// A client without a group of the site's is one without forward secrecy.
		suite, asked = dial([]uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_GCM_SHA256}, tls.X25519)
		assert.Equal(t, "TLS_RSA_WITH_AES_128_GCM_SHA256", tls.CipherSuiteName(suite), engine)
		assert.Equal(t, ski.MethodRSA, asked[0].Method, engine)
	}
}

// A policy that does not grant a group which the site offers is found at the
// start, before a client finds it.
func TestProbeOfEachGroup(t *testing.T) {
	p := newPKI(t)
	transport := ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
		group := req.Group
		if req.Method == ski.MethodECDHE && req.Protocol == ski.TLS12 && len(req.Input) > 66 {
			group = tls.CurveID(req.Input[65])<<8 | tls.CurveID(req.Input[66])
		}
		if group == tls.X25519 || group == tls.CurveP384 {
			return &ski.Response{Error: ski.RequestDenied}, nil
		}
		return &ski.Response{Error: ski.MalformedRequest}, nil
	})
	e := start(t, Config{Sites: []Site{
		{Names: []string{"default.test"}, Certificates: []string{p.ecdsa(t, "default.test")}, Static: p.dir},
		{Names: []string{"pms.test"}, Certificates: []string{p.ecdsa(t, "pms.test")}, Static: p.dir, Engine: EngineSplit, Method: "ECDHE-PMS"},
		{Names: []string{"granted.test"}, Certificates: []string{p.ecdsa(t, "granted.test")}, Static: p.dir, Groups: []string{"secp256r1"}},
	}}, transport)
	e.Probe(t.Context())
	assert.Regexp(t, `level=WARN msg="the key server does not serve the key.*site=default.test .*groups="x25519, secp384r1" protocol="TLS 1.2" method=ECDHE reason=denied`, e.log.String())
	assert.Regexp(t, `level=WARN msg="the key server does not serve the key.*site=pms.test .*groups="x25519, secp384r1" protocol="TLS 1.2" method=ECDHE-PMS reason=denied`, e.log.String())
	assert.Contains(t, e.log.String(), `level=INFO msg="the key server has the key" site=granted.test`)
}
