package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/tlsski/tlsski/cmd/internal/monitor"
	"github.com/tlsski/tlsski/edgeserver"
	"github.com/tlsski/tlsski/internal/logqueue"
	"github.com/tlsski/tlsski/ski"
)

// serveMetrics answers GET /metrics, /healthz and /readyz where the configuration
// says so, until the returned function is called: while the server drains, too.
// logged is where log goes.
func serveMetrics(cfg edgeserver.Config, srv *edgeserver.Server, own ownKeyServer, log *slog.Logger, logged *logqueue.Queue) (func(), error) {
	if cfg.Metrics == "" {
		return func() {}, nil
	}
	metrics := append(logged.Metrics("ski_edgeserver_"),
		srv.Metrics(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	if own != nil {
		metrics = append(metrics, own.metrics()...)
	}
	live := func(context.Context) ([]string, error) {
		srv.Alive()
		return nil, nil
	}
	ready := func(ctx context.Context) ([]string, error) {
		if err := srv.Ready(ctx); err != nil {
			return nil, err
		}
		if own != nil {
			if err := own.Health(); err != nil { // which a question whether a key is there does not show
				return nil, fmt.Errorf("the embedded key server: %w", err)
			}
		}
		return pendingLines(srv.Pending()), nil
	}
	server, err := monitor.Serve(cfg.Metrics, map[string]monitor.Check{"/healthz": live, "/readyz": ready}, log, metrics...)
	if err != nil {
		return nil, err
	}
	log.Info("metrics", "addr", server.Addr)
	if warning := metricsWarning(cfg); warning != "" {
		log.Warn("unsafe choice", "what", warning)
	}
	return func() { server.Close() }, nil
}

// pendingLines says which certificates are not served yet.
func pendingLines(all []edgeserver.PendingCertificate) (lines []string) {
	for _, p := range all {
		lines = append(lines, fmt.Sprintf("certificate pending: site %q, file %q, spki %v, since %s: %s",
			p.Site, p.File, p.SPKI, p.Since.UTC().Format(time.RFC3339), p.Reason))
	}
	return lines
}

// metricsWarning returns what the operator should know of the address, or "".
func metricsWarning(cfg edgeserver.Config) string {
	host, _, err := net.SplitHostPort(cfg.Metrics)
	if err != nil {
		return ""
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsLoopback() {
		return ""
	}
	return "metrics_public: whoever reaches " + cfg.Metrics + " reads the names of sites and key servers, and how much they are used"
}

// count counts a question to a key server.
func (d *daemon) count(url string, a ski.Attempt) { d.srv.Metrics().Attempted(url, a) }

// measure tells the metrics what the configuration has made of the key servers.
func (d *daemon) measure() {
	d.srv.Metrics().SetIdentityExpiry(d.keyServers.firstExpiry())
	d.srv.Metrics().SetKeyServers(endpoints(d.cfg))
}

// firstExpiry returns when the first of the edge server's own certificates ends,
// or the zero time where it has pre-shared keys alone.
func (all keyServers) firstExpiry() (first time.Time) {
	for _, k := range all {
		if leaf := k.identity.Leaf; leaf != nil && (first.IsZero() || leaf.NotAfter.Before(first)) {
			first = leaf.NotAfter
		}
	}
	return first
}
