package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tlsski/tlsski/internal/netlab"
)

// load is the clients, and what has become of their handshakes.
type load struct {
	cancel  context.CancelFunc
	running sync.WaitGroup
	begun   time.Time

	mu      sync.Mutex
	streams []*stream
	made    int
	first   []error // handshakes that ended wrongly

	lately, failedLately int // since begin
	slowest              time.Duration
	why                  map[string]int
	marked               time.Time
}

func newLoad() *load { return &load{why: map[string]int{}} }

// stream is the clients of a site at an edge, which come one after the other,
// with another kind of handshake each.
type stream struct {
	edge   *edge
	site   *site
	kinds  []kind
	streak int           // successes since the last failure
	first  time.Duration // from mark to the first that had asked a key server; 0 if there was none
}

// kind is a kind of handshake.
type kind struct {
	name   string
	config *tls.Config
}

// withTicket is the kind that asks no key server.
const withTicket = "with a ticket"

func kinds(site *site, split bool) []kind {
	tls12 := func(suite uint16) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite}}
	}
	all := []kind{
		{"ECDHE with ECDSA", tls12(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)},
		{"ECDHE with RSA", tls12(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)},
	}
	resumed := tls12(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)
	if site.group != "pms" {
		all = append(all, kind{"static RSA", tls12(tls.TLS_RSA_WITH_AES_128_GCM_SHA256)})
	}
	if !split && site.group != "pms" {
		all = append(all, kind{"TLS 1.3", &tls.Config{MinVersion: tls.VersionTLS13}})
		resumed = &tls.Config{MinVersion: tls.VersionTLS13}
	}
	resumed.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	all = append(all, kind{withTicket, resumed})
	for i := range all {
		all[i].config.ServerName = site.name
		all[i].config.InsecureSkipVerify = true // VerifyConnection looks closer
		all[i].config.VerifyConnection = func(state tls.ConnectionState) error {
			if !site.accepts(state.PeerCertificates[0].Raw) {
				return errWrong{fmt.Errorf("%s has shown the certificate of %q", site.name, state.PeerCertificates[0].Subject)}
			}
			return nil
		}
	}
	return all
}

// errWrong is a handshake that went on with what is not right.
type errWrong struct{ error }

const (
	patience = 15 * time.Second // of clients
	address  = "127.0.0.1:443"
)

// start begins the steady load.
func (l *load) start(s *system) {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel, l.begun = cancel, time.Now()
	for _, e := range s.edges {
		for _, site := range e.sites {
			l.streams = append(l.streams, &stream{edge: e, site: site, kinds: kinds(site, e.name == "edge-1")})
		}
		l.running.Go(func() { l.openssl(ctx, e) })
	}
	l.begin()
	for i, st := range l.streams {
		l.running.Go(func() {
			every := time.Duration(float64(time.Second) * float64(len(l.streams)) / *rate)
			time.Sleep(every * time.Duration(i) / time.Duration(len(l.streams)))
			tick := time.NewTicker(every)
			defer tick.Stop()
			for turn := 0; ; turn++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				k := &st.kinds[turn%len(st.kinds)]
				l.running.Go(func() {
					begun := time.Now()
					l.record(ctx, st, k.name, begun, handshake(ctx, st.edge.host, st.site, k.config))
				})
			}
		})
	}
}

// stop ends it.
func (l *load) stop() error {
	if l.cancel != nil {
		l.cancel()
	}
	l.running.Wait()
	return nil
}

// handshake connects to an edge on its host and gets the site's page.
func handshake(ctx context.Context, h *netlab.Host, site *site, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	raw, err := h.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	c := tls.Client(raw, config.Clone())
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", site.name); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	return site.check(answer)
}

// check says what is wrong with an HTTP answer.
func (s *site) check(answer []byte) error {
	header, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !bytes.HasPrefix(header, fmt.Appendf(nil, "HTTP/1.1 %d ", http.StatusOK)) || string(body) != s.body {
		return errWrong{fmt.Errorf("%s has answered %q", s.name, answer)}
	}
	return nil
}

