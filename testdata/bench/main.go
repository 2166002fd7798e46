// The bench command loads the built system with skictl bench, puts what it
// measures beside the bare operations of the same run, and writes the table in
// docs/performance.md. It is run by make bench, from the top folder.
package main

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tlsski/tlsski/testdata/internal/lab"
)

var (
	runs     = flag.Int("runs", 3, "how often each load is run; medians are taken")
	duration = flag.Duration("duration", 3*time.Second, "how long each is measured")
	document = flag.String("write", "docs/performance.md", "the file whose table is written")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// system is a running skictl dev.
type system struct {
	endpoints struct {
		KeyServer   map[string]string
		EdgeCert    string `json:"edge_cert"`
		EdgeKey     string `json:"edge_key"`
		KeyServerCA string `json:"keyserver_ca"`
		Sites       []struct{ Cert string }
		PIDs        struct{ KeyServer int }
	}
	cmd *exec.Cmd
}

func start(dir string) (*system, error) {
	s := &system{cmd: exec.Command("bin/skictl", "dev", "--dir", dir)}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "running") {
	}
	data, err := os.ReadFile(filepath.Join(dir, "endpoints.json"))
	if err == nil {
		err = json.Unmarshal(data, &s.endpoints)
	}
	if err != nil {
		s.stop()
	}
	return s, err
}

func (s *system) stop() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait()
}

// figures are those of one run of skictl bench.
type figures struct {
	Rate    float64                    `json:"operations_per_second"`
	Latency struct{ P50, P99 float64 } `json:"latency_us"`
	Server  struct {
		CPU float64 `json:"cpu_us_per_operation"`
	}
	Traffic struct {
		Sent     float64 `json:"bytes_sent"`
		Received float64 `json:"bytes_received"`
	} `json:"traffic_per_operation"`
	Errors map[string]int64
}

const (
	ecdsaSite = 0
	rsaSite   = 1
)

// a load is what is measured in a row of the table.
type load struct {
	name       string
	binding    string
	site       int
	args       []string
	background bool // RSA flat out beside it
	all        []figures
}

func (s *system) bench(ctx context.Context, l *load, d time.Duration) (*figures, error) {
	e := s.endpoints
	args := append([]string{"bench", "--json", "--endpoint", e.KeyServer[l.binding], "--cert", e.EdgeCert, "--key", e.EdgeKey,
		"--ca", e.KeyServerCA, "--site", e.Sites[l.site].Cert, "--server-pid", strconv.Itoa(e.PIDs.KeyServer),
		"--warm-up", "500ms", "--duration", d.String()}, l.args...)
	cmd := exec.CommandContext(ctx, "bin/skictl", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.name, err)
	}
	f := &figures{}
	if err := json.Unmarshal(out, f); err != nil {
		return nil, err
	}
	if len(f.Errors) > 0 {
		return nil, fmt.Errorf("%s: errors: %v", l.name, f.Errors)
	}
	return f, nil
}

