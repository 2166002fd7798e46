package edgeserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestProxy(t *testing.T) {
	seen := make(chan *http.Request, 1)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		seen <- r
		w.Header().Set("X-Origin", "yes")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "from the origin")
	}))
	defer origin.Close()
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL + "/base"},
	}}, p.transport())

	req, err := http.NewRequest("POST", "https://a.test/x/y?q=1", strings.NewReader("body"))
	require.NoError(t, err)
	req.Header.Set("X-Forwarded-For", "192.0.2.1")
	req.Header.Set("X-Forwarded-Host", "forged.test")
	req.Header.Set("X-Forwarded-Proto", "gopher")
	req.Header.Set("Forwarded", "for=192.0.2.1")
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := e.client(t, p).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, http.StatusTeapot, resp.StatusCode)
	assert.Equal(t, "yes", resp.Header.Get("X-Origin"))
	assert.Equal(t, "from the origin", string(body))

	r := <-seen
	assert.Equal(t, "POST", r.Method)
	assert.Equal(t, "/base/x/y?q=1", r.RequestURI)
	assert.Equal(t, "a.test", r.Host)
	assert.Equal(t, []string{"127.0.0.1"}, r.Header["X-Forwarded-For"])
	assert.Equal(t, []string{"a.test"}, r.Header["X-Forwarded-Host"])
	assert.Equal(t, []string{"https"}, r.Header["X-Forwarded-Proto"])
	assert.Equal(t, []string{"for=127.0.0.1;host=a.test;proto=https"}, r.Header["Forwarded"])
}

// TestProxyUpgrade sends bytes both ways after an upgrade, and has the server
// end the connection, which http.Server.Shutdown does not.
func TestProxyUpgrade(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(c, rw)
	}))
	defer origin.Close()
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL},
	}}, p.transport())
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	fmt.Fprint(c, "ping")
	echo := make([]byte, 4)
	_, err = io.ReadFull(r, echo)
	require.NoError(t, err)
	assert.Equal(t, "ping", string(echo))

	// It goes on until the deadline, which cuts no request short.
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- e.Shutdown(ctx) }()
	require.Eventually(t, e.Draining, time.Minute, time.Millisecond)
	fmt.Fprint(c, "pong")
	_, err = io.ReadFull(r, echo)
	require.NoError(t, err)
	assert.Equal(t, "pong", string(echo))
	cancel()
	assert.NoError(t, <-stopped)
	c.SetReadDeadline(time.Now().Add(time.Minute))
	_, err = r.ReadByte()
	assert.ErrorIs(t, err, io.EOF)
}

func TestStatic(t *testing.T) {
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644))
	dir := filepath.Join(outside, "htdocs")
	for path, text := range map[string]string{
		"index.html": "front", "file.txt": "file", ".hidden": "secret", ".git/config": "secret",
		"sub/index.html": "sub", "sub/.htpasswd": "secret", "bare/file": "bare file",
	} {
		path = filepath.Join(dir, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	require.NoError(t, os.Symlink("../secret", filepath.Join(dir, "link")))
	require.NoError(t, os.Symlink("..", filepath.Join(dir, "up")))
	require.NoError(t, os.Symlink("file.txt", filepath.Join(dir, "inner")))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644))

	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: dir},
	}}, p.transport())
	for path, want := range map[string]string{
		"/": "front", "/file.txt": "file", "/sub/": "sub", "/bare/file": "bare file", "/inner": "file",
	} {
		status, body := rawGet(t, e, p, path)
		assert.Equal(t, http.StatusOK, status, path)
		assert.Equal(t, want, body, path)
	}
	for _, path := range []string{
		"/missing", "/bare/", "/bare", "/.hidden", "/.git/config", "/sub/.htpasswd", "/link", "/up/secret", "/pipe",
		"/../secret", "/..%2fsecret", "/%2e%2e/secret", "/sub/../../secret", "/sub/..%2f..%2fsecret", `/..\secret`,
		"//" + strings.TrimPrefix(outside, "/") + "/secret", "/file.txt/", "/file%00", "/sub/../.hidden", "/%2ehidden",
	} {
		status, body := rawGet(t, e, p, path)
		assert.NotContains(t, body, "secret", path)
		assert.NotEqual(t, http.StatusOK, status, path)
		assert.Less(t, status, 500, path)
	}

	resp, err := e.client(t, p).Post("https://a.test/file.txt", "text/plain", nil)
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
	assert.Equal(t, "GET, HEAD", resp.Header.Get("Allow"))
}

// rawGet sends a path as it is, which net/http's client would clean.
func rawGet(t *testing.T, e *edge, p *testPKI, path string) (int, string) {
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err, path)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}
