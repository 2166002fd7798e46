// The loss command measures what becomes of requests when a fifth of all packets
// between an edge server and its key server is lost each way. It runs the built key
// server and skictl bench, which has the client of edge servers, on hosts of a
// virtual network, and writes its table in docs/performance.md. It is run by make
// loss, as root, from the top folder.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tlsski/tlsski/internal/netlab"
	"github.com/tlsski/tlsski/testdata/internal/lab"
)

var (
	runs     = flag.Int("runs", 3, "how often each row is measured; medians are taken")
	document = flag.String("write", "docs/performance.md", "the file whose table is written")
)

const (
	lost     = 0.2
	rate     = 400 // requests a second
	duration = 10 * time.Second
	warmUp   = 3 * time.Second
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "loss: %v\n", err)
		os.Exit(1)
	}
}

// row is what was measured over a path.
type row struct {
	roundTrip time.Duration
	asked     int64 // in all runs
	answered  int64
	p50, p99  []float64 // ms
	longest   float64   // ms, of all runs
	datagrams []float64 // sent for each request
}

// bench is the part of skictl bench's report that counts here.
type bench struct {
	Operations int64            `json:"operations"`
	Errors     map[string]int64 `json:"errors"`
	Latency    struct {
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
		Max float64 `json:"max"`
	} `json:"latency_us"`
}

func run() error {
	dir, err := os.MkdirTemp("", "tlsski-loss-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	n := netlab.New()
	defer n.Close()
	edge, err := n.Host("edge server")
	if err != nil {
		return err
	}
	keys, err := n.Host("key server")
	if err != nil {
		return err
	}
	addr := net.JoinHostPort(keys.Addr().String(), "5684")
	site, err := lab.NewSite(dir, addr, ":443")
	if err != nil {
		return err
	}
	if err := anyName(site.At("www/keyserver/policy.yaml")); err != nil {
		return err
	}
	server, err := lab.StartCommand([]string{"msg=listening"}, keys.Command("bin/ski-keyserver", "-config", site.KeyServerConfig()))
	if err != nil {
		return err
	}
	defer server.Stop()
	rows := []*row{{roundTrip: 0}, {roundTrip: 50 * time.Millisecond}, {roundTrip: 100 * time.Millisecond}, {roundTrip: 300 * time.Millisecond}}
	for i := range *runs {
		fmt.Fprintf(os.Stderr, "run %d of %d\n", i+1, *runs)
		for _, r := range rows {
			if err := r.measure(n, edge, keys, site, addr); err != nil {
				return fmt.Errorf("a round trip of %s: %w", r.roundTrip, err)
			}
		}
	}
	return lab.Write(*document, "loss", table(rows))
}

// anyName has a policy grant what names no site, as skictl bench asks.
func anyName(policy string) error {
	data, err := os.ReadFile(policy)
	if err != nil {
		return err
	}
	lines := slices.DeleteFunc(bytes.SplitAfter(data, []byte("\n")), func(line []byte) bool { return bytes.Contains(line, []byte("server_names:")) })
	return os.WriteFile(policy, slices.Concat(lines...), 0o644)
}

// measure is one run. Packets are lost once the session is there.
func (r *row) measure(n *netlab.Network, edge, keys *netlab.Host, site *lab.Site, addr string) error {
	path := n.Between(edge, keys)
	path.Set(netlab.Conditions{Delay: r.roundTrip / 2})
	cmd := edge.Command("bin/skictl", "bench", "--json", "--endpoint", "coaps://"+addr+"/ski", "--site", site.At("ecdsa.pem"),
		"--cert", site.At("www/edge/edge.pem"), "--key", site.At("www/edge/edge.key"), "--ca", site.At("www/edge/ca.pem"),
		"--connections", "1", "--in-flight", "512", "--rate", fmt.Sprint(rate), "--warm-up", warmUp.String(), "--duration", duration.String())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	before, err := audited(site)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	// The bench asks 50 times, one after the other, before it loads.
	for loaded := before + 50 + 20; ; time.Sleep(time.Millisecond) {
		now, err := audited(site)
		if err != nil {
			return err
		}
		if now >= loaded {
			before = now
			break
		}
	}
	sent := path.From(edge).Counts()
	path.Set(netlab.Conditions{Delay: r.roundTrip / 2, Loss: lost, Seed: uint64(time.Now().UnixNano())})
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("skictl bench: %w: %s", err, errs.String())
	}
	now := path.From(edge).Counts()
	after, err := audited(site)
	if err != nil {
		return err
	}
	var b bench
	if err := json.Unmarshal(out.Bytes(), &b); err != nil {
		return err
	}
	r.asked += b.Operations
	r.answered += b.Operations
	for what, count := range b.Errors {
		fmt.Fprintf(os.Stderr, "a round trip of %s: %d: %s\n", r.roundTrip, count, what)
		r.asked += count
	}
	r.p50 = append(r.p50, b.Latency.P50/1000)
	r.p99 = append(r.p99, b.Latency.P99/1000)
	r.longest = max(r.longest, b.Latency.Max/1000)
	r.datagrams = append(r.datagrams, float64(now.Carried+now.Lost-sent.Carried-sent.Lost)/float64(after-before))
	return nil
}

// audited returns how many requests the key server has worked on: each is in its
// audit log once.
func audited(site *lab.Site) (int, error) {
	data, err := os.ReadFile(site.At("www/keyserver/audit.log"))
	return bytes.Count(data, []byte(`"event":"request"`)), err
}

func table(rows []*row) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. Medians of %d runs; what was answered, and the longest, are of all runs together.\n\n", lab.Machine(), *runs)
	b.WriteString("| round trip, ms | answered within 5 s | p50, ms | p99, ms | the longest, ms | datagrams sent for each request |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %d | %d of %d | %.0f | %.0f | %.0f | %.2f |\n",
			r.roundTrip.Milliseconds(), r.answered, r.asked, lab.Median(r.p50), lab.Median(r.p99), r.longest, lab.Median(r.datagrams))
	}
	return b.String()
}
