package edgeserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// rawOrigin is an origin that reads a request's header, writes what it is told
// to, and then closes the connection.
func rawOrigin(t *testing.T, answer string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					io.WriteString(c, answer)
				}
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// neverOrigin is one that never answers, until the test has ended.
func neverOrigin(t *testing.T) string {
	origin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(origin.Close)
	t.Cleanup(origin.CloseClientConnections)
	return origin.URL
}

// nowhere is where nobody listens, and no other test ever will.
const nowhere = "127.0.0.1:1"

// Who reports an error page to the operator has the words that the log has.
func TestOriginThatFails(t *testing.T) {
	p := newPKI(t)
	for _, test := range []struct {
		name, origin string
		status       int
		reason, says string
	}{
		{"down", "http://" + nowhere, 502, "unreachable", "cannot be reached"},
		{"slow", neverOrigin(t), 504, "timeout", "does not answer"},
		{"silent", rawOrigin(t, ""), 502, "bad answer", "no answer that could be passed on"},
		{"half a header", rawOrigin(t, "HTTP/1.1 200 OK\r\nContent-Le"), 502, "bad answer", "no answer that could be passed on"},
		{"not HTTP", rawOrigin(t, "220 mail.test ESMTP\r\n"), 502, "bad answer", "no answer that could be passed on"},
	} {
		for _, engine := range []string{EngineStandard, EngineSplit} {
			t.Run(test.name+", "+engine, func(t *testing.T) {
				timeout := time.Minute
				if test.reason == "timeout" {
					timeout = 50 * time.Millisecond
				}
				e := start(t, Config{Sites: []Site{{
					Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Engine: engine,
					Proxy: test.origin, OriginTimeout: timeout,
				}}}, p.transport())
				resp, body := get(t, e.client(t, p), "https://a.test/")
				assert.Equal(t, test.status, resp.StatusCode)
				assert.Contains(t, body, test.says)
				assert.NotContains(t, body, strings.TrimPrefix(test.origin, "http://"), "where the origin is, is not for clients")
				id := resp.Header.Get("X-Request-Id")
				assert.Len(t, id, 26)
				assert.Contains(t, body, "\n\nRequest: "+id+"\n")
				assert.Regexp(t, fmt.Sprintf(`level=WARN msg="the origin failed" site=a.test remote=\S+ request_id=%s status=%d reason="?%s"? error=`,
					id, test.status, test.reason), e.log.String())
				require.Eventually(t, func() bool { // once the answer is done
					return e.value(t, "requests_total", "site", "a.test", "method", "GET", "code", "5xx") == 1
				}, time.Minute, time.Millisecond)
				require.Eventually(t, func() bool {
					return e.value(t, "origin_failures_total", "site", "a.test", "reason", test.reason) == 1
				}, time.Minute, time.Millisecond)
			})
		}
	}
}

// The header has been passed on: all that is left is not to let it look whole.
func TestOriginThatEndsItsAnswerTooSoon(t *testing.T) {
	p := newPKI(t)
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		for _, version := range []int{1, 2} {
			e := start(t, Config{Sites: []Site{{
				Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: rawOrigin(t, answer),
			}}}, p.transport())
			c := e.client(t, p)
			c.Transport.(*http.Transport).ForceAttemptHTTP2 = version == 2
			resp, err := c.Get("https://a.test/")
			if err == nil { // Otherwise the header was not sent either.
				assert.Equal(t, version, resp.ProtoMajor)
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			require.Error(t, err)
			require.Eventually(t, func() bool {
				return e.value(t, "origin_failures_total", "site", "a.test", "reason", "bad answer") == 1
			}, time.Minute, time.Millisecond)
			assert.Regexp(t, `level=WARN msg="the origin has ended its answer too soon" site=a.test remote=\S+ request_id=\S{26} error="unexpected EOF"`, e.log.String())
			assert.NotContains(t, e.log.String(), "httputil")
		}
	}
}

// The origin is not to blame for what clients do.
func TestClientThatLeaves(t *testing.T) {
	p := newPKI(t)
	entered := make(chan struct{}, 1)
	origin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer origin.Close()
	e := start(t, Config{Sites: []Site{{
		Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL,
	}}}, p.transport())

	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", "https://a.test/", nil)
	require.NoError(t, err)
	ended := make(chan error)
	go func() {
		_, err := e.client(t, p).Do(req)
		ended <- err
	}()
	<-entered
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	requests := func() float64 { return e.value(t, "requests_total", "site", "a.test", "method", "GET", "code", "4xx") }
	require.Eventually(t, func() bool { return requests() == 1 }, time.Minute, time.Millisecond)

	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnot a length\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, http.StatusBadRequest, resp.StatusCode)
	assert.Contains(t, string(body), "The body of the request is not whole.\n\nRequest: ")
	require.Eventually(t, func() bool { return requests() == 2 }, time.Minute, time.Millisecond)

	assert.Zero(t, e.value(t, "origin_failures_total", "site", "a.test", "reason", "bad answer"))
	assert.NotContains(t, e.log.String(), "level=WARN")
}
