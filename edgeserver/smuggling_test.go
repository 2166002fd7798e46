package edgeserver

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wiretap is an origin that keeps every byte that it is sent.
type wiretap struct {
	addr string
	stop func() // returns when it has heard all
	mu   sync.Mutex
	got  bytes.Buffer
}

// newWiretap starts one that gives each request the same answer, and then
// closes the connection.
func newWiretap(t *testing.T, answer string) *wiretap {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w := &wiretap{addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { w.serve(c, answer) })
		}
	})
	w.stop = func() {
		l.Close()
		wg.Wait()
	}
	t.Cleanup(w.stop)
	return w
}

func (w *wiretap) serve(c net.Conn, answer string) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, w)))
	if err != nil {
		return
	}
	if _, err := io.Copy(io.Discard, req.Body); err == nil {
		io.WriteString(c, answer)
	}
}

func (w *wiretap) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got.Write(b)
}

// heard returns what has come since the last call.
func (w *wiretap) heard() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.got.Reset()
	return w.got.String()
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

// TestRequestSmuggling has requests whose end, or whose header fields, the edge
// and what stands before or behind it could see differently. Each is refused or
// has one meaning at the origin.
func TestRequestSmuggling(t *testing.T) {
	tap := newWiretap(t, okAnswer)
	const post, hidden = "POST / HTTP/1.1\r\nHost: a.test\r\n", "GET /hidden HTTP/1.1\r\nHost: a.test\r\n\r\n"
	tests := map[string]struct {
		request string
		status  []int  // of all answers, in their order
		body    string // at the origin, as it is sent there; "": the origin sees nothing
	}{
		"Content-Length and Transfer-Encoding": {post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", []int{200}, "2\r\nhi\r\n0\r\n\r\n"},
		"two lengths":                          {post + "Content-Length: 0\r\nContent-Length: 39\r\n\r\n" + hidden, []int{400}, ""},
		"a length twice":                       {post + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi", []int{200}, "hi"},
		"a list of lengths":                    {post + "Content-Length: 2, 2\r\n\r\nhi", []int{400}, ""},
		"a length with a sign":                 {post + "Content-Length: +2\r\n\r\nhi", []int{400}, ""},
		"a negative length":                    {post + "Content-Length: -2\r\n\r\nhi", []int{400}, ""},
		"a hexadecimal length":                 {post + "Content-Length: 0x2\r\n\r\nhi", []int{400}, ""},
		"an immense length":                    {post + "Content-Length: 99999999999999999999\r\n\r\nhi", []int{400}, ""},
		"an unknown coding":                    {post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden, []int{501}, ""},
		"two codings":                          {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + hidden, []int{501}, ""},
		"chunked twice":                        {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, []int{501}, ""},
		"identity after chunked":               {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden, []int{501}, ""},
		"a vertical tab before chunked":        {post + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n" + hidden, []int{400}, ""},
		"a space before the colon":             {post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden, []int{400}, ""},
		"a space before the first field":       {"POST / HTTP/1.1\r\n Host: a.test\r\nContent-Length: 2\r\n\r\nhi", []int{400}, ""},
		"obs-fold":                             {post + "Content-Length: 2\r\nX-Folded: one\r\n Transfer-Encoding: chunked\r\n\r\nhi", []int{200}, "hi"},
		"a folded Transfer-Encoding":           {post + "Transfer-Encoding:\r\n chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", []int{200}, "2\r\nhi\r\n0\r\n\r\n"},
		"bare LF in the header":                {"POST / HTTP/1.1\nHost: a.test\nContent-Length: 2\n\nhi", []int{200}, "hi"},
		"bare CR in the header":                {post + "X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi", []int{400}, ""},
		"NUL in the header":                    {post + "X-A: b\x00c\r\nContent-Length: 2\r\n\r\nhi", []int{400}, ""},
		"a chunk extension":                    {post + "Transfer-Encoding: chunked\r\n\r\n2;name=\"value\"\r\nhi\r\n0\r\n\r\n", []int{200}, "2\r\nhi\r\n0\r\n\r\n"},
		"chunks in HTTP/1.0":                   {"POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi", []int{200}, "hi"},
		"two Hosts":                            {"GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", []int{400}, ""},
		"no Host":                              {"GET / HTTP/1.1\r\n\r\n", []int{400}, ""},
		"a Host of another site":               {"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n", []int{421}, ""},
		"a Host with a path":                   {"GET / HTTP/1.1\r\nHost: a.test/b\r\n\r\n", []int{400}, ""},
		"another site in the target":           {"GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", []int{421}, ""},
		"a tunnel":                             {"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", []int{501}, ""},
		"a URL within the target":              {"GET x:http://a.test/hidden HTTP/1.1\r\nHost: a.test\r\n\r\n", []int{400}, ""},
		"a target with a space":                {"GET /a b HTTP/1.1\r\nHost: a.test\r\n\r\n", []int{400}, ""},
		"HTTP/0.9":                             {"GET /\r\n\r\n", []int{400}, ""},
		"a preface of HTTP/2":                  {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{505}, ""},
		"a header too long":                    {"GET / HTTP/1.1\r\nHost: a.test\r\nX-A: " + strings.Repeat("a", 100_000) + "\r\n\r\n", []int{431}, ""},
		"two requests in one segment":          {post + "Content-Length: 2\r\n\r\nhi" + post + "Content-Length: 2\r\n\r\nho", []int{200, 200}, "hi"},
	}
	withEachEngine(t, Site{Proxy: "http://" + tap.addr}, func(t *testing.T, p *testPKI, e *edge) {
		for name, tt := range tests {
			t.Run(name, func(t *testing.T) {
				c, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: []string{"http/1.1"}})
				require.NoError(t, err)
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				// A client that stops sending, so that all answers come.
				io.WriteString(c, tt.request) // What is too long is answered, and may be closed, before all of it is there.
				var status []int
				answers := bufio.NewReader(c)
				for range tt.status {
					resp, err := http.ReadResponse(answers, nil)
					require.NoError(t, err)
					io.Copy(io.Discard, resp.Body)
					status = append(status, resp.StatusCode)
				}
				c.CloseWrite()
				rest, _ := io.ReadAll(answers)
				assert.Empty(t, string(rest), "there is another answer")
				assert.Equal(t, tt.status, status)
				heard := tap.heard()
				assert.NotContains(t, heard, "/hidden")
				switch tt.body {
				case "":
					assert.Empty(t, heard)
				default:
					header, body, _ := strings.Cut(heard, "\r\n\r\n")
					assert.Equal(t, strings.HasSuffix(tt.body, "\r\n\r\n"), strings.Contains(header, "\r\nTransfer-Encoding: chunked"), header)
					assert.Equal(t, !strings.HasSuffix(tt.body, "\r\n\r\n"), strings.Contains(header, "\r\nContent-Length: "), header)
					assert.True(t, strings.HasPrefix(body, tt.body), "%q", body)
				}
			})
		}
	})
}

// TestDowngradeToHTTP1 has requests in HTTP/2 that would be something else in
// HTTP/1.1, which the origin speaks.
func TestDowngradeToHTTP1(t *testing.T) {
	tap := newWiretap(t, okAnswer)
	type field = hpack.HeaderField
	tests := map[string]struct {
		fields []field
		data   string
		status string // "": the stream or the connection ends
		heard  string // by the origin
	}{
		"honest":                     {h2Request(field{Name: "content-length", Value: "2"}), "hi", "200", "\r\nContent-Length: 2\r\n"},
		"no length":                  {h2Request(), "hi", "200", "\r\n\r\n2\r\nhi\r\n0\r\n\r\n"},
		"CR and LF in a value":       {h2Request(field{Name: "x-a", Value: "b\r\nTransfer-Encoding: chunked"}), "hi", "", ""},
		"LF in a value":              {h2Request(field{Name: "x-a", Value: "b\nX-Hidden: c"}), "hi", "", ""},
		"NUL in a value":             {h2Request(field{Name: "x-a", Value: "b\x00c"}), "hi", "", ""},
		"CR and LF in a name":        {h2Request(field{Name: "x-a: b\r\nx-hidden", Value: "c"}), "hi", "", ""},
		"a colon in a name":          {h2Request(field{Name: "x-hidden:", Value: "c"}), "hi", "", ""},
		"an upper-case name":         {h2Request(field{Name: "X-Hidden", Value: "c"}), "hi", "", ""},
		"CR and LF in the path":      {h2Request(field{Name: ":path", Value: "/ HTTP/1.1\r\nX-Hidden: c\r\n\r\n"}), "hi", "", ""},
		"a space in the path":        {h2Request(field{Name: ":path", Value: "/a HTTP/1.1"}), "hi", "200", "POST /a%20HTTP/1.1 HTTP/1.1\r\n"},
		"a space in the query":       {h2Request(field{Name: ":path", Value: "/?a HTTP/0.9"}), "hi", "200", "POST /?a%20HTTP/0.9 HTTP/1.1\r\n"},
		"a fragment in the query":    {h2Request(field{Name: ":path", Value: "/?a#b"}), "hi", "200", "POST /?a%23b HTTP/1.1\r\n"},
		"what some take for a space": {h2Request(field{Name: ":path", Value: "/?a\xa0HTTP/0.9\x85"}), "hi", "200", "POST /?a%A0HTTP/0.9%85 HTTP/1.1\r\n"},
		"a URL within the path":      {h2Request(field{Name: ":path", Value: "x:http://a.test/hidden"}), "hi", "400", ""},
		"a space in the method":      {h2Request(field{Name: ":method", Value: "GET /hidden"}), "hi", "400", ""},
		"a trailer without a name":   {h2Request(field{Name: "trailer", Value: "x hidden, x-a"}), "hi", "200", "\r\nTrailer: X-A\r\n"},
		"trailers that are none":     {h2Request(field{Name: "trailer", Value: "host, authorization"}), "hi", "200", "\r\nTransfer-Encoding: chunked\r\nForwarded: "},
		"CR and LF in the method":    {h2Request(field{Name: ":method", Value: "GET /hidden HTTP/1.1\r\nX-A:"}), "hi", "", ""},
		"CR and LF in the authority": {h2Request(field{Name: ":authority", Value: "a.test\r\nX-Hidden: c"}), "hi", "", ""},
		"a path in the authority":    {h2Request(field{Name: ":authority", Value: "a.test/hidden"}), "hi", "400", ""},
		"another site":               {h2Request(field{Name: ":authority", Value: "b.test"}), "hi", "421", ""},
		"another site in Host":       {h2Request(field{Name: "host", Value: "b.hidden"}), "hi", "200", "\r\nHost: a.test\r\n"},
		"Transfer-Encoding":          {h2Request(field{Name: "transfer-encoding", Value: "chunked"}), "0\r\n\r\nGET /hidden HTTP/1.1\r\n\r\n", "400", ""},
		"Connection":                 {h2Request(field{Name: "connection", Value: "x-forwarded-for"}), "hi", "400", ""},
		"a header too long":          {h2Request(field{Name: "x-a", Value: strings.Repeat("a", 100_000)}), "hi", "", ""},
		"a tunnel":                   {[]field{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "a.test"}}, "hi", "501", ""},
	}
	withEachEngine(t, Site{Proxy: "http://" + tap.addr}, func(t *testing.T, p *testPKI, e *edge) {
		for name, tt := range tests {
			t.Run(name, func(t *testing.T) {
				c, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: []string{"h2"}})
				require.NoError(t, err)
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				status, err := rawHTTP2(c, tt.fields, tt.data)
				require.NoError(t, err)
				assert.Equal(t, tt.status, status)
				heard := tap.heard()
				assert.NotContains(t, strings.ToLower(heard), "hidden")
				switch tt.heard {
				case "":
					assert.Empty(t, heard)
				default:
					assert.Contains(t, heard, tt.heard)
				}
			})
		}
		assert.NotContains(t, e.log.String(), "the origin failed")
	})
}

