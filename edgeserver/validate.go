package edgeserver

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// validate checks what needs no other file, in the order of the file, and
// returns the first error.
func (c *Config) validate() error {
	for i, addr := range c.Listen {
		if err := checkAddress(addr); err != nil {
			return c.errorAt(fmt.Sprintf("listen[%d]", i), err)
		}
	}
	if len(c.Sites) == 0 {
		return c.errorf("sites", "there must be at least one site")
	}
	if err := c.validateKeyServers(); err != nil {
		return err
	}
	taken := owners{}
	ticketOwner := map[string]string{}
	for i := range c.Sites {
		field := fmt.Sprintf("sites[%d]", i)
		if err := c.validateSite(field, &c.Sites[i], taken); err != nil {
			return err
		}
		if err := c.validateTickets(field, &c.Sites[i], ticketOwner); err != nil {
			return err
		}
	}
	if _, err := c.trustedProxies(); err != nil {
		return err
	}
	if err := c.validateLimits(); err != nil {
		return err
	}
	if _, err := c.balancers(); err != nil {
		return err
	}
	if c.ShutdownTimeout < 0 {
		return c.errorf("shutdown_timeout", "is negative")
	}
	if c.ShutdownDelay < 0 {
		return c.errorf("shutdown_delay", "is negative")
	}
	if err := c.validateAccessLogs(); err != nil {
		return err
	}
	if err := c.validateMetrics(); err != nil {
		return err
	}
	if _, err := c.Log.level(); err != nil {
		return c.errorAt("log.level", err)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return c.errorf("log.format", "'%s' is not text or json", c.Log.Format)
	}
	return nil
}

func (c *Config) validateSite(field string, s *Site, taken owners) error {
	if err := c.validateSiteAddresses(field, s); err != nil {
		return err
	}
	if len(s.Names) == 0 && !s.Default {
		return c.errorf(field+".names", "a site that is not the default needs a name")
	}
	for i, name := range s.Names {
		at := fmt.Sprintf("%s.names[%d]", field, i)
		if err := checkName(strings.TrimPrefix(name, "*.")); err != nil {
			return c.errorf(at, "'%s' %w", name, err)
		}
		if other := taken.add(canonicalName(name), owner{at, s}); other != "" {
			return c.errorf(at, "'%s' is already the name at %s%s", name, other, s.where())
		}
	}
	if s.Default {
		if other := taken.add("", owner{field, s}); other != "" {
			return c.errorf(field+".default", "%s is the default site already%s", other, s.where())
		}
	}
	if len(s.Certificates) == 0 {
		return c.errorf(field+".certificates", "there must be at least one certificate chain")
	}
	if err := c.validateEngine(field, s); err != nil {
		return err
	}
	if err := c.validateClientCertificates(field, s); err != nil {
		return err
	}
	switch {
	case s.Proxy != "" && s.Static != "":
		return c.errorf(field+".static", "a site has one of proxy, static and tcp")
	case s.TCP != "" && (s.Proxy != "" || s.Static != ""):
		return c.errorf(field+".tcp", "a site has one of proxy, static and tcp")
	case s.Proxy == "" && s.Static == "" && s.TCP == "":
		return c.errorf(field, "a site needs proxy, static or tcp")
	case s.OriginTimeout < 0:
		return c.errorf(field+".origin_timeout", "is negative")
	case s.OriginTimeout > 0 && s.Proxy == "":
		return c.errorf(field+".origin_timeout", "is for a site with proxy")
	case s.Proxy != "":
		if _, err := parseOrigin(s.Proxy); err != nil {
			return c.errorAt(field+".proxy", err)
		}
	}
	return c.validateTCP(field, s)
}

// validateMetrics checks the address of the metrics.
func (c *Config) validateMetrics() error {
	if c.Metrics == "" {
		return nil
	}
	if err := checkAddress(c.Metrics); err != nil {
		return c.errorAt("metrics", err)
	}
	host, _, _ := net.SplitHostPort(c.Metrics)
	if ip, err := netip.ParseAddr(host); (err != nil || !ip.Unmap().IsLoopback()) && !c.MetricsPublic {
		return c.errorf("metrics", "'%s' is not a loopback address: sites and key servers are named there, "+
			"say metrics_public: true to serve it all the same", c.Metrics)
	}
	return nil
}

