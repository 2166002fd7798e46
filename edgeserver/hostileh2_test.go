package edgeserver

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// forHostileHTTP2 runs a test with either engine, for an edge server whose handler
// is as slow as an origin can be.
func forHostileHTTP2(t *testing.T, l Limits, test func(t *testing.T, f framer, running *atomic.Int64)) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			p := newPKI(t)
			e := limited(t, p, engine, l)
			var running atomic.Int64
			e.site("a.test").handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				running.Add(1)
				defer running.Add(-1)
				<-t.Context().Done()
			})
			test(t, frames(t, e, p), &running)
		})
	}
}

// goneAway reads until the connection ends, and returns why.
func goneAway(t *testing.T, f framer) (why http2.ErrCode) {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			require.NotContains(t, err.Error(), "timeout", "the connection does not end")
			return why
		}
		if frame, ok := frame.(*http2.GoAwayFrame); ok {
			why = frame.ErrCode
		}
	}
}

// A client that begins a header and sends no more is one without a request.
func TestHalfAHeaderOverHTTP2(t *testing.T) {
	forHostileHTTP2(t, Limits{IdleTimeout: 2 * time.Second}, func(t *testing.T, f framer, _ *atomic.Int64) {
		require.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}}))
		goneAway(t, f)
	})
}

// Who sends one piece of a header after the other is ended before it is large.
func TestFloodOfContinuations(t *testing.T) {
	forHostileHTTP2(t, Limits{}, func(t *testing.T, f framer, running *atomic.Int64) {
		var block bytes.Buffer
		require.NoError(t, hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("x", 15<<10), Sensitive: true}))
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true})
		sent := 0
		for ; err == nil && sent < 64<<20; sent += block.Len() {
			err = f.WriteContinuation(1, false, block.Bytes())
		}
		assert.Error(t, err, "it can go on")
		assert.Zero(t, running.Load())
	})
}

// Requests that are taken back at once (CVE-2023-44487) count as those that are
// not, until their handlers are done.
func TestRapidReset(t *testing.T) {
	forHostileHTTP2(t, Limits{}, func(t *testing.T, f framer, running *atomic.Int64) {
		most := int64(0)
		for i := range 20_000 {
			stream := uint32(2*i + 1)
			var block writer
			e := hpack.NewEncoder(&block)
			for _, field := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "a.test"}, {":path", fmt.Sprint("/", i)}} {
				require.NoError(t, e.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}))
			}
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndStream: true, EndHeaders: true})
			if err == nil {
				err = f.WriteRSTStream(stream, http2.ErrCodeCancel)
			}
			most = max(most, running.Load())
			if err != nil {
				break
			}
		}
		assert.LessOrEqual(t, most, int64(250))
		assert.Equal(t, http2.ErrCodeEnhanceYourCalm, goneAway(t, f))
	})
}
