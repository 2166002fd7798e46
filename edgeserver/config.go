package edgeserver

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/goccy/go-yaml"
)

// Config is what a Server is made from, and the shape of the configuration
// file. Where a field says nothing of a default, the zero value is it.
type Config struct {
	// Listen are the TCP addresses on which ListenAndServe serves HTTPS, or
	// "systemd:NAME" for the sockets of that FileDescriptorName that systemd has
	// passed. Default: the sites' Addresses, with port 8443 where one has none, and
	// ":8443" if a site has no Addresses; with ProxyProtocol ":8443" alone, since
	// Addresses can be those of a load balancer then.
	Listen []string `yaml:"listen"`
	// Sockets returns the listeners for a NAME in Listen; where it is nil there
	// are none.
	Sockets func(name string) ([]net.Listener, error) `yaml:"-"`
	// KeyServer is where the sites' private keys are. A Server itself looks
	// only at its Timeout, DraftOnly and JavaNames; the rest is for whoever makes the
	// ski.Transport.
	KeyServer KeyServer `yaml:"keyserver"`
	// Embedded is the configuration file of the key server in the same process,
	// where KeyServer.Embedded says that there is one.
	Embedded string `yaml:"embedded"`
	// KeyServers are others, by the names that sites call them by: letters,
	// digits, - and _. What they leave out of Certificate, Key, CA and PSK, and
	// Timeout, Balance and Hedge, is as in KeyServer. There are none where that is
	// Embedded.
	KeyServers map[string]KeyServer `yaml:"keyservers"`
	// ProxyProtocol says which load balancers' word on clients' addresses is
	// taken.
	ProxyProtocol ProxyProtocol `yaml:"proxy_protocol"`
	// Sites are the web sites served. At least one.
	Sites []Site `yaml:"sites"`
	// TrustedProxies are the networks, such as 192.0.2.0/24, or addresses of
	// proxies before the edge server. What a request that comes from one says in
	// Forwarded and X-Forwarded-* goes on to the origin, extended; that of all
	// others is replaced. Default: none.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// Limits bound what clients can take for themselves.
	Limits Limits `yaml:"limits"`
	// ShutdownTimeout is how long requests in flight may take to finish once
	// the server stops. Default: 10s.
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout"`
	// ShutdownDelay is how long the ski-edgeserver command goes on before that,
	// while it says that it is not ready, so that a load balancer can look
	// elsewhere. Default: 0.
	ShutdownDelay time.Duration `yaml:"shutdown_delay"`
	// KeyLog is a file that the secrets of all connections are written to, in
	// the format of NSS (SSLKEYLOGFILE), to look into recorded traffic. Who has
	// it reads the connections: it is for debugging, and a warning at start says
	// that it is on.
	KeyLog string `yaml:"key_log"`
	// AccessLog is where a line for each request goes. Default: nowhere.
	AccessLog AccessLog `yaml:"access_log"`
	// Metrics is the TCP address, HOST:PORT, on which the ski-edgeserver command
	// answers GET /metrics (Prometheus), /healthz and /readyz, without
	// authentication. It is a loopback address unless MetricsPublic is set. Default:
	// none.
	Metrics string `yaml:"metrics"`
	// MetricsPublic lets Metrics be an address that other machines reach.
	MetricsPublic bool `yaml:"metrics_public"`
	// Log is how the ski-edgeserver command logs.
	Log Log `yaml:"log"`

	// source is the file that Load read, for the positions in errors. It is
	// nil in a Config made by a program.
	source *source
}

