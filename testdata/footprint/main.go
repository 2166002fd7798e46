// The footprint command measures what ski-edgeserver needs on small machines:
// the size of the stripped binary for each platform, and its resident memory when
// idle and with many idle TLS connections. It writes its table in
// docs/performance.md, and is run by make footprint, from the top folder.
package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tlsski/tlsski/testdata/internal/lab"
)

var (
	connections = flag.Int("connections", 1000, "how many TLS connections are idle")
	runs        = flag.Int("runs", 3, "how often each is measured, with a new process; medians are taken")
	document    = flag.String("write", "docs/performance.md", "the file whose table is written")
)

// settle is how long a process may take to be idle.
const settle = time.Second

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "footprint: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "tlsski-footprint-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var text strings.Builder
	fmt.Fprintf(&text, "%s. Memory: medians of %d runs.\n\n| platform | stripped binary, MB |\n|---|---|\n", lab.Machine(), *runs)
	for _, p := range []struct{ name, arch, variant string }{
		{"linux/amd64", "amd64", ""},
		{"linux/arm, GOARM=6", "arm", "GOARM=6"},
		{"linux/arm64", "arm64", ""},
		{"linux/mipsle, GOMIPS=softfloat", "mipsle", "GOMIPS=softfloat"},
		{"linux/riscv64", "riscv64", ""},
	} {
		size, err := build(filepath.Join(dir, p.arch), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+p.arch, p.variant)
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "| %s | %.1f |\n", p.name, float64(size)/1e6)
	}
	program := filepath.Join(dir, "native")
	if _, err := build(program, "CGO_ENABLED=0"); err != nil {
		return err
	}
	udp, tcp, err := lab.FreeAddrs()
	if err != nil {
		return err
	}
	site, err := lab.NewSite(dir, udp, tcp)
	if err != nil {
		return err
	}
	keyServer, err := lab.Start([]string{"msg=listening"}, "bin/ski-keyserver", "-config", site.KeyServerConfig())
	if err != nil {
		return err
	}
	defer keyServer.Stop()

	fmt.Fprintf(&text, "\n| %d connections, idle after a request | `GOGC` | resident before, MiB | with them, MiB | of that each, KiB |\n|---|---|---|---|---|\n", *connections)
	for _, load := range []struct {
		name  string
		lines []string
		http2 bool
	}{
		{"crypto/tls, TLS 1.3, HTTP/1.1", nil, false},
		{"crypto/tls, TLS 1.3, HTTP/2", nil, true},
		{"split engine, TLS 1.2, HTTP/1.1", []string{"engine: split"}, false},
		{"split engine, TLS 1.2, HTTP/2", []string{"engine: split"}, true},
	} {
		config, err := site.EdgeConfig("footprint", load.lines...)
		if err != nil {
			return err
		}
		for _, gogc := range []string{"100", "20"} {
			var before, with []float64
			for range *runs {
				idle, loaded, err := measure([]string{"GOGC=" + gogc, program, "-config", config}, site, tcp, load.http2)
				if err != nil {
					return fmt.Errorf("%s: %w", load.name, err)
				}
				before, with = append(before, idle), append(with, loaded)
			}
			idle, loaded := lab.Median(before), lab.Median(with)
			fmt.Fprintf(&text, "| %s | %s | %.1f | %.1f | %.1f |\n", load.name, gogc, idle, loaded, (loaded-idle)*1024/float64(*connections))
		}
	}
	return lab.Write(*document, "footprint", text.String())
}

func build(program string, env ...string) (size int64, err error) {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./cmd/ski-edgeserver")
	cmd.Env = os.Environ()
	for _, variable := range env {
		if variable != "" {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%v: %w:\n%s", env, err, out)
	}
	info, err := os.Stat(program)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// measure returns a new process's resident memory without connections, and with
// all of them, which have had one answer each.
func measure(command []string, site *lab.Site, addr string, http2 bool) (idle, loaded float64, err error) {
	edge, err := lab.Start([]string{"msg=listening", "the key server has the key"}, "env", command...)
	if err != nil {
		return 0, 0, err
	}
	defer edge.Stop()
	time.Sleep(settle)
	if idle, err = lab.Resident(edge.PID()); err != nil {
		return 0, 0, err
	}
	clients := make([]*http.Transport, *connections)
	defer func() {
		for _, c := range clients {
			if c != nil {
				c.CloseIdleConnections()
			}
		}
	}()
	failures := make(chan error, len(clients))
	atOnce := make(chan struct{}, 8)
	var all sync.WaitGroup
	for i := range clients {
		atOnce <- struct{}{}
		all.Go(func() {
			client, err := connect(site, addr, http2)
			clients[i] = client
			failures <- err
			<-atOnce
		})
	}
	all.Wait()
	close(failures)
	for err := range failures {
		if err != nil {
			return 0, 0, err
		}
	}
	time.Sleep(settle)
	loaded, err = lab.Resident(edge.PID())
	return idle, loaded, err
}

// connect makes a connection with one request behind it.
func connect(site *lab.Site, addr string, http2 bool) (*http.Transport, error) {
	t := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: site.Roots, ServerName: lab.SiteName},
		Protocols:       new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetHTTP2(http2)
	req, err := http.NewRequest(http.MethodGet, "https://"+addr+"/", nil)
	if err != nil {
		return nil, err
	}
	req.Host = lab.SiteName
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK || (resp.ProtoMajor == 2) != http2 {
		return nil, errors.New(resp.Proto + " " + resp.Status)
	}
	return t, nil
}