// openssl is a client that is not Go's, which comes now and then.
func (l *load) openssl(ctx context.Context, e *edge) {
	for turn := 0; ; turn++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Second):
		}
		st := l.stream(e, e.sites[turn%len(e.sites)])
		begun := time.Now()
		l.record(ctx, st, "openssl", begun, opensslHandshake(ctx, e.host, st.site))
	}
}

func opensslHandshake(ctx context.Context, h *netlab.Host, site *site) error {
	cmd := h.Command("timeout", fmt.Sprint(patience.Seconds()), "openssl", "s_client", "-connect", address, "-servername", site.name,
		"-CAfile", site.roots, "-verify_return_error", "-quiet", "-ign_eof")
	cmd.Stdin = strings.NewReader("GET / HTTP/1.1\r\nHost: " + site.name + "\r\nConnection: close\r\n\r\n")
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		if bytes.Contains(exit.Stderr, []byte("certificate verify failed")) {
			return errWrong{fmt.Errorf("openssl: %s", exit.Stderr)}
		}
		return fmt.Errorf("openssl: %w", err)
	}
	if err != nil {
		return err
	}
	return site.check(out)
}

func (l *load) stream(e *edge, site *site) *stream {
	return l.streams[slices.IndexFunc(l.streams, func(st *stream) bool { return st.edge == e && st.site == site })]
}

// record counts what has become of a handshake that has just ended.
func (l *load) record(ctx context.Context, st *stream, kind string, begun time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		return // it was ended
	}
	l.made++
	l.lately++
	if err == nil {
		l.slowest = max(l.slowest, time.Since(begun))
		if begun.Before(l.marked) {
			return // it says nothing about what is now
		}
		st.streak++
		if kind != withTicket && st.first == 0 {
			st.first = time.Since(l.marked)
		}
		return
	}
	st.streak = 0
	l.failedLately++
	if wrong := new(errWrong); errors.As(err, wrong) {
		l.first = append(l.first, fmt.Errorf("%s, %s: %w", st.edge.name, kind, err))
	}
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	l.why[fmt.Sprintf("%s %s, %s: %s", st.edge.name, st.site.group, kind, text)]++
}

// begin begins to count for a fault.
func (l *load) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lately, l.failedLately, l.slowest, l.why = 0, 0, 0, map[string]int{}
}

// mark is the end of a fault.
func (l *load) mark() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marked = time.Now()
	for _, st := range l.streams {
		st.streak, st.first = 0, 0
	}
}

// since returns what has been counted since begin, the handshakes and those that
// failed, and how long the slowest of the others took; and how long after mark each
// site had a success at each edge.
func (l *load) since() (made, failed int, slowest, success time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, st := range l.streams {
		success = max(success, st.first)
	}
	return l.lately, l.failedLately, l.slowest, success
}

// failing returns a stream of which not each kind of handshake has succeeded since
// mark and the last failure, or nil.
func (l *load) failing() *stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, st := range l.streams {
		if st.streak < len(st.kinds) {
			return st
		}
	}
	return nil
}

// reasons returns why handshakes have failed, the most frequent reason first.
func (l *load) reasons() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for why := range l.why {
		all = append(all, why)
	}
	slices.SortFunc(all, func(a, b string) int { return l.why[b] - l.why[a] })
	for i, why := range all {
		all[i] = fmt.Sprintf("%d %s", l.why[why], why)
	}
	if len(all) > 6 {
		all = append(all[:6], "...")
	}
	return strings.Join(all, "; ")
}

func (l *load) total() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.made
}

func (l *load) took() time.Duration { return time.Since(l.begun) }

// wrong returns an error if a handshake has ended wrongly.
func (l *load) wrong() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.first) == 0 {
		return nil
	}
	return fmt.Errorf("%d handshakes ended wrongly: %w", len(l.first), errors.Join(l.first[:min(len(l.first), 5)]...))
}