func run() error {
	dir, err := os.MkdirTemp("", "tlsski-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	s, err := start(filepath.Join(dir, "dev"))
	if err != nil {
		return err
	}
	defer s.stop()
	time.Sleep(2 * time.Second) // idle is after the start
	idle, err := lab.Resident(s.endpoints.PIDs.KeyServer)
	if err != nil {
		return err
	}

	ecdsa88 := []string{"--connections", "8", "--in-flight", "8"}
	rsaArgs := []string{"--method", "RSA", "--in-flight", "64"}
	slow := []string{"--rate", "100", "--in-flight", "8"}
	loads := []*load{
		{name: "ECDSA P-256, 8 x 8", binding: "coaps", args: ecdsa88},
		{name: "ECDSA P-256, 1 x 64", binding: "coaps", args: []string{"--in-flight", "64"}},
		{name: "ECDSA P-256, one at a time", binding: "coaps"},
		{name: "RSA-2048 PreMasterSecret, 1 x 64", binding: "coaps", site: rsaSite, args: rsaArgs},
		{name: "ECDSA P-256, 100/s", binding: "coaps", args: slow},
		{name: "ECDSA P-256, 100/s, while RSA saturates", binding: "coaps", args: slow, background: true},
	}
	for _, binding := range []string{"coaps+tcp", "https"} {
		if s.endpoints.KeyServer[binding] != "" {
			loads = append(loads, &load{name: "ECDSA P-256, 8 x 8, " + binding, binding: binding, args: ecdsa88})
		}
	}
	var sign, decrypt []float64
	for i := range *runs {
		fmt.Fprintf(os.Stderr, "run %d of %d\n", i+1, *runs)
		sign = append(sign, bareSign())
		for _, l := range loads {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			if l.background {
				go func() {
					defer close(done)
					_, _ = s.bench(ctx, &load{name: "RSA beside it", binding: "coaps", site: rsaSite, args: rsaArgs}, time.Hour)
				}()
				time.Sleep(time.Second)
			} else {
				close(done)
			}
			f, err := s.bench(context.Background(), l, *duration)
			cancel()
			<-done
			if err != nil {
				return err
			}
			l.all = append(l.all, *f)
		}
		decrypt = append(decrypt, bareDecrypt())
	}
	return lab.Write(*document, "bench", table(loads, lab.Median(sign), lab.Median(decrypt), idle))
}

func (l *load) median(of func(figures) float64) float64 {
	var all []float64
	for _, f := range l.all {
		all = append(all, of(f))
	}
	return lab.Median(all)
}

// cpuOf is the CPU time of f in microseconds an operation, for about a second.
func cpuOf(f func()) float64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f()
	n, begin, start := 0, threadCPU(), time.Now()
	for ; time.Since(start) < time.Second; n++ {
		f()
	}
	return float64((threadCPU() - begin).Microseconds()) / float64(n)
}

func threadCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(1, &u); err != nil { // RUSAGE_THREAD
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func bareSign() float64 {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	digest := sha256.Sum256(nil)
	return cpuOf(func() {
		// As the key server does: RFC 6979.
		if _, err := key.Sign(nil, digest[:], crypto.SHA256); err != nil {
			panic(err)
		}
	})
}

func bareDecrypt() float64 {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	secret := make([]byte, 48)
	//lint:ignore SA1019 it is what static RSA is made of
	ciphertext, err := rsa.EncryptPKCS1v15(rand.Reader, &key.PublicKey, secret)
	if err != nil {
		panic(err)
	}
	return cpuOf(func() {
		//lint:ignore SA1019 it is what static RSA is made of
		if err := rsa.DecryptPKCS1v15SessionKey(nil, key, ciphertext, secret); err != nil {
			panic(err)
		}
	})
}

func table(loads []*load, sign, decrypt, idle float64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. Medians of %d runs of %v, interleaved.\n\n", lab.Machine(), *runs, *duration)
	b.WriteString("| load (connections x in flight) | server CPU, us/op | x bare operation | op/s | p50, us | p99, us | bytes out + in |\n|---|---|---|---|---|---|---|\n")
	fmt.Fprintf(&b, "| bare ECDSA P-256 signature (RFC 6979), one thread | %.1f | 1.00 | | | | |\n", sign)
	fmt.Fprintf(&b, "| bare RSA-2048 decryption, one thread | %.0f | 1.00 | | | | |\n", decrypt)
	for _, l := range loads {
		cpu := l.median(func(f figures) float64 { return f.Server.CPU })
		bare := sign
		if l.site == rsaSite {
			bare = decrypt
		}
		spent := fmt.Sprintf("%.0f | %.2f", cpu, cpu/bare)
		if l.background {
			spent = " | " // it is RSA's, too
		}
		fmt.Fprintf(&b, "| %s | %s | %.0f | %.0f | %.0f | %.0f + %.0f |\n", l.name, spent,
			l.median(func(f figures) float64 { return f.Rate }),
			l.median(func(f figures) float64 { return f.Latency.P50 }), l.median(func(f figures) float64 { return f.Latency.P99 }),
			l.median(func(f figures) float64 { return f.Traffic.Sent }), l.median(func(f figures) float64 { return f.Traffic.Received }))
	}
	p50 := func(f figures) float64 { return f.Latency.P50 }
	fmt.Fprintf(&b, "\nECDSA median while RSA saturates the key server: %.1f x the one without. Resident memory, idle: %.1f MiB.\n",
		loads[5].median(p50)/loads[4].median(p50), idle)
	return b.String()
}
