package edgeserver

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"
)

// requestIDHeader has the identifier of a request: on the way to the origin, in
// the answer to the client, in the access log, and in what the log says of it.
const requestIDHeader = "X-Request-Id"

// requestID gives r an identifier: a new one unless r comes from someone who is
// trusted to have made one.
func (s *site) requestID(r *http.Request) string {
	id := r.Header.Get(requestIDHeader)
	if !s.forward.trusts(r) || !isRequestID(id) {
		id = rand.Text()
	}
	r.Header.Set(requestIDHeader, id)
	return id
}

// isRequestID reports whether an identifier is one that can go anywhere: UUIDs,
// trace identifiers and Base64 are.
func isRequestID(id string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-_.:+/=@"
	return id != "" && len(id) <= 128 && strings.Trim(strings.ToLower(id), letters) == ""
}

// statusClientLeft is written down where the client has left before an answer
// began. No client sees it.
const statusClientLeft = 499

// answer is the http.ResponseWriter of a request. It sees to the request's
// identifier and remembers what there is to write down.
type answer struct {
	http.ResponseWriter
	id       string
	start    time.Time // of the request
	begun    time.Time // of the answer's header
	status   int       // of the answer, or 0
	bytes    int64     // of its body
	cutShort bool      // it is not whole
	origin   string    // why the origin has not done its part, or empty
}

type answerKey struct{}

// answerFrom returns the answer to the request that ctx is of.
func answerFrom(ctx context.Context) *answer { return ctx.Value(answerKey{}).(*answer) }

// WriteHeader begins the answer.
func (a *answer) WriteHeader(status int) {
	if a.status != 0 {
		return // net/http would log it, and not say of which site
	}
	if status >= 200 || status == http.StatusSwitchingProtocols {
		a.begin(status)
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) begin(status int) {
	a.status, a.begun = status, time.Now()
	a.Header().Set(requestIDHeader, a.id)
}

// Write writes of the body.
func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	n, err := a.ResponseWriter.Write(b)
	a.wrote(int64(n), err)
	return n, err
}

// ReadFrom is io.ReaderFrom, with the buffers of net/http.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	a.WriteHeader(http.StatusOK)
	n, err := io.Copy(a.ResponseWriter, r)
	a.wrote(n, err)
	return n, err
}

// wrote counts what is on its way to the client.
func (a *answer) wrote(n int64, err error) {
	a.bytes += n
	if err != nil && err != http.ErrBodyNotAllowed { // which HEAD has none of
		a.cutShort = true
	}
}

// FlushError is for http.ResponseController.
func (a *answer) FlushError() error {
	a.WriteHeader(http.StatusOK)
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// Hijack is for http.ResponseController: httputil.ReverseProxy takes the
// connection once the origin has switched protocols, and writes Header itself.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err == nil {
		a.begin(http.StatusSwitchingProtocols)
	}
	return c, rw, err
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// answer answers a request, and writes down what became of it.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, c *conn) {
	a := &answer{ResponseWriter: w, id: c.site.requestID(r), start: time.Now()}
	defer func() {
		// As with http.Server, a panic ends one request and not the program.
		p := recover()
		if p != nil && p != http.ErrAbortHandler {
			s.log.Error("panic in a request", append(about(c, r), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))...)
			if a.status == 0 {
				refuse(a, r, http.StatusInternalServerError, "This server has failed.")
				p = nil
			}
		}
		s.wrote(c, r, a, p != nil)
		if p != nil {
			panic(http.ErrAbortHandler)
		}
	}()
	r = r.WithContext(context.WithValue(r.Context(), answerKey{}, a))
	s.route(a, r, c)
}

// wrote counts the request and logs it. aborted says that the connection, or the
// stream of HTTP/2, ends without the rest of the answer.
func (s *Server) wrote(c *conn, r *http.Request, a *answer, aborted bool) {
	a.cutShort = a.cutShort || aborted
	switch {
	case a.status == 0 && aborted:
		a.status, a.begun = statusClientLeft, time.Now()
	case a.status == 0:
		a.WriteHeader(http.StatusOK) // as net/http would
	}
	s.metrics.answered(c.site, r.Method, a.status, a.begun.Sub(a.start))
	if a.origin != "" {
		s.metrics.originFailed(c.site, a.origin)
	}
	c.site.access.request(c, r, a, time.Since(a.start))
}

// about returns what every line of the log about a request has.
func about(c *conn, r *http.Request) []any {
	return []any{
		slog.String("site", siteLabel(c.site)), slog.String("remote", r.RemoteAddr), slog.String("request_id", r.Header.Get(requestIDHeader)),
	}
}

// refuse answers a request with a page that has its identifier, for who asks the
// operator what went wrong. It is for that request alone, so no cache keeps it.
func refuse(w http.ResponseWriter, r *http.Request, status int, text string) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, fmt.Sprintf("%s\n\nRequest: %s", text, r.Header.Get(requestIDHeader)), status)
}
