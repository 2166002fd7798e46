package skicoap

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// maxUDP is the payload of a datagram with IPv6 and UDP headers on a path with
// an MTU of 1280 bytes.
const maxUDP = 1280 - 40 - 8

// longRequest has an input of n bytes, and its answer an output of out bytes.
func longRequest(i, n, out int) *ski.Request {
	req := request(i)
	req.Input = append(fmt.Appendf(nil, "%d %d ", i, out), bytes.Repeat([]byte{byte(i)}, max(n, 16))...)[:max(n, 16)]
	return req
}

// longEcho answers a longRequest, and counts.
type longEcho struct {
	mu       sync.Mutex
	executed map[[32]byte]int
}

func (l *longEcho) ServeSKI(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
	sum := sha256.Sum256(req.Input)
	l.mu.Lock()
	if l.executed == nil {
		l.executed = make(map[[32]byte]int)
	}
	l.executed[sum]++
	l.mu.Unlock()
	var i, n int
	_, _ = fmt.Sscanf(string(req.Input), "%d %d", &i, &n)
	return &ski.Response{Output: bytes.Repeat(sum[:], n/len(sum)+1)[:max(n, len(sum))]}
}

func (l *longEcho) assertOnce(t *testing.T, n int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	assert.Len(t, l.executed, n)
	for _, times := range l.executed {
		if times != 1 {
			assert.Equal(t, 1, times, "executed")
			return
		}
	}
}

func askLong(ctx context.Context, c ski.Transport, req *ski.Request) error {
	resp, err := c.RoundTrip(ctx, req)
	if err != nil {
		return err
	}
	if want := new(longEcho).ServeSKI(ctx, ski.Peer{}, req); !bytes.Equal(resp.Output, want.Output) {
		return fmt.Errorf("%q got another answer of %d bytes", req.Input[:16], len(resp.Output))
	}
	return nil
}

func TestMessagesOfEveryLengthPassAPathOf1280Bytes(t *testing.T) {
	ca := newTestCA(t)
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		var handler longEcho
		s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: &handler, Path: "/" + strings.Repeat("p", 200) + "/ski"})
		r := newRelay(t, s.Addr().String())
		cfg := ca.client()
		cfg.Format = f
		c, err := NewClient("coaps://"+r.addr()+s.cfg.Path, cfg)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		most := 3900
		if f == ski.JSON {
			most = 2900
		}
		n := 0
		for in := 16; in < most; in += 97 {
			require.NoError(t, askLong(t.Context(), c, longRequest(n, in, (in*7)%most)), "%s %d bytes", f, in)
			n++
		}
		handler.assertOnce(t, n)
		assert.LessOrEqual(t, r.longest.Load(), int64(maxUDP))
		assert.Zero(t, s.transfers.Load(), "transfers that are left")

		_, err = c.RoundTrip(t.Context(), longRequest(0, 4090, 0))
		require.Error(t, err, "too long")
	}
}

// Many block-wise transfers share a session whose datagrams are lost, doubled
// and reordered.
func TestBlockwiseTransfersOverABadNetwork(t *testing.T) {
	ca := newTestCA(t)
	var handler longEcho
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: &handler})
	r := newRelay(t, s.Addr().String())
	c, err := NewClient("coaps://"+r.addr(), ca.client())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, askLong(t.Context(), c, longRequest(0, 0, 0)))
	r.faults.Store(&faults{lost: 0.05, doubled: 0.1, held: 0.2, delay: 2 * time.Millisecond})
	const n = 200
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- askLong(t.Context(), c, longRequest(i+1, 100+i*15, 4000-i*15)) }()
	}
	for range n {
		require.NoError(t, <-errs)
	}
	handler.assertOnce(t, n+1)
	assert.LessOrEqual(t, r.longest.Load(), int64(maxUDP))
	r.faults.Store(nil)
	assert.Zero(t, s.transfers.Load(), "transfers that are left")
}

func (p *rawPeer) block(mid int32, token string, tag byte, payload []byte, options ...message.Option) message.Message {
	p.t.Helper()
	all := with(append(options, message.Option{ID: optionRequestTag, Value: []byte{tag}})...)
	return p.ask(message.Message{Type: message.Confirmable, MessageID: mid, Token: []byte(token), Code: codes.POST, Options: all, Payload: payload})
}

func block1(num uint32, more bool, szx uint8) message.Option {
	return block{num, more, szx}.option(message.Block1)
}

