package edgeserver

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/tlsski/tlsski/ski"
)

// KeyServer says how to reach the key server, and as whom. In a file,
// Config.KeyServer can also be the one word "embedded".
type KeyServer struct {
	// Embedded is for a key server in the process of the edge server. Nothing
	// else is set then, but Timeout by a program.
	Embedded bool `yaml:"-"`
	// URL is the key server's, coaps://HOST[:PORT]/PATH or https://... .
	URL string `yaml:"url"`
	// URLs are those of several key servers that hold the same keys, the
	// preferred first, instead of URL. Their schemes may differ. A host that is a
	// name with several addresses stands for a key server at each.
	URLs []string `yaml:"urls"`
	// Certificate and Key are the PEM files of the edge's own identity on the
	// SKI channel; they have nothing to do with the sites. Key must be readable
	// by its owner alone.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	// CA is the PEM file of the authorities that sign key servers'
	// certificates.
	CA string `yaml:"ca"`
	// PSK is a file with one line IDENTITY:HEX, the pre-shared key that the edge
	// has on the SKI channel instead of Certificate, Key and CA. It must be
	// readable by its owner alone.
	PSK string `yaml:"psk"`
	// ServerName is the name in the key server's certificate. Default: the
	// URL's host.
	ServerName string `yaml:"server_name"`
	// Timeout bounds each question to the key server, with all retries. When
	// it runs out, the TLS client gets an alert. Default: ski.DefaultTimeout,
	// 5s.
	Timeout time.Duration `yaml:"timeout"`
	// Balance says which of several key servers is asked first: ski.Failover,
	// ski.RoundRobin or ski.LeastLatency. Default: failover.
	Balance ski.Balance `yaml:"balance"`
	// Hedge asks a second key server where the first is slow. Default: not.
	Hedge Hedge `yaml:"hedge"`
	// MTU is the longest IP packet that the path to a key server at coaps://
	// carries, ski.MinMTU to ski.MaxMTU bytes. Default: 0, 1280 and less where longer
	// packets prove to be lost.
	MTU int `yaml:"mtu"`
	// DraftOnly is for a key server that knows only what
	// draft-cairns-tls-session-key-interface-01 defines: the edge then speaks
	// TLS 1.2 only and sends no extensions.
	DraftOnly bool `yaml:"draft_only"`
	// JavaNames is for the open source key server in Java, and says what its
	// operator has named the keys there: sha256, the SPKI fingerprint, or sha1,
	// the site certificate's, in upper case. The edge then is as with DraftOnly,
	// offers the curve P-256 alone, and has RSA certificates; all URLs are
	// https://. Default: another key server.
	JavaNames string `yaml:"java_names"`
	// UnsafeJavaStaticRSA lets sites with StaticRSA use the key server in Java: how
	// long that takes to decrypt, or to find that it cannot, depends on the
	// plaintext, so that clients can have it decrypt recorded connections or sign
	// (Bleichenbacher, 1998). The edge cannot hide it. Default: such a site is
	// an error.
	UnsafeJavaStaticRSA bool `yaml:"unsafe_java_static_rsa"`
}

// UnmarshalYAML takes the word or the fields.
func (k *KeyServer) UnmarshalYAML(node ast.Node) error {
	switch n := node.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		type fields KeyServer
		return yaml.NodeToValue(node, (*fields)(k), yaml.Strict())
	case *ast.StringNode:
		if k.Embedded = n.Value == embedded; k.Embedded {
			return nil
		}
	}
	return &yaml.SyntaxError{
		Message: "keyserver: it is neither a map with the url of a key server nor the word " + embedded,
		Token:   node.GetToken(),
	}
}

const embedded = "embedded"

// Endpoints returns URL or URLs, whichever is there, or the word for neither.
func (k KeyServer) Endpoints() []string {
	switch {
	case k.Embedded:
		return []string{embedded}
	case k.URL != "":
		return []string{k.URL}
	}
	return k.URLs
}

// Hedge asks another key server too when the first takes longer than for 95 of
// 100 of its answers.
type Hedge struct {
	// MaxExtra is the share of requests that may be asked twice, 0.05 for one in
	// twenty. Default: 0, none.
	MaxExtra float64 `yaml:"max_extra"`
}

// keyServerField returns the field of a key server by its name in KeyServers, or
// that of KeyServer for the empty name.
func keyServerField(name string) string {
	if name == "" {
		return "keyserver"
	}
	return "keyservers." + name
}

// URLField returns the name of the field, "keyserver.urls[1]" say, of one of the
// Endpoints of the key server that sites call name.
func (c *Config) URLField(name string, i int) string {
	field := keyServerField(name)
	if c.keyServer(name).URL != "" {
		return field + ".url"
	}
	return fmt.Sprintf("%s.urls[%d]", field, i)
}

// UsedKeyServers returns the key servers that sites use, by the name the sites
// use; that of Config.KeyServer is empty. The Config is one of Load.
func (c *Config) UsedKeyServers() map[string]KeyServer {
	used := map[string]KeyServer{}
	for _, site := range c.Sites {
		used[site.KeyServer] = c.keyServer(site.KeyServer)
	}
	return used
}

func (c *Config) keyServer(name string) KeyServer {
	if name == "" {
		return c.KeyServer
	}
	return c.KeyServers[name]
}

