// The ski-keyserver command holds the private keys of web sites and does, for
// edge servers, the operations that TLS handshakes need.
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
	"syscall"

	"github.com/tlsski/tlsski/hsm"
	"github.com/tlsski/tlsski/internal/logqueue"
	"github.com/tlsski/tlsski/keyserver"
)

const usage = `Usage: ski-keyserver -config FILE [-check]

Holds the private keys of web sites. Edge servers ask it, over CoAP on DTLS or
TLS, or over HTTPS, mutually authenticated, to sign or to decrypt what a TLS
handshake needs; the keys never leave it.

  -config FILE  the configuration, YAML
  -check        check the configuration and all files it names, print a summary
                and who may use which key, and exit
  -version      print the version and exit
  -h            print this text and exit

A configuration. Paths are relative to its folder; what is commented out shows
the default.

  # listen: ":5684"          # UDP; port 0 takes a free one, see the log
  # coaps_tcp:               # TCP, the same as CoAP over TLS, e.g. ":5684"; default: nowhere
  # https:                   # TCP, the same over HTTPS, e.g. ":8443"; default: nowhere
  # mtu: 0                   # of 'listen': the longest IP packet that the paths to all edges
                             # carry, 400 to 65535 bytes; 0: finds out, beginning with 1280
  # path: /ski
  certificate: keyserver.pem # who this key server is to edge servers
  key: keyserver.key         # readable by its owner only (chmod 600)
  client_ca: ca.pem          # who signs the edge servers' certificates
  keys: keys                 # folder of *.pem and *.key, each with one private
                             # key: PKCS#8, PKCS#1 or SEC 1, chmod 600
  # hsm:                     # keys on PKCS#11 tokens, beside or instead of 'keys'
  #   keys:                  # a URI without object and id: all keys of the token
  #     - uri: "pkcs11:token=T;object=www.example.com?module-path=/usr/lib/m.so&pin-source=file:pin"
  #       name:              # default: its label
  #       public: www.pem    # its certificate or public key; default: the token's
  #   max_sessions: 16       # operations at once, of each token
  #   require_non_extractable: false     # refuses keys that can be copied off their
  #                          # token, or could be before, and those in files
  #   require_generated: false           # refuses keys that were not made on their
  #                          # token; recommended, as the former is
  #   folders: []            # what modules read and write while it runs (sandbox)
  #   network: false         # lets modules open TCP connections (sandbox)
  policy: policy.yaml
  # state:                   # file that keeps which edges are suspended; beside it, as
                             # FILE.addresses, from where edges have been authenticated,
                             # as FILE.tickets, what ticket keys come from, and as
                             # FILE.audit, how far the audit log goes
  # psk:                     # pre-shared keys, for edges without a certificate:
                             # lines IDENTITY:HEX, chmod 600; read again when changed
  # psk_without_forward_secrecy: false   # for clients that have no better suite
  # crl:                     # CRLs of client_ca, PEM or DER; read again when changed
  # crl_expired: warn        # or refuse, which is recommended: while the CRL of an edge's
                             # authority is past its nextUpdate, or missing, the edge
                             # gets no session
  # admin:                   # unix socket for skictl edge, e.g. /run/ski/admin.sock
  # audit:                   # JSON lines; keep them from edge servers (chmod 600)
  #   file: "-"              # "-" is standard output
  #   required: false        # whether nothing is answered that is not recorded, and
                             # the start fails if the log is not as it was left
                             # (with state): skictl audit accept
  #   key:                   # Ed25519, signs checkpoints: skictl audit keygen
  #   witness:               # file on another mount: proves, even where log and
                             # state are replaced, how far the log went; needs key
                             # and state. Over a network: skictl audit witness
  #   checkpoint_records: 1000
  #   checkpoint_interval: 1m
  #   max_size_mib: 0        # begins a new file at this size; 0: never
  #   sync: false            # whether each record waits for the disk
  #   reserve_mib: 64        # of the disk, for the records of what is answered: with
                             # less, refusals are only counted; 0: none
  # rsa_failure: random      # error is the draft's letter, and a padding oracle
  # rsa_failure_secret_file: # 32 bytes or more, the same on a whole fleet;
                             # default: derived from each private key
  # state_key_file:          # 32 bytes or more, the same on a whole fleet, seals
                             # what ECDHE-PMS leaves with edges; default: random
  # ticket_secret_file:      # 32 bytes or more, the same on a whole fleet: what the
                             # ticket keys of the policy begin with. With 'state'
                             # they go on from FILE.tickets, which forgets those
                             # that have expired: remove setting and file after the
                             # first start. A later key server gets them with
                             # skictl tickets request, export and import. Default:
                             # FILE.tickets, or else random
  # rsa_workers: 0           # RSA, P-384, P-521 operations at once; 0: processors less one
  # max_in_flight: 4096      # requests at work at once; an edge: as many as are free
  # max_wait: 2s             # for their turn, of those operations; more is refused as
                             # overload: less than half of 'timeout' of the edges
  # shutdown_timeout: 10s    # for requests in flight
  # sandbox: auto            # off, for debuggers: core dumps, and no Landlock
  # metrics: 127.0.0.1:9684  # GET /metrics and /healthz; default: nowhere
  # metrics_public: false    # lets metrics be an address that others reach
  # log: {level: info, format: text}     # debug, warn, error; json

A policy. What no rule grants is denied.

  edges:
    - name: edge-1           # a peer whose certificate has one of these is edge-1
      dns: [edge-1.example.net]
      # uri: [spiffe://example.net/edge-1]
      # spki: [SHA-256 of its public key, 64 hexadecimal digits]
      # psk: [identity of its pre-shared key]
  rules:
    - edges: [edge-1]
      keys: [www.example.com]            # names of files, fingerprints or "*"
      methods: [ECDHE]                   # DHE, ECDHE-PMS; RSA has no forward
                                         # secrecy
      # protocols: [TLS 1.2, TLS 1.3, DTLS 1.2, DTLS 1.3]
      # algorithms: [SHA-256, ecdsa_secp256r1_sha256]    # default: any not legacy
      # groups: [secp256r1, secp384r1, x25519]   # of ephemeral keys; only where named:
                                         # secp521r1, and for DHE ffdhe2048 and
                                         # modp_2048, 3072, 4096, 6144, 8192
      # server_names: [www.example.com, "*.example.com"]           # default: any;
                                         # the edge's own word, nothing proves it
      # networks: [192.0.2.0/24, "2001:db8::/32"]       # default: from anywhere
      # not_before: 2026-01-01T00:00:00Z                # default: always
      # not_after: 2026-12-31T23:59:59Z
      # legacy: [sha-1]   # md5-sha-1, rsa-below-2048, tls-1.0, tls-1.1, dtls-1.0
  # tickets:                 # edges of one site that resume each other's sessions
  #   - name: www.example.com            # as the edges call it: ticket_site
  #     edges: [edge-1, europe]
  #     rotate: 8h                       # how long a key makes tickets, and
  #     lifetime: 24h                    # how long it opens them after that
  #     generation: 0                    # another number: other keys, at once
  # edge_groups: [{name: europe, edges: [edge-1]}]      # for a rule's 'edges'
  # key_groups: [{name: shop, keys: [www.example.com]}] # for a rule's 'keys'
  # limits:                  # rate: requests a second; burst: one second's worth
  #   edge: {in_flight: 1024, audit: 1}  # of each; e.g. {rate: 500, burst: 1000}
                                         # audit: refusals a second with a line each
  #   key: {rate: 2000}                  # for each, of all edges; default: none
  #   edges: {edge-1: {rate: 50}}        # and keys: {www.example.com: {rate: 9}}
  # detectors:               # action: off, alarm, deny or suspend (the edge)
  #   replay: {action: deny, threshold: 1, window: 1m}
  #   repeat: {action: alarm, threshold: 100, window: 1m}
  #   premaster-replay: {action: deny, threshold: 1, window: 1m}
  #   premaster-repeat: {action: alarm, threshold: 100, window: 1m}
  #   weak-randoms: {action: alarm, threshold: 3, window: 1m}
  #   rsa-failures: {action: alarm, threshold: 20, share: 0.1, window: 1m}
  #   addresses: {action: alarm, threshold: 3, window: 1m}

The exit status is 0 if all is well, 1 if not, 2 for wrong usage, and 3 if a
token does not take its PIN: correct it first, since each start is an attempt
and tokens lock themselves. While it runs, another PIN in pin-source is tried
once, and takes no restart.

On SIGHUP it opens the audit log anew if the file was moved away, removed or
truncated, and reads the policy, the keys, its own certificate with its key, and
the pre-shared keys again. It also does the latter when a file changes; tokens
are asked again on SIGHUP. The log has a line for each key that comes or goes. A
key whose file is gone is refused; a file with a fault in it is refused with a
line in the log, and what was in it before stays in use. Everything else is read
at the start alone.
On SIGINT or SIGTERM it takes no more requests and answers those in flight. A
second signal ends it at once.
Nothing waits for who reads the log: lines that find no room are dropped and
counted. The audit log alone keeps answers waiting.
`

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its surroundings as arguments. It returns the exit status:
// 0, 1 for a failure, 2 for wrong usage, 3 for a wrong PIN.
func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("ski-keyserver", flag.ContinueOnError)
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
		fmt.Fprintln(stdout, "ski-keyserver", buildVersion())
		return 0
	case err == nil && *file == "":
		err = errors.New("-config FILE is missing")
	}
	if err != nil {
		fmt.Fprintf(stderr, "ski-keyserver: %v\nsee ski-keyserver -h\n", err)
		return 2
	}

	// Before anything that takes time, as a token does: a SIGHUP that comes
	// meanwhile, logrotate's say, would end the process.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	cfg, err := keyserver.LoadConfig(*file)
	if err != nil {
		return fail(stderr, err)
	}
	box := enterSandbox(cfg)
	log, logged := cfg.Logger(stderr), (*logqueue.Queue)(nil)
	if !*check { // From here on nothing waits for who reads the log.
		logged = logqueue.New(stderr, func(w io.Writer) slog.Handler { return cfg.Logger(w).Handler() })
		defer logged.Close()
		log, stderr = slog.New(logged.Handler()), logged
		slog.SetDefault(log) // and the standard library's log, which net/http has for the admin socket
		// A reader of standard output or error that has gone is an error of the
		// write, not the end of the key server.
		signal.Ignore(syscall.SIGPIPE)
	}
	p, err := load(*file, cfg, log)
	if err != nil {
		return fail(stderr, err)
	}
	defer func() {
		if err := p.close(); err != nil {
			log.Error("the tokens were not closed", "error", err)
		}
	}()
	if *check {
		if err := p.tryOut(); err != nil {
			return fail(stderr, err)
		}
		if err := p.summary(stdout, *file); err != nil {
			return fail(stderr, err)
		}
		return 0
	}
	return serve(p, box, hangups, log, logged)
}

// wrongPIN is the exit status that keeps systemd from starting it again
// (RestartPreventExitStatus): each start would be an attempt, and tokens lock
// themselves after a few.
const wrongPIN = 3

func fail(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "ski-keyserver: %v\n", err)
	if errors.Is(err, hsm.ErrPIN) {
		return wrongPIN
	}
	return 1
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