// TestBodiesThatAreNotWhole: the origin does not take what it gets for a whole
// request, and nothing after it is a request.
func TestBodiesThatAreNotWhole(t *testing.T) {
	const post, hidden = "POST / HTTP/1.1\r\nHost: a.test\r\n", "GET /hidden HTTP/1.1\r\nHost: a.test\r\n\r\n"
	type field = hpack.HeaderField
	http1 := map[string]string{
		"less than the length":                    post + "Content-Length: 40\r\n\r\nhi",
		"a client that leaves between two chunks": post + "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
		"a bare LF after a chunk's length":        post + "Transfer-Encoding: chunked\r\n\r\n2\nhi\r\n0\r\n\r\n",
		"a bare LF in a chunk extension":          post + "Transfer-Encoding: chunked\r\n\r\n2;\nxx\r\n4c\r\n0\r\n\r\n" + hidden,
		"a chunk longer than it says":             post + "Transfer-Encoding: chunked\r\n\r\n2\r\nhigh\r\n0\r\n\r\n",
		"a chunk's length with a sign":            post + "Transfer-Encoding: chunked\r\n\r\n+2\r\nhi\r\n0\r\n\r\n",
		"an immense chunk":                        post + "Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\nhi\r\n0\r\n\r\n",
	}
	http2 := map[string]struct {
		fields []field
		data   string
	}{
		"more than the length": {h2Request(field{Name: "content-length", Value: "2"}), "hiGET /hidden HTTP/1.1\r\n\r\n"},
		"less than the length": {h2Request(field{Name: "content-length", Value: "40"}), "hi"},
		"two lengths":          {h2Request(field{Name: "content-length", Value: "2"}, field{Name: "content-length", Value: "26"}), "hiGET /hidden HTTP/1.1\r\n\r\n"},
	}
	for _, engine := range []string{EngineStandard, EngineSplit} {
		p := newPKI(t)
		tap := newWiretap(t, okAnswer)
		e := start(t, Config{Sites: []Site{
			{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: "http://" + tap.addr, Engine: engine},
		}}, p.transport())
		for name, request := range http1 {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: []string{"http/1.1"}})
			require.NoError(t, err)
			c.SetDeadline(time.Now().Add(time.Minute))
			_, err = io.WriteString(c, request)
			require.NoError(t, err)
			require.NoError(t, c.CloseWrite())
			// No answer is due to a client that has left in the middle.
			answer, _ := io.ReadAll(c)
			if len(answer) > 0 || !strings.Contains(name, "leaves") {
				assert.Equal(t, 1, strings.Count(string(answer), "HTTP/1.1 "), "%s: %s", name, answer)
				assert.Contains(t, string(answer), "HTTP/1.1 400 ", name)
			}
			c.Close()
		}
		for name, tt := range http2 {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: []string{"h2"}})
			require.NoError(t, err)
			c.SetDeadline(time.Now().Add(time.Minute))
			status, err := rawHTTP2(c, tt.fields, tt.data)
			require.NoError(t, err)
			assert.Contains(t, []string{"", "400"}, status, name)
			c.Close()
		}
		e.Close()
		tap.stop()
		heard := tap.heard()
		assert.NotContains(t, heard, "\r\n0\r\n")
		assert.NotContains(t, heard, "hidden")
		assert.NotContains(t, e.log.String(), "the origin failed")
	}
}

