package ski_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// TestEphemeral holds what the two exchanges ask.
func TestEphemeral(t *testing.T) {
	randoms, params, state, point := counting(64), ecdheInput[64:], []byte("sealed"), counting(32)
	var got ski.Request
	answer := &ski.Response{Output: make([]byte, 256), Params: params, State: state}
	k, err := ski.NewKey(ski.TransportFunc(func(_ context.Context, req *ski.Request) (*ski.Response, error) {
		got = *req
		return answer, nil
	}), privateKeys()["RSA"].Public())
	require.NoError(t, err)

	e, err := k.NewEphemeral(t.Context(), tls.X25519, randoms, crypto.SHA256)
	require.NoError(t, err)
	require.Equal(t, ski.Request{
		Protocol: ski.TLS12, SPKI: k.ID(), Method: ski.MethodECDHEPMS, Hash: ski.SHA256, Group: tls.X25519, Input: randoms,
	}, got)
	require.Equal(t, params, e.Params)
	require.Equal(t, answer.Output, e.Signature)

	answer = &ski.Response{Output: counting(31)}
	_, err = e.PreMasterSecret(t.Context(), point)
	require.ErrorContains(t, err, "PreMasterSecret has 31 bytes, not 32")
	answer = &ski.Response{Output: counting(32)}
	secret, err := e.PreMasterSecret(t.Context(), point)
	require.NoError(t, err)
	require.Equal(t, answer.Output, secret)
	require.Equal(t, ski.Request{
		Protocol: ski.TLS12, SPKI: k.ID(), Method: ski.MethodECDHEPMS, State: state, Input: point,
	}, got)

	for _, e := range []ski.Error{ski.MalformedRequest, ski.RequestDenied} {
		answer = ski.Failed(e)
		_, err = k.NewEphemeral(t.Context(), tls.X25519, randoms, crypto.SHA256)
		require.ErrorIs(t, err, e)
	}
	_, err = e.PreMasterSecret(t.Context(), point)
	require.ErrorIs(t, err, ski.RequestDenied)
}

func TestEphemeralOfAConnection(t *testing.T) {
	var got ski.Request
	answer := &ski.Response{Output: []byte{1}, Params: ecdheInput[64:], State: []byte{2}}
	k := answering(t, "P-256", &got, answer, nil).
		ForConnection(t.Context(), ski.Connection{Protocol: ski.DTLS10, ServerName: "www.example.com"})
	_, err := k.NewEphemeral(t.Context(), tls.X25519, counting(64), crypto.SHA1)
	require.NoError(t, err)
	require.Equal(t, ski.DTLS10, got.Protocol)
	require.Equal(t, "www.example.com", got.ServerName)
	require.Equal(t, ski.HashDefault, got.Hash)
	require.NoError(t, got.Validate())

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	direct, err := ski.NewKey(ski.Direct(nil, ski.Peer{}), privateKeys()["P-256"].Public())
	require.NoError(t, err)
	_, err = direct.NewEphemeral(ctx, tls.X25519, counting(64), crypto.SHA256)
	require.ErrorIs(t, err, context.Canceled)
}

// What cannot go into a ServerKeyExchange never gets to a client.
func TestEphemeralRefuses(t *testing.T) {
	params := ecdheInput[64:]
	for name, c := range map[string]struct {
		params []byte
		group  tls.CurveID
		bytes  int // of the randoms
		output int // bytes
		draft  bool
		err    string
	}{
		"another group":     {params, tls.CurveP256, 64, 256, false, "are not ServerECDHParams of CurveP256"},
		"no params":         {nil, tls.X25519, 64, 256, false, "are not ServerECDHParams"},
		"an explicit curve": {append([]byte{1}, params[1:]...), tls.X25519, 64, 256, false, "are not ServerECDHParams"},
		"bytes after":       {append(params[:len(params):len(params)], 0), tls.X25519, 64, 256, false, "are not ServerECDHParams"},
		"cut short":         {params[:4], tls.X25519, 64, 256, false, "are not ServerECDHParams"},
		"one random":        {params, tls.X25519, 32, 256, false, "have 32 bytes, not 64"},
		"short signature":   {params, tls.X25519, 64, 255, false, "has 255 bytes, not the modulus' 256"},
		"only the draft":    {params, tls.X25519, 64, 256, true, "beyond the draft"},
	} {
		t.Run(name, func(t *testing.T) {
			var got ski.Request
			k := answering(t, "RSA", &got, &ski.Response{Output: make([]byte, c.output), Params: c.params, State: []byte{1}}, nil)
			if c.draft {
				k = k.DraftOnly()
			}
			_, err := k.NewEphemeral(t.Context(), c.group, counting(c.bytes), crypto.SHA256)
			require.ErrorContains(t, err, c.err)
		})
	}
}
