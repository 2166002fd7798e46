package skicoap

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

// session is the server's side of one DTLS or TLS session: what they have in
// common.
type session struct {
	server  *Server
	peer    ski.Peer
	ctx     context.Context
	cancel  context.CancelFunc
	close   func(cause error)   // ends it
	expire  func(now time.Time) // forgets what is old
	active  atomic.Int64        // time of the last message, Unix nanoseconds
	working atomic.Int64        // requests that are being worked on
}

func newSession(s *Server, peer ski.Peer, close func(error)) *session {
	sess := &session{server: s, peer: peer, close: close, expire: func(time.Time) {}}
	sess.ctx, sess.cancel = context.WithCancel(s.ctx)
	sess.active.Store(time.Now().UnixNano())
	return sess
}

func (s *session) lastActive() time.Time { return time.Unix(0, s.active.Load()) }

// start reports whether one more request of this session may be worked on. No
// session gets more than its share: the others would have to wait.
func (s *session) start() bool {
	if s.working.Add(1) > int64(max(1, s.server.cfg.MaxInFlight/8)) || !s.server.start() {
		s.working.Add(-1)
		return false
	}
	return true
}

func (s *session) finish() {
	s.working.Add(-1)
	s.server.finish()
}

// work answers a request. The payload is the caller's, to be cleared.
func (s *session) work(in ski.Format, body []byte, out ski.Format) (code codes.Code, options message.Options, payload []byte) {
	data, resp := s.serve(in, body, out)
	code, more := responseCode(resp)
	options = append(contentFormat(out.ContentFormat()), more...)
	if resp.OutputLen > 0 {
		options = append(options, padding(resp.PaddedLen(out)-len(data))...)
	}
	return code, options, data
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
	return ski.Serve(s.ctx, s.server.cfg.Handler, s.peer, in, body, out)
}
