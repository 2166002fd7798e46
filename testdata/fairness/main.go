// The fairness command measures how long an edge server waits for the key server
// while another asks far more than its limit allows: over each binding, by
// itself and beside the other in turns. The key server has one processor, and
// those who ask have another, so that what the other edge costs is what the key
// server spends on it. The program writes its table in docs/performance.md, and is
// run by make fairness, from the top folder.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tlsski/tlsski/testdata/internal/lab"
)

var (
	runs     = flag.Int("runs", 5, "how often each is measured; medians are taken")
	duration = flag.Duration("duration", 2*time.Second, "how long each is measured")
	document = flag.String("write", "docs/performance.md", "the file whose table is written")

	// Of the process that asks too much, which run starts.
	endpoint    = flag.String("greedy", "", "ask at this URL as much as possible, until standard input ends")
	folder      = flag.String("dir", "", "where its certificate is")
	connections = flag.Int("connections", 1, "over how many connections")
)

func main() {
	flag.Parse()
	do := run
	if *endpoint != "" {
		do = flood
	}
	if err := do(); err != nil {
		fmt.Fprintf(os.Stderr, "fairness: %v\n", err)
		os.Exit(1)
	}
}

const policy = `
edges:
  - {name: greedy, dns: [greedy.test]}
  - {name: modest, dns: [modest.test]}
limits: {edges: {greedy: {rate: 10}}}
rules:
  - {edges: [greedy, modest], keys: [www], methods: [ECDHE]}
`

// A system is a key server with two edges, which there are certificates for.
type system struct {
	dir       string
	process   *lab.Process
	endpoints map[string]string // by binding
}

func (s *system) at(name string) string { return filepath.Join(s.dir, name) }

func start(dir string) (*system, error) {
	s := &system{dir: dir, endpoints: map[string]string{}}
	pki := func(args ...string) error {
		_, err := lab.Run("bin/skictl", append([]string{"pki"}, args...)...)
		return err
	}
	err := errors.Join(
		os.Mkdir(s.at("keys"), 0o700),
		pki("init", s.at("pki")),
		pki("issue", "--ca", s.at("pki"), "--role", "keyserver", "--name", "ks", "--ip", "127.0.0.1", "--out", s.at("ks")),
		pki("issue", "--ca", s.at("pki"), "--role", "edge", "--name", "greedy", "--dns", "greedy.test", "--out", s.at("greedy")),
		pki("issue", "--ca", s.at("pki"), "--role", "edge", "--name", "modest", "--dns", "modest.test", "--out", s.at("modest")),
		os.WriteFile(s.at("policy.yaml"), []byte(policy), 0o600),
	)
	if err != nil {
		return nil, err
	}
	if _, err := lab.Run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", s.at("keys/www.pem"),
		"-subj", "/CN=www.test", "-days", "2", "-out", s.at("www.pem")); err != nil {
		return nil, err
	}
	if err := os.Chmod(s.at("keys/www.pem"), 0o600); err != nil {
		return nil, err
	}
	config := "certificate: ks.pem\nkey: ks.key\nclient_ca: pki/ca.pem\nkeys: keys\npolicy: policy.yaml\naudit: {file: audit.log}\n"
	for binding, setting := range map[string]string{"coaps": "listen", "coaps+tcp": "coaps_tcp", "https": "https"} {
		udp, tcp, err := lab.FreeAddrs()
		if err != nil {
			return nil, err
		}
		if binding == "coaps" {
			tcp = udp
		}
		config += fmt.Sprintf("%s: %q\n", setting, tcp)
		s.endpoints[binding] = binding + "://" + tcp + "/ski"
	}
	if err := os.WriteFile(s.at("keyserver.yaml"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	s.process, err = lab.Start([]string{"msg=listening"}, "taskset", "-c", "0", "bin/ski-keyserver", "-config", s.at("keyserver.yaml"))
	return s, err
}

// bench returns the command for an edge's load.
func (s *system) bench(edge, binding string, args ...string) []string {
	return append([]string{"taskset", "-c", "1", "bin/skictl", "bench", "--json", "--endpoint", s.endpoints[binding], "--cert", s.at(edge + ".pem"),
		"--key", s.at(edge + ".key"), "--ca", s.at("pki/ca.pem"), "--site", s.at("www.pem")}, args...)
}

// modest measures an edge that asks one question after the other: the median in
// microseconds.
func (s *system) modest(binding string) (float64, error) {
	args := s.bench("modest", binding, "--warm-up", "300ms", "--duration", duration.String())
	out, err := exec.Command(args[0], args[1:]...).Output()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	var r struct {
		Latency struct{ P50 float64 } `json:"latency_us"`
		Errors  map[string]int64
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, err
	}
	if len(r.Errors) > 0 {
		return 0, fmt.Errorf("%s: errors: %v", binding, r.Errors)
	}
	return r.Latency.P50, nil
}

// greedy has the other edge ask flat out until the returned function is called,
// which returns how many questions a second were refused. It is a process that has
// the processor where nobody else wants it, to leave the first edge its share.
func (s *system) greedy(binding string, connections int) (stop func() (float64, error), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("taskset", "-c", "1", "chrt", "--idle", "0", self, "-greedy", s.endpoints[binding], "-dir", s.dir, "-connections", strconv.Itoa(connections))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	return func() (rate float64, err error) {
		_ = in.Close() // the sign to end
		_, err = fmt.Fscan(out, &rate)
		return rate, errors.Join(err, cmd.Wait())
	}, nil
}

func run() error {
	dir, err := os.MkdirTemp("", "tlsski-fairness-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := start(dir)
	if err != nil {
		return err
	}
	defer s.process.Stop()
	var text strings.Builder
	fmt.Fprintf(&text, "%s. Medians of %d runs of %v, in turns.\n\n"+
		"| binding | connections x in flight of the other | p50 alone, us | p50 beside it, us | x | refused a second |\n|---|---|---|---|---|---|\n",
		lab.Machine(), *runs, *duration)
	for _, binding := range []string{"coaps", "coaps+tcp", "https"} {
		for _, connections := range []int{1, 8} {
			var alone, beside, ratios, rates []float64
			for range *runs {
				before, err := s.modest(binding)
				if err != nil {
					return err
				}
				stop, err := s.greedy(binding, connections)
				if err != nil {
					return err
				}
				time.Sleep(500 * time.Millisecond) // its sessions
				with, err := s.modest(binding)
				rate, stopped := stop()
				if err = errors.Join(err, stopped); err != nil {
					return err
				}
				alone, beside, ratios, rates = append(alone, before), append(beside, with), append(ratios, with/before), append(rates, rate)
			}
			fmt.Fprintf(&text, "| %s | %d x 64 | %.0f | %.0f | %.2f | %.0f |\n", binding, connections,
				lab.Median(alone), lab.Median(beside), lab.Median(ratios), lab.Median(rates))
		}
	}
	return lab.Write(*document, "fairness", text.String())
}
