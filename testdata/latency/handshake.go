package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/tlsski/tlsski/internal/netlab"
	"github.com/tlsski/tlsski/testdata/internal/lab"
)

// row is a handshake of the table.
type row struct {
	where, what string
	host        *netlab.Host
	port        string
	config      tls.Config
	resumed     bool

	trips, questions int // round trips to host, and from the edge server to the key server
	took             []float64
}

// rows returns all handshakes. TCP's takes a round trip, TLS 1.2 two more, or one
// where a session is resumed, as TLS 1.3 does always (RFC 5246, Section 7.3; RFC
// 8446, Section 2).
func (x *experiment) rows() (all []*row) {
	tls12 := tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}
	tls12RSA := tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}}
	tls13 := tls.Config{MinVersion: tls.VersionTLS13}
	add := func(where string, h *netlab.Host, port, what string, config *tls.Config, trips, questions int) {
		r := &row{where: where, what: what, host: h, port: port, config: *config.Clone(), resumed: strings.HasSuffix(what, resumed),
			trips: trips, questions: questions}
		r.config.RootCAs, r.config.ServerName = x.site.Roots, lab.SiteName
		all = append(all, r)
	}
	for _, server := range []struct {
		where              string
		host               *netlab.Host
		port, rsa          string
		questions          int
		only12, withoutRSA bool
	}{
		{"direct to the origin", x.origin, ownKeyPort, ownKeyRSAPort, 0, false, false},
		{"key at the edge", x.edge, ownKeyPort, ownKeyRSAPort, 0, false, false},
		{"through SKI, crypto/tls", x.edge, skiPort, skiRSAPort, 1, false, false},
		{"through SKI, split engine", x.edge, splitPort, splitRSAPort, 1, true, false},
		{"through SKI, ECDHE-PMS", x.edge, pmsPort, "", 2, true, true},
	} {
		add(server.where, server.host, server.port, "TLS 1.2 ECDHE", &tls12, 3, server.questions)
		if !server.withoutRSA {
			add(server.where, server.host, server.rsa, "TLS 1.2 RSA", &tls12RSA, 3, server.questions)
		}
		add(server.where, server.host, server.port, "TLS 1.2"+resumed, &tls12, 2, 0)
		if !server.only12 {
			add(server.where, server.host, server.port, "TLS 1.3", &tls13, 2, server.questions)
			add(server.where, server.host, server.port, "TLS 1.3"+resumed, &tls13, 2, 0)
		}
	}
	return all
}

const resumed = ", resumed"

// handshake makes one from the client, after one for its session where that is
// to be resumed, and returns how long it took from the first packet of TCP to
// where the client can send its request.
func (r *row) handshake(x *experiment) (took time.Duration, err error) {
	config := r.config.Clone()
	err = x.client.Do(func() error {
		if r.resumed {
			config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			if _, err := r.connect(config, true); err != nil {
				return err
			}
		}
		took, err = r.connect(config, false)
		return err
	})
	return took, err
}

// connect makes a connection and, with ask, a request, behind whose answer the
// client has its ticket for sure.
func (r *row) connect(config *tls.Config, ask bool) (time.Duration, error) {
	start := time.Now()
	raw, err := net.DialTimeout("tcp", net.JoinHostPort(r.host.Addr().String(), r.port), 10*time.Second)
	if err != nil {
		return 0, err
	}
	c := tls.Client(raw, config)
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	took := time.Since(start)
	if state := c.ConnectionState(); state.DidResume != (r.resumed && !ask) {
		return 0, fmt.Errorf("resumed: %v", state.DidResume)
	}
	if !ask {
		return took, nil
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+lab.SiteName+"\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, err
	}
	answer, err := io.ReadAll(c)
	if err == nil && !strings.HasPrefix(string(answer), fmt.Sprint("HTTP/1.1 ", http.StatusOK)) {
		err = fmt.Errorf("the answer is %q", answer)
	}
	return took, err
}

// first is the path between the client and the row's host.
func (r *row) first(x *experiment) (name string, p *path) {
	if r.host == x.origin {
		return "AC", x.ac
	}
	return "AB", x.ab
}

// formula is the sum of the round trips as the analysis writes it.
func (r *row) formula(x *experiment) string {
	name, _ := r.first(x)
	formula := fmt.Sprint(r.trips, " ", name)
	if r.questions > 0 {
		formula += fmt.Sprintf(" + %d BC", r.questions)
	}
	return formula
}

// sum is the sum of the round trips, each as long as of says.
func (r *row) sum(x *experiment, of func(*path) time.Duration) time.Duration {
	_, first := r.first(x)
	return time.Duration(r.trips)*of(first) + time.Duration(r.questions)*of(x.bc)
}

func (x *experiment) table(rows []*row) string {
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)) }
	var b strings.Builder
	fmt.Fprintf(&b, "%s. Medians of %d handshakes each, taken in turn.\n\n", lab.Machine(), *runs)
	b.WriteString("| round trip | of the analysis, ms | TCP connect here, ms |\n|---|---|---|\n")
	fmt.Fprintf(&b, "| AB, client to edge server | %d | %s |\n", clientEdge.Milliseconds(), ms(x.ab.median()))
	fmt.Fprintf(&b, "| BC, edge server to key server | %d | %s |\n", edgeKeyServer.Milliseconds(), ms(x.bc.median()))
	fmt.Fprintf(&b, "| AC, client to origin server | %d | %s |\n\n", clientOrigin.Milliseconds(), ms(x.ac.median()))
	b.WriteString("| private key | handshake | round trips | predicted, ms | measured, ms | over, ms |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		took := time.Duration(lab.Median(r.took))
		predicted := r.sum(x, (*path).median)
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.where, r.what, r.formula(x), ms(predicted), ms(took), ms(took-predicted))
	}
	return b.String()
}