func (c *Config) validateEngine(field string, s *Site) error {
	switch s.Engine {
	case "", EngineStandard:
		if s.LegacyMasterSecret {
			return c.errorf(field+".legacy_master_secret", "is for engine: %s", EngineSplit)
		}
	case EngineSplit:
	default:
		return c.errorf(field+".engine", "'%s' is not %s or %s", s.Engine, EngineStandard, EngineSplit)
	}
	switch method := ski.Method(s.Method); {
	case method == "" || method == ski.MethodECDHE:
	case method != ski.MethodECDHEPMS:
		return c.errorf(field+".method", "'%s' is not %s or %s", method, ski.MethodECDHE, ski.MethodECDHEPMS)
	case s.Engine != EngineSplit:
		return c.errorf(field+".method", "%s is for engine: %s", method, EngineSplit)
	case c.keyServer(s.KeyServer).DraftOnly:
		return c.errorf(field+".method", "a key server that is draft_only has no %s", method)
	}
	for i, version := range s.Versions {
		at := fmt.Sprintf("%s.versions[%d]", field, i)
		switch p := ski.Protocol(version); {
		case p != ski.TLS12 && p != ski.TLS13:
			return c.errorf(at, "'%s' is not '%s' or '%s'", version, ski.TLS12, ski.TLS13)
		case slices.Contains(s.Versions[:i], version):
			return c.errorf(at, "'%s' is there already", version)
		case p == ski.TLS13 && c.keyServer(s.KeyServer).DraftOnly:
			return c.errorf(at, "a key server that is draft_only has no %s", p)
		}
	}
	if s.Engine == EngineSplit && !s.has(ski.TLS12) {
		return c.errorf(field+".versions", "engine: %s is for %s", EngineSplit, ski.TLS12)
	}
	return c.validateGroups(field, s)
}

// checkAddress checks an address to listen on. A port can have a name.
func checkAddress(addr string) error {
	if name, ok := socketName(addr); ok {
		if name == "" {
			return fmt.Errorf("'%s' is without the FileDescriptorName of a socket", addr)
		}
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return fmt.Errorf("'%s' is not an address such as :8443 or 192.0.2.1:443", addr)
	}
	return nil
}

// parseOrigin reads the URL of an origin server.
func parseOrigin(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		u.Scheme != "http" && u.Scheme != "https" && u.Scheme != h2c {
		return nil, fmt.Errorf("'%s' is not a URL such as http://127.0.0.1:8080", s)
	}
	return u, nil
}

// checkName checks that name is a DNS name in its ASCII form.
func checkName(name string) error {
	name = canonicalName(name)
	if len(name) > maxName {
		return errors.New("is longer than a DNS name can be")
	}
	if !isName(name) {
		return errors.New("is not a DNS name in its ASCII form")
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	if strings.Trim(last, "0123456789") == "" { // an IPv4 address, or what clients take for one
		return errors.New("is an IP address, which no client sends as a server name: " +
			"the default site serves those")
	}
	return nil
}

// maxName is the length of a DNS name in text form (RFC 1035, Section 2.3.4).
const maxName = 253

// isName reports whether a name in canonical form has the form of a DNS name,
// which an IPv4 address has too.
func isName(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-_"
	foreign := func(r rune) bool { return !strings.ContainsRune(letters, r) }
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, foreign) {
			return false
		}
	}
	return len(name) <= maxName
}

// Logger returns a logger that writes to w.
func (l Log) Logger(w io.Writer) *slog.Logger {
	level, _ := l.level()
	opts := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// level returns Level as slog knows it.
func (l Log) level() (slog.Level, error) {
	switch l.Level {
	case "debug":
		return slog.LevelDebug, nil
	case "info", "":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("'%s' is not debug, info, warn or error", l.Level)
}
