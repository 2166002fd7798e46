package keyserver

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/tlsski/tlsski/ski"
)

// Config is the configuration file of ski-keyserver, in YAML. Paths in the
// file are relative to the folder the file is in; LoadConfig has joined them.
type Config struct {
	// Listen is the UDP address to listen on, HOST:PORT. Default ":5684", the
	// port of coaps on all addresses. Port 0 takes a free one.
	Listen string `yaml:"listen"`
	// CoAPSTCP is the TCP address, HOST:PORT, on which the same is served as CoAP
	// over TLS (RFC 8323), for networks that block UDP. Default none.
	CoAPSTCP string `yaml:"coaps_tcp"`
	// HTTPS is the TCP address, HOST:PORT, on which the same is served over HTTPS.
	// Port 0 takes a free one. Default none.
	HTTPS string `yaml:"https"`
	// MTU is the longest IP packet that the paths from Listen to all edges carry,
	// ski.MinMTU to ski.MaxMTU bytes. Default 0: 1280, and less to an edge to which longer
	// packets prove to be lost.
	MTU int `yaml:"mtu"`
	// Path is that of the SKI resource. Default "/ski".
	Path string `yaml:"path"`
	// Certificate is the PEM file with the key server's own certificate chain.
	// Required.
	Certificate string `yaml:"certificate"`
	// Key is the PEM file with the private key of Certificate, readable by its
	// owner alone. Required.
	Key string `yaml:"key"`
	// ClientCA is the PEM file with the certificates of the authorities that
	// edges' certificates come from. Required.
	ClientCA string `yaml:"client_ca"`
	// Keys is the folder with the private keys of the sites; see LoadFolder.
	// Required, unless HSM has keys.
	Keys string `yaml:"keys"`
	// HSM has the keys on PKCS #11 tokens.
	HSM HSMConfig `yaml:"hsm"`
	// Policy is the policy file; see LoadPolicy. Required.
	Policy string `yaml:"policy"`
	// State is the file that keeps which edges are suspended; see
	// OpenSuspensions. The tip of the audit log is beside it; see AuditOptions.Tip. An
	// embedded key server keeps the latter alone. Default none: a restart resumes the
	// edges, and the log has no tip.
	State string `yaml:"state"`
	// PSK is the file with the pre-shared keys of edges that have no
	// certificate, readable by its owner alone; see OpenPSKs. Default none.
	PSK string `yaml:"psk"`
	// PSKWithoutForwardSecrecy lets edges use the cipher suites of RFC 7252,
	// Section 9.1.3.1 with their pre-shared keys: what is recorded now can be
	// read by who learns the key later.
	PSKWithoutForwardSecrecy bool `yaml:"psk_without_forward_secrecy"`
	// CRL is the file with the CRLs of the authorities of ClientCA; see
	// OpenRevocations. Default none.
	CRL string `yaml:"crl"`
	// CRLExpired says what becomes of peers whose CRL is past its nextUpdate.
	// Default CRLExpiredWarn.
	CRLExpired CRLExpired `yaml:"crl_expired"`
	// Admin is the unix socket of the admin API. Default none.
	Admin string `yaml:"admin"`
	// Audit says where the audit log goes.
	Audit AuditConfig `yaml:"audit"`
	// RSAFailure is the answer to a wrong PreMasterSecret. Default "random".
	RSAFailure RSAFailure `yaml:"rsa_failure"`
	// RSAFailureSecretFile holds Options.RSAFailureSecret, every byte of it as
	// it is, readable by its owner alone. Default none: it is derived from each
	// private key, which serves wherever the keys are files.
	RSAFailureSecretFile string `yaml:"rsa_failure_secret_file"`
	// StateKeyFile holds Options.StateKey, in the same way. Default none: a
	// random one, that no other key server has.
	StateKeyFile string `yaml:"state_key_file"`
	// TicketSecretFile holds the secret that the TicketRatchet begins with, in the
	// same way. Default none: the ratchet goes on from the file beside State, or
	// begins with a random one that no other key server has.
	TicketSecretFile string `yaml:"ticket_secret_file"`
	// RSAWorkers is how many operations with RSA, P-384 and P-521 run at once.
	// Default 0: one less than the processors, and at least 1.
	RSAWorkers uint16 `yaml:"rsa_workers"`
	// MaxInFlight is how many requests are worked on at once, those not counted that
	// wait for their turn. Default 4096.
	MaxInFlight uint32 `yaml:"max_in_flight"`
	// MaxWait is how long an operation waits for its turn at most; see
	// Options.MaxWait. Default 2s.
	MaxWait Duration `yaml:"max_wait"`
	// ShutdownTimeout is how long a stop waits for requests to be answered.
	// Default 10s.
	ShutdownTimeout Duration `yaml:"shutdown_timeout"`
	// Sandbox is "auto", the default, or "off": whether ski-keyserver takes from
	// itself what it does not need while it runs.
	Sandbox Sandbox `yaml:"sandbox"`
	// Metrics is the TCP address, HOST:PORT, on which GET /metrics (Prometheus)
	// and GET /healthz are answered, without authentication. It is a loopback
	// address unless MetricsPublic is set. Default none.
	Metrics string `yaml:"metrics"`
	// MetricsPublic lets Metrics be an address that other machines reach.
	MetricsPublic bool `yaml:"metrics_public"`
	// Log is the operator's log, on standard error.
	Log LogConfig `yaml:"log"`
}

