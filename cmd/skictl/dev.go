package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

func newDevCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "dev --dir DIR",
		Short: "Run a key server and an edge server with a throwaway PKI",
		Long: `Run a key server and an edge server with a throwaway PKI.

dev makes in DIR, which must be empty or not exist, a private PKI for the SKI
channel, two web sites (ecdsa.localhost with an ECDSA P-256 key, rsa.localhost
with an RSA-2048 key; each also as split.NAME, where the edge server's own TLS
1.2 has the key server make the ephemeral key) and both configurations. It starts ski-keyserver and
ski-edgeserver as two processes on free loopback ports, writes their addresses
to DIR/endpoints.json, prints commands to try, and runs until it is interrupted.

As root it starts the edge server as the user nobody (65534), who cannot read
the key server's folder.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			d, err := startDev(c.Context(), dir, devOptions{})
			if err != nil {
				return err
			}
			defer d.stop()
			d.printCommands(c.OutOrStdout())
			d.watch(c.Context(), c.ErrOrStderr())
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "the folder to make everything in")
	_ = c.MarkFlagRequired("dir")
	return c
}

// dev is a running development set-up.
type dev struct {
	dir       string
	sites     []devSite
	endpoints endpoints
	keyServer *process
	edge      *process
	edgeLog   string
	user      *unprivileged // whom the edge runs as, or nil
	sameUser  string        // why it runs as the key server's user
	token     *devToken     // has the sites' keys; nil where files do
}

// endpoints is what DIR/endpoints.json holds, for other programs.
type endpoints struct {
	KeyServer struct {
		CoAPS    string `json:"coaps"`
		CoAPSTCP string `json:"coaps+tcp"`
		HTTPS    string `json:"https"`
	} `json:"keyserver"`
	Edge struct {
		HTTPS string `json:"https"`
	} `json:"edge"`
	CA          string    `json:"ca"` // of the web sites
	EdgeCert    string    `json:"edge_cert"`
	EdgeKey     string    `json:"edge_key"`
	KeyServerCA string    `json:"keyserver_ca"` // of the SKI channel
	EdgePSK     string    `json:"edge_psk"`     // for a client without certificate
	Sites       []devSite `json:"sites"`
	PIDs        struct {
		KeyServer int `json:"keyserver"`
		Edge      int `json:"edge"`
	} `json:"pids"`
}

// devOptions is what a demonstration has in addition.
type devOptions struct {
	keyLog  string // the name of the edge server's key log in its folder; "" for none
	onToken bool   // whether the sites' keys are on a token, and not in files
}

// startDev makes everything in dir and starts both processes. On success, stop
// must be called.
func startDev(ctx context.Context, dir string, o devOptions) (_ *dev, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty", dir)
	}
	d := &dev{dir: dir, edgeLog: filepath.Join(dir, "edge", "edge.log")}
	defer func() {
		if err != nil {
			d.stop()
		}
	}()
	// The folder is open to other users, the key server's part of it is not.
	for sub, mode := range map[string]os.FileMode{
		"": 0o755, "keyserver": 0o700, "keyserver/keys": 0o700, "pki": 0o700,
		"edge": 0o755, "edge/sites": 0o755,
	} {
		if err := os.MkdirAll(filepath.Join(dir, sub), mode); err != nil {
			return nil, err
		}
	}
	if err := d.makePKI(); err != nil {
		return nil, err
	}
	if err := d.makePSK(); err != nil {
		return nil, err
	}
	d.endpoints.CA = d.path("ca.pem")
	if o.onToken {
		if d.token, err = newDevToken(ctx, d.path("keyserver/softhsm")); err != nil {
			return nil, err
		}
	}
	if d.sites, err = makeSites(ctx, d.endpoints.CA, d.path("edge/sites"), d.path("keyserver/keys"), d.token, devLife); err != nil {
		return nil, err
	}
	d.endpoints.Sites = d.sites

	keyServerAddr, httpsAddr, edgeAddr, err := freeAddrs()
	if err != nil {
		return nil, err
	}
	if err := d.writeConfigs(keyServerAddr, httpsAddr, edgeAddr, o.keyLog); err != nil {
		return nil, err
	}
	edgeProgram, err := sibling("ski-edgeserver")
	if err != nil {
		return nil, err
	}
	d.user, d.sameUser = unprivilegedUser(dir, edgeProgram)
	if d.user != nil {
		if err := chownAll(d.path("edge"), d.user.uid, d.user.gid); err != nil {
			return nil, err
		}
	}
	d.keyServer, _, err = startProcess(ctx, "ski-keyserver", d.path("keyserver/keyserver.yaml"), d.path("keyserver/keyserver.log"), nil)
	if err != nil {
		return nil, err
	}
	d.edge, _, err = startProcess(ctx, "ski-edgeserver", d.path("edge/edge.yaml"), d.edgeLog, d.user)
	if err != nil {
		return nil, err
	}
	d.endpoints.KeyServer.CoAPS = "coaps://" + keyServerAddr + "/ski"
	d.endpoints.KeyServer.CoAPSTCP = "coaps+tcp://" + keyServerAddr + "/ski"
	d.endpoints.KeyServer.HTTPS = "https://" + httpsAddr + "/ski"
	d.endpoints.Edge.HTTPS = "https://" + edgeAddr
	d.endpoints.PIDs.KeyServer, d.endpoints.PIDs.Edge = d.keyServer.pid(), d.edge.pid()
	data, err := json.MarshalIndent(d.endpoints, "", "  ")
	if err != nil {
		return nil, err
	}
	return d, os.WriteFile(d.path("endpoints.json"), append(data, '\n'), 0o644)
}

// devLife is how long the certificates of a development set-up last.
const devLife = 30 * day

// makePKI makes the certificates of the SKI channel.
func (d *dev) makePKI() error {
	d.endpoints.EdgeCert, d.endpoints.EdgeKey = d.path("edge/edge.pem"), d.path("edge/edge.key")
	d.endpoints.KeyServerCA = d.path("edge/ca.pem")
	return makeChannel(d.dir, devLife+day,
		leaf{name: "key server", usage: x509.ExtKeyUsageServerAuth, ips: []net.IP{net.IPv4(127, 0, 0, 1)}, life: devLife},
		leaf{name: "edge", usage: x509.ExtKeyUsageClientAuth, dns: []string{devEdgeName}, life: devLife})
}

// makePSK makes a pre-shared key for clients that have no certificate. The edge
// server has one.
func (d *dev) makePSK() error {
	key := make([]byte, 32)
	rand.Read(key)
	d.endpoints.EdgePSK = d.path("pki/edge.psk")
	for _, file := range []string{d.endpoints.EdgePSK, d.path("keyserver/edges.psk")} {
		if err := os.WriteFile(file, fmt.Appendf(nil, "%s:%x\n", devEdgeName, key), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (d *dev) path(name string) string { return filepath.Join(d.dir, filepath.FromSlash(name)) }

// freeAddrs finds a port for the key server, one for its HTTPS, and one for the edge. They
// are written into the configurations, so that either process can be started again where
// it was.
func freeAddrs() (coaps, https, edge string, err error) {
	var addrs [3]string
	for i := range addrs {
		var release func()
		if addrs[i], release, err = freeAddr(); err != nil {
			return "", "", "", err
		}
		defer release()
	}
	return addrs[0], addrs[1], addrs[2], nil
}

// freeAddr returns an address that is free on UDP and TCP, and holds it until release. The port is below
// those that connections of other programs get (on Linux 32768 and above), or one of them
// could have it when a process is started again.
func freeAddr() (addr string, release func(), err error) {
	for range 1000 {
		addr = fmt.Sprintf("127.0.0.1:%d", 16384+mathrand.N(16384))
		var udp net.PacketConn
		if udp, err = net.ListenPacket("udp", addr); err != nil {
			continue
		}
		var tcp net.Listener
		if tcp, err = net.Listen("tcp", addr); err == nil {
			return addr, func() { udp.Close(); tcp.Close() }, nil
		}
		udp.Close()
	}
	return "", nil, err
}

// devEdgeName is how the policy knows the edge.
const devEdgeName = "edge.ski.internal"

const (
	devKeyServerConfig = `# The key server of skictl dev.