func TestBlocksThatDoNotFitTogetherAreRefused(t *testing.T) {
	ca := newTestCA(t)
	body, err := ski.EncodeRequest(ski.CBOR, longRequest(1, 200, 32))
	require.NoError(t, err)
	type step struct {
		b       block
		payload []byte
		want    codes.Code
	}
	for name, steps := range map[string][]step{
		"in order": {{block{0, true, 2}, body[:64], codes.Continue}, {block{1, true, 2}, body[64:128], codes.Continue},
			{block{2, true, 2}, body[128:192], codes.Continue}, {block{3, true, 2}, body[192:256], codes.Continue}, {block{4, false, 2}, body[256:], codes.Changed}},
		"smaller from the second on": {{block{0, true, 3}, body[:128], codes.Continue}, {block{4, true, 1}, body[128:160], codes.Continue}, {block{5, false, 3}, body[160:], codes.RequestEntityIncomplete}},
		"one is missing":             {{block{0, true, 2}, body[:64], codes.Continue}, {block{2, true, 2}, body[128:192], codes.RequestEntityIncomplete}, {block{1, true, 2}, body[64:128], codes.RequestEntityIncomplete}},
		"one twice":                  {{block{0, true, 2}, body[:64], codes.Continue}, {block{1, true, 2}, body[64:128], codes.Continue}, {block{1, true, 2}, body[64:128], codes.RequestEntityIncomplete}},
		"only the last":              {{block{1, false, 2}, body[64:96], codes.RequestEntityIncomplete}},
		"the last is empty":          {{block{0, true, 2}, body[:64], codes.Continue}, {block{1, false, 2}, nil, codes.BadRequest}},
		"one is short":               {{block{0, true, 2}, body[:64], codes.Continue}, {block{1, true, 2}, body[64:100], codes.BadRequest}},
		"the last is long":           {{block{0, true, 2}, body[:64], codes.Continue}, {block{1, false, 2}, body[64:200], codes.BadRequest}},
		"begun again":                {{block{0, true, 2}, body[64:128], codes.Continue}, {block{0, true, 3}, body[:128], codes.Continue}, {block{1, true, 3}, body[128:256], codes.Continue}, {block{2, false, 3}, body[256:], codes.Changed}},
		"too much": {{block{0, true, 6}, make([]byte, 1024), codes.Continue}, {block{1, true, 6}, make([]byte, 1024), codes.Continue}, {block{2, true, 6}, make([]byte, 1024), codes.Continue},
			{block{3, true, 6}, make([]byte, 1024), codes.Continue}, {block{4, false, 6}, make([]byte, 1), codes.RequestEntityTooLarge}},
		"far away": {{block{0, true, 6}, make([]byte, 1024), codes.Continue}, {block{1<<20 - 1, false, 6}, body[:1], codes.RequestEntityIncomplete}},
	} {
		t.Run(name, func(t *testing.T) {
			var handler longEcho
			s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: &handler})
			p := newRawPeer(t, s, ca)
			executed := 0
			for i, step := range steps {
				// A new token for each block, as libcoap has.
				got := p.block(int32(i), fmt.Sprint(i), 1, step.payload, step.b.option(message.Block1))
				require.Equal(t, codeText(step.want), codeText(got.Code), "step %d: %s", i, got.Payload)
				if got.Code == codes.Continue || got.Code == codes.Changed {
					echoed, err := findBlock(got.Options, message.Block1)
					require.NoError(t, err)
					assert.Equal(t, step.b, *echoed)
				}
				if got.Code == codes.RequestEntityTooLarge {
					hint, err := got.Options.GetUint32(message.Size1)
					require.NoError(t, err)
					assert.EqualValues(t, ski.MaxMessageSize, hint)
				}
				if got.Code == codes.Changed {
					executed++
				}
			}
			handler.assertOnce(t, executed)
			if steps[len(steps)-1].want != codes.Continue {
				assert.Zero(t, s.transfers.Load(), "a transfer is left")
			}
		})
	}
}

