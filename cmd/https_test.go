package cmd_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skihttp"
)

// startEdge starts a second edge server beside that of skictl dev, which finds
// its key server by these lines, and returns its address. It ends with the test.
func (d *devSetup) startEdge(keyserver string) string {
	d.t.Helper()
	config := regexp.MustCompile(`(?m)^listen: .*$`).ReplaceAllString(d.read("edge/edge.yaml"), `listen: ["127.0.0.1:0"]`)
	config = regexp.MustCompile(`(?m)^  url: .*$`).ReplaceAllLiteralString(config, "  "+keyserver)
	file := filepath.Join(d.dir, "edge", "second.yaml")
	require.NoError(d.t, os.WriteFile(file, []byte(config), 0o644))
	edge := exec.Command(filepath.Join(bin, "ski-edgeserver"), "-config", file)
	stderr, err := edge.StderrPipe()
	require.NoError(d.t, err)
	require.NoError(d.t, edge.Start())
	d.t.Cleanup(func() {
		assert.NoError(d.t, edge.Process.Signal(os.Interrupt))
		assert.NoError(d.t, edge.Wait())
	})
	lines := bufio.NewReader(stderr)
	for {
		line, err := lines.ReadString('\n')
		require.NoError(d.t, err)
		if m := regexp.MustCompile(`msg=listening addr=(\S+)`).FindStringSubmatch(line); m != nil {
			go func() { _, _ = io.Copy(io.Discard, lines) }()
			return m[1]
		}
	}
}

func (d *devSetup) handshakeAt(addr, site string) error {
	ca, err := os.ReadFile(d.endpoints.CA)
	require.NoError(d.t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, ServerName: site})
	if err != nil {
		return err
	}
	return conn.Close()
}

func TestAnEdgeAsksOverHTTPS(t *testing.T) {
	d := startDev(t)
	addr := d.startEdge("url: " + d.endpoints.KeyServer.HTTPS)
	for _, site := range d.endpoints.Sites {
		for range 5 {
			require.NoError(t, d.handshakeAt(addr, site.Name))
		}
	}
	assert.Contains(t, d.read("keyserver/keyserver.log"), "binding=https")
}

// The key server that is preferred is behind a firewall that drops all UDP.
func TestAnEdgeFallsOverToTCPWhereUDPIsBlocked(t *testing.T) {
	d := startDev(t)
	blocked, err := net.ListenPacket("udp", "127.0.0.1:0") // and nobody reads
	require.NoError(t, err)
	defer blocked.Close()
	for _, other := range []string{d.endpoints.KeyServer.HTTPS, d.endpoints.KeyServer.CoAPSTCP} {
		addr := d.startEdge(fmt.Sprintf("urls: [coaps://%s/ski, %s]", blocked.LocalAddr(), other))
		require.NoError(t, d.handshakeAt(addr, "ecdsa.localhost"), other)
	}
}

func TestSkictlRequestOverEachBinding(t *testing.T) {
	d := startDev(t)
	input := strings.Repeat("11", 32) + strings.Repeat("22", 32) + "03001d20" + "09" + strings.Repeat("00", 31)
	for _, format := range []string{"cbor", "json"} {
		for _, endpoint := range []string{d.endpoints.KeyServer.HTTPS, d.endpoints.KeyServer.CoAPSTCP, d.endpoints.KeyServer.CoAPS} {
			out, all, status := d.skictl("request", "--endpoint", endpoint, "--format", format,
				"--cert", d.endpoints.EdgeCert, "--key", d.endpoints.EdgeKey, "--ca", d.endpoints.KeyServerCA,
				"--protocol", "TLS 1.2", "--hash", "SHA-256", "--spki", "@"+d.endpoints.Sites[0].Cert, "--input", input)
			require.Zero(t, status, all)
			assert.Contains(t, out, `"output":"30`)
		}
	}
}

// recordRelay passes connections on and counts the key server's TLS records by
// their length.
type recordRelay struct {
	addr string

	mu      sync.Mutex
	lengths map[int]int
}

func newRecordRelay(t *testing.T, server string) *recordRelay {
	t.Helper()
	front, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { front.Close() })
	r := &recordRelay{addr: front.Addr().String(), lengths: map[int]int{}}
	go func() {
		for {
			client, err := front.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				return
			}
			go func() { _, _ = io.Copy(back, client); back.Close() }()
			go func() { r.pass(client, bufio.NewReader(back)); client.Close() }()
		}
	}()
	return r
}

func (r *recordRelay) pass(to io.Writer, from io.Reader) {
	header := make([]byte, 5) // type, version, length
	for {
		if _, err := io.ReadFull(from, header); err != nil {
			return
		}
		n := int(header[3])<<8 | int(header[4])
		r.mu.Lock()
		r.lengths[n]++
		r.mu.Unlock()
		record := append(header[:5:5], make([]byte, n)...)
		if _, err := io.ReadFull(from, record[5:]); err != nil {
			return
		}
		if _, err := to.Write(record); err != nil {
			return
		}
	}
}

// windowUpdate is the length of the frame by which HTTP/2 says, now and then, how
// much it has received (RFC 9113, Section 6.9): it says nothing of answers.
const windowUpdate = 13

// take returns the lengths since it was last called, without window updates,
// whether they have a record of their own or a part of one.
func (r *recordRelay) take() map[int]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := r.lengths
	r.lengths = map[int]int{}
	for n, count := range taken {
		if _, shorter := taken[n-windowUpdate]; shorter {
			taken[n-windowUpdate] += count
			delete(taken, n)
		}
		if n <= windowUpdate+17 {
			delete(taken, n)
		}
	}
	return taken
}

func TestAnswersOfOneMethodAndKeyHaveOneLengthOverHTTPS(t *testing.T) {
	d := startDev(t)
	identity, roots := d.edgeIdentity()
	server, _, _ := strings.Cut(strings.TrimPrefix(d.endpoints.KeyServer.HTTPS, "https://"), "/")
	for _, format := range []ski.Format{ski.CBOR, ski.JSON} {
		network := newRecordRelay(t, server)
		client, err := skihttp.NewClient("https://"+network.addr, skihttp.ClientConfig{
			Certificate: identity, RootCAs: roots, Format: format, MaxConns: 1, Logger: slog.New(slog.DiscardHandler),
			DeadAfter: time.Minute, // A busy machine is not asked for a sign of life, whose length is another.
		})
		require.NoError(t, err)
		t.Cleanup(func() { _ = client.Close() })
		for name, request := range d.requestsOfAllLengths() {
			_, err := client.RoundTrip(t.Context(), request(0)) // the session's handshake
			require.NoError(t, err)
			network.take()
			outputs := map[int]int{}
			for i := range 60 {
				resp, err := client.RoundTrip(t.Context(), request(i))
				require.NoError(t, err)
				outputs[len(resp.Output)]++
			}
			assert.Greater(t, len(outputs), 1, "%s: outputs of several lengths and errors: %v", name, outputs)
			records := network.take()
			assert.Len(t, records, 2, "%s %s: of the header and of the body", format, name)
			for n, count := range records {
				assert.Equal(t, 60, count, "%s %s: %d bytes", format, name, n)
			}
		}
	}
}
