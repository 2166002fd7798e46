package cmd_test

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
)

// DHE with a group of 4096 bits does not fit a datagram: from our client and
// from libcoap's, whose tokens are new for each block.
func TestDHEWithALargeGroupPassesAPathOf1280Bytes(t *testing.T) {
	data, err := os.ReadFile("../testdata/vectors/input-dhe-ffdhe4096.json")
	require.NoError(t, err)
	var vector struct{ Request struct{ Input string } }
	require.NoError(t, json.Unmarshal(data, &vector))
	input, err := hex.DecodeString(vector.Request.Input)
	require.NoError(t, err)

	d := startDev(t)
	identity, roots := d.edgeIdentity()
	network := newCapture(t, d.keyServerAddr())
	client, err := skicoap.NewClient("coaps://"+network.addr, skicoap.ClientConfig{
		Certificate: identity, RootCAs: roots, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	req := &ski.Request{Protocol: ski.TLS12, SPKI: d.endpoints.Sites[1].SPKI, Method: ski.MethodDHE, Hash: ski.SHA384, Input: input}
	resp, err := client.RoundTrip(t.Context(), req)
	require.NoError(t, err)
	require.Empty(t, resp.Error)
	assert.Len(t, resp.Output, 256)

	// The same once more would be a replay: another ClientRandom.
	req.Input[0]++
	body, err := ski.EncodeRequest(ski.CBOR, req)
	require.NoError(t, err)
	require.Greater(t, len(body), 1152)
	dir := t.TempDir()
	request, answer := filepath.Join(dir, "request"), filepath.Join(dir, "answer")
	require.NoError(t, os.WriteFile(request, body, 0o600))
	out, err := exec.CommandContext(t.Context(), "coap-client-openssl", "-m", "post", "-t", "60", "-f", request, "-o", answer, "-b", "512", "-B", "60",
		"-c", d.endpoints.EdgeCert, "-j", d.endpoints.EdgeKey, "-C", d.endpoints.KeyServerCA, d.endpoints.KeyServer.CoAPS).CombinedOutput()
	require.NoError(t, err, string(out))
	data, err = os.ReadFile(answer)
	require.NoError(t, err, string(out))
	resp, err = ski.DecodeResponse(ski.CBOR, data)
	require.NoError(t, err)
	assert.Len(t, resp.Output, 256)
	for n := range network.take() {
		assert.LessOrEqual(t, n, 1280-40-8, "bytes in a datagram of the key server")
	}
}