func TestTransfersWithDifferentTagsDoNotMix(t *testing.T) {
	ca := newTestCA(t)
	var handler longEcho
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: &handler})
	p, other := newRawPeer(t, s, ca), newRawPeer(t, s, ca)
	bodies := make([][]byte, 2)
	for i := range bodies {
		bodies[i], _ = ski.EncodeRequest(ski.CBOR, longRequest(i, 1200, 2000))
		require.Equal(t, codes.Continue, p.block(int32(i), "a", byte(i), bodies[i][:1024], block1(0, true, 6)).Code)
	}
	assert.Equal(t, codes.RequestEntityIncomplete, other.block(1, "b", 0, bodies[0][1024:], block1(1, false, 6)).Code, "another session's")
	first := make([]message.Message, 2)
	for i := range bodies {
		first[i] = p.block(int32(10+i), "c", byte(i), bodies[i][1024:], block1(1, false, 6))
		require.Equal(t, codes.Changed, first[i].Code)
	}
	for i, m := range first {
		answer := bytes.Clone(m.Payload)
		etag, err := m.Options.GetBytes(message.ETag)
		require.NoError(t, err)
		for num := uint32(1); ; num++ {
			m := p.block(int32(20+10*i)+int32(num), "d", byte(i), nil, block{num: num, szx: 6}.option(message.Block2))
			require.Equal(t, codes.Changed, m.Code)
			same, _ := m.Options.GetBytes(message.ETag)
			assert.Equal(t, etag, same)
			answer = append(answer, m.Payload...)
			if b, _ := findBlock(m.Options, message.Block2); !b.more {
				break
			}
		}
		resp, err := ski.DecodeResponse(ski.CBOR, answer)
		require.NoError(t, err)
		assert.Equal(t, handler.ServeSKI(t.Context(), ski.Peer{}, longRequest(i, 1200, 2000)).Output, resp.Output)
	}
	assert.Equal(t, codes.RequestEntityIncomplete, p.block(90, "e", 0, nil, block{num: 1, szx: 6}.option(message.Block2)).Code, "fetched already")
}

// One length for each method and key, in blocks too.
func TestTheLengthOfAnAnswerInBlocksTellsNothing(t *testing.T) {
	ca := newTestCA(t)
	answers := []*ski.Response{
		{Error: ski.MalformedRequest}, {Output: bytes.Repeat([]byte{1}, 72)}, {Output: bytes.Repeat([]byte{1}, 1000)}, {Output: bytes.Repeat([]byte{1}, 1100)}, {Output: bytes.Repeat([]byte{1}, 1500)},
	}
	var which atomic.Int32
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
			r := *answers[which.Load()]
			r.Output, r.OutputLen = bytes.Clone(r.Output), 1500
			return &r
		}),
	})
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		r := newRelay(t, s.Addr().String())
		cfg := ca.client() // which does not ask for a sign of life soon: that is answered too
		cfg.Format = f
		c, err := NewClient("coaps://"+r.addr(), cfg)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		_, err = c.RoundTrip(t.Context(), request(0))
		require.NoError(t, err)
		// What a slow machine has sent again would be answered once more.
		session := c.current.clientSide.(*clientSession)
		session.mu.Lock()
		session.rtt.srtt = time.Hour // the longest interval, maxRTO, from now on
		session.mu.Unlock()
		seen := map[string]int{}
		for i := range answers {
			which.Store(int32(i))
			var mu sync.Mutex
			var lengths []int
			r.down.Store(new(func(n int) {
				mu.Lock()
				defer mu.Unlock()
				lengths = append(lengths, n)
			}))
			resp, err := c.RoundTrip(t.Context(), request(1))
			require.NoError(t, err)
			assert.Equal(t, answers[i].Output, resp.Output)
			mu.Lock()
			seen[fmt.Sprint(lengths)]++
			mu.Unlock()
		}
		assert.Len(t, seen, 1, "%s: lengths of the datagrams: %v", f, seen)
	}
}

// onePeer counts for one peer.
func onePeer() func() *atomic.Int64 {
	var n atomic.Int64
	return func() *atomic.Int64 { return &n }
}

// With many sessions a peer could otherwise hold the blocks of all others up.
func TestOnePeerDoesNotTakeThePlacesOfAllTransfers(t *testing.T) {
	var all atomic.Int64
	one, full, now := onePeer(), make([]byte, 1024), time.Now()
	for range 16 {
		x := newTransfers(&all, one)
		for n := range maxSessionTransfers {
			x.put(transferKey{byte(n), byte(n >> 8)}, block{0, true, 6}, 0, full, now)
		}
	}
	assert.EqualValues(t, maxPeerTransfers, all.Load())
	_, answer := newTransfers(&all, onePeer()).put(transferKey{}, block{0, true, 6}, 0, full, now)
	require.NotNil(t, answer)
	assert.Equal(t, codes.Continue, answer.code)
}

