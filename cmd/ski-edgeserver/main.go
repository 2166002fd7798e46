// The ski-edgeserver command terminates TLS for web sites whose private keys
// stay on a key server.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/tlsski/tlsski/edgeserver"
	"github.com/tlsski/tlsski/internal/logqueue"
)

const usage = `Usage: ski-edgeserver -config FILE [-check]

Serves HTTPS for one or more sites without having their private keys. For each
full handshake it asks a key server, over a mutually authenticated channel, to do
the one operation that needs the private key. Requests go on to the site's
origin server, or are answered from a folder of files. A tcp site's connections
are carried to its origin whatever is spoken on them.

  -config FILE  the configuration, YAML
  -check        check the configuration and the files it names, print a summary
                of the sites, and exit: 0 if all is well, 1 if not
  -version      print the version and exit
  -h            print this text and exit

A configuration. Paths are relative to its folder; what is commented out shows
the default, or what else could be there.

  # listen: [":8443"]        # or the sites' addresses, where all have some
  # trusted_proxies: [192.0.2.0/24]       # networks of proxies before this server whose
                             # Forwarded and X-Forwarded-* go on to the origin; none
  keyserver:
    url: coaps://ski.example.com:5684/ski     # or coaps+tcp://, https://
    # urls:                  # instead of url: several that have the same keys, the
                             # preferred first; a name with several addresses, too,
                             # is a key server at each
    # balance: failover      # which answers first: the preferred that answers, or
                             # round-robin, or least-latency
    # hedge: {max_extra: 0}  # the share of requests, 0.05 say, that may go to a second
                             # key server while the first is slower than usual
    certificate: edge.pem    # who this edge server is to the key server
    key: edge.key            # readable by its owner only (chmod 600)
    ca: ca.pem               # who signs the key server's certificate
    # psk: edge.psk          # instead of the three, a line IDENTITY:HEX (chmod 600)
    # server_name:           # the name in it, if not the one in url
    # timeout: 5s            # for an answer; then the client gets a TLS alert
    # mtu: 0                 # coaps://: the longest IP packet that the path carries, 400 to
                             # 65535 bytes; 0: finds out, beginning with 1280
    # draft_only: false      # the key server knows no extensions of the draft
    # java_names: sha256     # it is the open source one in Java, at https://, which
                             # has RSA keys by SPKI fingerprint; sha1: certificate's
    # unsafe_java_static_rsa: false   # lets sites with static_rsa use it, whose clients
                             # can then decrypt recorded connections by its time
  # keyserver: embedded      # instead: one in this process, see below
  # embedded: keyserver.yaml # its configuration
  # keyservers:              # others, for sites that name them; what they leave out
                             # of the above but the URLs, server_name, draft_only and
                             # what is about Java is as above
    # berlin: {urls: ["coaps://a.example.net", "coaps://b.example.net"]}
  sites:
    - names: [www.example.com, "*.example.com"]
      certificates: [ecdsa.pem, rsa.pem]    # chains, without private keys
      proxy: http://127.0.0.1:8080
                             # or https://, or h2c:// for HTTP/2 without TLS (gRPC)
      # origin_timeout: 1m   # for the origin to begin its answer; then 504
      # static: ./htdocs     # instead of proxy
      # tcp: 127.0.0.1:1883  # instead of proxy: not HTTP, what is within TLS as it is
      # alpn: [mqtt]         # tcp: the protocols that clients can ask for
      # idle_timeout: 10m    # tcp: neither side has sent for so long
      # proxy_protocol: false    # tcp: begin with a PROXY header, version 2
      # addresses: [192.0.2.1, "192.0.2.2:443"]   # local ones that it is served on;
                             # there can be another site of the same name on others
      # client_certificates: {mode: off}    # or optional, required, with ca: FILE; the
                             # origin gets Client-Cert (RFC 9440), with forward_chain:
                             # true Client-Cert-Chain too
      # keyserver: berlin    # of keyservers; default: keyserver
      # static_rsa: false    # cipher suites without forward secrecy
      # engine: standard     # or split: session keys derived by the project's own TLS 1.2
      # versions: [TLS 1.2, TLS 1.3]    # with engine: split only TLS 1.2 unless said
      # method: ECDHE        # engine: split, or ECDHE-PMS: the key server's ephemeral key
      # groups: [x25519, secp256r1, secp384r1]    # of ephemeral keys, secp521r1 too; the
                             # key server's policy has to grant those of TLS 1.2
      # legacy_master_secret: false     # engine: split, clients without RFC 7627
      # tickets: local       # session tickets with keys of this process; shared: with other
                             # edges of the site, from the key server; off
      # ticket_site:         # the site's name in the key server's policy; default: names[0]
      # default: false       # also for unknown names and clients without SNI
  # proxy_protocol: {from: [192.0.2.0/24]}    # load balancers, whose connections have
                             # to begin with a PROXY header, version 2; default: none
  # limits:                # what clients can take for themselves
    # connections: 16384     # further ones wait until others have ended
    # connections_per_address: 1024   # of an IPv4 address or IPv6 /64; further ones
                             # are closed at once
    # handshakes: 4096       # from the ClientHello on; further ones get an alert
    # header_bytes: 65536    # of a request
    # handshake_timeout: 10s # for the client's part of it, its ClientHello first
    # header_timeout: 10s    # to send a request's header
    # request_timeout:       # to send a whole request; default: as long as it takes
    # write_timeout: 1m      # to take a piece of an answer
    # idle_timeout: 2m       # without a request
  # shutdown_delay: 0s       # goes on so long, not ready, before it stops
  # access_log:              # a line for each request, or 'access_log' of a site
  #   file: off              # a file; "-" is standard output, stderr standard error
  #   format: json           # or combined, Apache's
  #   query: false           # with the queries of URLs, which often have secrets in them
  # metrics: 127.0.0.1:9685  # GET /metrics, /healthz and /readyz; default: nowhere
  # metrics_public: false    # lets metrics be an address that others reach
  # shutdown_timeout: 10s    # for requests in flight
  # key_log: keys.txt      # the secrets of all connections, for debugging only
  # log: {level: info, format: text}    # debug, warn, error; json

With 'keyserver: embedded' the private keys are used by this process itself, best
on a PKCS #11 token. That needs a program built with -tags embedded, as
ski-edgeserver-embedded is. keyserver.yaml is then what ski-keyserver -h shows of

  hsm:
    keys: [{uri: "pkcs11:token=T?module-path=/usr/lib/m.so&pin-source=file:pin"}]
    require_non_extractable: true      # no key that can or could be copied off its
    require_generated: true            # token, or was put there; both recommended
  policy: policy.yaml
  # keys, audit, rsa_failure, rsa_failure_secret_file, state_key_file, ticket_secret_file,
  # state (what stands beside it alone), rsa_workers, max_in_flight, max_wait

and its policy knows this edge server as one with

  edges: [{name: edge-1, uri: ["tlsski:embedded"]}]

-check shows what it grants. On SIGHUP the audit log is opened anew if the file was
moved away, and the policy is read again, as it is when it changes.

On SIGHUP, and when one of them changes, it reads the configuration and the files
it names again: new connections get what is new, those that there are go on and
end with the answer to their next request. A configuration with a fault in it is
refused with a line in the log, and the one before stays. A site's certificate with
a new key is taken up once a key server serves the key, or in the last hour of the
one before, which stays until then; so it does when the file is broken. What stands
in log, embedded, metrics and keyserver.yaml takes a restart. On SIGHUP the files of
access logs and key_log are opened anew, too. Nothing waits for a log: lines that
cannot be written, or that nobody reads, are dropped and counted.
On SIGINT or SIGTERM it stops listening and lets requests in flight finish. A
second signal ends it at once.
systemd is told when it is ready, reloads and stops (Type=notify), and that it is
alive (WatchdogSec=).
`

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its surroundings as arguments. It returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("ski-edgeserver", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	file := flags.String("config", "", "")
	check := flags.Bool("check", false, "")
	version := flags.Bool("version", false, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument '%s'", flags.Arg(0))
	case err == nil && *version:
		fmt.Fprintln(stdout, versionLine())
		return 0
	case err == nil && *file == "":
		err = errors.New("-config FILE is missing")
	}
	if err != nil {
		fmt.Fprintf(stderr, "ski-edgeserver: %v\nsee ski-edgeserver -h\n", err)
		return 2
	}

	// Before anything that takes time: one that comes meanwhile, logrotate's say,
	// would end the process.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	cfg, err := edgeserver.Load(*file)
	if err != nil {
		return fail(stderr, err)
	}
	log, logged := cfg.Log.Logger(stderr), (*logqueue.Queue)(nil)
	if !*check { // From here on nothing waits for who reads the log.
		logged = logqueue.New(stderr, func(w io.Writer) slog.Handler { return cfg.Log.Logger(w).Handler() })
		defer logged.Close()
		log, stderr = slog.New(logged.Handler()), logged
		// A reader of standard output or error that has gone is an error of the write,
		// not the end of the edge server.
		signal.Ignore(syscall.SIGPIPE)
	}
	// What net/http has no other logger for: above all what an origin has sent
	// unasked, which is quoted and can be meant for a client.
	slog.SetLogLoggerLevel(slog.LevelDebug)
	slog.SetDefault(log)
	var own ownKeyServer
	if cfg.KeyServer.Embedded {
		if own, err = openEmbedded(cfg, *check, log); err != nil {
			return fail(stderr, err)
		}
		defer own.close()
	}
	passed := inherit()
	passed.give(&cfg)
	d, err := newDaemon(*file, cfg, own, log)
	if err != nil {
		return fail(stderr, err)
	}
	defer d.close()
	if *check {
		summary(stdout, *file, cfg, d.srv.Sites())
		if own != nil {
			own.summary(stdout, d.srv.Sites())
		}
		return 0
	}
	log.Info("starting", "version", buildVersion(), "keyserver", strings.Join(endpoints(cfg), ","), "sites", len(cfg.Sites))
	stopMetrics, err := serveMetrics(cfg, d.srv, own, log, logged)
	if err != nil {
		return fail(stderr, err)
	}
	defer stopMetrics()
	d.sockets = passed
	d.keyServers.start()
	if err := d.serve(hangups); err != nil {
		log.Error("the edge server has ended", "error", err)
		return 1
	}
	log.Info("stopped")
	return 0
}

func fail(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "ski-edgeserver: %v\n", err)
	status := interface{ ExitStatus() int }(nil)
	if errors.As(err, &status) {
		return status.ExitStatus()
	}
	return 1
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func versionLine() string { return "ski-edgeserver " + buildVersion() }
