package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// The exit statuses of skictl conformance: the number of failures up to a
// hundred, and one for a test that did not take place.
const (
	maxFailures             = 100
	statusNoTest exitStatus = 101
)

type conformanceOptions struct {
	endpoint, listen string
	channel          channelFlags
	json, list       bool

	keys, skip                           []string
	denied, skipFile, format, rsaFailure string
	noStaticRSA, patience                bool
	timeout                              time.Duration
	faults                               []string
	delay                                time.Duration
	count                                int
	draftOnly                            bool
}

func newConformanceCommand() *cobra.Command {
	o := &conformanceOptions{}
	cmd := &cobra.Command{
		Use:   "conformance --endpoint URL | --listen URL | --list",
		Short: "Test whether a key server or an edge server conforms to the draft",
		Long: `Tests an implementation of the draft, whoever wrote it, against the draft's text
and, where that is silent, docs/protocol.md.

With --endpoint it tests a key server: it runs the cases that --list lists, each
in CBOR and in JSON, as an edge server that may use the keys of --keys. What it
lacks for a case, and what --skip names, is skipped by name.

With --listen it is a key server, with the private keys of --keys, and tests the
edge server that asks it: it prints what is wrong with each request, and does to
the answers what --fault says. It runs until --count requests have come or it is
interrupted.

The exit status is the number of failures (cases, or requests with violations),
at most 100, and 101 where the test could not take place.`,
		Example: `  skictl conformance --endpoint coaps://ks-1.example.net/ski --cert edge-1.pem --key edge-1.key --ca ca.pem \
    --keys www-ecdsa.pem,www-rsa.pem --denied other.pem --skip extensions,rsa
  skictl conformance --listen coaps://127.0.0.1:5684/ski --cert ks.pem --key ks.key --ca ca.pem \
    --keys www-ecdsa.key --fault none,truncated-cbor,silent`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			status, err := o.run(cmd, args)
			if err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "skictl: %v\n", err)
				return statusNoTest
			}
			if status > 0 {
				return status
			}
			return nil
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		fmt.Fprintf(cmd.ErrOrStderr(), "skictl: %v\n", err)
		return statusNoTest
	})
	f := cmd.Flags()
	f.StringVar(&o.endpoint, "endpoint", "", "the key server to test: a `URL` with coaps, coaps+tcp or https")
	f.StringVar(&o.listen, "listen", "", "where to be a key server and test edge servers: a `URL`, or HOST:PORT for coaps://HOST:PORT/ski")
	f.BoolVar(&o.list, "list", false, "list the cases and the faults, and do nothing else")
	f.BoolVar(&o.json, "json", false, "print JSON: one object with --endpoint and --list, one for each request with --listen")
	o.channel.add(f)
	f.StringSliceVar(&o.keys, "keys", nil, "PEM `FILES` of the sites: with --endpoint certificates or public keys, the first of each type counts; with --listen private keys")
	f.StringVar(&o.denied, "denied", "", "a PEM `FILE` of a key that the key server has and does not grant")
	f.StringSliceVar(&o.skip, "skip", nil, "`NAMES` of cases, groups or formats that are out of scope, or extensions")
	f.StringVar(&o.skipFile, "skip-file", "", "a `FILE` of such names, one a line; # begins a comment")
	f.StringVar(&o.format, "format", "both", "cbor, json or both")
	f.StringVar(&o.rsaFailure, "rsa-failure", "random", "how a wrong PreMasterSecret is answered: random, or error, the draft's letter")
	f.BoolVar(&o.noStaticRSA, "no-static-rsa", false, "no key may be used with the method RSA")
	f.BoolVar(&o.patience, "patience", false, "run the cases, too, that wait for something to expire: half a minute")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long a case may take (`TIME`)")
	f.StringSliceVar(&o.faults, "fault", nil, "what to do to the answers, in turn: `FAULTS` that --list lists")
	f.DurationVar(&o.delay, "delay", 2*time.Second, "how late the answers of the fault slow are (`TIME`)")
	f.IntVar(&o.count, "count", 0, "end after `N` requests (default: when interrupted)")
	f.BoolVar(&o.draftOnly, "draft-only", false, "an extension in a request is a violation")
	return cmd
}