// Site is one web site: the names it has, the certificates that prove them,
// and where its content comes from.
type Site struct {
	// Addresses are the local addresses on which the site is served: IP addresses
	// with a port, or without for all ports. Sites that meet on none can have the
	// same names. Default: all.
	Addresses []string `yaml:"addresses"`
	// Names are DNS names, or "*." and a DNS name, which stands for every name
	// with one more label. Names that are not ASCII are written in their
	// ASCII form (xn--). Only the default site can be without.
	Names []string `yaml:"names"`
	// Certificates are PEM files with one certificate chain each, the site's
	// own certificate first. Of several, a client gets the first that it
	// supports. Each must cover all Names. A private key in one of the files
	// is an error.
	Certificates []string `yaml:"certificates"`
	// KeyServer is the name in Config.KeyServers of where the private keys are.
	// Default: those of Config.KeyServer.
	KeyServer string `yaml:"keyserver"`
	// StaticRSA offers clients that support nothing better the cipher suites
	// TLS_RSA_WITH_AES_128_GCM_SHA256 and TLS_RSA_WITH_AES_256_GCM_SHA384.
	// They have no forward secrecy.
	StaticRSA bool `yaml:"static_rsa"`
	// Engine is what speaks TLS: EngineStandard is crypto/tls, EngineSplit the
	// project's own TLS 1.2, which derives the session keys from the
	// PreMasterSecret itself. With EngineSplit, clients that use TLS 1.3 are
	// served by crypto/tls if Versions has it. Default: standard.
	Engine string `yaml:"engine"`
	// Versions are the versions of TLS that the site serves, "TLS 1.2" and "TLS
	// 1.3". Default: both, with EngineSplit only TLS 1.2.
	Versions []string `yaml:"versions"`
	// Method is the SKI method for ECDHE in TLS 1.2: ECDHE, the edge makes the
	// ephemeral key and the key server signs it, or, with EngineSplit, ECDHE-PMS,
	// the key server makes it and the edge gets the PreMasterSecret. The latter
	// asks the key server twice for each handshake. Default: ECDHE.
	Method string `yaml:"method"`
	// Groups are those of the ephemeral keys: x25519, secp256r1, secp384r1 and
	// secp521r1, which the key server's policy has to grant for TLS 1.2. TLS 1.3 has
	// their hybrids with ML-KEM too. The order does not matter. Default: x25519,
	// secp256r1 and secp384r1; with JavaNames secp256r1.
	Groups []string `yaml:"groups"`
	// LegacyMasterSecret accepts clients without extended master secret (RFC
	// 7627) in TLS 1.2. EngineStandard always does.
	LegacyMasterSecret bool `yaml:"legacy_master_secret"`
	// ClientCertificates says whether clients are asked for certificates.
	// Default: they are not.
	ClientCertificates ClientCertificates `yaml:"client_certificates"`
	// Tickets says with what keys session tickets are made, by which clients resume
	// their sessions without the key server: TicketsLocal, TicketsShared or
	// TicketsOff. Default: local.
	Tickets string `yaml:"tickets"`
	// TicketSite is the name that the key server's policy has for the keys of
	// TicketsShared. Default: the first of Names.
	TicketSite string `yaml:"ticket_site"`
	// Proxy is the URL of the origin server that requests are forwarded to,
	// http, https, or h2c for HTTP/2 without TLS. The origin sees the client's
	// Host, and Forwarded (RFC 7239), X-Forwarded-For, X-Forwarded-Host and
	// X-Forwarded-Proto. Exactly one of Proxy, Static and TCP is set.
	Proxy string `yaml:"proxy"`
	// OriginTimeout is how long the origin server may take to begin its answer, once
	// it has the request. Then the client gets 504. Default: 1m.
	OriginTimeout time.Duration `yaml:"origin_timeout"`
	// Static is the folder that files are served from. Folders are not listed,
	// and names that begin with a dot are not found.
	Static string `yaml:"static"`
	// TCP is the HOST:PORT of a server that gets what clients send within TLS as
	// it is, and whose answers they get: of MQTT, say. The end of what one side
	// sends, an end without close_notify too, is that of what the other receives.
	TCP string `yaml:"tcp"`
	// ALPN are the names of the protocols behind TCP (RFC 7301), in order of
	// preference. A client that offers others alone is refused. Default: any, of
	// which none is agreed on, but one that offers HTTP alone is refused.
	ALPN []string `yaml:"alpn"`
	// ProxyProtocol begins each connection to TCP with a header of the PROXY
	// protocol, version 2, with the client's address and the one it has connected
	// to.
	ProxyProtocol bool `yaml:"proxy_protocol"`
	// IdleTimeout is how long neither side of a connection to TCP may send.
	// Default: 10m.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// AccessLog replaces the one of the Config for the requests to this site, whole.
	AccessLog *AccessLog `yaml:"access_log"`
	// Default makes this the site for clients that send no server name, or
	// one that no site has. On each address at most one site is; without one, such
	// clients get the alert unrecognized_name (RFC 6066, Section 3).
	Default bool `yaml:"default"`
}

// Log is how a command logs.
type Log struct {
	// Level is debug, info, warn or error. Default: info.
	Level string `yaml:"level"`
	// Format is text or json. Default: text.
	Format string `yaml:"format"`
}

