package split

import (
	"crypto/tls"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski/tlsprf"
)

func TestNegotiation(t *testing.T) {
	w := theWorld()
	const (
		ecdsaGCM  = tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
		ecdsaCha  = tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
		rsaGCM    = tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
		rsaGCM256 = tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
		staticRSA = tls.TLS_RSA_WITH_AES_128_GCM_SHA256
	)
	groups := []tls.CurveID{tls.CurveP384, tls.CurveP256}
	schemes := []tls.SignatureScheme{tls.PKCS1WithSHA512, tls.ECDSAWithP384AndSHA384, tls.PSSWithSHA256}
	hello := func(suites ...uint16) ClientHello {
		return ClientHello{CipherSuites: suites, Groups: groups, Schemes: schemes, extendedMasterSecret: true}
	}
	with := func(h ClientHello, change func(*ClientHello)) ClientHello { change(&h); return h }
	both := Config{Chains: []*Chain{w.ecdsa.chain, w.rsa.chain}, StaticRSA: true}
	pkcs1 := *w.rsa.chain
	pkcs1.Schemes = []tls.SignatureScheme{tls.PKCS1WithSHA256}
	for name, tt := range map[string]struct {
		cfg    Config
		hello  ClientHello
		suite  uint16
		group  tls.CurveID
		scheme tls.SignatureScheme
	}{
		"the first chain":                                 {both, hello(rsaGCM, ecdsaGCM), ecdsaGCM, tls.CurveP256, tls.ECDSAWithP384AndSHA384},
		"the chain that the client supports":              {both, hello(staticRSA, rsaGCM256, rsaGCM), rsaGCM, tls.CurveP256, tls.PKCS1WithSHA512},
		"the server's order":                              {both, hello(rsaGCM256, rsaGCM, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256), rsaGCM, tls.CurveP256, tls.PKCS1WithSHA512},
		"ChaCha20 where it is the client's first":         {both, hello(0x0A0A, ecdsaCha, ecdsaGCM), ecdsaCha, tls.CurveP256, tls.ECDSAWithP384AndSHA384},
		"ChaCha20 where it is the first of TLS 1.3":       {both, hello(tls.TLS_CHACHA20_POLY1305_SHA256, ecdsaGCM, ecdsaCha), ecdsaCha, tls.CurveP256, tls.ECDSAWithP384AndSHA384},
		"AES where it is the first of TLS 1.3":            {both, hello(tls.TLS_AES_128_GCM_SHA256, ecdsaCha, ecdsaGCM), ecdsaGCM, tls.CurveP256, tls.ECDSAWithP384AndSHA384},
		"static RSA last":                                 {both, hello(staticRSA), staticRSA, 0, 0},
		"static RSA without groups in common":             {both, with(hello(ecdsaGCM, staticRSA), func(h *ClientHello) { h.Groups = []tls.CurveID{30} }), staticRSA, 0, 0},
		"static RSA without schemes":                      {both, with(hello(ecdsaGCM, staticRSA), func(h *ClientHello) { h.Schemes = nil }), staticRSA, 0, 0},
		"no groups means P-256":                           {both, with(hello(ecdsaGCM), func(h *ClientHello) { h.Groups = nil }), ecdsaGCM, tls.CurveP256, tls.ECDSAWithP384AndSHA384},
		"the site's groups":                               {Config{Chains: both.Chains, Groups: []tls.CurveID{tls.CurveP384}}, hello(ecdsaGCM), ecdsaGCM, tls.CurveP384, tls.ECDSAWithP384AndSHA384},
		"the site's suites":                               {Config{Chains: both.Chains, CipherSuites: []uint16{rsaGCM256}}, hello(ecdsaGCM, rsaGCM, rsaGCM256), rsaGCM256, tls.CurveP256, tls.PKCS1WithSHA512},
		"the chain's schemes":                             {Config{Chains: []*Chain{&pkcs1}}, with(hello(rsaGCM), func(h *ClientHello) { h.Schemes = append(h.Schemes, tls.PKCS1WithSHA256) }), rsaGCM, tls.CurveP256, tls.PKCS1WithSHA256},
		"CCM_8 where there is nothing else":               {both, hello(tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8), tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, tls.CurveP256, tls.ECDSAWithP384AndSHA384},
		"no chain for the client's curves, so the other":  {Config{Chains: []*Chain{w.ecdsa384.chain, w.rsa.chain}}, with(hello(ecdsaGCM, rsaGCM), func(h *ClientHello) { h.Groups = groups[1:] }), rsaGCM, tls.CurveP256, tls.PKCS1WithSHA512},
		"no chain for the client's schemes, so the other": {both, with(hello(ecdsaGCM, rsaGCM), func(h *ClientHello) { h.Schemes = schemes[2:] }), rsaGCM, tls.CurveP256, tls.PSSWithSHA256},
	} {
		a, err := tt.cfg.negotiate(&tt.hello)
		require.Nil(t, err, name)
		assert.Equal(t, SuiteName(tt.suite), a.suite.name, name)
		assert.Equal(t, tt.group, a.group, name)
		assert.Equal(t, tt.scheme, a.scheme, name)
	}
	none := both
	none.StaticRSA = false
	h := hello(staticRSA)
	_, err := none.negotiate(&h)
	require.NotNil(t, err)
	assert.Equal(t, HandshakeFailure, err.Alert)
}

func TestEveryKindOfSiteKey(t *testing.T) {
	w := theWorld()
	for name, id := range map[string]identity{"P-256": w.ecdsa, "P-384": w.ecdsa384, "RSA": w.rsa, "Ed25519": w.ed25519} {
		server := serve(t, &Config{Chains: []*Chain{id.chain}})
		c, err := tls.Dial("tcp", server.addr, &tls.Config{RootCAs: w.roots, ServerName: serverName})
		require.NoError(t, err, name)
		talk(t, c, "hello")
		assert.Equal(t, id.cert.Raw, c.ConnectionState().PeerCertificates[0].Raw, name)
		c.Close()
		assert.NoError(t, server.outcome(t).err, name)
	}
}