// Sandbox says whether a key server confines itself.
type Sandbox string

// The values of Sandbox.
const (
	// SandboxAuto is whatever the system lets the key server do.
	SandboxAuto Sandbox = "auto"
	// SandboxOff is for debuggers and profilers.
	SandboxOff Sandbox = "off"
)

// LogConfig is what the operator's log looks like.
type LogConfig struct {
	// Level is the least one logged: debug, info, warn or error. Default info.
	Level string `yaml:"level"`
	// Format is text or json. Default text.
	Format string `yaml:"format"`
}

// Duration is a time.Duration that stands in YAML as text, "1m30s".
type Duration time.Duration

// UnmarshalYAML reads what time.ParseDuration reads, above zero.
func (d *Duration) UnmarshalYAML(node ast.Node) error {
	text, _ := node.(*ast.StringNode)
	if text != nil {
		if v, err := time.ParseDuration(text.Value); err == nil && v > 0 {
			*d = Duration(v)
			return nil
		}
	}
	return &yaml.SyntaxError{Message: "it is not a duration above zero, as in 10s or 1m30s", Token: node.GetToken()}
}

// LoadConfig reads and checks a configuration file, but none of the files it
// names. The error names file, line and column.
func LoadConfig(file string) (*Config, error) { return readConfig(file, (*Config).checkNetwork) }

// readConfig is LoadConfig with the part of the checks that is for a key server
// of one kind.
func readConfig(file string, checkKind func(*Config, *document) error) (*Config, error) {
	data, err := readTrustedFile(file)
	if err != nil {
		return nil, err
	}
	c := &Config{
		Listen: ":5684",
		Path:   "/ski",
		Audit: AuditConfig{
			File:               "-",
			ReserveMiB:         DefaultAuditReserveMiB,
			CheckpointRecords:  DefaultCheckpointRecords,
			CheckpointInterval: Duration(DefaultCheckpointInterval),
		},
		CRLExpired:      CRLExpiredWarn,
		RSAFailure:      RSAFailureRandom,
		MaxInFlight:     DefaultMaxInFlight,
		MaxWait:         Duration(DefaultMaxWait),
		ShutdownTimeout: Duration(10 * time.Second),
		Sandbox:         SandboxAuto,
		Log:             LogConfig{Level: "info", Format: "text"},
	}
	doc, err := decodeYAML(file, data, c)
	if err != nil {
		return nil, err
	}
	if err := checkKind(c, doc); err != nil {
		return nil, err
	}
	if err := c.check(doc); err != nil {
		return nil, err
	}
	c.joinPaths(filepath.Dir(file))
	return c, nil
}

