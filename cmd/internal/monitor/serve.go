// Package monitor serves what a daemon says of itself to Prometheus and to load
// balancers.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check returns nil, or why the answer is no, and what else there is to say where
// it is yes, a line each. The context is the request's.
type Check func(context.Context) (details []string, err error)

// Serve answers GET /metrics, and GET PATH of each check with 200 or 503, on an
// address until the returned server is closed.
func Serve(addr string, checks map[string]Check, log *slog.Logger, metrics ...prometheus.Collector) (*http.Server, error) {
	registry := prometheus.NewRegistry()
	for _, c := range metrics {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	for path, check := range checks {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			details, err := check(r.Context())
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
			for _, detail := range details {
				fmt.Fprintln(w, detail)
			}
		})
	}
	server := &http.Server{
		Addr:              l.Addr().String(),
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute, // Prometheus asks more often.
		MaxHeaderBytes:    1 << 14,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are no longer served", "error", err)
		}
	}()
	return server, nil
}
