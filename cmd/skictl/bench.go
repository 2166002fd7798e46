package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/cmd/internal/skiurl"
	"github.com/tlsski/tlsski/ski"
)

type benchOptions struct {
	endpoint, site, method, protocol, hash, format string
	channel                                        channelFlags
	connections, inFlight                          int
	rate                                           float64
	duration, warmUp, timeout                      time.Duration
	serverPID                                      int
	json                                           bool
}

func newBenchCommand() *cobra.Command {
	o := &benchOptions{}
	cmd := &cobra.Command{
		Use:   "bench --endpoint URL (--cert FILE --key FILE --ca FILE | --psk-file FILE) --site FILE",
		Short: "Measure a key server under load",
		Long: `Sends a key server valid requests for one key, each for a handshake of its own,
and prints how many it answers, how fast, and at what cost.

Without --rate the load is flat out: each of --connections has --in-flight
requests in flight all the time, and a latency is the time from sending a request
to having its answer. With --rate the requests have a timetable, and a latency
counts from the time on it, so that what waits because the key server is slow
counts as slow (no coordinated omission).

With --method ECDHE-PMS both exchanges of a handshake are one operation.

It ends when it is interrupted, and prints what it has measured until then.

Bytes and datagrams of an operation are counted before the load, by a relay on
this machine: what UDP carries, or the bytes of TCP, without handshakes. CPU time
is the user and system time of the process --server-pid, of this machine.`,
		Example: `  skictl bench --endpoint coaps://127.0.0.1:5684/ski --cert edge.pem --key edge.key --ca ca.pem \
    --site www-ecdsa.pem --connections 8 --in-flight 8 --duration 10s --server-pid $(pidof ski-keyserver)`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.endpoint, "endpoint", "", "the key server's `URL`: coaps, coaps+tcp or https")
	o.channel.add(f)
	f.StringVar(&o.site, "site", "", "the certificate or public key of the key to ask for: a PEM `FILE`")
	f.StringVar(&o.method, "method", "ECDHE", "the `METHOD`: ECDHE, ECDHE-PMS, DHE or RSA")
	f.StringVar(&o.protocol, "protocol", "TLS 1.2", "the `PROTOCOL`: 'TLS 1.2' or 'TLS 1.3'")
	f.StringVar(&o.hash, "hash", "SHA-256", "the `HASH` of the signature in TLS 1.2")
	f.StringVar(&o.format, "format", "cbor", "cbor or json")
	f.IntVar(&o.connections, "connections", 1, "how many connections (`N`)")
	f.IntVar(&o.inFlight, "in-flight", 1, "how many requests are in flight on each (`N`)")
	f.Float64Var(&o.rate, "rate", 0, "requests a second in all (`N`); 0 is flat out")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "how long to measure (`TIME`)")
	f.DurationVar(&o.warmUp, "warm-up", time.Second, "how long to load before that (`TIME`)")
	f.DurationVar(&o.timeout, "timeout", ski.DefaultTimeout, "when a request counts as not answered (`TIME`)")
	f.IntVar(&o.serverPID, "server-pid", 0, "the key server's `PID`, if it runs on this machine")
	f.BoolVar(&o.json, "json", false, "print one JSON object")
	for _, name := range []string{"endpoint", "site"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return cmd
}

func (o *benchOptions) run(cmd *cobra.Command) error {
	work, err := o.workload()
	if err != nil {
		return err
	}
	id, err := o.channel.party()
	if err != nil {
		return err
	}
	t, err := parseTarget(o.endpoint)
	if err != nil {
		return err
	}
	f := ski.CBOR
	if o.format == "json" {
		f = ski.JSON
	}
	r := &benchReport{
		Endpoint: o.endpoint, Protocol: o.protocol, Method: o.method, Key: keyName(work.public), Format: o.format,
		Connections: o.connections, InFlight: o.inFlight, Rate: o.rate,
	}
	if r.Traffic, err = o.traffic(cmd.Context(), t, id, f, work); err != nil {
		return tooEarly(err)
	}
	l := &load{work: work, inFlight: o.inFlight, rate: o.rate, timeout: o.timeout}
	for range o.connections {
		c, err := id.transport(t, f, o.inFlight)
		if err != nil {
			return err
		}
		defer c.Close()
		l.connections = append(l.connections, c)
	}
	err = l.measure(cmd.Context(), o.warmUp, o.duration, o.serverPID, o.progress(cmd))
	if r.Interrupted = l.took > 0 && errors.Is(err, context.Canceled); err != nil && !r.Interrupted {
		return tooEarly(err)
	}
	l.report(r)
	if o.json {
		err = printJSON(cmd.OutOrStdout(), r)
	} else {
		err = r.print(cmd.OutOrStdout())
	}
	switch {
	case err != nil:
		return err
	case r.Interrupted:
		return errors.New("interrupted: the figures are those until then")
	case r.Operations == 0:
		return errors.New("no request was answered with an output")
	}
	return nil
}

// tooEarly is err, in other words where it is the user's interruption.
func tooEarly(err error) error {
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted before anything was measured")
	}
	return err
}

