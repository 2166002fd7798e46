package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/ski"
)

func newSetupCommand() *cobra.Command {
	var o setupOptions
	cmd := &cobra.Command{
		Use:   "setup --dir DIR --proxy URL|--static FOLDER FILE...",
		Short: "Make a key server's and an edge server's folder for one site",
		Long: `Makes in DIR, which must be empty or not exist, all that a site needs:

  DIR/keyserver  for the key server: its configuration and policy, who it is, the
                 key that signs its audit log, and a copy of the site's private keys
  DIR/edge       for the edge server: its configuration, who it is, and the site's
                 certificates
  DIR/pki        the authority of the two, for renewals ('pki issue --ca'), and
                 what the audit log is checked with ('audit verify --key'); it
                 belongs on neither

FILEs are in PEM form and have the site's certificate chains, each with the
site's own certificate first, and their private keys: apart or in one file, in
any order. There can be one chain, or one for each type of key; clients that know
ECDSA do not get RSA. The site has the names that are in all of them.

The folders keyserver and edge can then go to machines of their own. With
--keyserver, the edge server looks for the key server there.`,
		Example: `  skictl setup --dir www --proxy http://127.0.0.1:8080 fullchain.pem privkey.pem
  skictl setup --dir www --static htdocs --keyserver ks-1.example.net ecdsa.pem ecdsa.key rsa.pem rsa.key`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error { return o.run(cmd.OutOrStdout(), files) },
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "the folder to make everything in (`DIR`)")
	f.StringVar(&o.proxy, "proxy", "", "the `URL` of the origin server that has the site's content")
	f.StringVar(&o.static, "static", "", "or the `FOLDER` whose files are the site's content")
	f.StringVar(&o.listen, "listen", ":8443", "where the edge server serves HTTPS (`ADDRESS`)")
	f.StringVar(&o.keyServer, "keyserver", "127.0.0.1:5684", "where the edge server finds the key server (`HOST[:PORT]`)")
	f.IntVar(&o.days, "days", 90, "how many `DAYS` the two servers' certificates last")
	_ = cmd.MarkFlagRequired("dir")
	cmd.MarkFlagsOneRequired("proxy", "static")
	cmd.MarkFlagsMutuallyExclusive("proxy", "static")
	return cmd
}

type setupOptions struct {
	dir, proxy, static, listen, keyServer string
	days                                  int
}

// The names of the edge server in the policy and in its certificate.
const (
	setupEdge    = "edge-1"
	setupEdgeDNS = "edge-1.ski.internal"
)

const (
	setupKeyServerConfig = `listen: %q
certificate: keyserver.pem
key: keyserver.key
client_ca: ca.pem
keys: keys
policy: policy.yaml
state: state.json
audit: {file: audit.log, required: true, key: audit.key}
`
	setupPolicy = `edges:
  - name: ` + setupEdge + `
    dns: [` + setupEdgeDNS + `]
rules:
  - edges: [` + setupEdge + `]
    keys: [%s]
    methods: [ECDHE]
    server_names: [%s]
`
	setupEdgeConfig = `listen: [%q]
keyserver:
  url: %q
  certificate: edge.pem
  key: edge.key
  ca: ca.pem
sites:
  - names: [%s]
    certificates: [%s]
    %s: %q
`
)

