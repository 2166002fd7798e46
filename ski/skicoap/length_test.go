package skicoap

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// An ECDSA P-256 signature has 72 bytes in DER, or fewer. With ECDHE-PMS there
// are params of each group beside it.
func TestTheLengthOfAnAnswerTellsNothing(t *testing.T) {
	ca := newTestCA(t)
	answers := []*ski.Response{
		{Error: ski.MalformedRequest}, {Error: ski.UnspecifiedError}, {Error: ski.RequestDenied}, {Error: ski.SPKINotFound},
		{Error: ski.RequestDenied, RetryAfter: time.Second}, {Error: ski.RequestDenied, RetryAfter: time.Hour}, ski.Busy(time.Second),
	}
	for n := 60; n <= 72; n++ {
		answers = append(answers, &ski.Response{Output: make([]byte, n)})
	}
	const pms = "ECDHE-PMS"
	plain := len(answers)
	for _, n := range []int{36, 69, 101, 137} { // ServerECDHParams of x25519 to secp521r1
		answers = append(answers, &ski.Response{Output: make([]byte, 70), Params: make([]byte, n), State: make([]byte, 134)})
	}
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
			r := *answers[req.ClientVersion-1]
			r.Output = append([]byte(nil), r.Output...)
			for i := range r.Output {
				r.Output[i] = 0x30
			}
			r.OutputLen = 72
			if req.ServerName == pms {
				r.ParamsLen, r.StateLen = 137, 134
			}
			return &r
		}),
	})
	for _, run := range []struct {
		ski.Format
		name    string
		answers []*ski.Response
	}{
		{ski.CBOR, "", answers[:plain]},
		{ski.JSON, "", answers[:plain]},
		{ski.CBOR, pms, answers},
		{ski.JSON, pms, answers},
	} {
		f := run.Format
		r := newRelay(t, s.Addr().String())
		var mu sync.Mutex
		lengths := map[int]int{}
		r.down.Store(new(func(n int) {
			mu.Lock()
			defer mu.Unlock()
			lengths[n]++
		}))
		cfg := ca.client() // which does not ask for a sign of life soon: that is answered too
		cfg.Format = f
		c, err := NewClient("coaps://"+r.addr(), cfg)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		for i, want := range run.answers {
			req := request(1)
			req.ServerName = run.name
			req.ClientVersion = uint16(i + 1)
			if i == 0 { // the session's handshake
				_, err := c.RoundTrip(t.Context(), req)
				require.NoError(t, err)
				mu.Lock()
				clear(lengths)
				mu.Unlock()
			}
			got, err := c.RoundTrip(t.Context(), req)
			require.NoError(t, err)
			assert.Equal(t, want.Error, got.Error)
			assert.Len(t, got.Output, len(want.Output))
		}
		mu.Lock()
		assert.Len(t, lengths, 1, "%s %s: datagrams by length: %v", f, run.name, lengths)
		mu.Unlock()
	}
}

func TestEncodedOutputLen(t *testing.T) {
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		for _, n := range []int{1, 23, 24, 48, 72, 104, 139, 255, 256, 512, 1024} {
			data, err := ski.EncodeResponse(f, &ski.Response{Output: make([]byte, n)})
			require.NoError(t, err)
			assert.Equal(t, len(data), ski.EncodedOutputLen(f, n), fmt.Sprint(f, n))

			r := &ski.Response{Output: make([]byte, n), Params: make([]byte, 137), State: make([]byte, n)}
			r.OutputLen, r.ParamsLen, r.StateLen = n, 137, n
			data, err = ski.EncodeResponse(f, r)
			require.NoError(t, err)
			assert.Equal(t, len(data), r.PaddedLen(f), fmt.Sprint(f, n))
		}
		assert.Zero(t, (&ski.Response{Output: []byte{1}}).PaddedLen(f))
	}
}

func TestPaddingHasEveryLength(t *testing.T) {
	length := func(n int) int {
		datagram, err := encode(message.Message{
			Type: message.Acknowledgement, Code: codes.Changed, Token: []byte{1}, Payload: []byte("x"),
			Options: append(contentFormat(60), padding(n)...),
		})
		require.NoError(t, err)
		return len(datagram)
	}
	for n := range 1200 {
		require.Equal(t, length(0)+n, length(n), n)
	}
}
