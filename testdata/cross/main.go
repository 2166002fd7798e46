// The cross command builds ski-edgeserver for small machines, without C, and
// tries each in an emulator: it checks a configuration, and serves a page with the
// help of a key server. A 64-bit atomic operation that is not aligned, which
// 32-bit processors cannot do, ends it. It is run by make cross, from the top
// folder.
package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tlsski/tlsski/testdata/internal/lab"
)

// platforms are what small machines have: a Raspberry Pi Zero, newer ones of its
// kind, routers without a floating point unit, boards with RISC-V.
var platforms = []struct {
	name     string
	env      []string
	emulator []string
}{
	{"linux-armv6", []string{"GOARCH=arm", "GOARM=6"}, []string{"qemu-arm", "-cpu", "arm1176"}},
	{"linux-arm64", []string{"GOARCH=arm64"}, []string{"qemu-aarch64"}},
	{"linux-mipsle", []string{"GOARCH=mipsle", "GOMIPS=softfloat"}, []string{"qemu-mipsel"}},
	{"linux-riscv64", []string{"GOARCH=riscv64"}, []string{"qemu-riscv64"}},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "cross: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "tlsski-cross-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	udp, tcp, err := lab.FreeAddrs()
	if err != nil {
		return err
	}
	site, err := lab.NewSite(dir, udp, tcp)
	if err != nil {
		return err
	}
	config, err := site.EdgeConfig("both", "engine: split", "versions: [TLS 1.2, TLS 1.3]")
	if err != nil {
		return err
	}
	keyServer, err := lab.Start([]string{"msg=listening"}, "bin/ski-keyserver", "-config", site.KeyServerConfig())
	if err != nil {
		return err
	}
	defer keyServer.Stop()
	for _, p := range platforms {
		program := filepath.Join("bin", p.name, "ski-edgeserver")
		if err := build(p.env, program); err != nil {
			return err
		}
		info, err := os.Stat(program)
		if err != nil {
			return err
		}
		if err := try(site, tcp, append(p.emulator, program), config); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Printf("%s  %.1f MB, checks its configuration and serves with %s\n", program, float64(info.Size())/1e6, p.emulator[0])
	}
	return nil
}

func build(env []string, program string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./cmd/ski-edgeserver")
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux"), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w:\n%s", strings.Join(env, " "), err, out)
	}
	return nil
}

// try runs the program, which command ends with, as its users would.
func try(site *lab.Site, addr string, command []string, config string) error {
	emulated := func(args ...string) []string { return append(command[1:len(command):len(command)], args...) }
	out, err := lab.Run(command[0], emulated("-version")...)
	if err == nil && !strings.HasPrefix(out, "ski-edgeserver ") {
		err = fmt.Errorf("-version prints %q", out)
	}
	if err != nil {
		return err
	}
	out, err = lab.Run(command[0], emulated("-config", config, "-check")...)
	if err == nil && !strings.Contains(out, "is valid") {
		err = fmt.Errorf("-check prints %q", out)
	}
	if err != nil {
		return err
	}
	edge, err := lab.Start([]string{"msg=listening", "the key server has the key"}, command[0], emulated("-config", config)...)
	if err != nil {
		return err
	}
	defer edge.Stop()
	for version, engine := range map[uint16]string{tls.VersionTLS12: "the split engine", tls.VersionTLS13: "crypto/tls"} {
		transport := &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: site.Roots, ServerName: lab.SiteName, MinVersion: version, MaxVersion: version},
		}
		client := &http.Client{Transport: transport, Timeout: time.Minute}
		req, err := http.NewRequest(http.MethodGet, "https://"+addr+"/", nil)
		if err != nil {
			return err
		}
		req.Host = lab.SiteName
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("%s: %w", engine, err)
		}
		resp.Body.Close()
		transport.CloseIdleConnections()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
	}
	return nil
}
