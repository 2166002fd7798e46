package edgeserver

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
)

// The origin, the client, the access log and the log have one identifier of a
// request, which a client cannot choose.
func TestRequestIdentifier(t *testing.T) {
	p := newPKI(t)
	for _, engine := range []string{EngineStandard, EngineSplit} {
		for _, version := range []int{1, 2} {
			t.Run(fmt.Sprint(engine, ", HTTP/", version), func(t *testing.T) {
				seen := make(chan []string, 1)
				origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					seen <- r.Header.Values("X-Request-Id")
					w.Header().Set("X-Request-Id", "the origin's own")
					w.Header().Set("Link", "</style.css>")
					w.WriteHeader(http.StatusEarlyHints)
					io.WriteString(w, "hello")
				}))
				defer origin.Close()
				name := filepath.Join(t.TempDir(), "access.log")
				e := start(t, Config{AccessLog: AccessLog{File: name}, Sites: []Site{{
					Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Engine: engine, Proxy: origin.URL,
				}}}, p.transport())
				c := e.client(t, p)
				c.Transport.(*http.Transport).ForceAttemptHTTP2 = version == 2
				req, err := http.NewRequest("GET", "https://a.test/", nil)
				require.NoError(t, err)
				req.Header.Set("X-Request-Id", "forged")
				if version == 1 {
					req.Header.Set("Connection", "X-Request-Id")
				}
				resp, err := c.Do(req)
				require.NoError(t, err)
				body, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				resp.Body.Close()
				assert.Equal(t, "hello", string(body))

				ids := resp.Header.Values("X-Request-Id")
				require.Len(t, ids, 1)
				assert.Regexp(t, `^[A-Z2-7]{26}$`, ids[0])
				assert.Equal(t, ids, <-seen)
				records := recordsOf(t, name, 1)
				assert.Equal(t, ids[0], records[0].RequestID)
			})
		}
	}
}

// A proxy before the edge server has made the identifier, and says who the client
// is.
func TestRequestFromATrustedProxy(t *testing.T) {
	p := newPKI(t)
	seen := make(chan http.Header, 1)
	origin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header }))
	defer origin.Close()
	dir := t.TempDir()
	for format, trusted := range map[string]bool{"json": true, "combined": true, "json ": false, "combined ": false} {
		name := filepath.Join(dir, format)
		cfg := Config{AccessLog: AccessLog{File: name, Format: strings.TrimSpace(format)}, Sites: []Site{
			{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL},
		}}
		if trusted {
			cfg.TrustedProxies = []string{"127.0.0.0/8"}
		}
		e := start(t, cfg, p.transport())
		req, err := http.NewRequest("GET", "https://a.test/", nil)
		require.NoError(t, err)
		req.Header.Set("X-Forwarded-For", "10.0.0.1, 192.0.2.7")
		req.Header.Set("X-Request-Id", "id-of-the-proxy")
		req.Header.Set("X_Request_Id", "forged")
		resp, err := e.client(t, p).Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		id := resp.Header.Get("X-Request-Id")
		assert.Equal(t, trusted, id == "id-of-the-proxy")
		header := <-seen
		assert.Equal(t, []string{id}, header["X-Request-Id"])
		assert.NotContains(t, header, "X_request_id")
		line := linesUntil(t, name, 1)[0]
		assert.Contains(t, line, `"`+id+`"`)
		switch format {
		case "json":
			assert.Contains(t, line, `"forwarded_for":"10.0.0.1, 192.0.2.7"`)
		case "combined":
			assert.Regexp(t, `^192\.0\.2\.7 - - `, line)
		default:
			assert.NotContains(t, line, "192.0.2.7")
		}
	}
}

func TestRequestIdentifiersThatCanBePassedOn(t *testing.T) {
	for id, want := range map[string]bool{
		"7b6b54a0-3f5a-4a38-8d27-8d2a3a6f5d3e": true, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01": true,
		"a+/=": true, strings.Repeat("x", 128): true,
		"": false, strings.Repeat("x", 129): false, "a b": false, "a\"": false, "a\n": false, "ä": false, "a,b": false,
	} {
		assert.Equal(t, want, isRequestID(id), id)
	}
}

