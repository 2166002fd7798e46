package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
)

// A real process, asked over a real socket by a peer that the policy knows,
// and stopped by a signal.
func TestProcess(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeFiles(dir))
	command, err := exec.LookPath("ski-keyserver") // put there by testscript.Main
	require.NoError(t, err)
	cmd := exec.Command(command, "-config", filepath.Join(dir, "config.yaml"))
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill() }()

	lines := bufio.NewReader(stderr)
	first, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, first, `level=WARN msg="unsafe choice" what="policy rule 2 grants RSA, which has no forward secrecy"`)
	first, err = lines.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, first, "level=INFO msg=listening addr=127.0.0.1:")
	require.Contains(t, first, "keys=2 edges=1")
	addr := regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(first)[1]

	client := newClient(t, dir, addr)
	pub := sitePublicKey(t, dir)
	id, err := ski.PublicKeyID(pub)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	input := append(make([]byte, 64), 3, 0, 29, 32, 9)
	input = append(input, make([]byte, 31)...)
	req := &ski.Request{Protocol: ski.TLS12, SPKI: id, Hash: ski.SHA256, Input: input}
	resp, err := client.RoundTrip(ctx, req)
	require.NoError(t, err)
	require.NoError(t, resp.Err())
	digest := sha256.Sum256(input)
	require.True(t, ecdsa.VerifyASN1(pub, digest[:], resp.Output))

	req.Method = ski.MethodRSA
	resp, err = client.RoundTrip(ctx, req)
	require.NoError(t, err)
	require.Equal(t, ski.RequestDenied, resp.Error)

	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait(), "%s", rest)
	require.Contains(t, string(rest), "msg=stopping")
	require.Contains(t, string(rest), "msg=stopped")

	audit, err := os.ReadFile(filepath.Join(dir, "audit.log"))
	require.NoError(t, err)
	require.Equal(t, 2, bytes.Count(audit, []byte(`"event":"request"`)))
	require.Contains(t, string(audit), `"edge":"edge-1"`)
	require.Contains(t, string(audit), `"key_name":"ecdsa.test"`)
	require.Contains(t, string(audit), `"outcome":"request denied","reason":"no rule grants the method"`)
}

func newClient(t *testing.T, dir, addr string) *skicoap.Client {
	return newCoAPClient(t, dir, "coaps://"+addr+"/ski")
}

func newCoAPClient(t *testing.T, dir, url string) *skicoap.Client {
	edge, err := tls.LoadX509KeyPair(filepath.Join(dir, "edge.pem"), filepath.Join(dir, "edge.key"))
	require.NoError(t, err)
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(ca))
	client, err := skicoap.NewClient(url, skicoap.ClientConfig{
		Certificate: edge, RootCAs: roots, ServerName: "keyserver.test",
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func sitePublicKey(t *testing.T, dir string) *ecdsa.PublicKey {
	data, err := os.ReadFile(filepath.Join(dir, "keys", "ecdsa.test.pem"))
	require.NoError(t, err)
	block, _ := pem.Decode(data)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	require.NoError(t, err)
	return &key.(*ecdsa.PrivateKey).PublicKey
}