// TestAnAnswerBeforeTheEndOfTheBody is not followed by a request that the client
// has hidden in the rest of the body.
func TestAnAnswerBeforeTheEndOfTheBody(t *testing.T) {
	addr := origin(t, func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "/", r.URL.Path)
		c, rest, err := w.(http.Hijacker).Hijack()
		if assert.NoError(t, err) {
			defer c.Close()
			io.WriteString(c, okAnswer)
			io.Copy(io.Discard, rest)
		}
	})
	const hidden = "GET /hidden HTTP/1.1\r\nHost: a.test\r\n\r\n"
	withEachEngine(t, Site{Proxy: "http://" + addr}, func(t *testing.T, p *testPKI, e *edge) {
		for header, rest := range map[string]string{
			"Content-Length: 1000":       hidden,
			"Transfer-Encoding: chunked": "zz\r\n" + hidden,
		} {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: []string{"http/1.1"}})
			require.NoError(t, err)
			c.SetDeadline(time.Now().Add(time.Minute))
			fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a.test\r\n%s\r\n\r\n", header)
			answers := bufio.NewReader(c)
			resp, err := http.ReadResponse(answers, nil)
			require.NoError(t, err)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			assert.Equal(t, "ok", string(body))
			assert.True(t, resp.Close)
			io.WriteString(c, rest)
			c.CloseWrite()
			more, _ := io.ReadAll(answers)
			assert.Empty(t, string(more))
			c.Close()
		}
	})
}

