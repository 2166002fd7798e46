package skicoap

import (
	"bytes"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

// The bounds on the messages that the server holds while they come or go in
// blocks. Each has ski.MaxMessageSize bytes, so that a session has 2 MiB, a peer
// 4, and all of them have 16.
const (
	maxTransfers        = 4096
	maxSessionTransfers = maxTransfers / 8
	maxPeerTransfers    = maxTransfers / 4
)

// transfers are the block-wise transfers of one session (RFC 7959): requests
// that are not yet whole, and answers that have not yet been fetched. One that
// stands still for as long as exchanges are remembered is forgotten.
type transfers struct {
	all  *atomic.Int64        // those of all sessions
	peer func() *atomic.Int64 // those of the peer's

	mu       sync.Mutex
	requests map[transferKey]*transfer
	answers  map[transferKey]*transfer
	lastETag uint32
	closed   bool
}

// transfer is one message, or the beginning of one.
type transfer struct {
	data  []byte
	moved time.Time // when the last block came or went

	// Of an answer:
	code    codes.Code
	options message.Options
	cut     bool // it was sent whole, and lost
}

func newTransfers(all *atomic.Int64, peer func() *atomic.Int64) *transfers {
	return &transfers{
		all:      all,
		peer:     peer,
		requests: make(map[transferKey]*transfer),
		answers:  make(map[transferKey]*transfer),
	}
}

// put takes a block of a request. The blocks have to come in their order and
// each once: retransmissions are not seen here. With the last block it returns
// the request, which is the caller's to clear; with the others the answer 2.31.
// Any fault ends the transfer. It returns nothing if there is no place for one
// more.
func (t *transfers) put(key transferKey, b block, size1 uint32, payload []byte, now time.Time) (body []byte, answer *refusal) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b.num == 0 {
		t.drop(t.requests, key) // The client begins again (RFC 7959, Section 2.5).
	}
	tr := t.requests[key]
	switch {
	case b.num > 0 && tr == nil, tr != nil && b.offset() != len(tr.data):
		t.drop(t.requests, key)
		return nil, refuse(codes.RequestEntityIncomplete, "blocks before this one are missing")
	case size1 > ski.MaxMessageSize, b.offset()+len(payload) > ski.MaxMessageSize:
		t.drop(t.requests, key)
		return nil, tooLarge()
	case !b.fits(len(payload)):
		t.drop(t.requests, key)
		return nil, refuse(codes.BadRequest, "the payload is not as long as the block")
	}
	if tr == nil {
		tr = &transfer{data: make([]byte, 0, ski.MaxMessageSize)}
		if !t.add(t.requests, key, tr) {
			return nil, nil
		}
	}
	tr.data, tr.moved = append(tr.data, payload...), now
	if b.more {
		return nil, &refusal{code: codes.Continue, options: message.Options{b.option(message.Block1)}}
	}
	body = tr.data
	tr.data = nil
	t.drop(t.requests, key)
	return body, nil
}

// keep takes an answer, of which the client will ask for the blocks. From then
// on data belongs to t. The blocks have the answer's ETag, or one of their own. It
// reports false if there is no place for it.
func (t *transfers) keep(key transferKey, code codes.Code, options message.Options, data []byte, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(t.answers, key)
	if !options.HasOption(message.ETag) {
		t.lastETag++
		etag := message.Option{ID: message.ETag, Value: binary.BigEndian.AppendUint32(nil, t.lastETag)}
		options = append(message.Options{etag}, options...)
	}
	tr := &transfer{data: data, moved: now, code: code, options: options}
	if !t.add(t.answers, key, tr) {
		clear(data)
		return false
	}
	return true
}

// next returns a block of an answer, or a refusal. The payload is the caller's,
// to be cleared. The answer is forgotten with its last block, which the memory of
// exchanges still has.
func (t *transfers) next(key transferKey, asked block, now time.Time) *refusal {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.answers[key]
	if tr == nil {
		return refuse(codes.RequestEntityIncomplete, "there is no answer to this request any more")
	}
	payload, b, refused := part(tr.data, asked)
	if refused != nil {
		t.drop(t.answers, key)
		return refused
	}
	tr.moved = now
	a := &refusal{
		code: tr.code, payload: bytes.Clone(payload),
		options: append(tr.options[:len(tr.options):len(tr.options)], b.option(message.Block2)),
	}
	if !b.more {
		t.drop(t.answers, key)
	}
	return a
}

// markCut notes that an answer goes in blocks because it was lost whole.
func (t *transfers) markCut(key transferKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tr := t.answers[key]; tr != nil {
		tr.cut = true
	}
}

// takeCut reports, once, whether an answer whose blocks are fetched is such a
// one.
func (t *transfers) takeCut(key transferKey) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.answers[key]
	if tr == nil || !tr.cut {
		return false
	}
	tr.cut = false
	return true
}

// add is called with t.mu held, as drop is.
func (t *transfers) add(to map[transferKey]*transfer, key transferKey, tr *transfer) bool {
	if t.closed || len(t.requests)+len(t.answers) >= maxSessionTransfers {
		return false
	}
	if all, peers := t.all.Add(1), t.peer().Add(1); all > maxTransfers || peers > maxPeerTransfers {
		t.all.Add(-1)
		t.peer().Add(-1)
		return false
	}
	to[key] = tr
	return true
}

func (t *transfers) drop(from map[transferKey]*transfer, key transferKey) {
	if tr := from[key]; tr != nil {
		clear(tr.data)
		delete(from, key)
		t.all.Add(-1)
		t.peer().Add(-1)
	}
}

// expire forgets what stands still. An answer that was cut may have arrived whole
// after all, and does not take a place from others for long.
func (t *transfers) expire(now time.Time) {
	t.forget(func(tr *transfer) bool {
		age := now.Sub(tr.moved)
		return age > rememberFor || tr.cut && age > ski.DefaultTimeout
	})
}

// close forgets everything, and takes nothing more.
func (t *transfers) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.forget(func(*transfer) bool { return true })
}

// forget drops those that match.
func (t *transfers) forget(match func(*transfer) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, some := range []map[transferKey]*transfer{t.requests, t.answers} {
		for key, tr := range some {
			if match(tr) {
				t.drop(some, key)
			}
		}
	}
}
