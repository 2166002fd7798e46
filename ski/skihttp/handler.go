package skihttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/pace"
)

// refusal is an answer that is not SKI's but HTTP's.
type refusal struct {
	status int
	text   string
	header [2]string // one more, or none
}

func refuse(status int, text string) *refusal { return &refusal{status: status, text: text} }

// mediaTypes are those that are served, for people and for Accept.
var mediaTypes = ski.CBOR.MediaType() + ", " + ski.JSON.MediaType()

// check finds what HTTP has to say against a request before SKI sees it. It
// returns the formats of the body and of the answer.
func (s *Server) check(r *http.Request) (in, out ski.Format, _ *refusal) {
	switch {
	case r.URL.Path != s.cfg.Path:
		return 0, 0, refuse(http.StatusNotFound, "")
	case r.Method != http.MethodPost && r.Method != http.MethodPut:
		return 0, 0, &refusal{http.StatusMethodNotAllowed, "POST or PUT", [2]string{"Allow", "POST, PUT"}}
	}
	in, ok := formatOf(r.Header.Get("Content-Type"))
	if coding := r.Header.Get("Content-Encoding"); !ok || coding != "" && coding != "identity" {
		return 0, 0, &refusal{http.StatusUnsupportedMediaType, mediaTypes, [2]string{"Accept", mediaTypes}}
	}
	if out, ok = negotiate(r.Header.Values("Accept"), in); !ok {
		return 0, 0, refuse(http.StatusNotAcceptable, mediaTypes)
	}
	return in, out, nil
}

var (
	tooSlow = refuse(http.StatusRequestTimeout, "the body did not come in time")
	ending  = refuse(http.StatusServiceUnavailable, "the key server stops")
)

// serveHTTP answers one request of an authenticated peer.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	sess := r.Context().Value(sessionKey{}).(*session)
	in, out, refused := s.check(r)
	var body []byte
	if refused == nil {
		body, refused = readBody(w, r)
	}
	sess.conn.asked.Store(true)
	sess.conn.unasked.Store(0)
	if refused == nil && !sess.begin() {
		if !s.stopping() {
			sess.share.pace.Refused(time.Now(), pace.PerRefusal)
			s.busy(w, r, sess, out)
			return
		}
		refused = ending
	}
	if refused != nil {
		sess.share.pace.Refused(time.Now(), pace.PerRefusal)
		s.refuse(w, r, sess, refused)
		return
	}
	defer sess.finish()
	data, resp := s.serve(r.Context(), sess.peer, in, body, out)
	clear(body)
	if resp.Slow > 0 {
		sess.share.pace.Refused(time.Now(), resp.Slow)
	}
	answer(w, r, out, data, resp)
}

// busy answers a request that has no place.
func (s *Server) busy(w http.ResponseWriter, r *http.Request, sess *session, out ski.Format) {
	s.warn("request refused", "peer", sess.peer.Addr, "spki", sess.peer.SPKI, "status", http.StatusServiceUnavailable, "reason", "too many requests in flight")
	resp := ski.Busy(time.Second)
	data, err := ski.EncodeResponse(out, resp)
	if err != nil {
		panic(err) // It is one of ours.
	}
	answer(w, r, out, data, resp)
}

// readBody reads a body, of one that is too large as much as ski.Serve needs to
// see that, in the time that the server gives a request.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, *refusal) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, ski.MaxMessageSize+1))
	large := (*http.MaxBytesError)(nil)
	switch {
	case err == nil || errors.As(err, &large):
		return body, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, tooSlow
	}
	return nil, refuse(http.StatusBadRequest, "the body is not whole")
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, sess *session, why *refusal) {
	s.warn("request refused", "peer", sess.peer.Addr, "spki", sess.peer.SPKI, "status", why.status, "reason", why.text,
		"method", shortened(r.Method), "path", shortened(r.URL.Path), "content_type", shortened(r.Header.Get("Content-Type")))
	if why.header[0] != "" {
		w.Header().Set(why.header[0], why.header[1])
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(why.status)
	if why.text != "" {
		fmt.Fprintln(w, why.text)
	}
}

// shortened bounds what a peer puts into the log.
func shortened(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

// serve asks the Handler. One that panics costs its request and not the
// process, in which others' requests are.
func (s *Server) serve(ctx context.Context, peer ski.Peer, in ski.Format, body []byte, out ski.Format) (data []byte, resp *ski.Response) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in the handler", slog.Any("panic", p), "stack", string(debug.Stack()))
			resp = ski.Failed(ski.UnspecifiedError)
			data, _ = ski.EncodeResponse(out, resp)
		}
	}()
	return ski.Serve(ctx, s.cfg.Handler, peer, in, body, out)
}

// answer writes an encoded response and clears it.
func answer(w http.ResponseWriter, r *http.Request, f ski.Format, data []byte, resp *ski.Response) {
	status := statusOf(resp)
	h := w.Header()
	h.Set("Content-Type", f.MediaType())
	h.Set("Cache-Control", "no-store") // a PreMasterSecret is no one else's
	h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.FormatUint(wholeSeconds(resp.RetryAfter), 10))
	}
	if resp.OutputLen > 0 {
		data = pad(h, r.ProtoMajor == 2, status, f, data, resp.PaddedBodyLen(f))
	} else {
		h.Set("Content-Length", strconv.Itoa(len(data)))
	}
	w.WriteHeader(status)
	_, _ = w.Write(data) // The connection is all that can fail.
	clear(data)
}

// statusOf returns the status that goes with a response, for those who look at
// nothing else. The message in the body is what counts.
func statusOf(r *ski.Response) int {
	if r.TooLarge {
		return http.StatusRequestEntityTooLarge
	}
	switch r.Error {
	case "":
		return http.StatusOK
	case ski.MalformedRequest:
		return http.StatusBadRequest
	case ski.RequestDenied:
		if r.RetryAfter > 0 { // RFC 6585, Section 4
			return http.StatusTooManyRequests
		}
		return http.StatusForbidden
	case ski.SPKINotFound:
		return http.StatusNotFound
	}
	if r.Overloaded {
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// wholeSeconds rounds up: what Retry-After carries (RFC 9110, Section 10.2.3).
func wholeSeconds(d time.Duration) uint64 {
	return uint64(min(d.Seconds()+0.999, math.MaxUint32))
}