func (o *setupOptions) run(stdout io.Writer, files []string) error {
	life, err := lifetime(o.days)
	if err != nil {
		return err
	}
	host, port := o.keyServerAddress()
	server := leaf{name: "key server", usage: x509.ExtKeyUsageServerAuth, life: life}
	listen := ":" + port
	if addr, err := netip.ParseAddr(host); err == nil {
		server.ips = []net.IP{addr.AsSlice()}
		if addr.IsLoopback() {
			listen = net.JoinHostPort(host, port)
		}
	} else if server.dns = []string{host}; host == "" || strings.ContainsFunc(host, notInName) {
		return fmt.Errorf("--keyserver %q is not HOST or HOST:PORT", o.keyServer)
	}
	content, from := "proxy", o.proxy
	if o.static != "" {
		content = "static"
		if from, err = filepath.Abs(o.static); err != nil {
			return err
		}
	}
	site, err := readSetupSite(files)
	if err != nil {
		return err
	}
	if entries, err := os.ReadDir(o.dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty", o.dir)
	}
	at := func(name string) string { return filepath.Join(o.dir, filepath.FromSlash(name)) }
	for _, sub := range []struct {
		name string
		mode os.FileMode
	}{{"", 0o755}, {"keyserver", 0o700}, {"keyserver/keys", 0o700}, {"pki", 0o700}, {"edge", 0o755}} {
		if err := os.MkdirAll(at(sub.name), sub.mode); err != nil {
			return err
		}
	}
	edge := leaf{name: setupEdge, usage: x509.ExtKeyUsageClientAuth, dns: []string{setupEdgeDNS}, life: life}
	if err := makeChannel(o.dir, max(life+day, 10*365*day), server, edge); err != nil {
		return err
	}

	// Who could replace the public key could replace the log.
	if err := makeAuditKey(io.Discard, at("keyserver/audit"), false); err != nil {
		return err
	}
	if err := os.Rename(at("keyserver/audit.pub"), at("pki/audit.pub")); err != nil {
		return err
	}

	var keys, certificates []string
	for _, c := range site.chains {
		keys, certificates = append(keys, c.name), append(certificates, c.name+".pem")
		if err := replaceFile(at("keyserver/keys/"+c.name+".pem"), c.keyPEM, 0o600); err != nil {
			return err
		}
		if err := replaceFile(at("edge/"+c.name+".pem"), c.pem(), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "certificate  %s  spki %s  until %s\n", certificates[len(certificates)-1],
			ski.CertificateKeyID(c.certs[0]), c.certs[0].NotAfter.Format(time.DateOnly))
	}
	for name, text := range map[string]string{
		"keyserver/keyserver.yaml": fmt.Sprintf(setupKeyServerConfig, listen),
		"keyserver/policy.yaml":    fmt.Sprintf(setupPolicy, quoted(keys), quoted(site.names)),
		"edge/edge.yaml": fmt.Sprintf(setupEdgeConfig, o.listen, "coaps://"+net.JoinHostPort(host, port),
			quoted(site.names), quoted(certificates), content, from),
	} {
		if err := replaceFile(at(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintf(stdout, "site         %s\nkey server   ski-keyserver -config %s\nedge server  ski-edgeserver -config %s\n",
		strings.Join(site.names, ", "), at("keyserver/keyserver.yaml"), at("edge/edge.yaml"))
	return nil
}

// keyServerAddress cuts --keyserver.
func (o *setupOptions) keyServerAddress() (host, port string) {
	if host, port, err := net.SplitHostPort(o.keyServer); err == nil {
		return host, port
	}
	return strings.Trim(o.keyServer, "[]"), "5684"
}

// quoted is a YAML list without its brackets.
func quoted(all []string) string {
	var b strings.Builder
	for i, s := range all {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", s)
	}
	return b.String()
}

// makeChannel makes the certificates of the SKI channel in the folders of dir:
// pki has their authority, keyserver and edge one each.
func makeChannel(dir string, authorityLife time.Duration, keyServer, edge leaf) error {
	now := time.Now()
	authority, err := newAuthority(now, authorityLife)
	if err != nil {
		return err
	}
	if err := authority.write(filepath.Join(dir, "pki", "ca"), false); err != nil {
		return err
	}
	for folder, l := range map[string]leaf{"keyserver": keyServer, "edge": edge} {
		id, err := authority.issue(l, now)
		if err != nil {
			return err
		}
		if err := id.write(filepath.Join(dir, folder, folder), false); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, folder, "ca.pem"), authority.certPEM(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
