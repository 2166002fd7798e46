package skihttp

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// answered is what came back for a request.
type answered struct {
	status int
	header http.Header
	body   []byte
}

func (a *answered) isSKI() bool {
	_, ok := formatOf(a.header.Get("Content-Type"))
	return ok && len(a.body) > 0
}

// response reads the body first and the status second: a key server may send
// its errors with 200.
func (a *answered) response() (*ski.Response, error) {
	if !a.isSKI() {
		return nil, a.unexpected()
	}
	f, _ := formatOf(a.header.Get("Content-Type"))
	resp, err := ski.DecodeResponse(f, a.body)
	clear(a.body)
	if err != nil {
		// Not wrapped: it is not this side's request that is malformed.
		return nil, fmt.Errorf("%s: %v", a.statusText(), err)
	}
	if a.status/100 != 2 && resp.Error == "" {
		clear(resp.Output)
		return nil, errors.New(a.statusText() + " with an output")
	}
	switch {
	case a.status == http.StatusTooManyRequests:
		resp.RetryAfter = retryAfter(a.header.Get("Retry-After"), time.Now())
	case a.status == http.StatusServiceUnavailable && resp.Error == ski.UnspecifiedError:
		resp.Overloaded, resp.RetryAfter = true, retryAfter(a.header.Get("Retry-After"), time.Now())
	}
	return resp, nil
}

// unexpected says what an HTTP answer without an SKI message means.
func (a *answered) unexpected() error {
	text := a.statusText() + " without an SKI message"
	if a.status == http.StatusNotFound {
		text += ": is the path right?"
	}
	return errors.New(text)
}

func (a *answered) statusText() string {
	return fmt.Sprintf("%d %s", a.status, http.StatusText(a.status))
}

// retryAfter reads either form of Retry-After (RFC 9110, Section 10.2.3); what
// is neither is no advice.
func retryAfter(s string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(s, 10, 32); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}
