package edgeserver

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2/hpack"
)

// behindOneOrigin has two sites with one origin behind both: the default site, and
// one that only clients with a certificate get to.
func behindOneOrigin(t *testing.T, p *testPKI, engine, origin string) *edge {
	ca, cert := newClientCA(t, "authority"), p.ecdsa(t, "a.test", "closed.test")
	return start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Default: true, Certificates: []string{cert}, Engine: engine, Proxy: origin},
		{Names: []string{"closed.test"}, Certificates: []string{cert}, Engine: engine, Proxy: origin,
			ClientCertificates: ClientCertificates{Mode: ClientCertificatesRequired, CA: ca.file}},
	}}, p.transport())
}

// TestNoRequestOfOneSiteIsAnothersAtTheOrigin: what the origin of two sites is told
// does not name another site than the one whose rules the client has met.
func TestNoRequestOfOneSiteIsAnothersAtTheOrigin(t *testing.T) {
	tap := newWiretap(t, okAnswer)
	const get = "GET / HTTP/1.1\r\nHost: "
	for _, engine := range []string{EngineStandard, EngineSplit} {
		p := newPKI(t)
		e := behindOneOrigin(t, p, engine, "http://"+tap.addr)
		ask := func(protocol string, send func(c *tls.Conn) string) (status, heard string) {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: []string{protocol}})
			require.NoError(t, err)
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			return send(c), tap.heard()
		}
		for request, want := range map[string]struct{ status, heard string }{
			"GET x:http://closed.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n":       {"400", ""},
			"GET http:closed.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n":           {"400", ""},
			"GET http://closed.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n":         {"421", ""},
			"GET http://a.test@closed.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n":  {"421", ""},
			"GET http://closed.test@a.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n": {"200", "GET /x HTTP/1.1\r\nHost: a.test\r\n"},
			"GET * HTTP/1.1\r\nHost: a.test\r\n\r\n":                           {"400", ""},
			"OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n":                       {"204", ""},
			"OPTIONS * HTTP/1.1\r\nHost: closed.test\r\n\r\n":                  {"421", ""},
			get + "closed.test\r\n\r\n":                                        {"421", ""},
			get + "CLOSED.test.\r\n\r\n":                                       {"421", ""},
			get + "closed.test:\r\n\r\n":                                       {"421", ""},
			get + "closed.test:80:443\r\n\r\n":                                 {"400", ""},
			get + "closed.test..\r\n\r\n":                                      {"400", ""},
			get + "closed.test:x\r\n\r\n":                                      {"400", ""},
			get + "closed.test,a.test\r\n\r\n":                                 {"400", ""},
			get + "closed.test;a.test\r\n\r\n":                                 {"400", ""},
			get + "closed%2Etest\r\n\r\n":                                      {"400", ""},
			get + "[closed.test]\r\n\r\n":                                      {"400", ""},
			get + "[closed.test]:443\r\n\r\n":                                  {"400", ""},
			get + "[closed.test%25x]:443\r\n\r\n":                              {"400", ""},
			get + "[::1\r\n\r\n":                                               {"400", ""},
			get + "[::1]\r\n\r\n":                                              {"200", "GET / HTTP/1.1\r\nHost: [::1]\r\n"},
			get + "[2001:db8::1]:8443\r\n\r\n":                                 {"200", "GET / HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n"},
			get + "192.0.2.1:8443\r\n\r\n":                                     {"200", "GET / HTTP/1.1\r\nHost: 192.0.2.1:8443\r\n"},
			get + "un_known.test\r\n\r\n":                                      {"200", "GET / HTTP/1.1\r\nHost: un_known.test\r\n"},
			get + "\r\n\r\n":                                                   {"200", "GET / HTTP/1.1\r\nHost: a.test\r\n"},
			"GET / HTTP/1.0\r\n\r\n":                                           {"200", "GET / HTTP/1.1\r\nHost: a.test\r\n"},
		} {
			status, heard := ask("http/1.1", func(c *tls.Conn) string {
				io.WriteString(c, request)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				require.NoError(t, err, request)
				return fmt.Sprint(resp.StatusCode)
			})
			assert.Equal(t, want.status, status, request)
			assert.True(t, want.heard != "" && strings.HasPrefix(heard, want.heard) || heard == "", "%q: %q", request, heard)
		}
		for authority, want := range map[string]string{
			"closed.test": "421", "closed.test/": "400", "closed.test a": "400", "closed.test:1:2": "400", "\uff43losed.test": "400", "\u212a.test": "400", "": "200",
		} {
			status, heard := ask("h2", func(c *tls.Conn) string {
				status, err := rawHTTP2(c, h2Request(hpack.HeaderField{Name: ":authority", Value: authority}), "hi")
				require.NoError(t, err)
				return status
			})
			assert.Equal(t, want, status, authority)
			assert.Equal(t, want == "200", strings.Contains(heard, "\r\nHost: a.test\r\n"), heard)
		}
		assert.NotContains(t, e.log.String(), "level=WARN", "a client can have nothing said of the origin")
	}
}

