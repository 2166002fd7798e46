// The flood command measures what those who are not authenticated can do to a key
// server: ClientHellos in forged names, handshakes over DTLS that stop when the
// cookie has come back, and connections over TCP that stop after the ClientHello. It
// writes its table in docs/performance.md, and is run by make flood, as root, from
// the top folder. Everything happens on the loopback device of a network namespace of
// its own.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tlsski/tlsski/testdata/internal/lab"
)

var (
	document = flag.String("write", "docs/performance.md", "the file whose table is written")
	half     = flag.Int("half-open", 10_000, "how many handshakes are begun and not gone on with")
	inside   = flag.Bool("inside", false, "for the command itself: it is in the network namespace")
	forge    = flag.String("forge", "", "for the command itself: send what this says")
)

// roundTrip is that of a new edge. roundTrips is how many a first answer takes: the
// cookie, two flights each way, and the request.
const (
	roundTrip  = 150 * time.Millisecond
	roundTrips = 4
)

const keyServerAddr = "127.0.0.1:5684"

func main() {
	flag.Parse()
	var err error
	switch {
	case *forge != "":
		err = generate(*forge)
	case *inside:
		err = run()
	default:
		err = enter()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "flood: %v\n", err)
		os.Exit(1)
	}
}

// enter runs the command again, in a network namespace.
func enter() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append([]string{"-inside"}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("a network namespace (which needs root): %w", err)
	}
	return cmd.Wait()
}

func run() error {
	if _, err := lab.Run("ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur < uint64(*half+1000) {
		return errors.Join(err, fmt.Errorf("it needs a socket for each half-open handshake: ulimit -n %d", *half+1000))
	}
	dir, err := os.MkdirTemp("", "tlsski-flood-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	site, err := lab.NewSite(dir, keyServerAddr, "127.0.0.1:8443")
	if err != nil {
		return err
	}
	config := "\ncoaps_tcp: \"" + coapsTCPAddr + "\"\nhttps: \"" + httpsAddr + "\"\nstate: state.json\n"
	if err := appendTo(site.KeyServerConfig(), config); err != nil {
		return err
	}
	l := &laboratory{site: site}
	var text strings.Builder
	fmt.Fprintf(&text, "%s.\n\n", lab.Machine())
	for _, part := range []func(*strings.Builder) error{l.forgeries, l.median, l.halfOpen, l.halfOpenTCP} {
		before := text.Len()
		if err := part(&text); err != nil {
			return err
		}
		fmt.Fprint(os.Stderr, text.String()[before:])
	}
	return lab.Write(*document, "flood", text.String())
}

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// laboratory is what the parts have in common.
type laboratory struct {
	site *lab.Site
	from int // the addresses that new edges have had
}

// keyServer runs a new key server, which knows no address, with an edge that asks
// it now and then, and calls f.
func (l *laboratory) keyServer(f func(s *server) error) error {
	// What the one before has left would be read, the audit log too.
	for _, file := range []string{"state.json*", "audit.log*"} {
		left, err := filepath.Glob(filepath.Join(filepath.Dir(l.site.KeyServerConfig()), file))
		if err != nil {
			return err
		}
		for _, file := range left {
			if err := os.RemoveAll(file); err != nil {
				return err
			}
		}
	}
	p, err := lab.Start([]string{"msg=listening", "listening for CoAP over TLS"}, "bin/ski-keyserver", "-config", l.site.KeyServerConfig())
	if err != nil {
		return err
	}
	defer p.Stop()
	time.Sleep(time.Second)
	s := &server{laboratory: l, pid: p.PID()}
	if s.idle, err = lab.Resident(s.pid); err != nil {
		return err
	}
	if s.edge, err = l.newEdge("coaps://" + keyServerAddr); err != nil {
		return err
	}
	defer s.edge.close()
	return f(s)
}

// server is a key server that runs.
type server struct {
	*laboratory
	pid  int
	idle float64 // its resident memory, MiB
	edge *edge   // which has a session
}

// watch returns a function that returns the largest resident memory since, in MiB.
func (s *server) watch() (most func() (float64, error)) {
	type result struct {
		most float64
		err  error
	}
	stop, done := make(chan struct{}), make(chan result)
	go func() {
		var r result
		t := time.NewTicker(20 * time.Millisecond)
		defer t.Stop()
		for {
			now, err := lab.Resident(s.pid)
			r.most, r.err = max(r.most, now), errors.Join(r.err, err)
			select {
			case <-t.C:
			case <-stop:
				done <- r
				return
			}
		}
	}()
	return func() (float64, error) {
		close(stop)
		r := <-done
		return r.most, r.err
	}
}

// newEdges makes sessions of new edges one after the other, each at an address
// that the key server has not seen, or all at the given one, and returns how long
// each took from nothing to its first answer, in milliseconds.
func (s *server) newEdges(n int, at string) (took []float64, err error) {
	for range n {
		from := at
		if from == "" {
			s.from++
			from = fmt.Sprintf("127.200.%d.%d", s.from>>8, 1+s.from&0x7f)
		}
		r, err := newRelay(from, keyServerAddr, roundTrip)
		if err != nil {
			return nil, err
		}
		began := time.Now()
		e, err := s.newEdge("coaps://" + r.addr())
		if err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(began).Milliseconds()))
		e.close()
		r.close()
	}
	return took, nil
}