// checkNetwork checks what a key server needs that edges reach over a network.
func (c *Config) checkNetwork(doc *document) error {
	for _, required := range []struct{ name, value string }{
		{"certificate", c.Certificate},
		{"key", c.Key},
		{"client_ca", c.ClientCA},
	} {
		if required.value == "" {
			return doc.errorAt("$."+required.name, "%q is missing", required.name)
		}
	}
	switch {
	case !isListenAddress(c.Listen):
		return doc.errorAt("$.listen", "%q is not HOST:PORT", c.Listen)
	case c.CoAPSTCP != "" && !isListenAddress(c.CoAPSTCP):
		return doc.errorAt("$.coaps_tcp", "%q is not HOST:PORT", c.CoAPSTCP)
	case c.HTTPS != "" && !isListenAddress(c.HTTPS):
		return doc.errorAt("$.https", "%q is not HOST:PORT", c.HTTPS)
	case c.MTU != 0 && (c.MTU < ski.MinMTU || c.MTU > ski.MaxMTU):
		return doc.errorAt("$.mtu", "%d is not 0 or %d to %d bytes", c.MTU, ski.MinMTU, ski.MaxMTU)
	case !strings.HasPrefix(c.Path, "/"):
		return doc.errorAt("$.path", "%q does not begin with a slash", c.Path)
	case c.PSKWithoutForwardSecrecy && c.PSK == "":
		return doc.errorAt("$.psk_without_forward_secrecy", "there is no 'psk'")
	case c.CRLExpired != CRLExpiredWarn && c.CRLExpired != CRLExpiredRefuse:
		return doc.errorAt("$.crl_expired", "%q is neither warn nor refuse", c.CRLExpired)
	case c.CRL == "" && doc.find("$.crl_expired") != nil:
		return doc.errorAt("$.crl_expired", "there is no \"crl\"")
	case c.Metrics != "" && !isListenAddress(c.Metrics):
		return doc.errorAt("$.metrics", "%q is not HOST:PORT", c.Metrics)
	case c.Metrics != "" && !isLoopback(c.Metrics) && !c.MetricsPublic:
		return doc.errorAt("$.metrics", "%q is not a loopback address: edges and keys are named there, say metrics_public: true to serve it all the same", c.Metrics)
	}
	return nil
}

func (c *Config) check(doc *document) error {
	if err := doc.checkWhole("$.mtu", "$.rsa_workers", "$.max_in_flight", "$.hsm.max_sessions"); err != nil {
		return err
	}
	if c.Policy == "" {
		return doc.errorAt("$.policy", "\"policy\" is missing")
	}
	if err := c.HSM.check(doc, c.Keys); err != nil {
		return err
	}
	switch {
	case c.Keys == "" && len(c.HSM.Keys) == 0:
		return doc.errorAt("$", "both \"keys\" and \"hsm\" are missing: there is nothing to serve")
	case c.Audit.File == "":
		return doc.errorAt("$.audit.file", `the file is empty: "-" is standard output`)
	case c.Audit.File == "-" && c.Audit.MaxSizeMiB > 0:
		return doc.errorAt("$.audit.max_size_mib", "standard output has no size")
	case c.Audit.Witness != "" && (c.Audit.Key == "" || c.State == "" || c.Audit.File == "-"):
		return doc.errorAt("$.audit.witness", "a witness needs \"audit.key\", without which it proves nothing, \"state\", and a log in a file")
	case c.Audit.CheckpointRecords == 0:
		return doc.errorAt("$.audit.checkpoint_records", "0 records never come")
	case c.RSAFailure != RSAFailureRandom && c.RSAFailure != RSAFailureError:
		return doc.errorAt("$.rsa_failure", "%q is neither random nor error", c.RSAFailure)
	case c.MaxInFlight == 0:
		return doc.errorAt("$.max_in_flight", "with 0, no request is ever answered")
	case c.Sandbox != SandboxAuto && c.Sandbox != SandboxOff:
		return doc.errorAt("$.sandbox", "%q is neither auto nor off", c.Sandbox)
	case c.Log.Format != "text" && c.Log.Format != "json":
		return doc.errorAt("$.log.format", "%q is neither text nor json", c.Log.Format)
	}
	if _, ok := logLevels[c.Log.Level]; !ok {
		return doc.errorAt("$.log.level", "%q is not one of debug, info, warn and error", c.Log.Level)
	}
	return nil
}

var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug,
	"info":  slog.LevelInfo,
	"warn":  slog.LevelWarn,
	"error": slog.LevelError,
}

