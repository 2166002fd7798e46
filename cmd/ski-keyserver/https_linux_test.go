package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skihttp"
)

// Both bindings are one key server: its sandbox, its sessions, its audit log and
// its end.
func TestHTTPSBesideCoAP(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "https: 127.0.0.1:0\nadmin: admin\nmetrics: 127.0.0.1:0\naudit: {file: audit.log}", nil)
	addrOf := func(part string) string {
		return regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(d.logged(part))[1]
	}
	https, metrics := addrOf("listening over HTTPS"), addrOf("msg=metrics")
	require.Contains(t, d.logged("msg=sandbox"), "memory closed")
	client := newHTTPSClient(t, dir, https)
	overHTTPS := func() (*ski.Response, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return client.RoundTrip(ctx, d.req)
	}
	sessions := func() string {
		resp, err := http.Get("http://" + metrics + "/metrics")
		require.NoError(t, err)
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return regexp.MustCompile(`(?m)^ski_keyserver_sessions (\d+)$`).FindStringSubmatch(string(data))[1]
	}

	require.Empty(t, d.ask().Error)
	resp, err := overHTTPS()
	require.NoError(t, err)
	require.Empty(t, resp.Error)
	require.Equal(t, "2", sessions())

	order := func(path string) string {
		admin := http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				return net.Dial("unix", filepath.Join(dir, "admin"))
			},
		}}
		resp, err := admin.Post("http://keyserver"+path, "application/json", strings.NewReader(`{"edge": "edge-1"}`))
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s", body)
		return string(body)
	}
	require.Contains(t, order(keyserver.AdminSuspend), `"closed":2`)
	_, err = overHTTPS()
	require.Error(t, err, "no session, and no answer")
	// The client may have met the end of its old session: another has none.
	_, err = newHTTPSClient(t, dir, https).RoundTrip(t.Context(), d.req)
	require.Error(t, err, "no new session")
	require.Contains(t, d.logged("handshake failed"), "suspended")
	order(keyserver.AdminResume)
	require.Eventually(t, func() bool { // after the client's pause
		resp, err := overHTTPS()
		return err == nil && resp.Error == ""
	}, time.Minute, 10*time.Millisecond)

	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
	audit, err := os.ReadFile(filepath.Join(dir, "audit.log"))
	require.NoError(t, err)
	require.Equal(t, 3, strings.Count(string(audit), `"outcome":"output"`))
}

func newHTTPSClient(t *testing.T, dir, addr string) *skihttp.Client {
	edge, err := tls.LoadX509KeyPair(filepath.Join(dir, "edge.pem"), filepath.Join(dir, "edge.key"))
	require.NoError(t, err)
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(ca))
	client, err := skihttp.NewClient("https://"+addr+"/ski", skihttp.ClientConfig{
		Certificate: edge, RootCAs: roots, ServerName: "keyserver.test",
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return client
}
