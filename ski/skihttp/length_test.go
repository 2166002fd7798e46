package skihttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// records is a relay that notes the lengths of the TLS records that come from
// the server.
type records struct {
	mu      sync.Mutex
	lengths []int
}

func newRecords(t *testing.T, server string) (*records, string) {
	t.Helper()
	front, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { front.Close() })
	r := &records{}
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
			go func() { r.pass(client, back); client.Close() }()
		}
	}()
	return r, front.Addr().String()
}

func (r *records) pass(to io.Writer, from io.Reader) {
	header := make([]byte, 5) // RFC 8446, Section 5.1
	for {
		if _, err := io.ReadFull(from, header); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(header[3:]))
		r.mu.Lock()
		r.lengths = append(r.lengths, n)
		r.mu.Unlock()
		fragment := make([]byte, n)
		if _, err := io.ReadFull(from, fragment); err != nil {
			return
		}
		if _, err := to.Write(append(header[:5:5], fragment...)); err != nil {
			return
		}
	}
}

// windowUpdate is the length of the frame by which HTTP/2 says, now and then, how
// much it has received (RFC 9113, Section 6.9): it says nothing of answers.
const windowUpdate = 13

// take returns the lengths since it was last called, without records that have
// only a window update.
func (r *records) take() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	var taken []int
	for _, n := range r.lengths {
		if n > windowUpdate+25 {
			taken = append(taken, n)
		}
	}
	r.lengths = nil
	return taken
}

// An ECDSA P-256 signature has 72 bytes in DER, or fewer.
func TestTheLengthOfAnAnswerTellsNothing(t *testing.T) {
	ca := newTestCA(t)
	var answers []*ski.Response
	for n := 60; n <= 72; n++ {
		answers = append(answers, &ski.Response{Output: bytes.Repeat([]byte{byte(n)}, n)})
	}
	answers = append(answers,
		ski.Failed(ski.MalformedRequest), ski.Failed(ski.UnspecifiedError), ski.Failed(ski.RequestDenied), ski.Failed(ski.SPKINotFound),
		&ski.Response{Error: ski.RequestDenied, RetryAfter: time.Second}, &ski.Response{Error: ski.RequestDenied, RetryAfter: 12345 * time.Second},
		ski.Busy(time.Second), &ski.Response{Output: []byte{1}})
	for _, longest := range []int{48, 72, 139, 512} {
		s := serve(t, ca, ServerConfig{
			Handler: ski.HandlerFunc(func(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
				r := *answers[req.ClientVersion-1]
				r.Output = bytes.Clone(r.Output[:min(len(r.Output), longest)])
				r.OutputLen = longest
				return &r
			}),
		})
		for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
			for _, version := range []int{1, 2} {
				for _, tlsVersion := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
					t.Run(fmt.Sprintf("%d %s HTTP/%d %s", longest, f, version, tls.VersionName(tlsVersion)), func(t *testing.T) {
						r, addr := newRecords(t, s.Addr().String())
						client := httpClient(t, ca, version)
						client.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tlsVersion
						seen := map[string][]int{}
						for i := range answers {
							for again := range 2 { // a header that HPACK knows from before is shorter
								req := request(1)
								req.ClientVersion = uint16(i + 1)
								body, err := ski.EncodeRequest(f, req)
								require.NoError(t, err)
								resp, err := client.Post("https://"+addr+"/ski", f.MediaType(), bytes.NewReader(body))
								require.NoError(t, err)
								data, err := io.ReadAll(resp.Body)
								require.NoError(t, err)
								resp.Body.Close()
								got, err := ski.DecodeResponse(f, data)
								require.NoError(t, err)
								assert.Equal(t, answers[i].Error, got.Error)
								lengths := r.take()
								if i+again > 0 { // the first comes with the session's handshake
									seen[fmt.Sprint(lengths)] = lengths
								}
							}
						}
						shortest := slices.MinFunc(slices.Collect(maps.Values(seen)), func(a, b []int) int { return a[0] - b[0] })
						for _, lengths := range seen {
							require.Len(t, lengths, version, "HTTP/2 has header and body in a record each: %v", seen)
							for i, n := range lengths {
								if version == 2 && n == shortest[i]+windowUpdate {
									continue
								}
								assert.Equal(t, shortest[i], n, "%v", seen)
							}
						}
					})
				}
			}
		}
	}
}

// Whatever an answer's header has, there is room for its padding.
func TestThePaddingOfAHeaderIsNeverEmpty(t *testing.T) {
	for status := 200; status < 600; status++ {
		if http.StatusText(status) == "" {
			continue
		}
		h := http.Header{
			"Content-Type": {"application/json"}, "Cache-Control": {"no-store"}, "Content-Length": {"4096"},
			"Date": {"Wed, 30 Sep 2026 23:59:59 GMT"}, "Retry-After": {"4294967295"}, paddingHeader: {""},
		}
		if status > 429 && status != 500 {
			continue // not among statusOf's
		}
		assert.Less(t, lenHTTP1(h, status), paddedHTTP1, status)
		assert.Less(t, lenHTTP2(h, status), paddedHTTP2, status)
	}
	assert.Equal(t, 100, lenHTTP2(http.Header{"X": {strings.Repeat("X", 100)}}, 200)-lenHTTP2(http.Header{"X": {""}}, 200))
}