listen: %[1]s
coaps_tcp: %[1]s
https: %[2]s
certificate: keyserver.pem
key: keyserver.key
client_ca: ca.pem
%[3]spolicy: policy.yaml
psk: edges.psk
audit:
  file: audit.log
`
	devPolicy = `# Which edge may use which keys, and how.
edges:
  - name: edge
    dns: [` + devEdgeName + `]
    psk: [` + devEdgeName + `]
rules:
  - edges: [edge]
    keys: [ecdsa.localhost]
    methods: [ECDHE, ECDHE-PMS]
    groups: [secp256r1, secp384r1, secp521r1, x25519]
  - edges: [edge]
    keys: [rsa.localhost]
    methods: [ECDHE, ECDHE-PMS, DHE, RSA]
    groups: [secp256r1, secp384r1, secp521r1, x25519, ffdhe2048, ffdhe4096, modp_2048]
`
	devEdgeConfig = `# The edge server of skictl dev. No site's private key is here.
listen: ["%s"]
keyserver:
  url: coaps://%s/ski
  certificate: edge.pem
  key: edge.key
  ca: ca.pem
sites:
  - names: [ecdsa.localhost]
    certificates: [sites/ecdsa.localhost.pem]
    static: ecdsa.localhost
  - names: [rsa.localhost]
    certificates: [sites/rsa.localhost.pem]
    static: rsa.localhost
    static_rsa: true
  - names: [` + splitSite + `ecdsa.localhost]
    certificates: [sites/ecdsa.localhost.pem]
    static: ecdsa.localhost
    engine: split
    method: ECDHE-PMS
  - names: [` + splitSite + `rsa.localhost]
    certificates: [sites/rsa.localhost.pem]
    static: rsa.localhost
    engine: split
    method: ECDHE-PMS
    static_rsa: true
