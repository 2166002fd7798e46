//go:build embedded

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tlsski/tlsski/cmd/internal/keyparts"
	"github.com/tlsski/tlsski/cmd/internal/memory"
	"github.com/tlsski/tlsski/edgeserver"
	"github.com/tlsski/tlsski/hsm"
	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

// embedded is the key server of this process, whole: keys, policy, limits,
// detectors and audit log are as those of ski-keyserver.
type embedded struct {
	*keyparts.InProcess
	file         string
	cfg          *keyserver.Config
	keys         *keyparts.Keys
	policy       *keyserver.Policy
	audit        *keyserver.AuditLog
	auditOptions keyserver.AuditOptions
	auditDiffers []string // what a check has found
	counts       *keyserver.Metrics
	tickets      *keyserver.TicketRatchet
	server       *keyserver.Server
	log          *slog.Logger

	unwatch  context.CancelFunc
	watching sync.WaitGroup
}

// endTimeout bounds how long the requests of handshakes that have ended may keep
// the process.
const endTimeout = time.Second

// openEmbedded opens what cfg.Embedded names, logs in to the tokens, and watches
// the policy. For a check it makes no audit log and watches nothing. On
// success, close must be called.
func openEmbedded(cfg edgeserver.Config, check bool, log *slog.Logger) (_ ownKeyServer, err error) {
	e := &embedded{file: cfg.Embedded, counts: keyserver.NewMetrics(buildVersion()), log: log.With("keyserver", "embedded"), unwatch: func() {}}
	if e.cfg, err = keyserver.LoadEmbeddedConfig(e.file); err != nil {
		return nil, err
	}
	if e.cfg.Audit.File == "-" && toStdout(cfg) {
		return nil, cfg.ErrorAt("access_log.file", errors.New("standard output has the audit log of the embedded key server, which nothing else may be in"))
	}
	// Before the first key and the PIN are read.
	if inForce, err := memory.Close(); err != nil {
		e.log.Warn("the memory is open to other processes", "error", err)
	} else if !check {
		e.log.Info("sandbox", "in_force", inForce)
	}
	if e.keys, err = keyparts.OpenKeys(e.cfg, e.log); errors.Is(err, hsm.ErrPIN) {
		return nil, pinError{err}
	} else if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.closeKeys()
		}
	}()
	if err = e.newServer(check); err != nil {
		return nil, err
	}
	if !check {
		for _, warning := range e.warnings() {
			e.log.Warn("unsafe choice", "what", warning)
		}
		e.watch()
	}
	return e, nil
}

// newServer makes the server of the keys.
func (e *embedded) newServer(check bool) (err error) {
	if e.policy, err = keyserver.LoadPolicy(e.cfg.Policy, e.keys.Store); err != nil {
		return err
	}
	if !e.policy.Knows(keyserver.EmbeddedPeer()) {
		return fmt.Errorf("%s: it knows no edge with uri: [%q], so that the embedded key server would deny everything",
			e.cfg.Policy, keyserver.EmbeddedURI)
	}
	options := keyserver.Options{
		Keys:          e.keys.Store,
		Policy:        e.policy,
		AuditRequired: e.cfg.Audit.Required,
		RSAFailure:    e.cfg.RSAFailure,
		RSAWorkers:    int(e.cfg.RSAWorkers),
		MaxInFlight:   int(e.cfg.MaxInFlight),
		MaxWait:       time.Duration(e.cfg.MaxWait),
		Metrics:       e.counts,
		Logger:        e.log,
	}
	if check { // The summary has what there is to say.
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if options.RSAFailureSecret, err = e.cfg.RSAFailureSecret(); err != nil {
		return err
	}
	if options.StateKey, err = e.cfg.StateKey(); err != nil {
		return err
	}
	if e.tickets, err = e.cfg.TicketRatchet(time.Now()); err != nil {
		return err
	}
	options.TicketRatchet = e.tickets
	if e.audit, err = e.openAudit(check); err != nil {
		return err
	}
	options.Audit = e.audit
	if e.server, err = keyserver.New(options); err != nil {
		_ = e.audit.Close()
		return err
	}
	// Beyond its own limit the server answers, and audits, that it is overloaded.
	e.InProcess = keyparts.NewInProcess(e.server, keyserver.EmbeddedPeer(), 2*options.MaxInFlight)
	return nil
}

func (e *embedded) openAudit(check bool) (*keyserver.AuditLog, error) {
	o, err := keyparts.LoadAudit(e.cfg, e.keys.Store)
	if err != nil {
		return nil, err
	}
	e.auditOptions = o
	if check {
		e.auditDiffers, err = keyserver.CheckAuditLog(o)
		return keyserver.NewAuditLog(io.Discard), err
	}
	o.Logger = e.log
	return keyserver.OpenAuditLog(o)
}

// watch reads the policy and the keys again when a file changes; on SIGHUP too, after the
// audit log was opened anew where its file was moved away.
func (e *embedded) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	e.unwatch = cancel
	policy := keyserver.NewPolicyReloader(e.cfg.Policy, e.server)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	keys := keyparts.NewReloader(e.keys, e.server, e.auditOptions, e.counts, e.log)
	e.watching.Go(func() { e.server.Watch(ctx) })
	e.watching.Go(func() { keys.Run(ctx) })
	e.watching.Go(func() {
		if err := policy.Watch(ctx); err != nil {
			e.log.Warn("the policy is read again with SIGHUP alone", "error", err)
		}
	})
	e.watching.Go(func() {
		defer signal.Stop(hangups)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				if err := e.audit.Reopen(); err != nil {
					e.log.Error("reload", "error", err)
				}
				_ = policy.Reload() // which logs by itself
				keys.Reload()       // likewise, later
			}
		}
	})
}

