package skicoap

import (
	"context"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/pace"
)

// session is the server's side of one DTLS or TLS session: what they have in
// common.
type session struct {
	server  *Server
	peer    ski.Peer
	ctx     context.Context
	cancel  context.CancelFunc
	from    func() net.Addr     // where the peer is now; nil where it cannot move
	close   func(cause error)   // ends it
	expire  func(now time.Time) // forgets what is old
	active  atomic.Int64        // time of the last message, Unix nanoseconds
	working atomic.Int64        // requests that are being worked on
	share   *share              // of the peer, in all its sessions

	seq          atomic.Uint32 // the last value of Observe
	observing    sync.Mutex
	observations map[string]*observation // by site
	notify       notifyFunc
}

// share is what one peer has of what all peers have together.
type share struct {
	working, transfers, observations atomic.Int64
	pace                             pace.Pace
}

func newSession(s *Server, peer ski.Peer, close func(error)) *session {
	sess := &session{server: s, peer: peer, close: close, expire: func(time.Time) {}, share: new(share)}
	sess.ctx, sess.cancel = context.WithCancel(s.ctx)
	sess.active.Store(time.Now().UnixNano())
	return sess
}

// asker returns the peer with the address that it asks from now. With a connection
// ID it may have another port (RFC 9146, Section 6).
func (s *session) asker() ski.Peer {
	peer := s.peer
	if s.from != nil {
		peer.Addr = addrPort(s.from())
	}
	return peer
}

func (s *session) lastActive() time.Time { return time.Unix(0, s.active.Load()) }

// start reports whether one more request of this session may be worked on. No
// session, and no peer, gets more than its share, nor more than are free: the
// others would have to wait.
func (s *session) start() bool {
	most := int64(s.server.cfg.MaxInFlight)
	mine, peers := s.working.Add(1), s.share.working.Add(1)
	share := max(1, min(most/4, most-s.server.working.Load()-1))
	if mine > max(1, most/8) || peers > share || !s.server.start() {
		s.working.Add(-1)
		s.share.working.Add(-1)
		s.slow(pace.PerRefusal)
		return false
	}
	return true
}

// slow holds up the peer after a request that was refused. after is when it may
// ask again.
func (s *session) slow(after time.Duration) {
	if after > 0 {
		s.share.pace.Refused(time.Now(), after)
	}
}

func (s *session) finish() {
	s.working.Add(-1)
	s.share.working.Add(-1)
	s.server.finish()
}

// result is the answer of the Handler.
type result struct {
	code    codes.Code
	options message.Options
	payload []byte // of the one who asked for it, to be cleared
	format  ski.Format
	// The payload's length when it is padded by options or in itself; 0 where
	// there is nothing to hide.
	paddedLen, paddedBodyLen int
}

// work answers a request.
func (s *session) work(in ski.Format, body []byte, out ski.Format) *result {
	data, resp := s.serve(in, body, out)
	s.slow(resp.Slow)
	code, more := responseCode(resp)
	r := &result{code: code, options: append(contentFormat(out.ContentFormat()), more...), payload: data, format: out}
	if resp.OutputLen > 0 {
		r.paddedLen, r.paddedBodyLen = resp.PaddedLen(out), resp.PaddedBodyLen(out)
		for _, o := range more { // Max-Age: a number that is short, behind the next but one
			r.paddedLen -= 1 + len(o.Value)
		}
	}
	return r
}

// padded returns the options with those that pad a message of the whole
// payload.
func (r *result) padded() message.Options {
	if r.paddedLen == 0 {
		return r.options
	}
	return append(r.options, padding(r.paddedLen-len(r.payload))...)
}

// maxLen is the longest that the payload could be, for all that may be known.
func (r *result) maxLen() int { return max(r.paddedLen, len(r.payload)) }

// padBody brings the payload itself to one length, since options cannot make
// as many blocks of a short one as of a long one.
func (r *result) padBody() {
	if r.paddedBodyLen > 0 {
		r.payload = ski.PadResponse(r.format, r.payload, r.paddedBodyLen)
	}
}

// logRefused logs a request that was answered without the Handler: an edge that
// is set up wrongly, or somebody who tries what happens. Of more than a few,
// tidy logs the number.
func (s *session) logRefused(r *refusal) {
	if r.code >= codes.BadRequest {
		s.slow(pace.PerRefusal)
	}
	switch {
	case r.code < codes.BadRequest:
	case s.server.badRequests.Allow():
		s.server.log.Warn("request refused", "peer", s.peer.Addr, "id", s.peer.ID(),
			"code", codeText(r.code), "reason", string(r.payload))
	default:
		s.server.unloggedRequests.Add(1)
	}
}

// busy is the answer to a request that has no place, or nil where the server takes
// no more at all.
func (s *session) busy(out ski.Format) *result {
	if s.server.stopping() {
		return nil
	}
	resp := ski.Busy(time.Second)
	data, err := ski.EncodeResponse(out, resp)
	if err != nil {
		panic(err) // It is one of ours.
	}
	code, more := responseCode(resp)
	return &result{code: code, options: append(contentFormat(out.ContentFormat()), more...), payload: data, format: out}
}

// serve asks the Handler. One that panics costs its request and not the
// process, in which others' requests are.
func (s *session) serve(in ski.Format, body []byte, out ski.Format) (data []byte, resp *ski.Response) {
	defer func() {
		if p := recover(); p != nil {
			s.server.log.Error("panic in the handler", slog.Any("panic", p), "stack", string(debug.Stack()))
			resp = ski.Failed(ski.UnspecifiedError)
			data, _ = ski.EncodeResponse(out, resp)
		}
	}()
	return ski.Serve(s.ctx, s.server.cfg.Handler, s.asker(), in, body, out)
}