log:
  level: debug
`
)

func (d *dev) writeConfigs(keyServerAddr, httpsAddr, edgeAddr, keyLog string) error {
	keys := "keys: keys\n"
	if d.token != nil {
		keys = d.token.config() + "rsa_failure_secret_file: rsa-failure.secret\n"
		secret := make([]byte, keyserver.MinRSAFailureSecret)
		rand.Read(secret)
		if err := os.WriteFile(d.path("keyserver/rsa-failure.secret"), secret, 0o600); err != nil {
			return err
		}
	}
	files := map[string]string{
		"keyserver/keyserver.yaml": fmt.Sprintf(devKeyServerConfig, keyServerAddr, httpsAddr, keys),
		"keyserver/policy.yaml":    devPolicy,
		"edge/edge.yaml":           fmt.Sprintf(devEdgeConfig, edgeAddr, keyServerAddr),
	}
	if keyLog != "" {
		files["edge/edge.yaml"] += "key_log: " + keyLog + "\n"
	}
	for _, s := range d.sites {
		if err := os.Mkdir(d.path("edge/"+s.Name), 0o755); err != nil {
			return err
		}
		files["edge/"+s.Name+"/index.html"] = fmt.Sprintf("<h1>%s</h1>\n<p>Its private key is %s, on the key server.</p>\n", s.Name, s.SPKI)
	}
	for name, text := range files {
		if err := os.WriteFile(d.path(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func chownAll(root string, uid, gid int) error {
	return filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	})
}

// stop ends both processes, the edge first: it finishes its handshakes.
func (d *dev) stop() {
	for _, p := range []*process{d.edge, d.keyServer} {
		if p != nil {
			p.stop()
		}
	}
}

// watch waits for ctx. A process that ends meanwhile can be started again by
// whoever ended it, with the same configuration.
func (d *dev) watch(ctx context.Context, stderr io.Writer) {
	edge, keyServer := d.edge, d.keyServer
	for edge != nil || keyServer != nil {
		select {
		case <-ctx.Done():
			return
		case <-ended(edge):
			fmt.Fprintf(stderr, "%s has ended (%v); to start it again:\n  %s\n", edge.name, edge.err, edge.cmd)
			edge = nil
		case <-ended(keyServer):
			fmt.Fprintf(stderr, "%s has ended (%v); to start it again:\n  %s\n", keyServer.name, keyServer.err, keyServer.cmd)
			keyServer = nil
		}
	}
	<-ctx.Done()
}

func ended(p *process) <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.done
}

// exampleInput is two randoms and ServerECDHParams with the base point of
// x25519 (RFC 8422, Section 5.4).
var exampleInput = slices.Concat(make([]byte, 2*ski.RandomLen), []byte{3, 0, 29, 32, 9}, make([]byte, 31))

func (d *dev) printCommands(w io.Writer) {
	e := d.endpoints
	addr := e.Edge.HTTPS[len("https://"):]
	port := portOf(addr)
	fmt.Fprintf(w, "key server  %s  %s  pid %d\nedge server %s  pid %d\neverything  %s\n\n",
		e.KeyServer.CoAPS, e.KeyServer.HTTPS, e.PIDs.KeyServer, e.Edge.HTTPS, e.PIDs.Edge, d.path("endpoints.json"))
	for _, s := range d.sites {
		fmt.Fprintf(w, "curl --cacert %s --resolve %s:%s:127.0.0.1 https://%s:%s/\n", e.CA, s.Name, port, s.Name, port)
	}
	for _, c := range []struct{ site, flags string }{
		{"ecdsa.localhost", "-tls1_3"},
		{"ecdsa.localhost", "-tls1_2"},
		{"rsa.localhost", "-tls1_2"},
		{"rsa.localhost", "-tls1_2 -cipher AES128-GCM-SHA256"},
		{splitSite + "ecdsa.localhost", "-tls1_2"},
	} {
		fmt.Fprintf(w, "openssl s_client -connect %s -servername %s -CAfile %s -verify_return_error -brief %s </dev/null\n",
			addr, c.site, e.CA, c.flags)
	}
	self, err := os.Executable()
	if err != nil {
		self = "skictl"
	}
	fmt.Fprintf(w, "%s request --endpoint %s --cert %s --key %s --ca %s --protocol 'TLS 1.2' --hash SHA-256 --spki @%s --input %x\n",
		self, e.KeyServer.CoAPS, e.EdgeCert, e.EdgeKey, e.KeyServerCA, d.sites[0].Cert, exampleInput)
	fmt.Fprintln(w, "\nrunning; interrupt to stop")
}
