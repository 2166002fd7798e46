// The soak command runs two key servers and two edge servers for a long time,
// under a steady load of TLS handshakes, while their network, their files and their
// machines fail in one way after the other. Nobody helps them. It fails if any
// handshake ends with another certificate or answer than the right one, if the
// system is not whole again soon after each fault, or if it has grown in the end. It
// writes its table in docs/operations.md, and is run by make soak, as root, from the
// top directory.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/tlsski/tlsski/testdata/internal/lab"
)

var (
	duration = flag.Duration("duration", 30*time.Minute, "how long the faults go on; each happens once at least")
	rate     = flag.Float64("rate", 20, "handshakes a second, of all clients")
	calm     = flag.Duration("calm", time.Minute, "how long nothing fails before and after the faults")
	only     = flag.String("only", "", "only the faults whose names match this regular expression")
	keep     = flag.String("keep", "", "the directory for all files and logs, which stays; default: a temporary one, which stays if the soak fails")
	document = flag.String("write", "docs/operations.md", "the file whose table is written; empty: none")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
}

func run() (err error) {
	dir, err := directory()
	if err != nil {
		return err
	}
	defer func() {
		if err == nil && *keep == "" {
			os.RemoveAll(dir)
			return
		}
		fmt.Fprintf(os.Stderr, "logs and files are in %s\n", dir)
	}()
	s, err := newSystem(dir)
	if err != nil {
		return err
	}
	defer s.stop()
	s.load.start(s)
	if err := s.untilWhole(2 * time.Minute); err != nil {
		return fmt.Errorf("at the start: %w", err)
	}
	before, err := s.settle(nil)
	if err != nil {
		return err
	}
	results, err := s.runFaults()
	if err != nil {
		return err
	}
	after, err := s.settle(before)
	if err != nil {
		return err
	}
	if err := errors.Join(s.load.stop(), s.verdict(results, before, after)); err != nil {
		return err
	}
	s.stop()
	if err := s.verifyAudit(); err != nil {
		return err
	}
	if *document == "" {
		fmt.Print(s.table(results, before, after))
		return nil
	}
	return lab.Write(*document, "soak", s.table(results, before, after))
}

func directory() (string, error) {
	if *keep == "" {
		return os.MkdirTemp("", "tlsski-soak-")
	}
	dir, err := filepath.Abs(*keep)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}

// runFaults runs the faults one after the other until the time is over.
func (s *system) runFaults() ([]*fault, error) {
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return nil, err
	}
	var all []*fault
	for _, f := range s.faults() {
		if wanted.MatchString(f.name) {
			all = append(all, f)
		}
	}
	begun := time.Now()
	for round := 0; round == 0 || time.Since(begun) < *duration; round++ {
		for _, f := range all {
			if round > 0 && time.Since(begun) >= *duration {
				break
			}
			if err := s.runFault(f); err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	return all, nil
}

// runFault runs a fault and waits until the system is whole again.
func (s *system) runFault(f *fault) error {
	if err := s.pause(2 * time.Second); err != nil { // the system is whole, and seen to be
		return err
	}
	s.load.begin()
	if err := f.happen(); err != nil {
		return err
	}
	ended := time.Now()
	if err := s.untilWhole(2 * time.Minute); err != nil {
		fmt.Fprintf(os.Stderr, "%-60s NOT WHOLE AGAIN: %s\n", f.name, s.load.reasons())
		return err
	}
	took := time.Since(ended)
	made, failed, slowest, success := s.load.since()
	f.times++
	f.made += made
	f.failed += failed
	f.slowest = max(f.slowest, slowest)
	f.success = max(f.success, success)
	f.whole = max(f.whole, took)
	if took > f.within {
		f.late++
	}
	fmt.Fprintf(os.Stderr, "%-60s %5d handshakes, %4d failed, slowest %4.1f s, success after %5.1f s, all after %5.1f s  %s\n",
		f.name, made, failed, slowest.Seconds(), success.Seconds(), took.Seconds(), s.load.reasons())
	return nil
}

// verdict says what is wrong in the end.
func (s *system) verdict(results []*fault, before, after *figures) error {
	var all []error
	for _, f := range results {
		if f.late > 0 {
			all = append(all, fmt.Errorf("%s: the system was whole again after %v, later than %v", f.name, f.whole.Round(time.Second/10), f.within))
		}
	}
	return errors.Join(append(all, s.load.wrong(), grown(before, after))...)
}

func (s *system) table(results []*fault, before, after *figures) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. %d handshakes in %s, and none that ended with a wrong certificate or answer.\n\n", lab.Machine(),
		s.load.total(), s.load.took().Round(time.Second))
	b.WriteString("| fault | times | handshakes | failed | slowest, s | first success after, s | whole after, s |\n|---|---|---|---|---|---|---|\n")
	for _, f := range results {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %.1f | %.1f | %.1f |\n", f.name, f.times, f.made, f.failed, f.slowest.Seconds(), f.success.Seconds(), f.whole.Seconds())
	}
	b.WriteString("\n| process | goroutines | open files | resident, MiB |\n|---|---|---|---|\n")
	for i, p := range before.processes {
		now := after.processes[i]
		fmt.Fprintf(&b, "| %s | %d, then %d | %d, then %d | %.0f, then %.0f |\n", p.name, p.goroutines, now.goroutines, p.files, now.files, p.resident, now.resident)
	}
	return b.String()
}