// h2Request returns the fields of a POST request, with those given instead or
// beside them.
func h2Request(fields ...hpack.HeaderField) []hpack.HeaderField {
	all := []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "a.test"}, {Name: ":path", Value: "/"}}
	for _, f := range fields {
		if i := slices.IndexFunc(all, func(o hpack.HeaderField) bool { return f.Name[0] == ':' && o.Name == f.Name }); i >= 0 {
			all[i] = f
			continue
		}
		all = append(all, f)
	}
	return all
}

// rawHTTP2 sends a request as it is, and returns the status of the answer, or ""
// where the server refuses the stream.
func rawHTTP2(c net.Conn, fields []hpack.HeaderField, data string) (status string, err error) {
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return "", err
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		encoder.WriteField(f)
	}
	framer := http2.NewFramer(c, c)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.WriteSettings()
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Next(16 << 10), EndHeaders: block.Len() == 0})
	for block.Len() > 0 {
		framer.WriteContinuation(1, block.Len() <= 16<<10, block.Next(16<<10))
	}
	framer.WriteData(1, true, []byte(data))
	for {
		frame, err := framer.ReadFrame()
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status"), nil
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return "", nil
		}
		if err != nil {
			return "", err
		}
	}
}

// TestFieldsForTheNextHopOnly: a client can neither have what the edge says of
// it taken away, nor make the origin speak another protocol past the edge.
func TestFieldsForTheNextHopOnly(t *testing.T) {
	tap := newWiretap(t, okAnswer)
	withEachEngine(t, Site{Proxy: "http://" + tap.addr}, func(t *testing.T, p *testPKI, e *edge) {
		for _, fields := range []string{
			"Connection: X-Forwarded-For, X-Forwarded-Proto\r\n",
			"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
			"Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n",
			"Connection: Upgrade\r\nUpgrade: h2\r\n",
			"Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n",
			"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
			"Proxy-Connection: keep-alive\r\nKeep-Alive: timeout=9\r\nTE: gzip\r\nProxy-Authorization: Basic eDp5\r\n",
		} {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
			require.NoError(t, err)
			fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a.test\r\n%s\r\n", fields)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			assert.Equal(t, 200, resp.StatusCode)
			c.Close()
			heard := tap.heard()
			assert.Contains(t, heard, "\r\nX-Forwarded-For: 127.0.0.1\r\n")
			assert.Contains(t, heard, "\r\nX-Forwarded-Proto: https\r\n")
			for _, name := range []string{"Connection", "Upgrade", "Http2-Settings", "Proxy-Connection", "Keep-Alive", "Te", "Proxy-Authorization"} {
				assert.NotContains(t, heard, "\r\n"+name+": ")
			}
		}
	})
}