func TestMisdirectedRequestHasAnIdentifier(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
	}}, p.transport())
	req, err := http.NewRequest("GET", "https://a.test/", nil)
	require.NoError(t, err)
	req.Host = "b.test"
	resp, err := e.client(t, p).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	id := resp.Header.Get("X-Request-Id")
	assert.Equal(t, "This connection is for another site.\n\nRequest: "+id+"\n", string(body))
	assert.Regexp(t, `msg="misdirected request" site=a\.test remote=127\.0\.0\.1:\d+ request_id=`+id+` host=b\.test`, e.log.String())
}

// linesUntil reads an access log once it has n lines.
func linesUntil(t *testing.T, file string, n int) []string {
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(file)
		return err == nil && bytes.Count(data, []byte{'\n'}) >= n
	}, time.Minute, time.Millisecond)
	lines := linesOf(t, file)
	require.Len(t, lines, n)
	return lines
}

// recordsOf reads an access log in JSON once it has n lines.
func recordsOf(t *testing.T, file string, n int) (records []accessRecord) {
	for _, line := range linesUntil(t, file, n) {
		var r accessRecord
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		require.NoError(t, d.Decode(&r), line)
		records = append(records, r)
	}
	return records
}

func TestAccessLogOfRequests(t *testing.T) {
	p := newPKI(t)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/upgrade" {
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Request-Id: its own\r\n\r\n")
				c.Close()
			}
			return
		}
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "short and stout")
	}))
	defer origin.Close()
	dir := t.TempDir()
	all, own := filepath.Join(dir, "all.log"), filepath.Join(dir, "own.log")
	e := start(t, Config{AccessLog: AccessLog{File: all}, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL},
		{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: htdocs(t, "this is b"),
			AccessLog: &AccessLog{File: own, Format: "combined", Query: true}},
		{Names: []string{"c.test"}, Certificates: []string{p.ecdsa(t, "c.test")}, Static: htdocs(t, "this is c"),
			AccessLog: &AccessLog{File: "off"}},
		{Names: []string{"d.test"}, Certificates: []string{p.ecdsa(t, "d.test")}, Static: htdocs(t, "this is d")},
	}}, p.transport())

	begin := time.Now()
	req, err := http.NewRequest("POST", "https://a.test/pot%20one?token=secret", strings.NewReader("water"))
	require.NoError(t, err)
	req.Header.Set("Referer", "https://x.test/from?token=secret")
	req.Header.Set("User-Agent", `Mozilla "5.0"`)
	resp, err := e.client(t, p).Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	req.URL.Host, req.Host, req.Method, req.Body = "b.test", "", "GET", nil
	resp, err = e.client(t, p).Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	inB := resp.Header.Get("X-Request-Id")
	get(t, e.client(t, p), "https://c.test/")
	get(t, e.client(t, p), "https://d.test/")

	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprint(c, "GET /upgrade HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	resp, err = http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	ids := resp.Header.Values("X-Request-Id")
	require.Len(t, ids, 1)
	c.Close()

	records := recordsOf(t, all, 3)
	one := records[0]
	assert.Equal(t, accessRecord{
		Time: one.Time, Site: "a.test", Remote: one.Remote, ServerName: "a.test", Version: "TLS 1.3", CipherSuite: "TLS_AES_128_GCM_SHA256",
		RequestID: one.RequestID, Protocol: "HTTP/2.0", Method: "POST", Host: "a.test", URL: "/pot%20one", Status: 418, Bytes: 15,
		DurationUS: one.DurationUS, Referer: "https://x.test/from", UserAgent: `Mozilla "5.0"`,
	}, one)
	at, err := time.Parse(time.RFC3339Nano, one.Time)
	require.NoError(t, err)
	assert.WithinRange(t, at, begin.Add(-time.Second), time.Now())
	assert.Regexp(t, `^127\.0\.0\.1:\d+$`, one.Remote)
	assert.Equal(t, "d.test", records[1].Site)
	assert.EqualValues(t, len("this is d"), records[1].Bytes)
	assert.Equal(t, 101, records[2].Status)
	assert.Equal(t, ids[0], records[2].RequestID)

	lines := linesUntil(t, own, 1)
	assert.Regexp(t, `^127\.0\.0\.1 - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET /pot%20one\?token=secret HTTP/2\.0" 404 19 `+
		`"https://x\.test/from\?token=secret" "Mozilla \\"5\.0\\"" "b\.test" "`+inB+`"$`, lines[0])
}