// workload reads the options about what is asked.
func (o *benchOptions) workload() (*workload, error) {
	keys, err := publicKeys(o.site)
	if err != nil {
		return nil, fmt.Errorf("--site: %w", err)
	}
	w := &workload{public: keys[0], protocol: ski.Protocol(o.protocol), method: ski.Method(o.method), hash: ski.Hash(o.hash)}
	if err := w.makeEphemeral(); err != nil {
		return nil, err
	}
	if w.key, err = ski.PublicKeyID(keys[0]); err != nil {
		return nil, fmt.Errorf("--site: %w", err)
	}
	_, isRSA := keys[0].(*rsa.PublicKey)
	switch {
	case !w.method.Valid():
		return nil, fmt.Errorf("--method: %q is not ECDHE, ECDHE-PMS, DHE or RSA", o.method)
	case w.protocol != ski.TLS12 && w.protocol != ski.TLS13:
		return nil, fmt.Errorf("--protocol: %q is neither 'TLS 1.2' nor 'TLS 1.3'", o.protocol)
	case !w.hash.Valid():
		return nil, fmt.Errorf("--hash: %q is not one of the hashes", o.hash)
	case w.method != ski.MethodECDHE && w.protocol != ski.TLS12:
		return nil, fmt.Errorf("--method %s is for TLS 1.2", w.method)
	case (w.method == ski.MethodRSA || w.method == ski.MethodDHE) && !isRSA:
		return nil, fmt.Errorf("--method %s is for an RSA key", w.method)
	case o.format != "cbor" && o.format != "json":
		return nil, fmt.Errorf("--format: %q is neither cbor nor json", o.format)
	case o.connections < 1 || o.connections > 1024 || o.inFlight < 1 || o.inFlight > 16384:
		return nil, errors.New("--connections is between 1 and 1024, --in-flight between 1 and 16384")
	case o.rate < 0 || o.duration <= 0 || o.warmUp < 0 || o.timeout <= 0:
		return nil, errors.New("--rate, --duration, --warm-up or --timeout is not above zero")
	}
	if _, ok := keys[0].(ed25519.PublicKey); ok {
		w.scheme = tls.Ed25519
	}
	if w.protocol == ski.TLS13 {
		w.scheme = schemeOf(keys[0])
	}
	return w, nil
}

func schemeOf(pub crypto.PublicKey) tls.SignatureScheme {
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		return tls.Ed25519
	case *ecdsa.PublicKey:
		switch pub.Params().BitSize {
		case 384:
			return tls.ECDSAWithP384AndSHA384
		case 521:
			return tls.ECDSAWithP521AndSHA512
		}
		return tls.ECDSAWithP256AndSHA256
	}
	return tls.PSSWithSHA256
}

func keyName(pub crypto.PublicKey) string {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + pub.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", pub.N.BitLen())
	}
	return "Ed25519"
}

// progress returns what is called every second, on a terminal alone.
func (o *benchOptions) progress(cmd *cobra.Command) func(elapsed time.Duration, operations, last int64) {
	w := cmd.ErrOrStderr()
	if !isTerminal(w) {
		return nil
	}
	const width = 30
	whole := o.warmUp + o.duration
	return func(elapsed time.Duration, operations, last int64) {
		if elapsed >= whole {
			fmt.Fprintf(w, "\r\x1b[K")
			return
		}
		done := int(width * elapsed / whole)
		fmt.Fprintf(w, "\r[%-*s] %d s of %d s, %d operations, %d/s\x1b[K", width, bar[:done],
			int(elapsed.Seconds()), int(whole.Seconds()), operations, last)
	}
}

const bar = "=============================="

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// transport returns the client that edge servers have, with room for inFlight
// requests. Nothing is sent yet.
func (id party) transport(t target, f ski.Format, inFlight int) (closingTransport, error) {
	cfg := skiurl.Config{
		RootCAs: id.authorities, PSK: id.psk, ServerName: id.serverName, Format: f, MaxInFlight: inFlight,
		Logger: slog.New(slog.DiscardHandler),
	}
	if id.certificate != nil {
		cfg.Certificate = *id.certificate
	}
	return skiurl.NewClient(t.scheme+"://"+t.addr+t.path, cfg)
}

// traffic counts what goes over the network for an operation.
func (o *benchOptions) traffic(ctx context.Context, t target, id party, f ski.Format, work *workload) (*benchTraffic, error) {
	relay, err := newRelay(t)
	if err != nil {
		return nil, err
	}
	defer relay.Close()
	id.serverName = id.name(t)
	t.addr = relay.addr()
	c, err := id.transport(t, f, 1)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ask := func() error {
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		if err := work.next().ask(ctx, c); err != nil {
			return fmt.Errorf("the first requests: %w", err)
		}
		return nil
	}
	if err := ask(); err != nil { // with the handshake
		return nil, err
	}
	const sample = 50
	before := relay.counted()
	for range sample {
		if err := ask(); err != nil {
			return nil, err
		}
	}
	return relay.counted().since(before, sample), nil
}