// TestAnOriginsFolderIsNotLeft: the path of an origin's URL is before that of every
// request, and stays so where the origin resolves "..".
func TestAnOriginsFolderIsNotLeft(t *testing.T) {
	tap := newWiretap(t, okAnswer)
	withEachEngine(t, Site{Proxy: "http://" + tap.addr + "/app/"}, func(t *testing.T, p *testPKI, e *edge) {
		for target, want := range map[string]string{
			"/a": "/app/a", "/a..b/...;..": "/app/a..b/...;..", "/?../..": "/app/?../..", "https://a.test": "/app/",
			"/../admin": "", "/a/..": "", "/%2e%2E/admin": "", "/..%2fadmin": "", "/x/%2e./": "", "/..;a=b/admin": "", "/..%5cadmin": "", `/a\..\admin`: "", "https://a.test/../admin": "",
		} {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
			require.NoError(t, err)
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a.test\r\n\r\n", target)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			c.Close()
			heard, _, _ := strings.Cut(tap.heard(), " HTTP/1.1\r\n")
			if want == "" {
				assert.Equal(t, 400, resp.StatusCode, target)
				assert.Empty(t, heard)
				continue
			}
			assert.Equal(t, 200, resp.StatusCode, target)
			assert.Equal(t, "GET "+want, heard)
		}
	})
}

// TestAConnectionThatAClientHasProvedItselfOnIsNotForOthers: NTLM is about the
// connection, which is the edge's and carries everybody's requests.
func TestAConnectionThatAClientHasProvedItselfOnIsNotForOthers(t *testing.T) {
	addr := origin(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RemoteAddr) })
	withEachEngine(t, Site{Proxy: "http://" + addr}, func(t *testing.T, p *testPKI, e *edge) {
		for _, scheme := range []string{"NTLM", "negotiate"} {
			var last string
			for _, authorization := range []string{scheme + " TlRMTVNTUAAB", ""} {
				req, err := http.NewRequest("GET", "https://a.test/", nil)
				require.NoError(t, err)
				req.Header.Set("Authorization", authorization)
				resp, err := e.client(t, p).Do(req)
				require.NoError(t, err)
				body, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				resp.Body.Close()
				assert.NotEqual(t, last, string(body), scheme)
				last = string(body)
			}
		}
	})
}

// TestAQueryIsPassedOnAsItIs: also where Go's parser makes nothing of it.
func TestAQueryIsPassedOnAsItIs(t *testing.T) {
	tap := newWiretap(t, okAnswer)
	withEachEngine(t, Site{Proxy: "http://" + tap.addr}, func(t *testing.T, p *testPKI, e *edge) {
		for _, target := range []string{"/?b=1;c&a=%zz&a", "/?", "/?a+b=%20", "/?'\"<>[]|^`{}\\~"} {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
			require.NoError(t, err)
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a.test\r\n\r\n", target)
			_, err = http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			c.Close()
			assert.Contains(t, tap.heard(), "GET "+target+" HTTP/1.1\r\n")
		}
	})
}
