package ski_test

import (
	"context"
	"crypto/x509"
	"net/netip"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

var peer = ski.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:49152"), DNSNames: []string{"edge.example"}}

func handler(resp *ski.Response) ski.Handler {
	return ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response { return resp })
}

func TestServe(t *testing.T) {
	for _, in := range []ski.Format{ski.CBOR, ski.JSON} {
		for _, out := range []ski.Format{ski.CBOR, ski.JSON} {
			var gotPeer ski.Peer
			var gotReq *ski.Request
			output := []byte("a PreMasterSecret, perhaps")
			h := ski.HandlerFunc(func(_ context.Context, p ski.Peer, r *ski.Request) *ski.Response {
				gotPeer, gotReq = p, r
				return &ski.Response{Output: output}
			})
			body, err := ski.EncodeRequest(in, request())
			require.NoError(t, err)
			data, resp := ski.Serve(t.Context(), h, peer, in, body, out)
			assert.Equal(t, peer, gotPeer)
			assert.Equal(t, request(), gotReq)
			got, err := ski.DecodeResponse(out, data)
			require.NoError(t, err)
			assert.Equal(t, "a PreMasterSecret, perhaps", string(got.Output))
			assert.Empty(t, resp.Error)
			assert.Equal(t, make([]byte, len(output)), output, "only the encoded secret is left")
		}
	}
}

// A Handler that breaks its contract still leaves the peer with an answer.
func TestServeBrokenHandler(t *testing.T) {
	body, err := ski.EncodeRequest(ski.CBOR, request())
	require.NoError(t, err)
	both := &ski.Response{Output: []byte("secret"), Error: ski.RequestDenied}
	for name, broken := range map[string]*ski.Response{
		"nil":                   nil,
		"empty":                 {},
		"both":                  both,
		"unknown error":         {Error: "the key is at /etc/key.pem"},
		"too long":              {Output: make([]byte, ski.MaxMessageSize+1)},
		"too long when encoded": {Output: make([]byte, ski.MaxMessageSize)},
	} {
		for _, out := range []ski.Format{ski.CBOR, ski.JSON} {
			data, resp := ski.Serve(t.Context(), handler(broken), peer, ski.CBOR, body, out)
			got, err := ski.DecodeResponse(out, data)
			require.NoError(t, err, name)
			assert.Equal(t, ski.UnspecifiedError, got.Error, name)
			assert.Equal(t, ski.UnspecifiedError, resp.Error, name)
		}
	}
	assert.Equal(t, make([]byte, 6), both.Output)
}

type auditing struct {
	ski.Handler
	malformed error
}

func (a *auditing) ServeMalformed(_ context.Context, _ ski.Peer, err error) *ski.Response {
	a.malformed = err
	return ski.Failed(ski.MalformedRequest)
}

func TestServeMalformed(t *testing.T) {
	never := ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
		t.Error("the Handler got a malformed request")
		return nil
	})
	audit := &auditing{Handler: never}
	for _, h := range []ski.Handler{never, audit} {
		data, resp := ski.Serve(t.Context(), h, peer, ski.CBOR, []byte{0xA0}, ski.JSON)
		assert.JSONEq(t, `{"error":"malformed request"}`, string(data))
		assert.Equal(t, ski.MalformedRequest, resp.Error)
	}
	assert.EqualError(t, audit.malformed, "ski: malformed message: 'spki' is missing")
}

func TestDirect(t *testing.T) {
	resp, err := ski.Direct(handler(answer), peer).RoundTrip(t.Context(), request())
	require.NoError(t, err)
	assert.Same(t, answer, resp)

	_, err = ski.Direct(handler(nil), peer).RoundTrip(t.Context(), request())
	assert.ErrorIs(t, err, ski.ErrNoResponse)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = ski.Direct(handler(answer), peer).RoundTrip(ctx, request())
	assert.ErrorIs(t, err, context.Canceled)
}

func TestPeerFromCertificate(t *testing.T) {
	cert := selfSigned(t, privateKeys()["P-256"], "edge.example")
	cert.URIs = []*url.URL{{Scheme: "spiffe", Host: "example", Path: "/edge/1"}}
	p := ski.PeerFromCertificate(netip.MustParseAddrPort("[::ffff:192.0.2.1]:49152"), cert)
	assert.Equal(t, ski.Peer{
		Addr:        netip.MustParseAddrPort("192.0.2.1:49152"),
		SPKI:        ski.CertificateKeyID(cert),
		DNSNames:    []string{"edge.example"},
		URIs:        []string{"spiffe://example/edge/1"},
		Certificate: cert,
	}, p)
	assert.Equal(t, netip.MustParseAddrPort("[2001:db8::1]:1"),
		ski.PeerFromCertificate(netip.MustParseAddrPort("[2001:db8::1]:1"), &x509.Certificate{}).Addr)
}