// A panic ends one request, and says which.
func TestPanicInARequest(t *testing.T) {
	p := newPKI(t)
	name := filepath.Join(t.TempDir(), "access.log")
	e := start(t, Config{AccessLog: AccessLog{File: name}, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
	}}, p.transport())
	handler := e.site("a.test").handler
	e.site("a.test").handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			io.WriteString(w, "half")
		}
		if r.URL.Path != "/" {
			panic("nobody has thought of this")
		}
		handler.ServeHTTP(w, r)
	})
	c := e.client(t, p)
	resp, body := get(t, c, "https://a.test/early")
	assert.Equal(t, http.StatusInternalServerError, resp.StatusCode)
	id := resp.Header.Get("X-Request-Id")
	assert.Contains(t, body, "Request: "+id)
	assert.NotContains(t, body, "thought")
	assert.Regexp(t, `level=ERROR msg="panic in a request" site=a\.test remote=127\.0\.0\.1:\d+ request_id=`+id+` panic="nobody has thought of this" stack=.*answer_test\.go`, e.log.String())

	resp, err := c.Get("https://a.test/late")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	assert.Error(t, err, "what is there does not look whole")
	_, body = get(t, c, "https://a.test/")
	assert.Equal(t, "this is a", body)
	assert.NotContains(t, e.log.String(), "http: panic serving")
	records := recordsOf(t, name, 3)
	assert.Equal(t, []any{500, false, 200, true, 200, false}, []any{
		records[0].Status, records[0].CutShort, records[1].Status, records[1].CutShort, records[2].Status, records[2].CutShort,
	})
}

// It goes by no Host, is nothing for an origin, and is written down all the same.
func TestOptionsOfTheServer(t *testing.T) {
	p := newPKI(t)
	name := filepath.Join(t.TempDir(), "access.log")
	e := start(t, Config{AccessLog: AccessLog{File: name}, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: "http://" + nowhere},
	}}, p.transport())
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprint(c, "OPTIONS * HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusNoContent, resp.StatusCode)
	assert.NotEmpty(t, resp.Header.Get("X-Request-Id"))
	records := recordsOf(t, name, 1)
	assert.Equal(t, "OPTIONS *", records[0].Method+" "+records[0].URL)
}

// What comes over several lines or is longer than any log should have.
func TestAccessLogOfLongRequests(t *testing.T) {
	p := newPKI(t)
	name := filepath.Join(t.TempDir(), "access.log")
	e := start(t, Config{AccessLog: AccessLog{File: name}, Sites: []Site{
		{Default: true, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
	}}, p.transport())
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprintf(c, "BREW%s /%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nReferer: /%s\r\nConnection: close\r\n\r\n", strings.Repeat("E", 1000),
		strings.Repeat("u", 10000), strings.Repeat("h", 10000), strings.Repeat("\xff", 10000), strings.Repeat("r", 10000))
	line, err := textproto.NewReader(bufio.NewReader(c)).ReadLine()
	require.NoError(t, err)
	assert.Equal(t, "HTTP/1.1 400 Bad Request", line)
	records := recordsOf(t, name, 1)
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Less(t, len(data), 8000)
	assert.Equal(t, defaultLabel, records[0].Site)
	assert.True(t, strings.HasSuffix(records[0].URL, "uuu..."))
	assert.EqualValues(t, 1, e.value(t, "requests_total", "site", defaultLabel, "method", "(other)", "code", "4xx"))
}

func TestAccessLogOfClientsWithCertificates(t *testing.T) {
	p, ca := newPKI(t), newClientCA(t, "Clients")
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "access.log")
			e := start(t, Config{AccessLog: AccessLog{File: name}, Sites: []Site{{
				Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir, Engine: way.engine,
				ClientCertificates: ClientCertificates{Mode: ClientCertificatesRequired, CA: ca.file},
			}}}, p.transport())
			alice := ca.alice(t)
			_, err := e.dialAndRead(p, &tls.Config{ServerName: "a.test", MaxVersion: way.version, Certificates: []tls.Certificate{alice}})
			require.NoError(t, err)
			record := recordsOf(t, name, 1)[0]
			assert.Equal(t, "CN=alice", record.Subject)
			assert.Equal(t, fmt.Sprintf("%x", sha256.Sum256(alice.Leaf.Raw)), record.Fingerprint)

			_, err = e.dialAndRead(p, &tls.Config{ServerName: "a.test", MaxVersion: way.version})
			require.Error(t, err)
			e.until(t, 1, "handshakes_total", "site", "a.test", "outcome", "client_certificate")
		})
	}
}

