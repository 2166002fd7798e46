package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/cmd/internal/keyparts"
	"github.com/tlsski/tlsski/hsm"
	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

func newKeyCommand() *cobra.Command {
	key := &cobra.Command{
		Use:   "key",
		Short: "Make and list keys on hardware security modules",
		Long: `Makes and lists private keys on PKCS #11 tokens: hardware security modules, smart
cards, SoftHSM. A key is named by a PKCS #11 URI (RFC 7512):

  pkcs11:token=site-keys;object=www.example.com?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/ski/pin

pin-source is file:PATH (of a file that its owner alone can read), credential:NAME
(of systemd) or env:NAME (an environment variable). The PIN itself cannot be in
the URI here: everybody on the machine sees the arguments of a command.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	key.AddCommand(newKeyCSRCommand(), newKeyGenerateCommand(), newKeyListCommand())
	return key
}

// tokenConfig is the hsm.Config for the URIs of a command line.
func tokenConfig(cmd *cobra.Command, uris ...string) (hsm.Config, error) {
	cfg := hsm.Config{
		MaxSessions: 1,
		Getenv:      os.Getenv,
		Logger:      slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelError + 1})),
	}
	for _, uri := range uris {
		if u, err := hsm.ParseURI(uri); err == nil && u.HasPINValue() {
			return cfg, fmt.Errorf("%s: pin-value would show the PIN to everybody on this machine: use pin-source", u)
		}
		cfg.Keys = append(cfg.Keys, hsm.Key{URI: uri})
	}
	return cfg, nil
}

func newKeyGenerateCommand() *cobra.Command {
	var uri, kind string
	var usage []string
	cmd := &cobra.Command{
		Use:   "generate --uri URI --type TYPE",
		Short: "Make a key pair on a token",
		Long: `Makes a key pair on the token of the URI and prints the URI and the fingerprint of
the new key. The URI's object is what the key is called, by policies too.

The private key cannot leave the token, from its first moment on: CKA_EXTRACTABLE
is false and CKA_SENSITIVE true. It can do what --usage says and nothing else;
decrypt is for the static RSA key exchange of TLS 1.2 and before.

Nobody can change that afterwards, nor its label and id: CKA_MODIFIABLE and
CKA_COPYABLE are false, and CKA_ALLOWED_MECHANISMS has what the usage takes, which
is CKM_ECDSA, CKM_EDDSA, or CKM_RSA_PKCS and CKM_RSA_PKCS_PSS to sign and
CKM_RSA_X_509 to decrypt with RSA. A token that does not know one of the three
gets a key without it, and the last lines say which: whoever has the PIN could
change the key, or a copy of it, to that extent.`,
		Example: `  skictl key generate --type ec-p256 \
    --uri 'pkcs11:token=site-keys;object=www.example.com?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			template := hsm.Template{Type: kind}
			for _, u := range usage {
				switch u {
				case "sign":
					template.Sign = true
				case "decrypt":
					template.Decrypt = true
				default:
					return fmt.Errorf("--usage is sign, decrypt or both with a comma, not %q", u)
				}
			}
			cfg, err := tokenConfig(cmd, uri)
			if err != nil {
				return err
			}
			info, err := hsm.Generate(cmd.Context(), cfg, template)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n%s, on the token %s (serial %s)\nspki: %s\n", info.URI, info.Type, info.Token, info.Serial, info.ID)
			writeLasting(cmd.OutOrStdout(), info)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&uri, "uri", "", "the `URI` of the token and, as object, the name of the key")
	f.StringVar(&kind, "type", "", "the `TYPE` of the key: "+hsm.KeyTypes())
	f.StringSliceVar(&usage, "usage", []string{"sign"}, "the `USAGE` of the key: sign, decrypt or both")
	return required(cmd, "uri", "type")
}

// writeLasting says what keeps a key as it was made, and what the token does not
// know of it.
func writeLasting(w io.Writer, k hsm.KeyInfo) {
	var set, not []string
	for _, a := range []struct {
		set         bool
		name, value string
	}{
		{!k.Modifiable, "CKA_MODIFIABLE", " false"},
		{!k.Copyable, "CKA_COPYABLE", " false"},
		{k.Mechanisms != nil, "CKA_ALLOWED_MECHANISMS", " " + strings.Join(k.Mechanisms, " ")},
	} {
		if a.set {
			set = append(set, a.name+a.value)
		} else {
			not = append(not, a.name)
		}
	}
	if len(set) > 0 {
		fmt.Fprintln(w, "set for good:", strings.Join(set, ", "))
	}
	if len(not) > 0 {
		fmt.Fprintln(w, "not set, since the token does not take it:", strings.Join(not, ", "))
	}
}

