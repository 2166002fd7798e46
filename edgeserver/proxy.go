package edgeserver

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

// proxy forwards requests to an origin server.
type proxy struct {
	httputil.ReverseProxy
	transport *http.Transport
}

// newProxy returns the proxy for the origin, whose URL's path goes before that
// of each request.
func newProxy(origin *url.URL, forward *forwarding, log *slog.Logger) *proxy {
	transport := &http.Transport{
		// No Proxy: what the environment says of proxies is not for the origin.
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   64,
		// Whether the answer is compressed is between client and origin.
		DisableCompression: true,
	}
	return &proxy{
		transport: transport,
		ReverseProxy: httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(origin)
				// The site's own name, without which an origin cannot make a
				// link to itself or tell its own sites apart.
				r.Out.Host = r.In.Host
				forward.set(r)
			},
			ModifyResponse: keepFromOthers,
			Transport:      transport,
			ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
			ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
				originFailed(w, r, err, log)
			},
		},
	}
}

// Close closes the connections to the origin that are not in use.
func (p *proxy) Close() error {
	p.transport.CloseIdleConnections()
	return nil
}

// originFailed answers a request that the origin did not.
func originFailed(w http.ResponseWriter, r *http.Request, err error, log *slog.Logger) {
	if r.Context().Err() != nil {
		log.Debug("the client has left before the origin's answer", "remote", r.RemoteAddr)
		return
	}
	status, text := http.StatusBadGateway, "The origin server of this site cannot be reached."
	timeout := net.Error(nil)
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		status, text = http.StatusGatewayTimeout, "The origin server of this site does not answer."
	}
	log.Warn("the origin failed", "status", status, "remote", r.RemoteAddr, "error", err)
	http.Error(w, text, status)
}
