package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tlsski/tlsski/cmd/internal/watch"
	"github.com/tlsski/tlsski/edgeserver"
	"github.com/tlsski/tlsski/ski"
)

// daemon is the edge server of a configuration file.
type daemon struct {
	file       string
	log        *slog.Logger
	own        ownKeyServer // nil: the key servers are elsewhere
	sockets    *sockets     // those of systemd
	srv        *edgeserver.Server
	cfg        edgeserver.Config // what is served
	keyServers keyServers        // of cfg
	probed     func()            // ends what probe has begun

	mu      sync.Mutex
	watched []string // what a change of calls for a reload

	ctx     context.Context // of what follows
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// newDaemon makes the edge server and its clients of the key servers, of which
// it needs none where it has its own.
func newDaemon(file string, cfg edgeserver.Config, own ownKeyServer, log *slog.Logger) (*daemon, error) {
	d := &daemon{file: file, cfg: cfg, own: own, log: log, watched: cfg.Files(), probed: func() {}}
	transports, all, err := d.open(cfg)
	if err != nil {
		return nil, err
	}
	if d.srv, err = edgeserver.NewWithKeyServers(cfg, transports, log); err == nil {
		if err = all.check(d.srv.Sites()); err != nil {
			d.srv.Close()
		}
	}
	if err != nil {
		all.Close()
		return nil, err
	}
	d.keyServers = all
	d.measure()
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d, nil
}

// open returns the Transports of cfg, and the clients that are to be closed.
func (d *daemon) open(cfg edgeserver.Config) (map[string]ski.Transport, keyServers, error) {
	if d.own != nil {
		return map[string]ski.Transport{"": d.own}, nil, nil
	}
	all, err := openKeyServers(cfg, d.keyServers, d.count, d.log)
	return all.transports(), all, err
}

// close ends what serve has not.
func (d *daemon) close() {
	d.srv.Close()
	d.cancel()
	d.running.Wait()
	d.keyServers.Close()
}

// reload reads the configuration and all its files again, and makes that what new
// connections get; or leaves all as it is, where something is wrong.
func (d *daemon) reload() {
	done := notifyReloading(d.log)
	defer done()
	err := d.tryReload()
	d.srv.Metrics().Reloaded(err)
	if err != nil {
		d.log.Error("configuration refused, the one before stays", "error", err)
		return
	}
	d.keyServers.retry()
	d.log.Info("configuration loaded", "file", d.file, "keyserver", strings.Join(endpoints(d.cfg), ","), "sites", len(d.cfg.Sites))
	d.probe()
}

// probe asks the key servers for the sites' keys, and no longer for those of the
// configuration before.
func (d *daemon) probe() {
	d.probed()
	ctx, cancel := context.WithCancel(d.ctx)
	d.probed = cancel
	d.running.Go(func() {
		defer cancel()
		d.srv.Probe(ctx)
	})
}

func (d *daemon) tryReload() error {
	cfg, err := edgeserver.Load(d.file)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.watched = append(d.cfg.Files(), cfg.Files()...) // What is wrong with it may be in a file that is new in it.
	d.mu.Unlock()
	switch {
	case cfg.KeyServer.Embedded != d.cfg.KeyServer.Embedded:
		return cfg.ErrorAt("keyserver", errors.New("to have the key server in this process, or not, takes a restart"))
	case cfg.Embedded != d.cfg.Embedded:
		return cfg.ErrorAt("embedded", errors.New("another embedded key server takes a restart"))
	}
	d.sockets.give(&cfg)
	transports, all, err := d.open(cfg)
	if err != nil {
		return err
	}
	ended, err := d.srv.ReloadIf(cfg, transports, func(sites []edgeserver.SiteInfo) error {
		err := all.check(sites)
		if err == nil {
			all.start()
		}
		return err
	})
	if err != nil {
		all.Close()
		return err
	}
	if cfg.Log != d.cfg.Log {
		d.log.Warn("log: another level or format takes a restart")
	}
	if cfg.Metrics != d.cfg.Metrics {
		d.log.Warn("metrics: another address takes a restart")
	}
	if cfg.Limits.Connections > d.cfg.Limits.Connections {
		warnOfFiles(cfg.Limits.Connections, d.log)
	}
	before := d.keyServers
	d.cfg, d.keyServers = cfg, all
	d.measure()
	d.mu.Lock()
	d.watched = cfg.Files()
	d.mu.Unlock()
	d.running.Go(func() {
		<-ended
		before.Close()
	})
	return nil
}

// warnOfFiles warns where there can be more connections than files: each is one,
// and has one to the origin.
func warnOfFiles(connections int, log *slog.Logger) {
	var files syscall.Rlimit // which Go's runtime has raised as far as it can
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil && files.Cur < 2*uint64(connections) {
		log.Warn("limits.connections: with one to the origin for each, there are not as many open files as that takes (LimitNOFILE=, ulimit -n)",
			"connections", connections, "open_files", files.Cur)
	}
}

// watch asks for a reload when a file changes, until the daemon ends.
func (d *daemon) watch(changes chan<- struct{}) {
	names := func() []string {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.watched
	}
	changed := func() {
		select {
		case changes <- struct{}{}:
		default: // It has been asked for.
		}
	}
	if err := watch.Files(d.ctx, names, changed, d.log); err != nil {
		d.log.Warn("the configuration is read again with SIGHUP alone", "error", err)
	}
}

// serve runs the server until a signal ends it. hangups are those to reload.
func (d *daemon) serve(hangups <-chan os.Signal) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	changes := make(chan struct{}, 1)
	d.running.Go(func() { d.watch(changes) })
	d.probe()

	if err := d.srv.Listen(); err != nil {
		return err
	}
	d.sockets.warn(d.log)
	warnOfFiles(d.cfg.Limits.Connections, d.log)
	ended := make(chan error, 1)
	go func() { ended <- d.srv.ListenAndServe() }()
	d.running.Go(func() { keepAlive(d.ctx, d.srv.Alive, d.log) })
	notifyReady(d.log)
	for {
		select {
		case err := <-ended:
			return err
		case <-hangups:
			d.srv.ReopenLogs()
			d.reload()
		case <-changes:
			d.reload()
		case sig := <-signals:
			d.log.Info("stopping", "signal", sig.String(), "delay", d.cfg.ShutdownDelay, "timeout", d.cfg.ShutdownTimeout)
			return d.stop(signals, ended)
		}
	}
}

// stop lets what is under way finish, until the time is up or another signal
// comes.
func (d *daemon) stop(signals <-chan os.Signal, ended <-chan error) error {
	notifyStopping(d.log)
	d.srv.Drain()
	select {
	case <-time.After(d.cfg.ShutdownDelay):
	case <-signals:
		d.srv.Close()
		<-ended
		return errors.New("requests were cut short")
	}
	grace, cancel := context.WithTimeout(context.Background(), d.cfg.ShutdownTimeout)
	defer cancel()
	go func() {
		select {
		case <-signals:
			cancel()
		case <-grace.Done():
		}
	}()
	if err := d.srv.Shutdown(grace); err != nil {
		<-ended
		return fmt.Errorf("requests were cut short: %w", err)
	}
	return <-ended
}
