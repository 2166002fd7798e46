package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
	"github.com/tlsski/tlsski/ski/skihttp"
	"github.com/tlsski/tlsski/testdata/internal/lab"
)

// edge is one edge server's link to the key server.
type edge struct {
	transport interface {
		ski.Transport
		Close() error
	}
	client *ski.Client
	req    *ski.Request
}

// newEdge makes a session with the key server at a URL and has its first answer.
func (l *laboratory) newEdge(url string) (*edge, error) {
	cert, err := tls.LoadX509KeyPair(l.site.At("www/edge/edge.pem"), l.site.At("www/edge/edge.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(l.site.At("www/edge/ca.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	site, err := tls.LoadX509KeyPair(l.site.At("ecdsa.pem"), l.site.At("ecdsa.key"))
	if err != nil {
		return nil, err
	}
	e := &edge{}
	log := slog.New(slog.DiscardHandler)
	if strings.HasPrefix(url, "https:") {
		e.transport, err = skihttp.NewClient(url, skihttp.ClientConfig{Certificate: cert, RootCAs: roots, Logger: log})
	} else {
		e.transport, err = skicoap.NewClient(url, skicoap.ClientConfig{Certificate: cert, RootCAs: roots, Logger: log})
	}
	if err != nil {
		return nil, err
	}
	input := append(make([]byte, 64), 3, 0, 29, 32, 9) // an x25519 value
	e.client = &ski.Client{Transports: []ski.Transport{e.transport}, Timeout: time.Minute}
	e.req = &ski.Request{
		Protocol: ski.TLS12, SPKI: ski.CertificateKeyID(site.Leaf), Hash: ski.SHA256, ServerName: lab.SiteName, Input: append(input, make([]byte, 31)...),
	}
	if err := e.ask(); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *edge) close() { _ = e.transport.Close() }

// n makes the inputs differ.
var n uint64

func (e *edge) ask() error {
	n++
	e.req.Input[0] = 0xff // no structure begins so
	for i := range 8 {
		e.req.Input[1+i], e.req.Input[32+i] = byte(n>>(8*i)), byte(n>>(8*i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resp, err := e.client.RoundTrip(ctx, e.req)
	if err == nil && resp.Error != "" {
		err = fmt.Errorf("the answer is %q", resp.Error)
	}
	return err
}

// p50 asks one at a time and returns the median in microseconds.
func (e *edge) p50(during time.Duration) (float64, error) {
	var took []time.Duration
	for began := time.Now(); time.Since(began) < during; {
		asked := time.Now()
		if err := e.ask(); err != nil {
			return 0, err
		}
		took = append(took, time.Since(asked))
	}
	slices.Sort(took)
	return float64(took[len(took)/2].Nanoseconds()) / 1000, nil
}