// keyServersWithDefaults returns KeyServer and KeyServers with the defaults of the
// fields' comments filled in.
func (c Config) keyServersWithDefaults() (KeyServer, map[string]KeyServer) {
	common := c.KeyServer
	common.DraftOnly = common.DraftOnly || common.JavaNames != ""
	if common.Timeout == 0 {
		common.Timeout = ski.DefaultTimeout
	}
	if common.Balance == "" {
		common.Balance = ski.Failover
	}
	all := maps.Clone(c.KeyServers)
	for name, k := range all {
		if k.Certificate == "" && k.Key == "" && k.CA == "" && k.PSK == "" {
			k.Certificate, k.Key, k.CA, k.PSK = common.Certificate, common.Key, common.CA, common.PSK
		}
		k.DraftOnly = k.DraftOnly || k.JavaNames != ""
		if k.Timeout == 0 {
			k.Timeout = common.Timeout
		}
		if k.Balance == "" {
			k.Balance = common.Balance
		}
		if k.Hedge == (Hedge{}) {
			k.Hedge = common.Hedge
		}
		if k.MTU == 0 {
			k.MTU = common.MTU
		}
		all[name] = k
	}
	return common, all
}

// validateKeyServers checks what a Server looks at itself.
func (c *Config) validateKeyServers() error {
	if c.KeyServer.Embedded && len(c.KeyServers) > 0 { // All keys are in this process.
		return c.errorf("keyservers", "has no place beside keyserver: "+embedded)
	}
	all := append([]string{""}, slices.Sorted(maps.Keys(c.KeyServers))...)
	for i, name := range all {
		field, k := keyServerField(name), c.keyServer(name)
		switch {
		case i > 0 && (name == "" || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_") != ""):
			return c.errorf("keyservers", "the name '%s' is not of letters, digits, - and _", name)
		case i > 0 && k.Embedded:
			return c.errorf(field, "the word "+embedded+" is for keyserver alone")
		case k.JavaNames != "" && k.JavaNames != "sha256" && k.JavaNames != "sha1":
			return c.errorf(field+".java_names", "'%s' is not sha256 or sha1", k.JavaNames)
		case k.UnsafeJavaStaticRSA && k.JavaNames == "":
			return c.errorf(field+".unsafe_java_static_rsa", "has no place without java_names")
		case k.Timeout < 0:
			return c.errorf(field+".timeout", "is negative")
		case !k.Balance.Valid():
			return c.errorf(field+".balance", "'%s' is not %s, %s or %s", k.Balance, ski.Failover, ski.RoundRobin, ski.LeastLatency)
		case !(k.Hedge.MaxExtra >= 0 && k.Hedge.MaxExtra <= 1):
			return c.errorf(field+".hedge.max_extra", "is not a share from 0 to 1")
		case k.MTU != 0 && (k.MTU < ski.MinMTU || k.MTU > ski.MaxMTU):
			return c.errorf(field+".mtu", "%d is not 0 or %d to %d bytes", k.MTU, ski.MinMTU, ski.MaxMTU)
		}
	}
	for i, site := range c.Sites {
		if _, ok := c.KeyServers[site.KeyServer]; !ok && site.KeyServer != "" {
			return c.errorf(fmt.Sprintf("sites[%d].keyserver", i), "there is no '%s' in keyservers", site.KeyServer)
		}
		if k := c.keyServer(site.KeyServer); site.StaticRSA && k.JavaNames != "" && !k.UnsafeJavaStaticRSA {
			return c.errorf(fmt.Sprintf("sites[%d].static_rsa", i), "the key server in Java tells TLS clients by its time what is wrong "+
				"with a plaintext: with that they can decrypt recorded connections; leave static_rsa out, or say %s.unsafe_java_static_rsa: true "+
				"to serve it all the same", keyServerField(site.KeyServer))
		}
	}
	return nil
}

// validateAddresses checks what whoever makes the Transports looks at: where the
// key servers are, and who the edge is to them.
func (c *Config) validateAddresses() error {
	switch {
	case c.KeyServer.Embedded && c.Embedded == "":
		return c.errorf("embedded", "is missing: it is the embedded key server's configuration file, keyserver.yaml say")
	case c.KeyServer.Embedded:
		return nil // validate wants no others beside it.
	case c.Embedded != "":
		return c.errorf("embedded", "has no place beside the key server of keyserver: that would have to be the word embedded")
	}
	names := slices.Collect(maps.Keys(c.KeyServers))
	if len(c.Sites) == 0 || slices.ContainsFunc(c.Sites, func(s Site) bool { return s.KeyServer == "" }) {
		names = append(names, "") // Otherwise it has only what the others have in common.
	}
	slices.Sort(names)
	for _, name := range names {
		if err := c.validateAddress(name); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) validateAddress(name string) error {
	field, k := keyServerField(name), c.keyServer(name)
	switch {
	case k.Embedded:
		return nil // validate has the error.
	case k.URL == "" && len(k.URLs) == 0:
		return c.errorf(field+".url", "is missing")
	case k.URL != "" && len(k.URLs) > 0:
		return c.errorf(field+".urls", "there is either url or urls, not both")
	}
	for _, f := range []struct{ name, value string }{{"certificate", k.Certificate}, {"key", k.Key}, {"ca", k.CA}} {
		switch {
		case k.PSK == "" && f.value == "":
			return c.errorf(field+"."+f.name, "is missing")
		case k.PSK != "" && f.value != "":
			return c.errorf(field+"."+f.name, "has no place beside psk")
		}
	}
	for i, endpoint := range k.Endpoints() {
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return c.errorf(c.URLField(name, i), "'%s' is not a URL such as coaps://ski.example.com:5684/ski", endpoint)
		}
		if slices.Contains(k.Endpoints()[:i], endpoint) {
			return c.errorf(c.URLField(name, i), "'%s' is there already", endpoint)
		}
	}
	return nil
}