// forgeries measures memory and new edges in a flood of forged ClientHellos.
func (l *laboratory) forgeries(text *strings.Builder) error {
	fmt.Fprintf(text, "A new edge's session, from nothing to its first answer, with a round trip of %v, takes %v without a flood at least.\n\n"+
		"| forged ClientHellos | sent a second | read | resident idle, MiB | at most | x idle | new edge p50, ms | at most |\n|---|---|---|---|---|---|---|---|\n",
		roundTrip, roundTrips*roundTrip)
	for _, f := range []struct {
		name     string
		flood    string // of generate
		newEdges string // their address; "" for others
	}{
		{"none", "", ""},
		{"1,000/s, each once", "rate=1000", ""},
		{"5,000/s, each once", "rate=5000", ""},
		{"10,000/s, each once", "rate=10000", ""},
		{"10,000/s, each twice", "rate=10000 times=2", ""},
		{"10,000/s, each three times", "rate=10000 times=3", ""},
		{"10,000/s, in the name of an edge that is known", "rate=10000 from=127.0.0.1", "127.0.0.1"},
		{"10,000/s, three times, in its name", "rate=10000 times=3 from=127.0.0.1", "127.0.0.1"},
	} {
		err := l.keyServer(func(s *server) error {
			most := s.watch()
			var g *generator
			var err error
			if f.flood != "" {
				if g, err = startGenerator(f.flood, false); err != nil {
					return err
				}
				time.Sleep(2 * time.Second)
			}
			took, err := s.newEdges(9, f.newEdges)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			rates := "|"
			if g != nil {
				sent, read, err := g.stop()
				if err != nil {
					return err
				}
				rates = fmt.Sprintf("%.0f | %.0f%%", sent, 100*read)
			}
			if err := s.edge.ask(); err != nil {
				return fmt.Errorf("the session that was there: %w", err)
			}
			memory, err := most()
			if err != nil {
				return err
			}
			p50 := lab.Median(took)
			fmt.Fprintf(text, "| %s | %s | %.1f | %.1f | %.2f | %.0f | %.0f |\n",
				f.name, rates, s.idle, memory, memory/s.idle, p50, took[len(took)-1])
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// median measures what a flood does to an edge that has a session, with the
// generator at idle priority.
func (l *laboratory) median(text *strings.Builder) error {
	return l.keyServer(func(s *server) error {
		g, err := startGenerator("rate=10000 times=2", true)
		if err != nil {
			return err
		}
		var without, with, ratio []float64
		var between time.Duration
		for range 9 {
			g.pause(true)
			a, err := s.edge.p50(time.Second)
			if err != nil {
				return err
			}
			g.pause(false)
			began := time.Now()
			b, err := s.edge.p50(time.Second)
			if err != nil {
				return err
			}
			between += time.Since(began)
			without, with, ratio = append(without, a), append(with, b), append(ratio, b/a)
		}
		g.time = between
		sent, _, err := g.stop()
		if err != nil {
			return err
		}
		fmt.Fprintf(text, "\nAn edge that has a session and asks one at a time, with the generator at idle priority (SCHED_IDLE, %.0f ClientHellos a second got through), "+
			"medians of 9 seconds in turns: p50 %.0f us without the flood, %.0f with it; ratio %.2f.\n", sent, lab.Median(without), lab.Median(with), lab.Median(ratio))
		return nil
	})
}
