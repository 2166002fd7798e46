package edgeserver

import (
	"context"
	"errors"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
)

// discard is a logger for what others say better.
var discard = stdlog.New(io.Discard, "", 0)

// originFailed answers a request that the origin did not.
func originFailed(w http.ResponseWriter, r *http.Request, err error, log *slog.Logger) {
	log = log.With("remote", r.RemoteAddr, "request_id", r.Header.Get(requestIDHeader))
	a := answerFrom(r.Context())
	if u := uploadFrom(r.Context()); u != nil && u.failed.Load() {
		log.Debug("the request's body is not whole", "error", err)
		if r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close")
		}
		status := http.StatusBadRequest
		if u.late.Load() {
			status = http.StatusRequestTimeout
		}
		refuse(w, r, status, "The body of the request is not whole.")
		return
	}
	if r.Context().Err() != nil {
		log.Debug("the client has left before the origin's answer")
		panic(http.ErrAbortHandler) // or it would look like an answer to one that has only stopped sending
	}
	status, text := http.StatusBadGateway, "The origin server of this site has given no answer that could be passed on."
	switch a.origin = originReason(err); a.origin {
	case originTimeout:
		status, text = http.StatusGatewayTimeout, "The origin server of this site does not answer."
	case originUnreachable:
		text = "The origin server of this site cannot be reached."
	}
	log.Warn("the origin failed", "status", status, "reason", a.origin, "error", printable(err.Error(), maxLoggedError))
	refuse(w, r, status, text)
}

// originReason names the kind of an origin's failure.
func originReason(err error) string {
	timeout, op := net.Error(nil), (*net.OpError)(nil)
	switch {
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout():
		return originTimeout
	case errors.As(err, &op) && op.Op == "dial":
		return originUnreachable
	}
	return originBadAnswer
}

// watchOrigin notices where the origin ends its answer too soon. The client has
// its header already: the answer is cut short.
func watchOrigin(r *http.Response, log *slog.Logger) {
	// The answer has the identifier that the edge server has given the request.
	r.Header.Del(requestIDHeader)
	if r.StatusCode != http.StatusSwitchingProtocols { // whose body can be written to
		r.Body = &originBody{r.Body, r.Request, log}
	}
}

type originBody struct {
	io.ReadCloser
	request *http.Request // to the origin
	log     *slog.Logger
}

// Read reads.
func (b *originBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && b.request.Context().Err() == nil {
		answerFrom(b.request.Context()).origin = originReason(err)
		b.log.Warn("the origin has ended its answer too soon", "remote", b.request.RemoteAddr,
			"request_id", b.request.Header.Get(requestIDHeader), "error", printable(err.Error(), maxLoggedError))
	}
	return n, err
}
