package edgeserver

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// withEachEngine runs a test for a site a.test, a copy of site, with either
// engine.
func withEachEngine(t *testing.T, site Site, test func(t *testing.T, p *testPKI, e *edge)) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		t.Run(engine, func(t *testing.T) {
			p := newPKI(t)
			site.Names, site.Certificates, site.Engine = []string{"a.test"}, []string{p.ecdsa(t, "a.test")}, engine
			test(t, p, start(t, Config{Sites: []Site{site}}, p.transport()))
		})
	}
}

// origin starts an HTTP server, also for HTTP/2 without TLS.
func origin(t *testing.T, handler http.HandlerFunc) (addr string) {
	server := httptest.NewUnstartedServer(handler)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// overHTTP1 has c speak HTTP/1.1 alone.
func overHTTP1(c *http.Client) *http.Client {
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	return c
}

func (e *edge) port(t *testing.T) string {
	_, port, err := net.SplitHostPort(e.addr)
	require.NoError(t, err)
	return port
}

func TestWebSocket(t *testing.T) {
	server := exec.Command("/usr/bin/python3", "testdata/websocket.py", "serve")
	server.Stderr = os.Stderr
	in, err := server.StdinPipe()
	require.NoError(t, err)
	out, err := server.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start())
	defer server.Wait()
	defer in.Close()
	port, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	withEachEngine(t, Site{Proxy: "http://127.0.0.1:" + strings.TrimSpace(port)}, func(t *testing.T, _ *testPKI, e *edge) {
		out, err := exec.Command("/usr/bin/python3", "testdata/websocket.py", "talk", e.port(t), e.Sites()[0].Certificates[0]).CombinedOutput()
		require.NoError(t, err, string(out))
		assert.Equal(t, "4001 as agreed\n", string(out))
	})
}

// TestServerSentEvents: each event is at the client before the next is made.
func TestServerSentEvents(t *testing.T) {
	next := make(chan struct{})
	addr := origin(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			<-next
		}
	})
	withEachEngine(t, Site{Proxy: "http://" + addr}, func(t *testing.T, _ *testPKI, e *edge) {
		for _, version := range []string{"--http1.1", "--http2"} {
			curl := exec.Command("curl", version, "--silent", "--show-error", "--fail", "--no-buffer", "--max-time", "60", "--cacert", e.Sites()[0].Certificates[0],
				"--resolve", "a.test:"+e.port(t)+":127.0.0.1", "https://a.test:"+e.port(t)+"/")
			out, err := curl.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, curl.Start())
			events := bufio.NewScanner(out)
			for i := range 3 {
				require.True(t, events.Scan())
				assert.Equal(t, fmt.Sprintf("data: %d", i), events.Text())
				require.True(t, events.Scan())
				next <- struct{}{}
			}
			assert.NoError(t, curl.Wait())
		}
	})
}

// TestLargeBodies sends one up, with a length and without, and gets another back.
func TestLargeBodies(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	file := filepath.Join(t.TempDir(), "large")
	require.NoError(t, os.WriteFile(file, large, 0o600))
	sum := sha256.Sum256(large)
	addr := origin(t, func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, _ := io.Copy(h, r.Body)
		w.Header().Set("X-Received", fmt.Sprintf("%d %x", n, h.Sum(nil)))
		w.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
		w.Write(large)
	})
	for _, scheme := range []string{"http://", "h2c://"} {
		withEachEngine(t, Site{Proxy: scheme + addr}, func(t *testing.T, _ *testPKI, e *edge) {
			for _, version := range []string{"--http1.1", "--http2"} {
				for upload, length := range map[string]int{file: len(large), "-": -1} {
					curl := exec.Command("curl", version, "--silent", "--show-error", "--fail", "--include", "--max-time", "60", "--cacert", e.Sites()[0].Certificates[0],
						"--resolve", "a.test:"+e.port(t)+":127.0.0.1", "--upload-file", upload, "https://a.test:"+e.port(t)+"/")
					curl.Stdin = bytes.NewReader(large)
					out, err := curl.Output()
					require.NoError(t, err)
					header, body, _ := strings.Cut(string(out[bytes.LastIndex(out, []byte("HTTP/")):]), "\r\n\r\n")
					header = strings.ToLower(header)
					assert.Contains(t, header, fmt.Sprintf("x-received: %d %s", len(large), hex.EncodeToString(sum[:])))
					assert.Contains(t, header, fmt.Sprintf("x-length: %d\r\n", length))
					assert.True(t, body == string(large))
				}
			}
		})
	}
}

