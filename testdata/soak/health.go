package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tlsski/tlsski/internal/netlab"
	"github.com/tlsski/tlsski/testdata/internal/lab"
)

// get gets something from a server's metrics address.
func get(h *netlab.Host, address, path string) (string, error) {
	client := &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return h.DialContext(ctx, network, addr)
		}},
	}
	r, err := client.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s is %s: %s", path, r.Status, body)
	}
	return string(body), err
}

const (
	keyServerMetrics = "127.0.0.1:9684"
	edgeMetrics      = "127.0.0.1:9685"
)

// values returns the values of a metric, by its labels.
func values(metrics, name string) map[string]float64 {
	all := map[string]float64{}
	for line := range strings.Lines(metrics) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		base, labels, _ := strings.Cut(series, "{")
		if base == name {
			all[labels], _ = strconv.ParseFloat(value, 64)
		}
	}
	return all
}

// whole returns what the servers themselves say is wrong.
func (s *system) whole() error {
	if err := s.alive(); err != nil {
		return err
	}
	for _, k := range s.keys {
		if _, err := get(k.host, keyServerMetrics, "/healthz"); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	for _, e := range s.edges {
		if _, err := get(e.host, edgeMetrics, "/readyz"); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		metrics, err := get(e.host, edgeMetrics, "/metrics")
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		answers := values(metrics, "ski_edgeserver_ski_answers")
		if len(answers) == 0 {
			return fmt.Errorf("%s has no key servers", e.name)
		}
		for keyServer, does := range answers {
			if does != 1 {
				return fmt.Errorf("%s: %s does not answer", e.name, strings.TrimSuffix(keyServer, "}"))
			}
		}
	}
	return nil
}

// alive returns an error if a server has ended, or a handshake was wrong, after
// which there is no reason to go on.
func (s *system) alive() error {
	all := []error{s.load.wrong()}
	for _, d := range s.daemons() {
		all = append(all, d.alive())
	}
	return errors.Join(all...)
}

// untilWhole waits until each kind of handshake has succeeded at each edge for each
// site, without one that failed in between, and the servers say that all is well.
func (s *system) untilWhole(patience time.Duration) error {
	s.load.mark()
	late := time.Now().Add(patience)
	for {
		err := s.whole()
		if st := s.load.failing(); err == nil && st != nil {
			err = fmt.Errorf("%s: handshakes with %s fail", st.edge.name, st.site.name)
		}
		if err == nil || s.alive() != nil || time.Now().After(late) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// pause lets the load go on.
func (s *system) pause(d time.Duration) error {
	time.Sleep(d)
	return s.alive()
}

// figures are what the servers take for themselves.
type figures struct{ processes []process }

type process struct {
	name              string
	goroutines, files int
	resident          float64 // MiB
}

// sessionsKept is longer than a key server keeps sessions that it hears nothing of.
const sessionsKept = 7 * time.Minute

// settle lets the system be, for as long as it has more than before, if that is
// known, and sessions that nobody uses may be kept. It returns what is left. No
// handshake fails meanwhile.
func (s *system) settle(before *figures) (*figures, error) {
	s.load.begin()
	if err := s.pause(*calm); err != nil {
		return nil, err
	}
	for begun := time.Now(); ; {
		f, err := s.figures()
		if err != nil || before == nil || grown(before, f) == nil || time.Since(begun) > sessionsKept {
			return f, err
		}
		if err := s.pause(5 * time.Second); err != nil {
			return nil, err
		}
	}
}

// figures returns what the servers have now.
func (s *system) figures() (*figures, error) {
	if _, failed, _, _ := s.load.since(); failed > 0 {
		return nil, fmt.Errorf("handshakes fail although nothing else does: %s", s.load.reasons())
	}
	if err := s.whole(); err != nil {
		return nil, err
	}
	f := &figures{}
	for _, d := range s.daemons() {
		address := edgeMetrics
		if slices.ContainsFunc(s.keys, func(k *keyServer) bool { return k.daemon == d }) {
			address = keyServerMetrics
		}
		metrics, err := get(d.host, address, "/metrics")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.name, err)
		}
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.pid()))
		if err != nil {
			return nil, err
		}
		p := process{name: d.name, goroutines: int(values(metrics, "go_goroutines")[""]), files: len(files)}
		if p.resident, err = lab.Resident(d.pid()); err != nil {
			return nil, err
		}
		f.processes = append(f.processes, p)
	}
	return f, nil
}

// grown returns an error if a process has more of something than a load that comes
// and goes explains.
func grown(before, after *figures) error {
	var all []error
	for i, b := range before.processes {
		a := after.processes[i]
		if a.goroutines > b.goroutines+50 || a.files > b.files+30 || a.resident > 1.5*b.resident+32 {
			all = append(all, fmt.Errorf("%s has grown: %d goroutines, %d files, %.0f MiB; before %d, %d, %.0f", a.name,
				a.goroutines, a.files, a.resident, b.goroutines, b.files, b.resident))
		}
	}
	return errors.Join(all...)
}