func (o *conformanceOptions) run(cmd *cobra.Command, args []string) (exitStatus, error) {
	modes := 0
	for _, set := range []bool{o.endpoint != "", o.listen != "", o.list} {
		if set {
			modes++
		}
	}
	switch {
	case len(args) > 0:
		return 0, fmt.Errorf("unknown argument %q", args[0])
	case modes != 1:
		return 0, errors.New("one of --endpoint, --listen and --list is needed")
	case o.list:
		return 0, o.printList(cmd.OutOrStdout())
	}
	id, err := o.channel.party()
	if err != nil {
		return 0, err
	}
	if id.psk != nil && (o.listen != "" || !strings.HasPrefix(o.endpoint, "coaps://")) {
		return 0, errors.New("--psk-file is for an --endpoint with coaps")
	}
	if o.listen != "" {
		return o.testEdge(cmd, id)
	}
	return o.testKeyServer(cmd, id)
}

func (o *conformanceOptions) testKeyServer(cmd *cobra.Command, id party) (exitStatus, error) {
	t, err := parseTarget(o.endpoint)
	if err != nil {
		return 0, err
	}
	cfg, err := o.config(t, id)
	if err != nil {
		return 0, err
	}
	w := t.dial(t, id)
	defer w.Close()
	cfg.Exchanger = w
	if err := reach(cmd.Context(), w, o.timeout); err != nil {
		return 0, fmt.Errorf("%s: %w", o.endpoint, err)
	}
	other, err := stranger(id)
	if err != nil {
		return 0, err
	}
	strange := t.dial(t, other)
	defer strange.Close()
	cfg.Stranger = strange
	if id.psk == nil { // there is no handshake with neither
		anonymous := t.dial(t, party{authorities: id.authorities, serverName: id.serverName})
		defer anonymous.Close()
		cfg.Anonymous = anonymous
	}
	r := &conformanceReport{Endpoint: o.endpoint, out: cmd.OutOrStdout(), quiet: o.json}
	if err := skitest.Run(cmd.Context(), cfg, r.add); err != nil {
		return 0, err
	}
	if err := r.finish(); err != nil {
		return 0, err
	}
	return exitStatus(min(r.Failed, maxFailures)), nil
}

func (o *conformanceOptions) config(t target, id party) (skitest.Config, error) {
	cfg := skitest.Config{
		Binding: t.family, Timeout: o.timeout, NoStaticRSA: o.noStaticRSA, Patience: o.patience, RSAFailureError: o.rsaFailure == "error", Skip: o.skip,
	}
	if o.rsaFailure != "random" && o.rsaFailure != "error" {
		return cfg, fmt.Errorf("--rsa-failure: %q is neither random nor error", o.rsaFailure)
	}
	switch o.format {
	case "both":
	case "cbor":
		cfg.Formats = []ski.Format{ski.CBOR}
	case "json":
		cfg.Formats = []ski.Format{ski.JSON}
	default:
		return cfg, fmt.Errorf("--format: %q is not cbor, json or both", o.format)
	}
	for _, file := range o.keys {
		keys, err := publicKeys(file)
		if err != nil {
			return cfg, fmt.Errorf("--keys: %w", err)
		}
		cfg.Keys = append(cfg.Keys, keys[0]) // those after a certificate are its issuers'
	}
	if o.denied != "" {
		keys, err := publicKeys(o.denied)
		if err != nil {
			return cfg, fmt.Errorf("--denied: %w", err)
		}
		cfg.Denied = keys[0]
	}
	if o.skipFile != "" {
		names, err := readNames(o.skipFile)
		if err != nil {
			return cfg, fmt.Errorf("--skip-file: %w", err)
		}
		cfg.Skip = append(cfg.Skip, names...)
	}
	return cfg, nil
}

// readNames reads a file of names, one a line.
func readNames(file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var names []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, _, _ := strings.Cut(lines.Text(), "#")
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names, lines.Err()
}

