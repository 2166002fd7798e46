package edgeserver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

// h2c is the scheme of an origin that is spoken to in HTTP/2 without TLS, as
// gRPC needs it of one nearby.
const h2c = "h2c"

// drainTime is how long a client may go on sending what nobody reads any more.
const drainTime = 5 * time.Second

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
	if origin.Scheme == h2c {
		plain := *origin
		plain.Scheme = "http"
		origin = &plain
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetUnencryptedHTTP2(true)
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
				if r.Out.Body != nil && len(r.Out.Trailer) > 0 {
					r.Out.Body = &trailedBody{r.Out.Body, r.In.Trailer, r.Out.Trailer}
				}
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

// ServeHTTP forwards a request. What the origin answers goes to the client while
// the client is still sending, in HTTP/1.1 too.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 {
		c := http.NewResponseController(w)
		if c.EnableFullDuplex() == nil {
			defer func() { c.SetReadDeadline(time.Now().Add(drainTime)) }()
		}
	}
	p.ReverseProxy.ServeHTTP(w, r)
}

// trailedBody is the body of a request that has announced trailer fields. What
// comes in them is known at its end, and httputil.ReverseProxy does not look
// then.
type trailedBody struct {
	io.ReadCloser
	in, out http.Header
}

func (b *trailedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		for name := range b.out { // only what was announced
			b.out[name] = b.in[name]
		}
	}
	return n, err
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
