package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/tlsski/tlsski/cmd/internal/keyparts"
	"github.com/tlsski/tlsski/cmd/internal/monitor"
	"github.com/tlsski/tlsski/internal/logqueue"
	"github.com/tlsski/tlsski/keyserver"
)

// serve runs the key server until a signal ends it. hangups are those to reload,
// stderr is where log goes. It returns the exit status.
func serve(p *parts, box *sandbox, hangups <-chan os.Signal, log *slog.Logger, stderr *logqueue.Queue) int {
	// Before anything can be heard of the server, so that a signal is never
	// met unprepared.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	audit, err := p.openAudit(log)
	if err != nil {
		return fail(stderr, err)
	}
	server, err := p.newServer(audit, log)
	if err != nil {
		_ = audit.Close()
		return fail(stderr, err)
	}
	defer keyparts.CloseAudit(server, audit, log)
	addresses := addressesOf(p.cfg.State, log)
	all, err := p.listen(p.cfg.Listen, p.cfg.CoAPSTCP, p.cfg.HTTPS, addresses.read(), server, log)
	if err != nil {
		return fail(stderr, err)
	}
	watched, unwatch := context.WithCancel(context.Background())
	kept := make(chan struct{})
	go addresses.keep(watched, all.knownAddresses, kept)
	defer func() { unwatch(); <-kept }()
	go server.Watch(watched)
	policy := keyserver.NewPolicyReloader(p.cfg.Policy, server)
	go watchPolicy(watched, policy, log)
	keys := keyparts.NewReloader(p.keys, server, p.audit, p.metrics, log)
	p.channel.guard(keys, server)
	var reading sync.WaitGroup
	reading.Go(func() { keys.Run(watched) })
	reading.Go(func() { p.channel.watch(watched) })
	defer keyparts.Wait(&reading)
	defer unwatch()
	if p.cfg.Admin != "" {
		admin, err := keyserver.ListenAdmin(p.cfg.Admin)
		if err != nil {
			_ = all.Close()
			return fail(stderr, err)
		}
		defer admin.Close()
		go serveAdmin(server, admin, log)
	}
	var metrics *http.Server
	if p.cfg.Metrics != "" {
		health := func(context.Context) ([]string, error) { return nil, server.Health() }
		// Not those of the process: the sandbox keeps /proc from it.
		counts := append(stderr.Metrics("ski_keyserver_"), p.metrics, keyserver.TokenMetrics(p.keys.Tokens), collectors.NewGoCollector())
		if metrics, err = monitor.Serve(p.cfg.Metrics, map[string]monitor.Check{"/healthz": health}, log, counts...); err != nil {
			_ = all.Close()
			return fail(stderr, err)
		}
		defer metrics.Close()
	}
	once := readOnce(p)
	box.confine()
	for _, one := range p.suspensions.All() {
		log.Warn("suspended", "edge", one.Edge, "why", one)
	}
	for _, warning := range p.warnings() {
		log.Warn("unsafe choice", "what", warning)
	}
	log.Info("listening", "addr", all[0].Addr(), "path", p.cfg.Path, "keys", len(p.keys.Store.IDs()),
		"edges", p.policy.EdgeCount(), "version", buildVersion())
	if p.cfg.HTTPS != "" {
		log.Info("listening over HTTPS", "addr", all[1].Addr(), "path", p.cfg.Path)
	}
	if p.cfg.CoAPSTCP != "" {
		log.Info("listening for CoAP over TLS", "addr", all[len(all)-1].Addr(), "path", p.cfg.Path)
	}
	if metrics != nil {
		log.Info("metrics", "addr", metrics.Addr)
	}
	box.report(log)

	// Not below, where the signals to end come: the audit log may take nothing.
	reading.Go(func() {
		for {
			select {
			case <-watched.Done():
				return
			case <-hangups:
				if err := audit.Reopen(); err != nil {
					log.Error("reload", "error", err)
				}
				_ = policy.Reload()     // which logs by itself
				_ = server.ReloadPSKs() // likewise
				keys.Reload()           // likewise, later
				p.channel.reload(true)  // likewise
				once.warn(log)
			}
		}
	})

	ended := make(chan error, 1)
	go func() { ended <- all.Serve() }()
	select {
	case err := <-ended:
		log.Error("the key server has ended", "error", err)
		return 1
	case sig := <-signals:
		log.Info("stopping", "signal", sig.String(), "timeout", time.Duration(p.cfg.ShutdownTimeout))
		return stop(all, time.Duration(p.cfg.ShutdownTimeout), signals, log)
	}
}

func watchPolicy(ctx context.Context, policy *keyserver.PolicyReloader, log *slog.Logger) {
	if err := policy.Watch(ctx); err != nil {
		log.Warn("the policy is read again with SIGHUP alone", "error", err)
	}
}

func serveAdmin(server *keyserver.Server, l net.Listener, log *slog.Logger) {
	if err := server.ServeAdmin(l); err != nil {
		log.Error("the admin socket has ended", "error", err)
	}
}

// stop answers what is in flight, until the time is up or another signal comes.
func stop(all endpoints, timeout time.Duration, signals <-chan os.Signal, log *slog.Logger) int {
	grace, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	go func() {
		select {
		case <-signals:
			cancel()
		case <-grace.Done():
		}
	}()
	if err := all.Shutdown(grace); err != nil {
		log.Error("requests were cut short", "error", err)
		return 1
	}
	log.Info("stopped")
	return 0
}
