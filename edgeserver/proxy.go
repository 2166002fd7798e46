package edgeserver

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"
)

// h2c is the scheme of an origin that is spoken to in HTTP/2 without TLS, as
// gRPC needs it of one nearby.
const h2c = "h2c"

// maxOriginHeader bounds the header of an origin's answer.
const maxOriginHeader = 256 << 10

// proxy forwards requests to an origin server.
type proxy struct {
	httputil.ReverseProxy
	transport *http.Transport
	hasFolder bool // the origin's URL has a path, which requests do not leave
}

// defaultOriginTimeout is that of Site.OriginTimeout.
const defaultOriginTimeout = time.Minute

// newProxy returns the proxy for the origin, whose URL's path goes before that
// of each request. timeout is as Site.OriginTimeout.
func newProxy(origin *url.URL, timeout time.Duration, forward *forwarding, log *slog.Logger) *proxy {
	timeout = cmp.Or(timeout, defaultOriginTimeout)
	transport := &http.Transport{
		// No Proxy: what the environment says of proxies is not for the origin.
		DialContext:            (&net.Dialer{Timeout: min(timeout, 5*time.Second), KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    min(timeout, 5*time.Second),
		ResponseHeaderTimeout:  timeout,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    64,
		MaxResponseHeaderBytes: maxOriginHeader,
		// A connection that has died silently has to be found out: with HTTP/2
		// all requests would go on using it.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second},
		// Whether the answer is compressed is between client and origin.
		DisableCompression: true,
	}
	if origin.Scheme == h2c {
		plain := *origin
		plain.Scheme = "http"
		origin = &plain
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetUnencryptedHTTP2(true)
	}
	return &proxy{
		transport: transport,
		hasFolder: strings.Trim(origin.Path, "/") != "",
		ReverseProxy: httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(origin)
				// What is in it is between client and origin: net/http/httputil
				// leaves out what it cannot parse.
				r.Out.URL.RawQuery = escapedQuery(r.In.URL.RawQuery)
				// The site's own name, without which an origin cannot make a
				// link to itself or tell its own sites apart.
				r.Out.Host = r.In.Host
				forward.set(r)
				// An origin that spoke HTTP from here on, in whatever form, would take
				// requests that the edge has not seen.
				if offersHTTP(r.Out.Header) {
					r.Out.Header.Del("Connection")
					r.Out.Header.Del("Upgrade")
				}
				// The next request on the connection to the origin can be another client's.
				r.Out.Close = provesConnection(r.Out.Header)
				if u := uploadFrom(r.Out.Context()); u != nil {
					u.trailer = r.Out.Trailer
				}
				r.Out.Header.Set(requestIDHeader, r.In.Header.Get(requestIDHeader))
			},
			Transport: transport,
			ModifyResponse: func(resp *http.Response) error {
				if resp.StatusCode < http.StatusOK && resp.StatusCode != http.StatusSwitchingProtocols {
					return fmt.Errorf("%d is no status of an answer", resp.StatusCode) // net/http would panic
				}
				ctx := resp.Request.Context()
				if u := uploadFrom(ctx); u != nil {
					u.answered(resp)
				}
				// Again, since httputil.ReverseProxy takes all fields back after an
				// informational answer.
				if c := connFrom(ctx); c != nil && c.gen.leaves() && resp.StatusCode != http.StatusSwitchingProtocols {
					resp.Header.Set("Connection", "close")
				}
				watchOrigin(resp, log)
				return keepFromOthers(resp)
			},
			ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
				originFailed(w, r, err, log)
			},
			ErrorLog: discard, // It says of no request which it was: the two above do.
		},
	}
}

// ServeHTTP forwards a request.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.hasFolder && climbs(r.URL.Path) {
		refuse(w, r, http.StatusBadRequest, "The request's target has '..' in it.")
		return
	}
	if r.ContentLength == 0 {
		p.ReverseProxy.ServeHTTP(w, r)
		return
	}
	u := &upload{ReadCloser: r.Body, w: w, request: r}
	r = r.WithContext(context.WithValue(r.Context(), uploadKey{}, u))
	r.Body = u
	p.ReverseProxy.ServeHTTP(w, r)
	if r.ProtoMajor == 1 && !u.ended.Load() && !u.late.Load() {
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTime))
	}
}

// offersHTTP reports whether a client would like to go on in HTTP, or in TLS with
// that in it (RFC 9110, Section 7.8; RFC 2817).
func offersHTTP(h http.Header) bool {
	for name := range strings.SplitSeq(strings.Join(h["Upgrade"], ","), ",") {
		switch name, _, _ = strings.Cut(strings.ToLower(strings.TrimSpace(name)), "/"); name {
		case h2c, "h2", "http", "tls":
			return true
		}
	}
	return false
}

// Close closes the connections to the origin that are not in use.
func (p *proxy) Close() error {
	p.transport.CloseIdleConnections()
	return nil
}