// A connection of a tcp site is a line, too, and its origin can fail.
func TestAccessLogOfTCP(t *testing.T) {
	p := newPKI(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	}()
	dir := t.TempDir()
	name, gone := filepath.Join(dir, "access.log"), filepath.Join(dir, "gone.log")
	e := start(t, Config{AccessLog: AccessLog{File: name}, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, TCP: l.Addr().String()},
		{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, TCP: nowhere,
			AccessLog: &AccessLog{File: gone, Format: "combined"}},
	}}, p.transport())
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	io.WriteString(c, "echo")
	require.NoError(t, c.CloseWrite())
	_, err = io.ReadAll(c)
	require.NoError(t, err)
	record := recordsOf(t, name, 1)[0]
	assert.Equal(t, accessRecord{
		Time: record.Time, Site: "a.test", Remote: c.LocalAddr().String(), ServerName: "a.test", Version: "TLS 1.3", CipherSuite: "TLS_AES_128_GCM_SHA256",
		Protocol: "TCP", Bytes: 4, Received: 4, DurationUS: record.DurationUS,
	}, record)

	c, err = e.dial(p, &tls.Config{ServerName: "b.test"})
	require.NoError(t, err)
	defer c.Close()
	assert.Regexp(t, `^127\.0\.0\.1 - - \[.*\] "- - TCP" 0 0 "-" "-" "b\.test" "-"$`, linesUntil(t, gone, 1)[0])
	assert.EqualValues(t, 1, e.value(t, "origin_failures_total", "site", "b.test", "reason", "unreachable"))
}

// A URL has its secrets in the query in each of its forms (RFC 9112, Section 3.2).
func TestAccessLogOfRequestTargets(t *testing.T) {
	p := newPKI(t)
	name := filepath.Join(t.TempDir(), "access.log")
	e := start(t, Config{AccessLog: AccessLog{File: name}, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: "http://" + nowhere},
	}}, p.transport())
	for i, test := range []struct{ line, url string }{
		{"GET /path?token=secret", "/path"},
		{"GET https://user:secret@a.test/path?token=secret", "/path"},
		{"GET https://a.test?token=secret", "/"},
		{"GET https://user:secret@a.test", "/"},
		{"OPTIONS *", "*"},
		{"CONNECT a.test:443", "a.test:443"},
	} {
		c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
		require.NoError(t, err)
		fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", test.line)
		ended(t, c)
		c.Close()
		assert.Equal(t, test.url, recordsOf(t, name, i+1)[i].URL, test.line)
	}
}

// An answer that the client has not taken whole is no whole answer, of a file
// neither.
func TestAccessLogOfAnAnswerThatIsCutShort(t *testing.T) {
	p := newPKI(t)
	for version, protos := range [][]string{{"http/1.1"}, {"h2"}} {
		name := filepath.Join(t.TempDir(), "access.log")
		e := start(t, Config{AccessLog: AccessLog{File: name}, Sites: []Site{
			{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, strings.Repeat("x", 16<<20))},
		}}, p.transport())
		if version == 0 {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: protos})
			require.NoError(t, err)
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
			_, err = c.Read(make([]byte, 1))
			require.NoError(t, err)
			c.NetConn().Close()
		} else {
			f := frames(t, e, p)
			ask(t, f, 1, "/")
			require.NoError(t, f.WriteRSTStream(1, http2.ErrCodeCancel))
		}
		assert.True(t, recordsOf(t, name, 1)[0].CutShort, protos)
	}
}

// A page of the edge server's own has an identifier in it that is of one request:
// no cache is to have it for others.
func TestErrorPagesAreNotKept(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
	}}, p.transport())
	resp, err := e.client(t, p).Post("https://a.test/", "text/plain", strings.NewReader("text"))
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode, "which RFC 9110, Section 15.1, lets caches keep")
	assert.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
	assert.Equal(t, "text/plain; charset=utf-8", resp.Header.Get("Content-Type"))
}