func TestTransfersAreBoundedAndForgotten(t *testing.T) {
	var all atomic.Int64
	now := time.Now()
	full := make([]byte, 1024)
	var sessions []*transfers
	for i := range 10 {
		x := newTransfers(&all, onePeer())
		sessions = append(sessions, x)
		for n := range maxSessionTransfers + 10 {
			x.put(transferKey{byte(n), byte(n >> 8)}, block{0, true, 6}, 0, full, now)
		}
		assert.LessOrEqual(t, len(x.requests), maxSessionTransfers)
		if i == 9 {
			assert.Empty(t, x.requests, "nothing is left for the ninth")
			body, answer := x.put(transferKey{}, block{0, true, 6}, 0, full, now)
			assert.Nil(t, body)
			assert.Nil(t, answer)
			assert.False(t, x.keep(transferKey{}, codes.Changed, nil, full, now))
		}
	}
	assert.LessOrEqual(t, all.Load(), int64(maxTransfers))
	sessions[0].close()
	x := newTransfers(&all, onePeer())
	secret := []byte("secret")
	require.True(t, x.keep(transferKey{1}, codes.Changed, nil, secret, now))
	x.put(transferKey{2}, block{0, true, 6}, 0, bytes.Repeat([]byte{1}, 1024), now)
	kept := x.requests[transferKey{2}].data
	x.expire(now.Add(rememberFor))
	assert.Len(t, x.answers, 1, "not yet")
	x.expire(now.Add(rememberFor + time.Second))
	assert.Empty(t, x.answers)
	assert.Empty(t, x.requests)
	assert.Equal(t, make([]byte, 6), secret, "cleared")
	assert.Equal(t, make([]byte, 1024), kept, "cleared")
	for _, x := range sessions[1:] {
		x.close()
	}
	assert.Zero(t, all.Load())
}

// Whatever blocks come, a request that comes out is what its blocks were, in
// their order, and nothing is left behind.
func FuzzBlocks(f *testing.F) {
	f.Add([]byte{8, 16, 0, 24, 16, 0, 32, 5, 0})
	f.Add([]byte{8 | 1, 32, 0, 2 << 4, 16, 0})
	f.Add([]byte{8, 15, 0, 16, 16, 1})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var all atomic.Int64
		x := newTransfers(&all, onePeer())
		sent := map[byte][]byte{}
		now := time.Now()
		for i := 0; len(steps) >= 3; i++ {
			v, n, key := steps[0], int(steps[1])*5, steps[2]%2
			steps = steps[3:]
			found, err := findBlock(message.Options{{ID: message.Block1, Value: []byte{v}}}, message.Block1)
			if err != nil || found.szx > largestSZX {
				continue
			}
			payload := bytes.Repeat([]byte{byte(i)}, n)
			body, answer := x.put(transferKey{key}, *found, 0, payload, now)
			if found.num == 0 {
				sent[key] = nil
			}
			switch {
			case body != nil:
				require.False(t, found.more)
				require.Equal(t, string(sent[key])+string(payload), string(body))
				delete(sent, key)
			case answer.code == codes.Continue:
				require.True(t, found.more)
				require.Len(t, payload, found.size())
				require.Len(t, sent[key], found.offset())
				sent[key] = append(sent[key], payload...)
			default:
				require.GreaterOrEqual(t, answer.code, codes.BadRequest)
				delete(sent, key)
			}
			require.LessOrEqual(t, len(sent[key]), ski.MaxMessageSize)
		}
		x.close()
		require.Zero(t, all.Load())
	})
}

// libcoap's client has a new token for each block.
func TestLibcoapSendsAndFetchesBlocks(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	edge := pemFile(t, ca.edge())
	dir := t.TempDir()
	for _, tc := range []struct{ in, out int }{{1200, 32}, {3000, 32}, {100, 3000}, {3000, 3000}} {
		for _, size := range []int{64, 512, 1024} {
			t.Run(fmt.Sprintf("%d and %d bytes in blocks of %d", tc.in, tc.out, size), func(t *testing.T) {
				var handler longEcho
				s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: &handler, Logger: slog.New(slog.NewTextHandler(&log, nil))})
				r := newRelay(t, s.Addr().String())
				req := longRequest(1, tc.in, tc.out)
				body, err := ski.EncodeRequest(ski.CBOR, req)
				require.NoError(t, err)
				request, answer := filepath.Join(dir, "request"), filepath.Join(dir, "answer")
				require.NoError(t, os.WriteFile(request, body, 0o600))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				out, err := exec.CommandContext(ctx, "coap-client-openssl", "-m", "post", "-t", "60", "-f", request, "-o", answer,
					"-b", fmt.Sprint(size), "-B", "10", "-c", edge, "-j", edge, "-n", "coaps://"+r.addr()+"/ski").CombinedOutput()
				require.NoError(t, err, string(out))
				data, err := os.ReadFile(answer)
				require.NoError(t, err, "%s %s", out, log.String())
				resp, err := ski.DecodeResponse(ski.CBOR, data)
				require.NoError(t, err)
				handler.assertOnce(t, 1)
				assert.Greater(t, int(r.up.Load()), len(body)/size, "datagrams: it did send blocks")
				assert.LessOrEqual(t, r.longest.Load(), int64(maxUDP))
				assert.Equal(t, new(longEcho).ServeSKI(ctx, ski.Peer{}, req).Output, resp.Output)
			})
		}
	}
}
