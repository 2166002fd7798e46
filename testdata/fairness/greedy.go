package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
	"github.com/tlsski/tlsski/ski/skihttp"
)

// inFlight is how many questions there are at once on each connection.
const inFlight = 64

// flood asks until standard input ends, and prints how many questions a second
// were refused.
func flood() error {
	s := &system{dir: *folder}
	identity, err := tls.LoadX509KeyPair(s.at("greedy.pem"), s.at("greedy.key"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(s.at("pki/ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	ctx, cancel := context.WithCancel(context.Background())
	var refused atomic.Int64
	var asking sync.WaitGroup
	began := time.Now()
	for range *connections {
		c, err := client(*endpoint, identity, roots)
		if err != nil {
			cancel()
			return err
		}
		defer c.Close()
		for range inFlight {
			asking.Go(func() {
				for ctx.Err() == nil {
					resp, err := c.RoundTrip(ctx, &ski.Request{Protocol: ski.TLS12, Input: []byte{0}})
					if err == nil && resp.RetryAfter > 0 {
						refused.Add(1)
					}
				}
			})
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	took := time.Since(began).Seconds()
	cancel()
	asking.Wait()
	fmt.Println(float64(refused.Load()) / took)
	return nil
}

func client(url string, identity tls.Certificate, roots *x509.CertPool) (interface {
	ski.Transport
	io.Closer
}, error) {
	quiet := slog.New(slog.DiscardHandler)
	if strings.HasPrefix(url, "https:") {
		return skihttp.NewClient(url, skihttp.ClientConfig{Certificate: identity, RootCAs: roots, Logger: quiet})
	}
	return skicoap.NewClient(url, skicoap.ClientConfig{Certificate: identity, RootCAs: roots, Logger: quiet})
}
