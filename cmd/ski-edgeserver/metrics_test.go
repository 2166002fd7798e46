package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMetricsAndAccessLog has an edge server without its key server, then with
// it, and moves the access log away as logrotate does.
func TestMetricsAndAccessLog(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	keyServer := startKeyServer(t, dir)
	p := startProcess(t, dir, keyServer, `keyservers: {far: {url: "coaps://127.0.0.1:1/ski"}}
metrics: 127.0.0.1:0
access_log: {file: access.log}
sites:
  - {names: [site.test], certificates: [site.pem], static: .}
  - {default: true, keyserver: far, certificates: [site.pem], static: ., access_log: {file: "off"}}
`)
	url := "http://" + p.until(t, `msg=metrics addr=(127\.0\.0\.1:\d+)`)[1]
	addr := p.until(t, `msg=listening addr=(127\.0\.0\.1:\d+)`)[1]
	p.until(t, `msg="the key server has the key"`)
	get := func(path string) (int, string) {
		resp, err := http.Get(url + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	status, body := get("/healthz")
	assert.Equal(t, "200 ok\n", fmt.Sprint(status, " ", body))
	status, body = get("/readyz")
	assert.Equal(t, "200 ok\n", fmt.Sprint(status, " ", body))

	request := func() {
		c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "site.test", InsecureSkipVerify: true})
		require.NoError(t, err)
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
		_, err = io.ReadAll(c)
		require.NoError(t, err)
	}
	lines := func(file string) int {
		data, _ := os.ReadFile(filepath.Join(dir, file))
		return strings.Count(string(data), "\n")
	}
	request()
	require.Eventually(t, func() bool { return lines("access.log") == 1 }, time.Minute, time.Millisecond)
	require.NoError(t, os.Rename(filepath.Join(dir, "access.log"), filepath.Join(dir, "access.log.1")))
	require.NoError(t, p.Process.Signal(syscall.SIGHUP))
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(dir, "access.log"))
		return err == nil
	}, time.Minute, time.Millisecond)
	request()
	require.Eventually(t, func() bool { return lines("access.log") == 1 }, time.Minute, time.Millisecond)
	assert.Equal(t, 1, lines("access.log.1"))

	for _, line := range []string{
		`ski_edgeserver_reloads_total{result="ok"} 1`, // SIGHUP is that, too
		`ski_edgeserver_requests_total{code="4xx",method="GET",site="site.test"} 2`,
		`ski_edgeserver_ski_answers{keyserver="coaps://` + keyServer + `/ski"} 1`,
		`ski_edgeserver_ski_answers{keyserver="coaps://127.0.0.1:1/ski"} 0`,
		`ski_edgeserver_build_info{`, `go_goroutines `, `process_resident_memory_bytes `, `ski_edgeserver_identity_expiry_timestamp_seconds 1.`,
	} {
		require.Eventually(t, func() bool {
			_, body = get("/metrics")
			return strings.Contains(body, line)
		}, time.Minute, 10*time.Millisecond, "%s in %s", line, body)
	}

	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, 0, p.end())
	assert.NotContains(t, p.seen.String(), "level=ERROR")
}

func TestMetricsAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	p := startProcess(t, dir, nobody, "metrics: "+l.Addr().String()+"\n"+staticSite)
	p.until(t, `ski-edgeserver: metrics: listen tcp .*: bind: address already in use`)
	assert.Equal(t, 1, p.end())
}