// required marks flags as such.
func required(cmd *cobra.Command, flags ...string) *cobra.Command {
	for _, name := range flags {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return cmd
}

func newKeyCSRCommand() *cobra.Command {
	var o csrOptions
	cmd := &cobra.Command{
		Use:   "csr --uri URI --dns NAME...",
		Short: "Make a certificate request for a key on a token",
		Long: `Makes a certificate request (PKCS #10) that the token signs, for the authority
that is to issue the site's certificate. It asks for the extended key usage
serverAuth: a certificate without one would let the key be used for everything.`,
		Example: `  skictl key csr --dns www.example.com,example.com --out www.example.com.csr \
    --uri 'pkcs11:token=site-keys;object=www.example.com?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.uri, "uri", "", "the `URI` of the key")
	f.StringVar(&o.publicKey, "public-key", "", "PEM `FILE` with the public half, if the token does not have it")
	f.StringVar(&o.subject, "subject", "", "the `SUBJECT` as in 'CN=www.example.com,O=Example,C=DE' (default: none, which needs a --dns or an --ip)")
	f.StringSliceVar(&o.dns, "dns", nil, "a `DNS` name of the site")
	f.IPSliceVar(&o.ips, "ip", nil, "an `IP` address of the site")
	f.StringVar(&o.out, "out", "", "the `FILE` to write (default: standard output)")
	return required(cmd, "uri")
}

type csrOptions struct {
	uri, publicKey, subject, out string
	dns                          []string
	ips                          []net.IP
}

// serverAuth is an extended key usage (RFC 5280, Section 4.2.1.12): a certificate
// without one would let the key be used for everything.
var serverAuth = pkix.Extension{
	Id:    asn1.ObjectIdentifier{2, 5, 29, 37},
	Value: []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1},
}

func (o *csrOptions) run(cmd *cobra.Command) error {
	template := &x509.CertificateRequest{DNSNames: o.dns, IPAddresses: o.ips, ExtraExtensions: []pkix.Extension{serverAuth}}
	var err error
	if template.Subject, err = parseSubject(o.subject); err != nil {
		return err
	}
	if o.subject == "" && len(o.dns)+len(o.ips) == 0 {
		return errors.New("the request names nobody: give a --dns, an --ip or a --subject")
	}
	for _, name := range o.dns {
		if name == "" || strings.ContainsFunc(name, notInName) || net.ParseIP(name) != nil {
			return fmt.Errorf("--dns %q is not a DNS name", name)
		}
	}
	cfg, err := tokenConfig(cmd, o.uri)
	if err != nil {
		return err
	}
	cfg.Keys[0].PublicKey = o.publicKey
	der, err := makeCSR(cmd.Context(), cfg, template)
	if err != nil {
		return err
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	if o.out == "" {
		_, err = cmd.OutOrStdout().Write(data)
		return err
	}
	return replaceFile(o.out, data, 0o644)
}

func makeCSR(ctx context.Context, cfg hsm.Config, template *x509.CertificateRequest) ([]byte, error) {
	store, err := hsm.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	keys := store.Keys()
	if len(keys) != 1 {
		return nil, fmt.Errorf("%s: it names %d keys, and a request is for one: add object or id", keys[0].URI, len(keys))
	}
	key, err := store.Signer(ctx, keys[0].ID)
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificateRequest(rand.Reader, template, key)
}

func newKeyListCommand() *cobra.Command {
	var uris []string
	var config string
	var asJSON, strict, generated bool
	cmd := &cobra.Command{
		Use:   "list (--uri URI... | --config FILE)",
		Short: "List the keys that a key server could serve",
		Long: `Lists every private key that the URIs name, or the configuration of a key server:
with its SPKI fingerprint, what it may be used for, where it lives, whether it can
be copied, and the certificates beside it that fit. A URI without object and id
names all keys of its token.

EXTRACTABLE is 'never' for a key that could not leave its token at any time, 'no'
for one that cannot leave it now, and otherwise 'yes'. GENERATED is 'yes' for a key
that was made on its token, and 'no' for one that was put there, of which there
may be copies.

Keys that the key server would refuse are listed too; why it would is on standard
error.`,
		Example: `  skictl key list --uri 'pkcs11:token=site-keys?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin'`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var keys []hsm.KeyInfo
			cfg, err := tokenConfig(cmd, uris...)
			if err == nil && config != "" {
				keys, cfg, err = configuredKeys(config, cfg.Logger)
			}
			if err != nil {
				return err
			}
			cfg.RequireNonExtractable = cfg.RequireNonExtractable || strict
			cfg.RequireGenerated = cfg.RequireGenerated || generated
			if len(cfg.Keys) > 0 {
				onTokens, err := hsm.List(cmd.Context(), cfg)
				if err != nil {
					return err
				}
				keys = append(keys, onTokens...)
			}
			if asJSON {
				return writeKeysJSON(cmd.OutOrStdout(), keys)
			}
			writeKeysTable(cmd.OutOrStdout(), keys)
			for _, k := range keys {
				if k.Problem != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: refused: %v\n", k.URI, k.Problem)
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&uris, "uri", nil, "the `URI` of a token or a key; can be repeated")
	f.StringVar(&config, "config", "", "the configuration `FILE` of a key server")
	f.BoolVar(&asJSON, "json", false, "print JSON: an array with an object for each key")
	f.BoolVar(&strict, "require-non-extractable", false, "refuse keys that can be taken off their token or could be before, as the key server does with require_non_extractable")
	f.BoolVar(&generated, "require-generated", false, "refuse keys that were not made on their token, as the key server does with require_generated")
	cmd.MarkFlagsOneRequired("uri", "config")
	cmd.MarkFlagsMutuallyExclusive("uri", "config")
	return cmd
}

// configuredKeys returns the keys in files that a configuration of the key
// server names, and the tokens.
func configuredKeys(file string, log *slog.Logger) ([]hsm.KeyInfo, hsm.Config, error) {
	c, err := keyserver.LoadConfig(file)
	if err != nil {
		return nil, hsm.Config{}, err
	}
	tokens := keyparts.HSMConfig(c, log)
	if c.Keys == "" {
		return nil, tokens, nil
	}
	folder, err := keyserver.LoadFolder(c.Keys)
	if err != nil {
		return nil, hsm.Config{}, err
	}
	dir, err := filepath.Abs(c.Keys)
	if err != nil {
		return nil, hsm.Config{}, err
	}
	var keys []hsm.KeyInfo
	for _, id := range folder.IDs() {
		name, public, _ := folder.Lookup(id)
		_, isRSA := public.(*rsa.PublicKey)
		k := hsm.KeyInfo{ID: id, Name: name, Type: hsm.TypeOf(public), Public: public, Signs: true, Decrypts: isRSA, Extractable: true, Modifiable: true, Copyable: true}
		for _, ending := range []string{".pem", ".key"} { // as LoadFolder has it
			path := filepath.Join(dir, name+ending)
			if data, err := os.ReadFile(path); err == nil {
				k.URI = (&url.URL{Scheme: "file", Path: path}).String()
				k.Certificates = certificatesOf(data, id)
				clear(data)
				break
			}
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b hsm.KeyInfo) int { return strings.Compare(a.Name, b.Name) })
	return keys, tokens, nil
}

// certificatesOf returns the certificates of a key among those in a PEM file.
func certificatesOf(data []byte, id ski.KeyID) (fit []*x509.Certificate) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return fit
		}
		if block.Type != "CERTIFICATE" {
			clear(block.Bytes)
			continue
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && ski.CertificateKeyID(cert) == id {
			fit = append(fit, cert)
		}
	}
}

func writeKeysTable(w io.Writer, keys []hsm.KeyInfo) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tTYPE\tUSAGE\tEXTRACTABLE\tGENERATED\tTOKEN\tSERIAL\tSPKI\tCERTIFICATES")
	for _, k := range keys {
		id, state := k.ID.String(), extractable(k)
		if k.ID.IsZero() {
			id = "-"
		}
		var certs []string
		for _, c := range k.Certificates {
			certs = append(certs, fmt.Sprintf("%s until %s", cmp.Or(c.Subject.String(), strings.Join(c.DNSNames, " ")), c.NotAfter.Format(time.DateOnly)))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Name, cmp.Or(k.Type, "-"), cmp.Or(strings.Join(usages(k), ","), "-"), state, yes(k.Local),
			cmp.Or(k.Token, "(file)"), cmp.Or(k.Serial, "-"), id, cmp.Or(strings.Join(certs, "; "), "-"))
	}
	_ = t.Flush()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func usages(k hsm.KeyInfo) []string {
	usage := []string{}
	if k.Signs {
		usage = append(usage, "sign")
	}
	if k.Decrypts {
		usage = append(usage, "decrypt")
	}
	return usage
}

func extractable(k hsm.KeyInfo) string {
	switch {
	case k.Extractable || !k.Sensitive:
		return "yes"
	case k.NeverExtractable && k.AlwaysSensitive:
		return "never"
	}
	return "no"
}

// keyJSON is a key in the output of list --json.
type keyJSON struct {
	hsm.KeyInfo
	Certificates []certificateJSON `json:"certificates"`
	Problem      string            `json:"problem,omitempty"`
}

type certificateJSON struct {
	Subject  string    `json:"subject"`
	DNSNames []string  `json:"dns_names"`
	NotAfter time.Time `json:"not_after"`
}

func writeKeysJSON(w io.Writer, keys []hsm.KeyInfo) error {
	all := []keyJSON{}
	for _, k := range keys {
		j := keyJSON{KeyInfo: k, Certificates: []certificateJSON{}}
		for _, c := range k.Certificates {
			j.Certificates = append(j.Certificates, certificateJSON{c.Subject.String(), append([]string{}, c.DNSNames...), c.NotAfter})
		}
		if k.Problem != nil {
			j.Problem = k.Problem.Error()
		}
		all = append(all, j)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(all)
}