func isListenAddress(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// isLoopback reports whether only this machine reaches an address. A name does
// not say that.
func isLoopback(s string) bool {
	host, _, _ := net.SplitHostPort(s)
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func (c *Config) joinPaths(dir string) {
	c.HSM.Dir = dir
	paths := []*string{&c.Certificate, &c.Key, &c.ClientCA, &c.Keys, &c.Policy, &c.State, &c.PSK, &c.CRL, &c.Admin, &c.Audit.File, &c.Audit.Key, &c.Audit.Witness, &c.RSAFailureSecretFile, &c.StateKeyFile, &c.TicketSecretFile}
	for i := range c.HSM.Keys {
		paths = append(paths, &c.HSM.Keys[i].Public)
	}
	for i := range c.HSM.Folders {
		paths = append(paths, &c.HSM.Folders[i])
	}
	for _, p := range paths {
		if *p != "" && *p != "-" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// Logger returns the operator's log on w.
func (c *Config) Logger(w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: logLevels[c.Log.Level]}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// RSAFailureSecret reads RSAFailureSecretFile. It returns nil where there is
// none.
func (c *Config) RSAFailureSecret() ([]byte, error) {
	return readSecret(c.RSAFailureSecretFile, MinRSAFailureSecret)
}

// StateKey reads StateKeyFile. It returns nil where there is none.
func (c *Config) StateKey() ([]byte, error) { return readSecret(c.StateKeyFile, MinStateKey) }

// TicketRatchet opens what the ticket keys are derived from: the file beside
// State, TicketSecretFile, or a random secret.
func (c *Config) TicketRatchet(now time.Time) (*TicketRatchet, error) {
	secret, err := readSecret(c.TicketSecretFile, MinTicketSecret)
	removed := errors.Is(err, fs.ErrNotExist)
	if err != nil && !removed {
		return nil, err
	}
	defer clear(secret)
	t, failed := OpenTicketRatchet(TicketRatchetFile(c.State), secret, now)
	switch {
	case failed != nil:
		return nil, failed
	case removed && t.source != fromFile: // It was never used.
		return nil, err
	}
	t.secret, t.removed = c.TicketSecretFile, removed
	return t, nil
}

// readSecret reads a secret of at least so many bytes, or nil for no file.
func readSecret(file string, shortest int) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	secret, err := readPrivateFile(file)
	if err != nil {
		return nil, err
	}
	if len(secret) < shortest {
		return nil, fmt.Errorf("%s: it has less than %d bytes", file, shortest)
	}
	return secret, nil
}

// Warnings returns a line for each choice that is not safe.
func (c *Config) Warnings() []string {
	var warnings []string
	if c.Admin != "" && c.State == "" {
		warnings = append(warnings, "admin without state: a restart resumes the edges that are suspended")
	}
	if c.State == "" && (c.Audit.Key != "" || c.Audit.Required) {
		warnings = append(warnings, "audit without state: what is removed from the audit log, or added, while the key server is stopped is not noticed at its start")
	}
	if c.CRL != "" && c.CRLExpired != CRLExpiredRefuse {
		warnings = append(warnings, "crl_expired: warn lets an edge in that was revoked after the CRLs ceased to be replaced; refuse is recommended")
	}
	if c.PSKWithoutForwardSecrecy {
		warnings = append(warnings, "psk_without_forward_secrecy: who records an edge's sessions reads them all once it has the edge's pre-shared key")
	}
	if c.RSAFailure == RSAFailureError {
		warnings = append(warnings, "rsa_failure: error makes the key server a padding oracle for every edge that may use the RSA method")
	}
	if c.Metrics != "" && !isLoopback(c.Metrics) {
		warnings = append(warnings, "metrics_public: whoever reaches "+c.Metrics+" reads the names of edges and keys, and how often they are used")
	}
	for _, w := range []string{auditFileWarning(c.Audit.File), auditReserveWarning(&c.Audit)} {
		if w != "" {
			warnings = append(warnings, w)
		}
	}
	if c.Sandbox == SandboxOff {
		warnings = append(warnings, "sandbox: off lets other processes of the user read the keys, and core dumps have them")
	}
	return warnings
}
