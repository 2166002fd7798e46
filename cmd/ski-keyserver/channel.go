package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/cmd/internal/keyparts"
	"github.com/tlsski/tlsski/cmd/internal/watch"
	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

// channel has the certificate that edge servers know this key server by, which is
// read again while it runs.
type channel struct {
	cfg     *keyserver.Config
	now     atomic.Pointer[tls.Certificate]
	metrics *keyserver.Metrics
	log     *slog.Logger

	mu     sync.Mutex
	told   string // why the files could not be used the last time
	keys   *keyparts.Reloader
	server *keyserver.Server
}

func newChannel(cfg *keyserver.Config, own tls.Certificate, metrics *keyserver.Metrics, log *slog.Logger) *channel {
	c := &channel{cfg: cfg, metrics: metrics, log: log}
	c.now.Store(&own)
	metrics.SetCertificateExpiry(own.Leaf.NotAfter)
	return c
}

// certificate returns that of a handshake that begins.
func (c *channel) certificate() *tls.Certificate { return c.now.Load() }

var errOwnKey = errors.New("it is the key server's own: an edge could sign as this key server")

// guard sees to it that the key of the certificate is none of those of sites.
func (c *channel) guard(keys *keyparts.Reloader, server *keyserver.Server) {
	c.keys, c.server = keys, server
	keys.Refuse(ski.CertificateKeyID(c.certificate().Leaf), errOwnKey)
}

// watch reads the certificate again when its files change, until ctx ends.
func (c *channel) watch(ctx context.Context) {
	names := func() []string { return []string{c.cfg.Certificate, c.cfg.Key} }
	if err := watch.Files(ctx, names, func() { c.reload(false) }, c.log); err != nil {
		c.log.Warn("the key server's certificate is read again with SIGHUP alone", "error", err)
	}
}

// reload reads certificate and key again. Where they cannot be used, as when one
// of the two is still the old one, those before stay: the log says why, once
// unless somebody has asked.
func (c *channel) reload(asked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	own, err := c.cfg.OwnCertificate(time.Now())
	if err == nil {
		err = c.take(&own)
	}
	if err == nil {
		c.told = ""
		c.metrics.SetReloadFaults(keyserver.ReloadCertificate, 0)
		return
	}
	c.metrics.SetReloadFaults(keyserver.ReloadCertificate, 1)
	if asked || c.told != err.Error() {
		c.told = err.Error()
		c.log.Error("the key server's certificate stays as it was", "error", err, "not_after", c.certificate().Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
}

// take has the handshakes that begin from now on use another certificate.
func (c *channel) take(own *tls.Certificate) error {
	before := c.certificate()
	if bytes.Equal(bytes.Join(own.Certificate, nil), bytes.Join(before.Certificate, nil)) {
		return nil
	}
	id := ski.CertificateKeyID(own.Leaf)
	// First, or it could become a site's meanwhile. That of before stays refused:
	// edges trust its certificate until it expires.
	c.keys.Refuse(id, errOwnKey)
	if c.server.HasKey(id) {
		c.keys.Refuse(id, nil)
		return fmt.Errorf("%s is the private key of a site too: an edge could sign as this key server, give the key server a key of its own", c.cfg.Key)
	}
	c.now.Store(own)
	c.metrics.SetCertificateExpiry(own.Leaf.NotAfter)
	c.log.Info("the key server's certificate is new", "subject", own.Leaf.Subject.String(), "spki", id,
		"not_after", own.Leaf.NotAfter.UTC().Format(time.RFC3339))
	c.compare(before.Leaf, own.Leaf)
	return nil
}

// compare warns of what edge servers may refuse that took the certificate before:
// which names and authorities they ask for, only they know.
func (c *channel) compare(before, now *x509.Certificate) {
	var lost []string
	for _, name := range names(before) {
		if now.VerifyHostname(name) != nil {
			lost = append(lost, name)
		}
	}
	if len(lost) > 0 {
		c.log.Warn("the key server's new certificate lacks names of the one before: edge servers that ask for one of them refuse it", "names", lost)
	}
	if !bytes.Equal(before.RawIssuer, now.RawIssuer) {
		c.log.Warn("the key server's new certificate has another issuer: edge servers that do not trust it refuse it",
			"issuer", now.Issuer.String(), "before", before.Issuer.String())
	}
}

// names returns the names and addresses of a certificate, as VerifyHostname takes
// them; one with a wildcard as a name that it is good for.
func names(cert *x509.Certificate) (all []string) {
	for _, name := range cert.DNSNames {
		all = append(all, strings.Replace(name, "*", "any", 1))
	}
	for _, addr := range cert.IPAddresses {
		all = append(all, addr.String())
	}
	return all
}
