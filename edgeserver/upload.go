package edgeserver

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// drainTime is how long a client may go on sending what nobody reads any more.
const drainTime = 5 * time.Second

// upload is the body of a request on its way to an origin.
type upload struct {
	io.ReadCloser
	w       http.ResponseWriter
	request *http.Request
	trailer http.Header // of the request to the origin, as announced
	ended   atomic.Bool // it is whole
	failed  atomic.Bool // it will not be
	late    atomic.Bool // since it has not come in time
}

type uploadKey struct{}

// uploadFrom returns what a request to an origin sends there, or nil.
func uploadFrom(ctx context.Context) *upload {
	u, _ := ctx.Value(uploadKey{}).(*upload)
	return u
}

// Read reads. At the end come the trailer fields, which httputil.ReverseProxy
// does not look for then. Only what was announced is sent on.
func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	switch err {
	case nil:
	case io.EOF:
		for name := range u.trailer {
			u.trailer[name] = u.request.Trailer[name]
		}
		u.ended.Store(true)
	default:
		u.late.Store(errors.Is(err, os.ErrDeadlineExceeded))
		u.failed.Store(true)
	}
	return n, err
}

// answered has what the origin answers go to the client while that is still
// sending: net/http holds it back in HTTP/1.1 unless told otherwise. It then no
// longer sees to it that what is left of the body is not taken for a request,
// so the connection ends with the answer.
func (u *upload) answered(resp *http.Response) {
	if u.request.ProtoMajor != 1 || u.ended.Load() || resp.StatusCode == http.StatusSwitchingProtocols {
		return
	}
	if http.NewResponseController(u.w).EnableFullDuplex() == nil {
		resp.Header.Set("Connection", "close")
	}
}
