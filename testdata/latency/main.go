// The latency command is the experiment of Figure 3 of the analysis of TLS
// handshake proxying (Stebila and Sullivan, "An Analysis of TLS Handshake Proxying",
// 2015): how long a handshake takes where the private key is at a far origin
// server, at a near edge server, and at a far key server that the edge server asks.
// It writes its table in docs/performance.md, and is run by make latency, as root,
// from the top folder.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/tlsski/tlsski/internal/netlab"
	"github.com/tlsski/tlsski/testdata/internal/lab"
)

var (
	runs     = flag.Int("runs", 11, "how often each handshake is made; medians are taken")
	document = flag.String("write", "docs/performance.md", "the file whose table is written")
)

// The round-trip times of the analysis: a client in Dublin, an edge server in
// London, an origin server and a key server in San Francisco.
const (
	clientEdge    = 11 * time.Millisecond
	edgeKeyServer = 159 * time.Millisecond
	clientOrigin  = 163 * time.Millisecond
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "latency: %v\n", err)
		os.Exit(1)
	}
}

// experiment is the four hosts and what connects them.
type experiment struct {
	client, edge, origin, keyServer *netlab.Host
	site                            *lab.Site
	processes                       []*lab.Process

	ab, bc, ac *path // as the analysis calls them
}

func run() (err error) {
	dir, err := os.MkdirTemp("", "tlsski-latency-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	x := &experiment{}
	n := netlab.New()
	defer n.Close()
	for made, name := range map[**netlab.Host]string{
		&x.client: "client", &x.edge: "edge server", &x.origin: "origin server", &x.keyServer: "key server",
	} {
		if *made, err = n.Host(name); err != nil {
			return err
		}
	}
	x.ab = newPath(n, x.client, x.edge, clientEdge)
	x.bc = newPath(n, x.edge, x.keyServer, edgeKeyServer)
	x.ac = newPath(n, x.client, x.origin, clientOrigin)
	if x.site, err = lab.NewSite(dir, net.JoinHostPort(x.keyServer.Addr().String(), "5684"), ":443"); err != nil {
		return err
	}
	for _, h := range []*netlab.Host{x.edge, x.origin, x.keyServer} {
		l, err := listen(h)
		if err != nil {
			return err
		}
		defer l.Close()
	}
	defer x.stop()
	if err := x.startServers(); err != nil {
		return err
	}
	rows := x.rows()
	for i := range *runs + 1 { // the first does not count
		fmt.Fprintf(os.Stderr, "run %d of %d\n", i, *runs)
		for _, p := range []*path{x.ab, x.bc, x.ac} {
			if err := p.measure(); err != nil {
				return err
			}
		}
		for _, r := range rows {
			took, err := r.handshake(x)
			if least := r.sum(x, func(p *path) time.Duration { return p.roundTrip }); err == nil && took < least {
				err = fmt.Errorf("it took %v: fewer round trips than the %s that were thought of", took, r.formula(x))
			}
			if err != nil {
				return fmt.Errorf("%s, %s: %w", r.where, r.what, err)
			}
			if i > 0 {
				r.took = append(r.took, float64(took))
			}
		}
	}
	return lab.Write(*document, "latency", x.table(rows))
}

// The ports of the edge server's host, or of the origin server's.
const (
	ownKeyPort    = "4431" // crypto/tls, the private keys in its memory
	ownKeyRSAPort = "4432" // the same, with static RSA
	skiPort       = "4433"
	skiRSAPort    = "4434"
	splitPort     = "4435"
	splitRSAPort  = "4436"
	pmsPort       = "4437"
)

// startServers starts the key server, the edge servers that ask it, and, here
// and there, the same edge server with the private keys in its own memory, whose
// handshakes are those of a server that never heard of SKI.
func (x *experiment) startServers() error {
	if err := x.site.Grant("ECDHE", "ECDHE-PMS", "RSA"); err != nil {
		return err
	}
	if err := x.start(x.keyServer, []string{"msg=listening"}, "bin/ski-keyserver", "-config", x.site.KeyServerConfig()); err != nil {
		return err
	}
	const staticRSA, split = "static_rsa: true", "engine: split"
	for _, s := range []struct {
		port  string
		lines []string
		hosts []*netlab.Host // none: the edge server's, with the key server
	}{
		{ownKeyPort, nil, []*netlab.Host{x.edge, x.origin}},
		{ownKeyRSAPort, []string{staticRSA}, []*netlab.Host{x.edge, x.origin}},
		{skiPort, nil, nil},
		{skiRSAPort, []string{staticRSA}, nil},
		{splitPort, []string{split}, nil},
		{splitRSAPort, []string{split, staticRSA}, nil},
		{pmsPort, []string{split, "method: ECDHE-PMS"}, nil},
	} {
		own := len(s.hosts) > 0
		config, err := x.site.EdgeConfig(s.port, s.lines...)
		if err == nil {
			err = x.adapt(config, s.port, own)
		}
		if err != nil {
			return err
		}
		program, hosts := "bin/ski-edgeserver", []*netlab.Host{x.edge}
		if own {
			program, hosts = program+"-embedded", s.hosts
		}
		for _, h := range hosts {
			// The session with the key server is there before the first handshake.
			if err := x.start(h, []string{"msg=listening", `(?s)has the key".*has the key"`}, program, "-config", config); err != nil {
				return err
			}
		}
	}
	return nil
}

func (x *experiment) start(h *netlab.Host, until []string, program string, args ...string) error {
	p, err := lab.StartCommand(until, h.Command(program, args...))
	if err == nil {
		x.processes = append(x.processes, p)
	}
	return err
}

func (x *experiment) stop() {
	for _, p := range x.processes {
		p.Stop()
	}
}
