package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/ski"
)

func newDemoCommand() *cobra.Command {
	var dir string
	var onToken bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show real TLS handshakes through a key server",
		Long: `Show real TLS handshakes through a key server.

demo starts what dev starts, makes one TLS handshake of each kind with the edge
server, and looks for the sites' private keys in the edge server's
configuration, folder and memory. The exit status is 1 if anything failed.

With --hsm the sites' keys are made on a SoftHSM token in the key server's
folder, and cannot leave it.

The table has, for each handshake, how long the edge server waited for the key
server (SKI) and how long the client waited for its handshake (TLS). At the
sites that begin with split. the edge server derives the session keys itself,
from the PreMasterSecret; with ECDHE-PMS, which asks twice, that is all it ever
has of the key exchange. Both ends write a key log, and they are compared.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if dir == "" {
				tmp, err := os.MkdirTemp("", "tlsski-demo-")
				if err != nil {
					return err
				}
				defer os.RemoveAll(tmp)
				// For the edge server, which runs as another user.
				if err := os.Chmod(tmp, 0o755); err != nil {
					return err
				}
				dir = tmp
			}
			d, err := startDev(c.Context(), dir, devOptions{keyLog: demoKeyLog, onToken: onToken})
			if err != nil {
				return err
			}
			defer d.stop()
			return d.demo(c.Context(), c.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&onToken, "hsm", false, "keep the sites' keys on a SoftHSM token")
	c.Flags().StringVar(&dir, "dir", "", "the folder to make everything in (default: one that is removed)")
	return c
}

// demoHandshake is one row of the demo's table: what the client offers, and
// what must come of it.
type demoHandshake struct {
	site    string
	version uint16
	suites  []uint16 // TLS 1.2
	method  ski.Method
}

var demoHandshakes = []demoHandshake{
	{"ecdsa.localhost", tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}, ski.MethodECDHE},
	{"rsa.localhost", tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, ski.MethodECDHE},
	{"rsa.localhost", tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}, ski.MethodRSA},
	{splitSite + "ecdsa.localhost", tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}, ski.MethodECDHEPMS},
	{splitSite + "rsa.localhost", tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, ski.MethodECDHEPMS},
	{splitSite + "rsa.localhost", tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}, ski.MethodRSA},
	{"ecdsa.localhost", tls.VersionTLS13, nil, ski.MethodECDHE},
	{"rsa.localhost", tls.VersionTLS13, nil, ski.MethodECDHE},
}

func (d *dev) demo(ctx context.Context, w io.Writer) error {
	fmt.Fprintf(w, "key server  pid %d  %s  has the private keys\n", d.endpoints.PIDs.KeyServer, d.endpoints.KeyServer.CoAPS)
	fmt.Fprintf(w, "edge server pid %d  %s  has the certificates\n\n", d.endpoints.PIDs.Edge, d.endpoints.Edge.HTTPS)
	failed := false
	var keyLog bytes.Buffer // of the client
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PROTOCOL\tCIPHER SUITE\tSITE\tSKI METHOD\tSKI\tTLS\t")
	for _, h := range demoHandshakes {
		row, err := d.handshake(ctx, h, &keyLog)
		if err != nil {
			failed = true
			row = fmt.Sprintf("%s\t\t%s\t%s\t\t\tFAILED: %v", tls.VersionName(h.version), h.site, h.method, err)
		}
		fmt.Fprintln(t, row)
	}
	_ = t.Flush()
	fmt.Fprintln(w)
	failed = !d.compareKeys(ctx, w, keyLog.String()) || failed
	if d.token != nil {
		failed = !d.token.show(w) || failed
	} else {
		failed = !d.lookForKeys(w) || failed
	}
	if failed {
		return errors.New("the demo has failed")
	}
	return nil
}

// demoKeyLog is the name of the edge server's key log, in its folder.
const demoKeyLog = "keys.txt"

// compareKeys looks for the client's secrets in the edge server's key log, says
// how many it finds, and reports whether those are all.
func (d *dev) compareKeys(ctx context.Context, w io.Writer, client string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all, same, err := d.countKeys(client)
	for ; same < all && ctx.Err() == nil; all, same, err = d.countKeys(client) {
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond): // it is written after the handshake
		}
	}
	fmt.Fprintln(w, "secrets of the sessions")
	good := err == nil && all > 0 && same == all
	verdict := "yes"
	if !good {
		verdict = "NO"
	}
	fmt.Fprintf(w, "%-42s %s, %d of %d\n\n", "  the same in the key logs of both ends", verdict, same, all)
	return good
}

// countKeys counts the client's secrets, and those that the edge server has too.
func (d *dev) countKeys(client string) (all, same int, err error) {
	edge, err := os.ReadFile(d.path("edge/" + demoKeyLog))
	for line := range strings.Lines(client) {
		all++
		if strings.Contains(string(edge), line) {
			same++
		}
	}
	return all, same, err
}

// handshake makes one handshake, fetches the site's page, and returns the row.
func (d *dev) handshake(ctx context.Context, h demoHandshake, keyLog io.Writer) (string, error) {
	ca, err := os.ReadFile(d.endpoints.CA)
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()

	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(d.endpoints.Edge.HTTPS, "https://"))
	if err != nil {
		return "", err
	}
	conn := tls.Client(raw, &tls.Config{
		ServerName: h.site, RootCAs: roots,
		MinVersion: h.version, MaxVersion: h.version, CipherSuites: h.suites,
		KeyLogWriter: keyLog,
	})
	defer conn.Close()
	start := time.Now()
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", err
	}
	took := time.Since(start)
	if err := fetch(conn, h.site); err != nil {
		return "", err
	}
	method, waited, err := d.findInLog(ctx, conn.LocalAddr().String())
	if err != nil {
		return "", err
	}
	if method != string(h.method) {
		return "", fmt.Errorf("the edge server used the method %s", method)
	}
	state := conn.ConnectionState()
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%v\t", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite),
		h.site, method, waited, took.Round(10*time.Microsecond)), nil
}

// fetch checks that the page that comes over conn is the site's.
func fetch(conn net.Conn, site string) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodGet, "https://"+site+"/", nil)
	if err != nil {
		return err
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(strings.TrimPrefix(site, splitSite))) {
		return fmt.Errorf("the page is not the site's: %s", resp.Status)
	}
	return nil
}

// findInLog finds what the edge server logged of the handshake with the client
// at addr: the method and the time it waited for the key server.
func (d *dev) findInLog(ctx context.Context, addr string) (method, waited string, err error) {
	for {
		data, err := os.ReadFile(d.edgeLog)
		if err != nil {
			return "", "", err
		}
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, "msg=handshake ") && strings.Contains(line, " remote="+addr+" ") {
				method, waited = logValue(line, "ski_method"), logValue(line, "ski_took")
				if t, err := time.ParseDuration(waited); err == nil {
					waited = t.Round(10 * time.Microsecond).String()
				}
				return method, waited, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", "", errors.New("the edge server's log does not have the handshake")
		case <-time.After(10 * time.Millisecond): // it is written after the handshake
		}
	}
}

func logValue(line, key string) string {
	_, rest, ok := strings.Cut(line, " "+key+"=")
	if !ok {
		return ""
	}
	value, _, _ := strings.Cut(strings.TrimRight(rest, "\n"), " ")
	return value
}

// lookForKeys looks for the sites' private keys where the edge server has or
// could have them, says what it finds, and reports whether it found none.
func (d *dev) lookForKeys(w io.Writer) bool {
	needles := map[string][]byte{}
	for _, s := range d.sites {
		for name, secret := range s.secrets() {
			needles[name] = secret
		}
	}
	good := true
	say := func(where string, found []string, err error) {
		switch {
		case err != nil:
			fmt.Fprintf(w, "%-42s not checked: %v\n", where, err)
		case len(found) > 0:
			good = false
			slices.Sort(found)
			fmt.Fprintf(w, "%-42s FOUND: %s\n", where, strings.Join(found, "; "))
		default:
			fmt.Fprintf(w, "%-42s none\n", where)
		}
	}
	fmt.Fprintln(w, "private keys of the sites")
	found, err := searchFolder(d.path("edge"), needles)
	say("  in the edge server's folder and config", found, err)
	if d.user == nil {
		fmt.Fprintf(w, "%-42s not separated: %s\n", "  readable by the edge server's user", d.sameUser)
	} else {
		found, err = openFiles(d.path("keyserver"))
		say(fmt.Sprintf("  readable by the edge server's user %d", d.user.uid), found, err)
	}
	found, err = searchMemory(d.edge.pid(), needles)
	say("  in the edge server's memory", found, err)
	if err == nil {
		// A search that finds nothing proves something only if it can find.
		found, err = searchMemory(d.keyServer.pid(), needles)
		switch {
		case err != nil:
			fmt.Fprintf(w, "%-42s not checked: %v\n", "  in the key server's memory, to compare", err)
		case len(found) == 0:
			good = false
			fmt.Fprintf(w, "%-42s NONE: the search is blind\n", "  in the key server's memory, to compare")
		default:
			fmt.Fprintf(w, "%-42s found, as it must be\n", "  in the key server's memory, to compare")
		}
	}
	return good
}

// searchFolder looks for the needles in all files below root, as they are and
// in PEM.
func searchFolder(root string, needles map[string][]byte) ([]string, error) {
	var found []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, content := range append(pemBlocks(data), data) {
			for name, needle := range needles {
				if bytes.Contains(content, needle) {
					found = append(found, fmt.Sprintf("%s (%s)", name, path))
				}
			}
		}
		return nil
	})
	return found, err
}

func pemBlocks(data []byte) [][]byte {
	var blocks [][]byte
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return blocks
		}
		blocks = append(blocks, b.Bytes)
	}
}

// openFiles returns what below root users other than its owner can read. A
// folder that is closed to them closes what is in it.
func openFiles(root string) ([]string, error) {
	var open []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		switch {
		case err != nil:
			return err
		case info.Mode()&0o077 == 0 && e.IsDir():
			return filepath.SkipDir
		case info.Mode()&0o044 != 0:
			open = append(open, path)
		}
		return nil
	})
	return open, err
}
