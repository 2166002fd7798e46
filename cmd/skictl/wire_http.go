package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// httpWire is SKI over HTTPS: net/http and nothing more.
type httpWire struct {
	client *http.Client
	base   string // https://HOST:PORT
	path   string
}

func dialHTTPS(t target, id party) wire {
	return &httpWire{
		client: &http.Client{
			Transport: &http.Transport{
				TLSClientConfig: id.clientTLS(t), ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 64,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		base: "https://" + t.addr,
		path: t.path,
	}
}

func (w *httpWire) Exchange(ctx context.Context, q *skitest.Question) (*skitest.Answer, error) {
	method, path := q.Method, q.Path
	if method == "" {
		method = http.MethodPost
	}
	if path == "" {
		path = w.path
	}
	req, err := http.NewRequestWithContext(ctx, method, w.base+path, bytes.NewReader(q.Body))
	if err != nil {
		return nil, err
	}
	if q.ContentType != "" {
		req.Header.Set("Content-Type", q.ContentType)
	}
	if q.Accept != "" {
		req.Header.Set("Accept", q.Accept)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4*ski.MaxMessageSize))
	if err != nil {
		return nil, err
	}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return &skitest.Answer{Status: resp.StatusCode, ContentType: mediaType, Body: body}, nil
}

func (w *httpWire) Close() error {
	w.client.CloseIdleConnections()
	return nil
}

func listenHTTPS(t target, id party, serve serveFunc) (net.Addr, func() error, error) {
	l, err := tls.Listen("tcp", t.addr, httpTLS(id))
	if err != nil {
		return nil, nil, err
	}
	s := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(io.LimitReader(r.Body, 4*ski.MaxMessageSize))
			if err != nil {
				return
			}
			mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
			a := serve(r.Context(), r.RemoteAddr, &skitest.Question{
				Method: r.Method, Path: r.URL.Path, ContentType: mediaType, Accept: r.Header.Get("Accept"), Body: body,
			})
			if a == nil {
				panic(http.ErrAbortHandler) // no answer
			}
			if a.ContentType != "" {
				w.Header().Set("Content-Type", a.ContentType)
			}
			if a.RetryAfter > 0 {
				w.Header().Set("Retry-After", strconv.Itoa(int(a.RetryAfter/time.Second)))
			}
			w.WriteHeader(a.Status)
			_, _ = w.Write(a.Body)
		}),
	}
	go func() { _ = s.Serve(l) }() // ends with Close
	return l.Addr(), s.Close, nil
}

func httpTLS(id party) *tls.Config {
	c := id.serverTLS()
	c.NextProtos = []string{"h2", "http/1.1"}
	return c
}
