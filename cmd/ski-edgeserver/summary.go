package main

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tlsski/tlsski/edgeserver"
	"github.com/tlsski/tlsski/internal/certuse"
	"github.com/tlsski/tlsski/ski"
)

// summary prints what -check has found.
func summary(w io.Writer, file string, cfg edgeserver.Config, sites []edgeserver.SiteInfo) {
	fmt.Fprintf(w, "%s is valid\n", file)
	fmt.Fprintf(w, "listen     %s\n", strings.Join(cfg.Listen, ", "))
	if from := cfg.ProxyProtocol.From; len(from) > 0 {
		fmt.Fprintf(w, "clients'   addresses are taken from PROXY headers of %s\n", strings.Join(from, ", "))
	}
	used := cfg.UsedKeyServers()
	for _, name := range slices.Sorted(maps.Keys(used)) {
		k := used[name]
		for _, url := range k.Endpoints() {
			fmt.Fprintf(w, "keyserver  %s\n", strings.TrimPrefix(name+": "+url, ": "))
		}
		if hedged := k.Hedge.MaxExtra; len(k.Endpoints()) > 1 || hedged > 0 {
			fmt.Fprintf(w, "           balance %s, hedge max_extra %g\n", k.Balance, hedged)
		}
	}
	if cfg.Metrics != "" {
		fmt.Fprintf(w, "metrics    %s\n", cfg.Metrics)
	}
	if warning := metricsWarning(cfg); warning != "" {
		fmt.Fprintf(w, "warning    %s\n", warning)
	}
	if cfg.KeyLog != "" {
		fmt.Fprintf(w, "warning    key_log writes the secrets of every connection to %s\n", cfg.KeyLog)
	}
	if len(cfg.TrustedProxies) > 0 {
		fmt.Fprintf(w, "trusted    %s: proxies that say who the client is\n", strings.Join(cfg.TrustedProxies, ", "))
	}
	for _, site := range sites {
		siteSummary(w, cfg, site)
	}
}

// siteSummary prints what there is to know of one site.
func siteSummary(w io.Writer, cfg edgeserver.Config, site edgeserver.SiteInfo) {
	names := site.Names
	if site.Default {
		names = append(names[:len(names):len(names)], "(default)")
	}
	target := "proxy " + site.Proxy
	if site.Static != "" {
		target = "static " + site.Static
	}
	if site.TCP != "" {
		target = "tcp " + site.TCP
		if site.ProxyProtocol {
			target += ", with a PROXY header"
		}
	}
	fmt.Fprintf(w, "site       %s: %s\n", strings.Join(names, ", "), target)
	for i, leaf := range site.Leaves {
		fmt.Fprintf(w, "           %s: %s, spki %v, %s\n", site.Certificates[i], keyType(leaf),
			ski.CertificateKeyID(leaf), validity(leaf, time.Now()))
		if more := certuse.Beyond(leaf); more != "" {
			fmt.Fprintf(w, "           warning: the certificate %s: what is signed with its key could be taken for something else than a TLS handshake\n", more)
		}
	}
	if len(site.Addresses) > 0 {
		fmt.Fprintf(w, "           addresses %s\n", strings.Join(site.Addresses, ", "))
	}
	if clients := site.ClientCertificates; clients.CA != "" {
		fmt.Fprintf(w, "           client certificates %s, of %s\n", clients.Mode, clients.CA)
	}
	if site.KeyServer != "" {
		fmt.Fprintf(w, "           keyserver %s\n", site.KeyServer)
	}
	if site.Engine == edgeserver.EngineSplit {
		fmt.Fprintf(w, "           engine split, %s, method %s\n", strings.Join(versions(site.Site), ", "), cmp.Or(site.Method, "ECDHE"))
	}
	if len(site.Groups) > 0 {
		fmt.Fprintf(w, "           groups %s\n", strings.Join(site.Groups, ", "))
	}
	switch site.Tickets {
	case edgeserver.TicketsShared:
		fmt.Fprintf(w, "           tickets shared, ticket_site %s\n", site.TicketSiteName())
	case edgeserver.TicketsOff:
		fmt.Fprintln(w, "           tickets off")
	}
	if log := cfg.AccessLogOf(site.Site); log.File != "off" {
		fmt.Fprintf(w, "           access log %s, %s\n", log.File, log.Format)
	}
	if site.LegacyMasterSecret {
		fmt.Fprintln(w, "           warning: legacy_master_secret accepts clients without extended master secret")
	}
	if site.StaticRSA {
		fmt.Fprintln(w, "           warning: static_rsa offers cipher suites without forward secrecy")
		if cfg.UsedKeyServers()[site.KeyServer].UnsafeJavaStaticRSA {
			fmt.Fprintln(w, "           warning: unsafe_java_static_rsa lets clients have the key server decrypt recorded connections")
		}
	}
}

// versions are those of a site with the split engine.
func versions(s edgeserver.Site) []string {
	if len(s.Versions) == 0 {
		return []string{string(ski.TLS12)}
	}
	return s.Versions
}

func keyType(cert *x509.Certificate) string {
	switch pub := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + pub.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", pub.N.BitLen())
	}
	return cert.PublicKeyAlgorithm.String()
}

func validity(cert *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(cert.NotBefore):
		return "warning: not valid before " + cert.NotBefore.Format(time.DateOnly)
	case now.After(cert.NotAfter):
		return "warning: expired " + cert.NotAfter.Format(time.DateOnly)
	}
	return "valid until " + cert.NotAfter.Format(time.DateOnly)
}