// TestOriginsThatMisbehave: what is wrong before the answer has begun is a 502;
// what is cut short later is not whole at the client either.
func TestOriginsThatMisbehave(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		status int // 0: the answer begins, and the client sees that it is cut short
	}{
		"nothing":                        {"", 502},
		"not HTTP":                       {"SSH-2.0-OpenSSH_9.2\r\n", 502},
		"not HTTP, and a lot":            {strings.Repeat("\x00\xff", maxOriginHeader/2-100) + "\r\n", 502},
		"half a header":                  {"HTTP/1.1 200 OK\r\nContent-Le", 502},
		"a header without end":           {"HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("a", 2*maxOriginHeader) + "\r\n\r\n", 502},
		"two lengths":                    {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi", 502},
		"an unknown coding":              {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi", 502},
		"a status that is none":          {"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", 502},
		"another protocol, none":         {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade:\r\n\r\n", 502},
		"a bare CR in a field":           {"HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: c=d\r\nContent-Length: 0\r\n\r\n", 502},
		"another protocol, not asked":    {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", 502},
		"half a body":                    {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", 0},
		"half a chunk":                   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf", 0},
		"chunks without the last":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", 0},
		"a chunk longer than its length": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhalf\r\n0\r\n\r\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			tap := newWiretap(t, tt.answer)
			withEachEngine(t, Site{Proxy: "http://" + tap.addr}, func(t *testing.T, p *testPKI, e *edge) {
				for _, client := range []*http.Client{overHTTP1(e.client(t, p)), e.client(t, p)} {
					resp, err := client.Get("https://a.test/")
					if tt.status == 0 && err != nil {
						continue // the end came before the header was sent on
					}
					require.NoError(t, err)
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
					if tt.status == 0 {
						assert.Error(t, err)
						continue
					}
					assert.NoError(t, err)
					assert.Equal(t, tt.status, resp.StatusCode)
					assert.Regexp(t, `level=WARN msg="the origin failed" site=a\.test remote=\S+ request_id=\S+ status=502`, e.log.String())
					for line := range strings.Lines(e.log.String()) {
						assert.Less(t, len(line), 1000, "what an origin has sent fills the log")
					}
				}
			})
		})
	}
}
