package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"github.com/tlsski/tlsski/cmd/internal/keyparts"
	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

// parts is what the configuration names, read and checked.
type parts struct {
	file         string // of cfg
	cfg          *keyserver.Config
	certificate  tls.Certificate // of the start
	channel      *channel        // has the one in use
	clientCAs    []*x509.Certificate
	keys         *keyparts.Keys
	policy       *keyserver.Policy
	suspensions  *keyserver.Suspensions
	psks         *keyserver.PSKs        // nil for none
	revocations  *keyserver.Revocations // nil for none
	secret       []byte                 // for wrong PreMasterSecrets
	stateKey     []byte
	tickets      *keyserver.TicketRatchet
	audit        keyserver.AuditOptions
	auditDiffers []string // what -check has found
	metrics      *keyserver.Metrics
}

// load reads all files that the configuration names, of which it creates none,
// and logs in to the tokens. On success, close must be called.
func load(file string, cfg *keyserver.Config, log *slog.Logger) (_ *parts, err error) {
	p := &parts{file: file, cfg: cfg}
	defer func() {
		if err != nil {
			_ = p.close()
		}
	}()
	if p.certificate, p.clientCAs, err = cfg.Identity(time.Now()); err != nil {
		return nil, err
	}
	if p.keys, err = keyparts.OpenKeys(cfg, log); err != nil {
		return nil, err
	}
	if name, _, ok := p.keys.Store.Lookup(ski.CertificateKeyID(p.certificate.Leaf)); ok {
		return nil, fmt.Errorf("%s is the private key %q of a site too: an edge could sign as this key server, "+
			"give the key server a key of its own", cfg.Key, name)
	}
	if p.policy, err = keyserver.LoadPolicy(cfg.Policy, p.keys.Store); err != nil {
		return nil, err
	}
	if p.suspensions, err = keyserver.OpenSuspensions(cfg.State); err != nil {
		return nil, err
	}
	if cfg.PSK != "" {
		if p.psks, err = keyserver.OpenPSKs(cfg.PSK); err != nil {
			return nil, err
		}
	}
	if cfg.CRL != "" {
		if p.revocations, err = keyserver.OpenRevocations(cfg.CRL, p.clientCAs); err != nil {
			return nil, err
		}
		if cfg.CRLExpired == keyserver.CRLExpiredRefuse {
			p.revocations.RefuseExpired()
		}
	}
	if p.audit, err = keyparts.LoadAudit(cfg, p.keys.Store); err != nil {
		return nil, err
	}
	p.audit.Suspensions = p.suspensions
	p.metrics = keyserver.NewMetrics(buildVersion())
	p.channel = newChannel(cfg, p.certificate, p.metrics, log)
	if p.secret, err = cfg.RSAFailureSecret(); err != nil {
		return nil, err
	}
	if p.stateKey, err = cfg.StateKey(); err != nil {
		return nil, err
	}
	p.tickets, err = cfg.TicketRatchet(time.Now())
	return p, err
}

// close logs out of the tokens.
func (p *parts) close() error {
	if p.keys == nil {
		return nil
	}
	return p.keys.Close()
}

// openAudit opens the audit log.
func (p *parts) openAudit(log *slog.Logger) (*keyserver.AuditLog, error) {
	o := p.audit
	o.Logger = log
	return keyserver.OpenAuditLog(o)
}

// newServer makes the key server.
func (p *parts) newServer(audit keyserver.Auditor, log *slog.Logger) (*keyserver.Server, error) {
	return keyserver.New(keyserver.Options{
		Keys:             p.keys.Store,
		Policy:           p.policy,
		Audit:            audit,
		AuditRequired:    p.cfg.Audit.Required,
		RSAFailure:       p.cfg.RSAFailure,
		RSAFailureSecret: p.secret,
		StateKey:         p.stateKey,
		TicketRatchet:    p.tickets,
		RSAWorkers:       int(p.cfg.RSAWorkers),
		MaxInFlight:      int(p.cfg.MaxInFlight),
		MaxWait:          time.Duration(p.cfg.MaxWait),
		Suspensions:      p.suspensions,
		Revocations:      p.revocations,
		PSKs:             p.psks,
		Metrics:          p.metrics,
		Logger:           log,
	})
}

// warnings returns what the operator should know of.
func (p *parts) warnings() []string {
	warnings := append(p.cfg.Warnings(), p.keys.Warnings()...)
	warnings = append(warnings, p.policy.Warnings(time.Now())...)
	warnings = append(warnings, p.policy.MissingPSKs(p.psks)...)
	warnings = append(warnings, p.tickets.Warnings()...)
	if p.revocations != nil {
		warnings = append(warnings, p.revocations.Warnings(time.Now())...)
	}
	return warnings
}
