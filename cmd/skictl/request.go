package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/cmd/internal/skiurl"
	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skihttp"
)

// statusRefused is the exit status for an answer that is one of the draft's
// errors.
const statusRefused exitStatus = 3

func newRequestCommand() *cobra.Command {
	o := &requestOptions{}
	cmd := &cobra.Command{
		Use:   "request --endpoint URL (--cert FILE --key FILE --ca FILE | --psk-file FILE) ...",
		Short: "Send one request to a key server",
		Long: `Sends one request to a key server and prints its answer as one JSON object, with
bytes in hexadecimal: {"output":"3045..."} or {"error":"request denied"}. With
ECDHE-PMS and --group, "params" and "state" are in it too; a second request with
that --state and the client's point as --input answers the PreMasterSecret.

An attribute that is not given is not sent, and one that is, is sent as it is,
however wrong: key servers can be tested with it. --raw sends any bytes at all.

--java is for the key server at github.com/mami-project/KeyServer, which names keys
and the hash in its own way and knows RSA keys and P-256 alone. The request then is
in JSON, and one that this key server cannot answer rightly is not sent.

The exit status is 0 for an output, 3 for an error that the key server answered,
and 1 for everything else.`,
		Example: `  skictl request --endpoint coaps://ks-1.example.net:5684/ski \
    --cert edge-1.pem --key edge-1.key --ca ca.pem \
    --protocol 'TLS 1.2' --hash SHA-256 --spki @www.example.com.pem --input @params.bin`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.endpoint, "endpoint", "", "the key server's `URL`: coaps://HOST[:PORT][/PATH], or coaps+tcp:// or https://")
	f.StringVar(&o.cert, "cert", "", "the edge server's certificate: a PEM `FILE`")
	f.StringVar(&o.key, "key", "", "the certificate's private key: a PEM `FILE`")
	f.StringVar(&o.ca, "ca", "", "the authority of the key server's certificate: a PEM `FILE`")
	f.StringVar(&o.pskFile, "psk-file", "", "a pre-shared key in place of certificates: a `FILE` with a line IDENTITY:HEX")
	f.StringVar(&o.pskIdentity, "psk-identity", "", "the `IDENTITY` among those of --psk-file (default: the only one)")
	f.StringVar(&o.serverName, "server-name", "", "the `NAME` in the key server's certificate (default: the URL's host)")
	f.DurationVar(&o.timeout, "timeout", ski.DefaultTimeout, "how long to wait for the answer (`TIME`)")
	f.StringVar(&o.format, "format", "cbor", "the `FORMAT` of both messages: cbor or json")
	f.BoolVar(&o.json, "json", false, "the same as --format json")
	cmd.MarkFlagsMutuallyExclusive("format", "json")
	f.StringVar(&o.java, "java", "", "ask the open source key server in Java, where keys have these `NAMES`: sha256, or sha1 of the certificate in --spki @FILE")
	f.BoolVar(&o.diag, "diag", false, "show both messages on standard error, in CBOR diagnostic notation")
	if err := cmd.MarkFlagRequired("endpoint"); err != nil {
		panic(err)
	}
	cmd.MarkFlagsRequiredTogether("cert", "key", "ca")
	cmd.MarkFlagsOneRequired("cert", "psk-file")
	cmd.MarkFlagsMutuallyExclusive("cert", "psk-file")
	addMessageFlags(cmd)
	return cmd
}

type requestOptions struct {
	endpoint, cert, key, ca, serverName string
	pskFile, pskIdentity                string
	timeout                             time.Duration
	format, java                        string
	json, diag                          bool
}

func (o *requestOptions) run(cmd *cobra.Command) error {
	format := ski.CBOR
	switch {
	case o.json, o.format == "json":
		format = ski.JSON
	case o.format != "cbor":
		return fmt.Errorf("--format: %q is neither cbor nor json", o.format)
	}
	var java *skihttp.JavaKeyServer
	if o.java != "" {
		var err error
		if java, err = javaKeyServer(o.java, cmd.Flag("spki").Value.String()); err != nil {
			return err
		}
		format = ski.JSON
	}
	body, err := encodeMessage(cmd, format)
	if err == nil && java != nil && !cmd.Flag(rawFlag).Changed {
		body, err = inJava(java, body)
	}
	if err != nil {
		return err
	}
	answer, err := o.exchange(cmd.Context(), format, java, body)
	if o.diag {
		diagnose(cmd.ErrOrStderr(), "request", format, body)
		if err == nil {
			diagnose(cmd.ErrOrStderr(), "answer", format, answer)
		}
	}
	if err != nil {
		return err
	}
	resp, err := ski.DecodeResponse(format, answer)
	if err != nil {
		return fmt.Errorf("the key server's answer: %w", err)
	}
	return printResponse(cmd.OutOrStdout(), resp)
}

