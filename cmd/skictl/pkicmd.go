package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/ski"
)

func newPKICommand() *cobra.Command {
	pki := &cobra.Command{
		Use:   "pki",
		Short: "Make the certificates of the SKI channel",
		Long: `Key servers and edge servers authenticate each other with certificates of a
private authority: 'pki init' makes it, 'pki issue' makes a certificate for each
server. They have nothing to do with the certificates of the web sites.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	pki.AddCommand(newPKIInitCommand(), newPKIIssueCommand())
	return pki
}

func newPKIInitCommand() *cobra.Command {
	var days int
	var force bool
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Make a certificate authority",
		Long: `Writes DIR/ca.pem, which every key server and edge server gets, and DIR/ca.key,
which makes new certificates and so belongs on neither. The key is ECDSA P-256.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			life, err := lifetime(days)
			if err != nil {
				return err
			}
			authority, err := newAuthority(time.Now(), life)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(args[0], 0o700); err != nil {
				return err
			}
			if err := authority.write(filepath.Join(args[0], "ca"), force); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, until %s\n", filepath.Join(args[0], "ca.pem"),
				authority.cert.Subject, authority.cert.NotAfter.Format(time.DateOnly))
			return nil
		},
	}
	cmd.Flags().IntVar(&days, "days", 3650, "how many `DAYS` the authority lasts")
	cmd.Flags().BoolVar(&force, "force", false, "replace the files if they exist; what the old authority issued is then worthless")
	return cmd
}

func newPKIIssueCommand() *cobra.Command {
	var o issueOptions
	cmd := &cobra.Command{
		Use:   "issue --ca DIR --role keyserver|edge --name NAME",
		Short: "Issue a certificate to a key server or an edge server",
		Long: `Writes PREFIX.pem, a certificate, and PREFIX.key, its ECDSA P-256 private key, and
prints the fingerprint by which a key server's policy can name the holder.

The certificate of a key server is good for servers only and that of an edge for
clients only, so that no edge can pose as the key server.`,
		Example: `  skictl pki issue --ca pki --role keyserver --name ks-1 --dns ks-1.example.net
  skictl pki issue --ca pki --role edge --name edge-1 --dns edge-1.example.net`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "ca", "", "the `DIR` of the authority (pki init)")
	f.StringVar(&o.role, "role", "", "what the certificate is for: keyserver or edge (`ROLE`)")
	f.StringVar(&o.name, "name", "", "the `NAME` of the holder, in the subject")
	f.StringSliceVar(&o.dns, "dns", nil, "a `DNS` name of the holder; a key server needs one, or an address, to be found by")
	f.IPSliceVar(&o.ips, "ip", nil, "an `IP` address of the holder")
	f.StringArrayVar(&o.uris, "uri", nil, "a `URI` that names the holder, such as spiffe://example.net/edge-1")
	f.IntVar(&o.days, "days", 90, "how many `DAYS` the certificate lasts")
	f.StringVar(&o.prefix, "out", "", "the `PREFIX` of the files (default: NAME)")
	f.BoolVar(&o.force, "force", false, "replace the files if they exist")
	for _, name := range []string{"ca", "role", "name"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return cmd
}

type issueOptions struct {
	dir, role, name, prefix string
	dns, uris               []string
	ips                     []net.IP
	days                    int
	force                   bool
}

func (o *issueOptions) run(cmd *cobra.Command) error {
	l, err := o.leaf()
	if err != nil {
		return err
	}
	prefix := o.prefix
	if prefix == "" {
		if prefix = o.name; strings.ContainsAny(prefix, `/\`) {
			return errors.New("--name has a slash: say with --out where the files go")
		}
	}
	authority, err := loadAuthority(o.dir)
	if err != nil {
		return err
	}
	id, err := authority.issue(l, time.Now())
	if err != nil {
		return err
	}
	if err := id.write(prefix, o.force); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s.pem: %s, %s, until %s\nspki: %s\n",
		prefix, o.role, id.cert.Subject, id.cert.NotAfter.Format(time.DateOnly), ski.CertificateKeyID(id.cert))
	return nil
}

func (o *issueOptions) leaf() (leaf, error) {
	life, err := lifetime(o.days)
	if err != nil {
		return leaf{}, err
	}
	l := leaf{name: o.name, dns: o.dns, ips: o.ips, life: life}
	switch o.role {
	case "keyserver":
		l.usage = x509.ExtKeyUsageServerAuth
		if len(o.dns)+len(o.ips) == 0 {
			return leaf{}, errors.New("a key server needs a --dns or an --ip: edge servers compare it with the address they dial")
		}
	case "edge":
		l.usage = x509.ExtKeyUsageClientAuth
	default:
		return leaf{}, fmt.Errorf("--role is keyserver or edge, not %q", o.role)
	}
	if o.name == "" {
		return leaf{}, errors.New("--name is empty")
	}
	for _, name := range o.dns {
		if name == "" || strings.ContainsFunc(name, notInName) || net.ParseIP(name) != nil {
			return leaf{}, fmt.Errorf("--dns %q is not a DNS name", name)
		}
	}
	for _, s := range o.uris {
		u, err := url.Parse(s)
		if err != nil || !u.IsAbs() {
			return leaf{}, fmt.Errorf("--uri %q is not an absolute URI", s)
		}
		l.uris = append(l.uris, u)
	}
	return l, nil
}

// notInName leaves only what can be in a host name, which is compared as it
// is; an internationalised one has its xn-- form.
func notInName(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '.' || r == '_' || r == '*')
}

func lifetime(days int) (time.Duration, error) {
	const most = 100 * 365 // A time.Duration ends at 292 years.
	if days < 1 || days > most {
		return 0, fmt.Errorf("--days is from 1 to %d", most)
	}
	return time.Duration(days) * day, nil
}
