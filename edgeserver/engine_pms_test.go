package edgeserver

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// pmsKeyServer answers ECDHE-PMS for P-256, with the scalar itself as state, and
// has the rest answered by next. After the first exchange it fails with second,
// if that is set.
func pmsKeyServer(next ski.Transport, second ski.Error) ski.Transport {
	return ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
		switch {
		case req.KeyExchange() != ski.MethodECDHEPMS:
			return next.RoundTrip(ctx, req)
		case len(req.State) > 0 && second != "":
			return ski.Failed(second), nil
		case len(req.State) > 0:
			key, err := ecdh.P256().NewPrivateKey(req.State)
			if err != nil {
				return nil, err
			}
			public, err := ecdh.P256().NewPublicKey(req.Input)
			if err != nil {
				return nil, err
			}
			secret, err := key.ECDH(public)
			return &ski.Response{Output: secret}, err
		case len(req.Input) != 64:
			return ski.Failed(ski.MalformedRequest), nil
		}
		key, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		params := append([]byte{3, 0, 23, 65}, key.PublicKey().Bytes()...)
		signed := *req
		signed.Method, signed.Group, signed.Input = ski.MethodECDHE, 0, slices.Concat(req.Input, params)
		resp, err := next.RoundTrip(ctx, &signed)
		if err != nil || resp.Error != "" {
			return resp, err
		}
		return &ski.Response{Output: resp.Output, Params: params, State: key.Bytes()}, nil
	})
}

func TestSplitEngineWithTheKeyServersEphemeralKey(t *testing.T) {
	p := newPKI(t)
	cfg := splitSites(t, p, true)
	for i := range cfg.Sites {
		cfg.Sites[i].Method = "ECDHE-PMS"
	}
	p256 := func(suite uint16, site string) *tls.Config {
		c := only(suite)
		c.ServerName, c.CurvePreferences = site, []tls.CurveID{tls.CurveP256}
		return c
	}
	e := start(t, cfg, pmsKeyServer(p.transport(), ""))
	for _, client := range []*tls.Config{
		p256(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "ecdsa.test"),
		p256(tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "rsa.test"),
	} {
		c, err := e.dial(p, client)
		require.NoError(t, err)
		c.Close()
	}
	require.Eventually(t, func() bool { return strings.Count(e.log.String(), "ski_method=ECDHE-PMS") == 2 }, time.Minute, time.Millisecond)
	e.Probe(t.Context())
	assert.NotContains(t, e.log.String(), "level=WARN msg=\"the key server does not")

	e = start(t, cfg, pmsKeyServer(p.transport(), ski.RequestDenied))
	_, err := e.dial(p, p256(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "ecdsa.test"))
	assertAlert(t, internalError, err)
	require.Eventually(t, func() bool { return strings.Contains(e.log.String(), "reason=denied") }, time.Minute, time.Millisecond)
}
