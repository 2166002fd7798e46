package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/tlsski/tlsski/internal/netlab"
	"github.com/tlsski/tlsski/testdata/internal/lab"
)

// system is two key servers and two edge servers, each on a host of its own. The
// clients are on the edge servers' hosts, so that no fault is between these two.
type system struct {
	dir     string
	network *netlab.Network
	keys    []*keyServer
	edges   []*edge
	sites   []*site
	load    *load
	nat     *netlab.NAT // before edge-2
	stopped bool
}

type keyServer struct {
	*daemon
	dir string
}

type edge struct {
	*daemon
	dir   string
	sites []*site // that it serves
}

func (s *system) at(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// skictl runs it here.
func skictl(args ...string) error {
	_, err := lab.Run("bin/skictl", args...)
	return err
}

// name6 is the DNS name by which edges find a key server's IPv6 address.
func name6(name string) string { return name + "-6.soak.example" }
func name4(name string) string { return name + ".soak.example" }

const edgeSuffix = ".edges.soak.example"

func newSystem(dir string) (*system, error) {
	s := &system{dir: dir, network: netlab.New(), load: newLoad()}
	err := s.make()
	if err != nil {
		s.stop()
	}
	return s, err
}

func (s *system) make() error {
	s.network.SetDefault(usual)
	if err := skictl("pki", "init", s.at("pki")); err != nil {
		return err
	}
	for _, n := range []string{"coaps", "coaps6", "pms", "tcp", "https"} {
		site, err := newSite(s.dir, n)
		if err != nil {
			return err
		}
		s.sites = append(s.sites, site)
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	for _, name := range []string{"ks-1", "ks-2"} {
		if err := s.newKeyServer(name, secret); err != nil {
			return err
		}
	}
	for _, name := range []string{"edge-1", "edge-2"} {
		if err := s.newEdge(name); err != nil {
			return err
		}
	}
	for _, d := range s.daemons() {
		if err := d.start(); err != nil {
			return err
		}
	}
	return nil
}

func (s *system) daemons() (all []*daemon) {
	for _, k := range s.keys {
		all = append(all, k.daemon)
	}
	for _, e := range s.edges {
		all = append(all, e.daemon)
	}
	return all
}

func (s *system) newDaemon(name, program, config string, addrs ...netip.Addr) (*daemon, error) {
	h, err := s.network.Host(name, addrs...)
	return &daemon{name: name, host: h, program: program, args: []string{"-config", config}, log: s.at(name + ".log")}, err
}

func (s *system) newKeyServer(name string, secret []byte) error {
	k := &keyServer{dir: s.at(name)}
	var err error
	if k.daemon, err = s.newDaemon(name, "bin/ski-keyserver", k.at("keyserver.yaml"), s.network.NewAddr(), s.network.NewAddr6()); err != nil {
		return err
	}
	s.keys = append(s.keys, k)
	s.setNames(k)
	const policy = `edges:
  - {name: edge-1, dns: [edge-1` + edgeSuffix + `]}
  - {name: edge-2, dns: [edge-2` + edgeSuffix + `]}
rules:
  - {edges: [edge-1, edge-2], keys: [tcp.example.com-ecdsa-1, tcp.example.com-rsa-1], methods: [ECDHE, RSA]}
  - {edges: [edge-1, edge-2], keys: ["*"], methods: [ECDHE, ECDHE-PMS, RSA]}
`
	const config = `listen: ":5684"
coaps_tcp: ":5684"
https: ":8443"
certificate: keyserver.pem
key: keyserver.key
client_ca: ../pki/ca.pem
keys: keys
policy: policy.yaml
state: state.json
state_key_file: state.key
audit: {file: audit.log, required: true, key: audit.key}
admin: admin.sock
metrics: 127.0.0.1:9684
log: {level: debug}
`
	if err := errors.Join(
		os.MkdirAll(k.at("keys"), 0o700),
		os.WriteFile(k.at("policy.yaml"), []byte(policy), 0o600),
		os.WriteFile(k.at("keyserver.yaml"), []byte(config), 0o600),
		os.WriteFile(k.at("state.key"), secret, 0o600),
		skictl("audit", "keygen", k.at("audit")),
		s.identify(k),
	); err != nil {
		return err
	}
	for _, site := range s.sites {
		for _, p := range site.pairs {
			if err := k.give(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// setNames gives a key server's names its addresses.
func (s *system) setNames(k *keyServer) {
	for _, a := range k.host.Addrs() {
		if a.Is4() {
			s.network.SetName(name4(k.name), a)
		} else {
			s.network.SetName(name6(k.name), a)
		}
	}
}

func (k *keyServer) at(name string) string { return filepath.Join(k.dir, name) }

// identify gives a key server a certificate for the channel, the first or another.
func (s *system) identify(k *keyServer) error {
	return skictl("pki", "issue", "--force", "--ca", s.at("pki"), "--role", "keyserver", "--name", k.name,
		"--dns", name4(k.name), "--dns", name6(k.name), "--out", k.at("keyserver"))
}

// give gives it a site's private key.
func (k *keyServer) give(p *pair) error { return replace(k.file(p), p.key) }

// take takes the key away.
func (k *keyServer) take(p *pair) error { return os.Remove(k.file(p)) }

func (k *keyServer) file(p *pair) string {
	return k.at(fmt.Sprintf("keys/%s-%d.pem", p.name, p.version))
}

// replace puts a file in the place of another, as mv does.
func replace(name string, data []byte) error {
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func (s *system) newEdge(name string) error {
	e := &edge{dir: s.at(name), sites: s.sites}
	addrs := []netip.Addr{s.network.NewAddr(), s.network.NewAddr6()}
	balance, engine := "failover", "split"
	if name == "edge-2" {
		balance, engine = "round-robin", "standard"
	}
	var err error
	if e.daemon, err = s.newDaemon(name, "bin/ski-edgeserver", e.at("edge.yaml"), addrs...); err != nil {
		return err
	}
	s.edges = append(s.edges, e)
	if name == "edge-2" {
		s.nat = e.host.BehindNAT(s.network.NewAddr())
	}
	if err := errors.Join(os.MkdirAll(e.dir, 0o700), s.identifyEdge(e)); err != nil {
		return err
	}
	urls := func(format string, name func(string) string) string {
		return fmt.Sprintf("{urls: [%q, %q]}", fmt.Sprintf(format, name("ks-1")), fmt.Sprintf(format, name("ks-2")))
	}
	config := `listen: [":443"]
metrics: 127.0.0.1:9685
log: {level: debug}
keyserver:
  certificate: edge.pem
  key: edge.key
  ca: ../pki/ca.pem
  balance: ` + balance + `
keyservers:
  coaps: ` + urls("coaps://%s", name4) + `
  coaps6: ` + urls("coaps://%s", name6) + `
  tcp: ` + urls("coaps+tcp://%s", name4) + `
  https: ` + urls("https://%s:8443/ski", name4) + `
sites:
`
	for _, site := range e.sites {
		group, lines := site.group, "static_rsa: true"
		siteEngine := engine
		if site.group == "pms" {
			group, lines, siteEngine = "coaps", "method: ECDHE-PMS", "split"
		}
		config += fmt.Sprintf(`  - names: [%s]
    certificates: [%s-ecdsa.pem, %s-rsa.pem]
    static: %s
    keyserver: %s
    engine: %s
    %s
`, site.name, site.name, site.name, site.htdocs, group, siteEngine, lines)
		for _, p := range site.pairs {
			if err := replace(e.at(p.name+".pem"), p.certificate); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(e.at("edge.yaml"), []byte(config), 0o600)
}

func (e *edge) at(name string) string { return filepath.Join(e.dir, name) }

func (s *system) identifyEdge(e *edge) error {
	return skictl("pki", "issue", "--force", "--ca", s.at("pki"), "--role", "edge", "--name", e.name,
		"--dns", e.name+edgeSuffix, "--out", e.at("edge"))
}

// stop ends everything; it may be called again.
func (s *system) stop() {
	if s.stopped {
		return
	}
	s.stopped = true
	_ = s.load.stop()
	for i := len(s.daemons()) - 1; i >= 0; i-- { // the edges first
		if err := s.daemons()[i].stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	s.network.Close()
}

// verifyAudit checks the audit logs of the key servers, which have ended.
func (s *system) verifyAudit() error {
	var all []error
	for _, k := range s.keys {
		all = append(all, skictl("audit", "verify", "--key", k.at("audit.pub"), k.at("audit.log")))
	}
	return errors.Join(all...)
}
