package ski_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// A client that forces the form by its ClientRandom costs nothing at the key
// server.
func TestAKeyDoesNotAskForWhatIsNeverSigned(t *testing.T) {
	asked := 0
	k, err := ski.NewKey(ski.TransportFunc(func(context.Context, *ski.Request) (*ski.Response, error) {
		asked++
		return &ski.Response{Output: []byte{1}, Params: ecdheInput[64:], State: []byte{1}}, nil
	}), privateKeys()["P-256"].Public())
	require.NoError(t, err)

	for _, begin := range []string{"SSHSIG", "\x84\x6aSignature1", "\x30\x81\x61"} {
		input := bytes.Clone(ecdheInput)
		copy(input, begin)
		_, err = k.SignMessage(nil, input, crypto.SHA256)
		require.ErrorAs(t, err, new(*ski.FormError), "%q", begin)
		_, err = k.NewEphemeral(t.Context(), tls.X25519, input[:64], crypto.SHA256)
		require.ErrorAs(t, err, new(*ski.FormError), "%q", begin)
	}
	require.Zero(t, asked)

	_, err = k.SignMessage(nil, ecdheInput, crypto.SHA256)
	require.NoError(t, err)
	_, err = k.NewEphemeral(t.Context(), tls.X25519, ecdheInput[:64], crypto.SHA256)
	require.NoError(t, err)
	require.Equal(t, 2, asked)
}

// With crypto/tls, which chooses the ServerRandom, such a handshake fails, and the
// error says why.
func TestAHandshakeWithAForcedFormFails(t *testing.T) {
	asked := 0
	signer := privateKeys()["P-256"]
	cert, err := ski.NewCertificate(ski.TransportFunc(func(_ context.Context, req *ski.Request) (*ski.Response, error) {
		asked++
		signature, err := crypto.SignMessage(signer, rand.Reader, req.Input, crypto.SHA256)
		return &ski.Response{Output: signature}, err
	}), selfSigned(t, signer, "www.example.test").Raw)
	require.NoError(t, err)

	handshake := func(random io.Reader) error {
		client, server := net.Pipe()
		defer client.Close()
		go tls.Client(client, &tls.Config{Rand: random, InsecureSkipVerify: true}).Handshake()
		return tls.Server(server, &tls.Config{GetCertificate: cert.GetCertificate, MaxVersion: tls.VersionTLS12}).Handshake()
	}
	err = handshake(io.MultiReader(bytes.NewReader([]byte("SSHSIG")), rand.Reader))
	require.ErrorContains(t, err, "what is to be signed could be read as an SSH signature's content")
	require.Zero(t, asked)
	require.NoError(t, handshake(nil))
	require.Equal(t, 1, asked)
}
