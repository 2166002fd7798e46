package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// An edge has its sessions over each binding until its CRL expires, then none,
// and again with a new CRL.
func TestAnExpiredCRLEndsSessionsOverEachBinding(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "https: 127.0.0.1:0\ncoaps_tcp: 127.0.0.1:0\nmetrics: 127.0.0.1:0\ncrl: crl.pem\ncrl_expired: refuse", nil)
	addrOf := func(part string) string {
		return regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(d.logged(part))[1]
	}
	https, tcp, metrics := addrOf("listening over HTTPS"), addrOf("listening for CoAP over TLS"), addrOf("msg=metrics")
	bindings := map[string]ski.Transport{"coaps": d.client, "coaps+tcp": newCoAPClient(t, dir, "coaps+tcp://"+tcp+"/ski"), "https": newHTTPSClient(t, dir, https)}
	answered := func(c ski.Transport, within time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		resp, err := c.RoundTrip(ctx, d.req)
		return err == nil && resp.Error == ""
	}
	health := func() int {
		resp, err := http.Get("http://" + metrics + "/healthz")
		require.NoError(t, err)
		defer resp.Body.Close()
		return resp.StatusCode
	}
	for name, c := range bindings {
		require.True(t, answered(c, time.Minute), name)
	}
	require.Equal(t, http.StatusOK, health())

	ca, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"))
	require.NoError(t, err)
	authority := &identity{ca.Leaf, ca.PrivateKey.(*ecdsa.PrivateKey)}
	replace := func(number int64, until time.Time) {
		next := filepath.Join(dir, "next.pem")
		require.NoError(t, writeCRLUntil(next, authority, number, until))
		require.NoError(t, os.Rename(next, filepath.Join(dir, "crl.pem")))
	}
	replace(2, time.Now().Add(time.Second))
	require.Contains(t, d.logged("level=ERROR msg=CRL"), `CRL number 2 of \"CN=ca\" should have been replaced by `)
	require.Contains(t, d.logged("sessions closed"), "sessions=3")
	for name, c := range bindings {
		require.False(t, answered(c, 5*time.Second), name)
	}
	require.Equal(t, http.StatusServiceUnavailable, health())

	replace(3, time.Now().Add(time.Hour))
	for name, c := range bindings {
		require.Eventually(t, func() bool { return answered(c, 5*time.Second) }, time.Minute, 10*time.Millisecond, name)
	}
	require.Equal(t, http.StatusOK, health())
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

func TestCheckSaysWhatAnExpiredCRLMeans(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeFiles(dir))
	ca, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"))
	require.NoError(t, err)
	require.NoError(t, writeCRLUntil(filepath.Join(dir, "crl.pem"), &identity{ca.Leaf, ca.PrivateKey.(*ecdsa.PrivateKey)}, 7, time.Now().Add(-time.Minute)))
	check := func(lines string) string {
		file := filepath.Join(dir, "config.yaml")
		require.NoError(t, os.WriteFile(file, []byte(configYAML+lines), 0o600))
		out, err := exec.Command("ski-keyserver", "-config", file, "-check").Output()
		require.NoError(t, err)
		return string(out)
	}
	out := check("crl: crl.pem\n")
	require.Regexp(t, `(?m)^warning +crl_expired: warn lets an edge in that was revoked after .*; refuse is recommended$`, out)
	require.Regexp(t, `(?m)^warning +\S+crl.pem: CRL number 7 of "CN=ca" should have been replaced by \S+Z$`, out)
	out = check("crl: crl.pem\ncrl_expired: refuse\n")
	require.NotContains(t, out, "refuse is recommended")
	require.Regexp(t, `(?m)^warning +\S+crl.pem: CRL number 7 of "CN=ca" should have been replaced by \S+Z: its edges are refused$`, out)
}