// reach finds out whether there is a key server at all: otherwise each case
// would fail after its time.
func reach(ctx context.Context, w wire, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := w.Exchange(ctx, &skitest.Question{ContentType: ski.CBOR.MediaType()})
	return err
}

// stranger returns a party that no one has vouched for.
func stranger(id party) (party, error) {
	if id.psk != nil {
		id.psk = &ski.PSK{Identity: id.psk.Identity, Key: make([]byte, 32)}
		rand.Read(id.psk.Key)
		return id, nil
	}
	now := time.Now()
	authority, err := newAuthority(now, 2*day)
	if err != nil {
		return party{}, err
	}
	other, err := authority.issue(leaf{name: "stranger", usage: x509.ExtKeyUsageClientAuth, dns: []string{"stranger.invalid"}, life: day}, now)
	if err != nil {
		return party{}, err
	}
	id.certificate = &tls.Certificate{Certificate: [][]byte{other.cert.Raw}, PrivateKey: other.key}
	return id, nil
}

// conformanceReport is what --json prints.
type conformanceReport struct {
	Endpoint string              `json:"endpoint"`
	Passed   int                 `json:"passed"`
	Failed   int                 `json:"failed"`
	Skipped  int                 `json:"skipped"`
	Results  []conformanceResult `json:"results"`

	out   io.Writer
	quiet bool
}

type conformanceResult struct {
	Name     string          `json:"name"`
	Outcome  skitest.Outcome `json:"outcome"`
	Reason   string          `json:"reason,omitempty"`
	Section  string          `json:"section"`
	Rule     string          `json:"rule"`
	Duration float64         `json:"seconds"`
}

func (r *conformanceReport) add(res skitest.Result) {
	switch res.Outcome {
	case skitest.Pass:
		r.Passed++
	case skitest.Fail:
		r.Failed++
	case skitest.Skip:
		r.Skipped++
	}
	if r.quiet {
		r.Results = append(r.Results, conformanceResult{
			res.Name(), res.Outcome, res.Reason, res.Case.Section, res.Case.Rule, res.Duration.Seconds(),
		})
		return
	}
	fmt.Fprintf(r.out, "%-4s  %-44s  %s\n", res.Outcome, res.Name(), res.Case.Section)
	switch res.Outcome {
	case skitest.Fail:
		fmt.Fprintf(r.out, "      rule: %s\n      %s\n", res.Case.Rule, res.Reason)
	case skitest.Skip:
		fmt.Fprintf(r.out, "      %s\n", res.Reason)
	}
}

func (r *conformanceReport) finish() error {
	if !r.quiet {
		_, err := fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.Passed, r.Failed, r.Skipped)
		return err
	}
	return printJSON(r.out, r)
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

type listedCase struct {
	Name      string         `json:"name"`
	Section   string         `json:"section"`
	Rule      string         `json:"rule"`
	Extension bool           `json:"extension,omitempty"`
	Needs     []skitest.Need `json:"needs,omitempty"`
}

type listedFault struct {
	Name   string `json:"name"`
	Does   string `json:"does"`
	Expect string `json:"expect"`
}

func (o *conformanceOptions) printList(w io.Writer) error {
	var list struct {
		Cases  []listedCase  `json:"cases"`
		Faults []listedFault `json:"faults"`
	}
	for _, c := range skitest.Cases() {
		list.Cases = append(list.Cases, listedCase{c.Name, c.Section, c.Rule, c.Extension, c.Needs})
	}
	for _, f := range skitest.EdgeFaults() {
		list.Faults = append(list.Faults, listedFault{f.Name, f.Does, f.Expect})
	}
	if o.json {
		return printJSON(w, list)
	}
	for _, c := range list.Cases {
		extension := ""
		if c.Extension {
			extension = " (extension)"
		}
		fmt.Fprintf(w, "%-40s %s%s\n    %s\n", c.Name, c.Section, extension, c.Rule)
	}
	for _, f := range list.Faults {
		fmt.Fprintf(w, "--fault %-32s %s\n    %s\n", f.Name, f.Does, f.Expect)
	}
	return nil
}