// close waits for what is under way, then ends the audit log, and then logs out
// of the tokens.
func (e *embedded) close() {
	e.unwatch()
	keyparts.Wait(&e.watching)
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		e.log.Error("requests of the embedded key server have not ended", "error", err)
	}
	keyparts.CloseAudit(e.server, e.audit, e.log)
	e.closeKeys()
}

func (e *embedded) closeKeys() {
	if err := e.keys.Close(); err != nil {
		e.log.Error("the tokens were not closed", "error", err)
	}
}

// warnings returns what the operator should know of.
func (e *embedded) warnings() []string {
	warnings := append(e.cfg.Warnings(), e.keys.Warnings()...)
	warnings = append(warnings, e.policy.Warnings(time.Now())...)
	warnings = append(warnings, e.tickets.Warnings()...)
	if e.cfg.Keys != "" {
		warnings = append(warnings, "keys: these private keys are in files and in the memory of the edge server, for whoever takes it over: "+
			"put them on a token, or on a key server of its own")
	}
	return warnings
}

func (e *embedded) metrics() []prometheus.Collector {
	return []prometheus.Collector{e.counts, keyserver.TokenMetrics(e.keys.Tokens)}
}

// Health implements ownKeyServer.
func (e *embedded) Health() error { return e.server.Health() }

func (e *embedded) summary(w io.Writer, sites []edgeserver.SiteInfo) {
	row := func(cells ...string) { fmt.Fprintf(w, "%-9s  %s\n", cells[0], cells[1]) }
	row("embedded", e.file)
	e.keys.Describe(row)
	row("audit", e.cfg.Audit.File)
	if e.cfg.Audit.Witness != "" {
		row("witness", e.cfg.Audit.Witness)
	}
	if len(e.policy.TicketRights()) > 0 {
		row("tickets", e.tickets.String())
	}
	row("limit", fmt.Sprintf("all requests: %d in flight, %v for their turn", e.cfg.MaxInFlight, time.Duration(e.cfg.MaxWait)))
	for _, limit := range e.policy.Limits() {
		row("limit", limit)
	}
	for _, differs := range e.auditDiffers {
		row("warning", "audit: "+differs+": the start records it as a discontinuity")
	}
	for _, warning := range e.warnings() {
		row("warning", warning)
	}
	for _, site := range sites {
		for i, leaf := range site.Leaves {
			if _, _, ok := e.keys.Store.Lookup(ski.CertificateKeyID(leaf)); !ok {
				row("warning", site.Certificates[i]+": the embedded key server does not have its private key: handshakes will fail")
			}
		}
	}
	fmt.Fprintln(w)
	keyparts.PrintRights(w, e.policy.RightsOf(keyserver.EmbeddedPeer()), e.keys.Store)
	keyparts.PrintTicketRights(w, e.policy.TicketRightsOf(keyserver.EmbeddedPeer()))
}

// pinError is a token's refusal of its PIN. It has the exit status that
// ski-keyserver has then, and after which systemd is not to try again.
type pinError struct{ error }

func (e pinError) Unwrap() error { return e.error }

// ExitStatus is that of the program.
func (pinError) ExitStatus() int { return 3 }

// toStdout reports whether an access log goes to standard output.
func toStdout(cfg edgeserver.Config) bool {
	if cfg.AccessLog.File == "-" {
		return true
	}
	for _, site := range cfg.Sites {
		if site.AccessLog != nil && site.AccessLog.File == "-" {
			return true
		}
	}
	return false
}