// TestTheOriginAnswersWhileTheClientIsSending is a conversation within one
// request, and its trailers in both directions: what gRPC is made of.
func TestTheOriginAnswersWhileTheClientIsSending(t *testing.T) {
	addr := origin(t, func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		c.EnableFullDuplex()
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("X-Te", r.Header.Get("Te"))
		w.Header().Set("X-Protocol", r.Proto)
		w.WriteHeader(http.StatusOK)
		c.Flush()
		message := make([]byte, 4)
		for {
			if _, err := io.ReadFull(r.Body, message); err != nil {
				break
			}
			w.Write(bytes.ToUpper(message))
			c.Flush()
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "checksum "+r.Trailer.Get("X-Checksum"))
	})
	for scheme, spoken := range map[string]string{"http://": "HTTP/1.1", "h2c://": "HTTP/2.0"} {
		withEachEngine(t, Site{Proxy: scheme + addr}, func(t *testing.T, p *testPKI, e *edge) {
			for version, client := range map[int]*http.Client{1: overHTTP1(e.client(t, p)), 2: e.client(t, p)} {
				body, send := io.Pipe()
				req, err := http.NewRequestWithContext(t.Context(), "POST", "https://a.test/", body)
				require.NoError(t, err)
				req.Header.Set("Te", "trailers")
				req.Trailer = http.Header{"X-Checksum": nil}
				resp, err := client.Do(req)
				require.NoError(t, err)
				defer resp.Body.Close()
				assert.Equal(t, version, resp.ProtoMajor)
				assert.Equal(t, "trailers", resp.Header.Get("X-Te"))
				assert.Equal(t, spoken, resp.Header.Get("X-Protocol"))
				answer := make([]byte, 4)
				for _, message := range []string{"ping", "pong"} {
					_, err = io.WriteString(send, message)
					require.NoError(t, err)
					_, err = io.ReadFull(resp.Body, answer)
					require.NoError(t, err)
					assert.Equal(t, strings.ToUpper(message), string(answer))
				}
				req.Trailer.Set("X-Checksum", "42")
				send.Close()
				rest, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				assert.Empty(t, rest)
				assert.Equal(t, "0", resp.Trailer.Get("Grpc-Status"))
				assert.Equal(t, "checksum 42", resp.Trailer.Get("Grpc-Message"))
			}
		})
	}
}

// TestTheOriginRefusesALargeBody: the client gets the answer, though nobody
// reads the body.
func TestTheOriginRefusesALargeBody(t *testing.T) {
	addr := origin(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
	})
	withEachEngine(t, Site{Proxy: "http://" + addr}, func(t *testing.T, p *testPKI, e *edge) {
		// Not with HTTP/2: curl loses an answer that ends before its upload.
		curl := exec.Command("curl", "--http1.1", "--silent", "--show-error", "--max-time", "60", "--cacert", e.Sites()[0].Certificates[0],
			"--resolve", "a.test:"+e.port(t)+":127.0.0.1", "--upload-file", "-", "--write-out", "%{http_code}", "https://a.test:"+e.port(t)+"/")
		curl.Stdin = bytes.NewReader(make([]byte, 8<<20))
		out, err := curl.CombinedOutput()
		require.NoError(t, err, string(out))
		assert.Equal(t, "too large\n413", string(out))

		resp, err := e.client(t, p).Post("https://a.test/", "", bytes.NewReader(make([]byte, 8<<20)))
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		assert.Equal(t, 2, resp.ProtoMajor)
		assert.Equal(t, "413 too large\n", fmt.Sprintf("%d %s", resp.StatusCode, body))

		c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
		require.NoError(t, err)
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprint(c, "PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\nand no more")
		answer, err := io.ReadAll(c) // to the end: the connection is not waited on
		require.NoError(t, err)
		assert.Contains(t, string(answer), "413 Request Entity Too Large")
	})
}

// TestTheClientLeaves: the origin sees that nobody waits for its answer.
func TestTheClientLeaves(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	addr := origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		entered <- struct{}{}
		<-r.Context().Done()
		left <- struct{}{}
	})
	withEachEngine(t, Site{Proxy: "http://" + addr}, func(t *testing.T, p *testPKI, e *edge) {
		for _, client := range []*http.Client{overHTTP1(e.client(t, p)), e.client(t, p)} {
			resp, err := client.Get("https://a.test/")
			require.NoError(t, err)
			<-entered
			resp.Body.Close()
			<-left
		}
	})
}