// javaKeyServer returns how keys are named that are asked for with --spki. RSA is
// no danger here: no TLS client measures how long the answer takes.
func javaKeyServer(names, spki string) (*skihttp.JavaKeyServer, error) {
	switch names {
	case "sha256":
		return &skihttp.JavaKeyServer{UnsafeStaticRSA: true}, nil
	case "sha1":
		file, ok := strings.CutPrefix(spki, "@")
		if !ok {
			return nil, errors.New("--java sha1 needs the certificate: --spki @FILE")
		}
		cert, err := loadCertificate(file)
		if err != nil {
			return nil, fmt.Errorf("--java sha1: %w", err)
		}
		return &skihttp.JavaKeyServer{KeyName: skihttp.CertificateNames(cert), UnsafeStaticRSA: true}, nil
	}
	return nil, fmt.Errorf("--java: %q is neither sha256 nor sha1", names)
}

// inJava encodes a request again, as the key server in Java takes it.
func inJava(java *skihttp.JavaKeyServer, body []byte) ([]byte, error) {
	req, err := ski.DecodeRequest(ski.JSON, body)
	if err != nil {
		return nil, err
	}
	return java.EncodeRequest(req)
}

// loadCertificate reads the first certificate of a PEM file.
func loadCertificate(file string) (*x509.Certificate, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, fmt.Errorf("%s has no certificate in PEM form", file)
}

func (o *requestOptions) exchange(ctx context.Context, format ski.Format, java *skihttp.JavaKeyServer, body []byte) ([]byte, error) {
	cfg := skiurl.Config{
		ServerName: o.serverName,
		Java:       java,
		Logger:     slog.New(slog.DiscardHandler), // The error says it all.
	}
	if err := o.credentials(&cfg); err != nil {
		return nil, err
	}
	client, err := skiurl.NewClient(o.endpoint, cfg)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return client.Exchange(ctx, format, body)
}

func (o *requestOptions) credentials(cfg *skiurl.Config) (err error) {
	if o.pskFile != "" {
		cfg.PSK, err = loadPSK(o.pskFile, o.pskIdentity)
		return err
	}
	if cfg.Certificate, err = tls.LoadX509KeyPair(o.cert, o.key); err != nil {
		return fmt.Errorf("--cert and --key: %w", err)
	}
	cfg.RootCAs, err = loadPool(o.ca)
	return err
}

// loadPSK reads the key of an identity, or the only one that there is.
func loadPSK(file, identity string) (*ski.PSK, error) {
	if err := checkPrivate(file); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	all, err := ski.ParsePSKs(file, data)
	if err != nil {
		return nil, err
	}
	if identity == "" && len(all) > 1 {
		return nil, fmt.Errorf("%s has %d keys: say which with --psk-identity", file, len(all))
	}
	for _, one := range all {
		if identity == "" || one.Identity == identity {
			return &one, nil
		}
	}
	return nil, fmt.Errorf("%s has no key of the identity %q", file, identity)
}

func printResponse(w io.Writer, resp *ski.Response) error {
	line, err := json.Marshal(struct {
		Output string    `json:"output,omitempty"`
		Params string    `json:"params,omitempty"`
		State  string    `json:"state,omitempty"`
		Error  ski.Error `json:"error,omitempty"`
	}{hex.EncodeToString(resp.Output), hex.EncodeToString(resp.Params), hex.EncodeToString(resp.State), resp.Error})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "%s\n", line); err != nil {
		return err
	}
	if resp.Error != "" {
		return statusRefused
	}
	return nil
}

// diagnose shows a message: CBOR in diagnostic notation (RFC 8949, Section 8),
// JSON as it is, and what is neither in hexadecimal.
func diagnose(w io.Writer, what string, format ski.Format, data []byte) {
	text, err := string(data), error(nil)
	if format == ski.CBOR {
		text, err = cbor.Diagnose(data)
	} else if !json.Valid(data) {
		err = errors.New("it is not JSON")
	}
	if err != nil {
		text = fmt.Sprintf("h'%x' (not well-formed %s)", data, format)
	}
	fmt.Fprintf(w, "%s: %s\n", what, text)
}