// withDefaults returns c with the defaults of the fields' comments filled in.
func (c Config) withDefaults() Config {
	if len(c.Listen) == 0 {
		c.Listen = c.defaultListen()
	}
	c.KeyServer, c.KeyServers = c.keyServersWithDefaults()
	c.Limits = c.Limits.withDefaults()
	if c.ShutdownTimeout == 0 {
		c.ShutdownTimeout = 10 * time.Second
	}
	if c.Log.Level == "" {
		c.Log.Level = "info"
	}
	if c.Log.Format == "" {
		c.Log.Format = "text"
	}
	return c
}

// Load reads the configuration file, with defaults filled in. Paths in it are
// relative to its own folder. It reads no other file: New opens those of the
// sites, KeyServer.Credentials those of the key server.
//
// An error is one line that begins with FILE:LINE:COLUMN.
func Load(file string) (Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Config{}, err
	}
	src, err := parseSource(file, data)
	if err != nil {
		return Config{}, err
	}
	durations := []string{"keyserver.timeout", "shutdown_timeout", "shutdown_delay"}
	for _, name := range src.keys("keyservers") {
		durations = append(durations, keyServerField(name)+".timeout")
	}
	for i := range src.length("sites") {
		durations = append(durations, fmt.Sprintf("sites[%d].idle_timeout", i))
		durations = append(durations, fmt.Sprintf("sites[%d].origin_timeout", i))
	}
	durations = append(durations, limitDurations...)
	if err := src.checkDurations(durations...); err != nil {
		return Config{}, err
	}
	var c Config
	if err := yaml.NodeToValue(src.body(), &c, yaml.Strict()); err != nil {
		return Config{}, src.explain(err)
	}
	c.source = src
	c.resolve(filepath.Dir(file))
	c = c.withDefaults()
	if err := c.validateAddresses(); err != nil {
		return Config{}, err
	}
	if err := c.validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// resolve makes the paths relative to dir.
func (c *Config) resolve(dir string) {
	abs := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	files := func(k *KeyServer) {
		abs(&k.Certificate)
		abs(&k.Key)
		abs(&k.CA)
		abs(&k.PSK)
	}
	files(&c.KeyServer)
	for name, k := range c.KeyServers {
		files(&k)
		c.KeyServers[name] = k
	}
	abs(&c.KeyLog)
	abs(&c.Embedded)
	if c.AccessLog.isFile() {
		abs(&c.AccessLog.File)
	}
	for i := range c.Sites {
		abs(&c.Sites[i].Static)
		abs(&c.Sites[i].ClientCertificates.CA)
		if a := c.Sites[i].AccessLog; a != nil && a.isFile() {
			abs(&a.File)
		}
		for j := range c.Sites[i].Certificates {
			abs(&c.Sites[i].Certificates[j])
		}
	}
}

// Files returns the files that a Server of c depends on: the one that Load has
// read and those that it names, but for what is served from Static and the
// configuration of an embedded key server.
func (c *Config) Files() (files []string) {
	add := func(names ...string) {
		for _, name := range names {
			if name != "" && !slices.Contains(files, name) {
				files = append(files, name)
			}
		}
	}
	if c.source != nil {
		add(c.source.name)
	}
	used := c.UsedKeyServers()
	for _, name := range slices.Sorted(maps.Keys(used)) {
		add(used[name].Certificate, used[name].Key, used[name].CA, used[name].PSK)
	}
	for _, site := range c.Sites {
		add(site.Certificates...)
		add(site.ClientCertificates.CA)
	}
	return files
}

// errorAt returns err with the name of the field it is about, and the field's
// position where c was read from a file.
func (c *Config) errorAt(field string, err error) error {
	if c.source != nil {
		return fmt.Errorf("%s: %s: %w", c.source.position(field), field, err)
	}
	return fmt.Errorf("edgeserver: %s: %w", field, err)
}

// ErrorAt is for those who find only when they use the Config what is wrong with
// a field, "keyserver.url" say: it returns err with the field's name and
// position.
func (c *Config) ErrorAt(field string, err error) error { return c.errorAt(field, err) }

// errorf is errorAt for an error that has no cause.
func (c *Config) errorf(field, format string, args ...any) error {
	return c.errorAt(field, fmt.Errorf(format, args...))
}

// kindName is what a configuration file calls a Go type.
func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a map"
	}
	return "a number"
}
