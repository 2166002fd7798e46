package split

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/tlsprf"
)

// visit is what a client program is to do.
type visit struct {
	addr      string
	suite     *suite
	group     tls.CurveID
	ca        string // PEM file
	cert, key string // PEM files; empty: none
	resume    bool   // do it twice, the second time with the session of the first
	rawServer bool   // ask for the server's raw public key
	rawClient string // PEM file of its own raw public key; key is that of the private one
}

func (v visit) port() string { return v.addr[strings.LastIndexByte(v.addr, ':')+1:] }

// program is a client that is not ours.
type program struct {
	name string
	// suites are its names for the cipher suites that it has; groups those for
	// the curves.
	suites map[uint16]string
	groups map[tls.CurveID]string
	// run does the visits and returns an error that says what went wrong.
	run func(t *testing.T, p *program, v visit) error
	// without are the features that it does not have.
	noRaw bool
}

var opensslSuites = map[uint16]string{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:       "ECDHE-ECDSA-AES128-GCM-SHA256",
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:         "ECDHE-RSA-AES128-GCM-SHA256",
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:       "ECDHE-ECDSA-AES256-GCM-SHA384",
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:         "ECDHE-RSA-AES256-GCM-SHA384",
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: "ECDHE-ECDSA-CHACHA20-POLY1305",
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:   "ECDHE-RSA-CHACHA20-POLY1305",
	tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM:           "ECDHE-ECDSA-AES128-CCM",
	tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8:         "ECDHE-ECDSA-AES128-CCM8",
	tls.TLS_RSA_WITH_AES_128_GCM_SHA256:               "AES128-GCM-SHA256",
	tls.TLS_RSA_WITH_AES_256_GCM_SHA384:               "AES256-GCM-SHA384",
}

var programs = []*program{
	{
		name:   "openssl",
		suites: opensslSuites,
		groups: map[tls.CurveID]string{tls.X25519: "X25519:P-256", tls.CurveP256: "P-256", tls.CurveP384: "P-384:P-256", tls.CurveP521: "P-521:P-256"},
		run:    runOpenSSL,
		noRaw:  true,
	},
	{
		name: "gnutls-cli",
		suites: map[uint16]string{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:       "+ECDHE-ECDSA:+AES-128-GCM",
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:         "+ECDHE-RSA:+AES-128-GCM",
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:       "+ECDHE-ECDSA:+AES-256-GCM",
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:         "+ECDHE-RSA:+AES-256-GCM",
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: "+ECDHE-ECDSA:+CHACHA20-POLY1305",
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:   "+ECDHE-RSA:+CHACHA20-POLY1305",
			tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM:           "+ECDHE-ECDSA:+AES-128-CCM",
			tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8:         "+ECDHE-ECDSA:+AES-128-CCM-8",
			tls.TLS_RSA_WITH_AES_128_GCM_SHA256:               "+RSA:+AES-128-GCM",
			tls.TLS_RSA_WITH_AES_256_GCM_SHA384:               "+RSA:+AES-256-GCM",
		},
		groups: map[tls.CurveID]string{tls.X25519: "+GROUP-X25519:+GROUP-SECP256R1", tls.CurveP256: "+GROUP-SECP256R1", tls.CurveP384: "+GROUP-SECP384R1:+GROUP-SECP256R1",
			tls.CurveP521: "+GROUP-SECP521R1:+GROUP-SECP256R1"},
		run: runGnuTLS,
	},
	{
		name: "mbedtls_client",
		suites: map[uint16]string{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:       "TLS-ECDHE-ECDSA-WITH-AES-128-GCM-SHA256",
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:         "TLS-ECDHE-RSA-WITH-AES-128-GCM-SHA256",
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:       "TLS-ECDHE-ECDSA-WITH-AES-256-GCM-SHA384",
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:         "TLS-ECDHE-RSA-WITH-AES-256-GCM-SHA384",
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: "TLS-ECDHE-ECDSA-WITH-CHACHA20-POLY1305-SHA256",
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:   "TLS-ECDHE-RSA-WITH-CHACHA20-POLY1305-SHA256",
			tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM:           "TLS-ECDHE-ECDSA-WITH-AES-128-CCM",
			tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8:         "TLS-ECDHE-ECDSA-WITH-AES-128-CCM-8",
			tls.TLS_RSA_WITH_AES_128_GCM_SHA256:               "TLS-RSA-WITH-AES-128-GCM-SHA256",
			tls.TLS_RSA_WITH_AES_256_GCM_SHA384:               "TLS-RSA-WITH-AES-256-GCM-SHA384",
		},
		groups: map[tls.CurveID]string{tls.X25519: "x25519", tls.CurveP256: "secp256r1", tls.CurveP384: "secp384r1"},
		run:    runC,
		noRaw:  true,
	},
	{
		name:   "wolfssl_client",
		suites: without(opensslSuites, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384), // compiled without
		groups: map[tls.CurveID]string{tls.X25519: "x25519", tls.CurveP256: "secp256r1", tls.CurveP384: "secp384r1"},
		run:    runC,
		noRaw:  true,
	},
}

func without(names map[uint16]string, ids ...uint16) map[uint16]string {
	rest := map[uint16]string{}
	for id, name := range names {
		rest[id] = name
	}
	for _, id := range ids {
		delete(rest, id)
	}
	return rest
}

const line = "hello\n"

// converse starts a program that joins its standard input and output to the
// connection, and talks to it.
func converse(t *testing.T, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	require.NoError(t, cmd.Start())
	io.WriteString(in, line)
	var seen bytes.Buffer
	buf := make([]byte, 4096)
	for err == nil && !bytes.Contains(seen.Bytes(), []byte(line)) {
		var n int
		n, err = out.Read(buf)
		seen.Write(buf[:n])
	}
	in.Close()
	io.Copy(&seen, out)
	if exit := cmd.Wait(); exit != nil || err != nil {
		return fmt.Errorf("%s %v: %v, %v\n%s%s", name, args, err, exit, seen.String(), problems.String())
	}
	return nil
}

func runOpenSSL(t *testing.T, p *program, v visit) error {
	args := []string{"s_client", "-connect", v.addr, "-tls1_2", "-servername", serverName, "-CAfile", v.ca,
		"-verify_return_error", "-verify_hostname", serverName, "-quiet", "-no_ign_eof",
		// The 8-byte tag of CCM_8 is below the default security level.
		"-cipher", p.suites[v.suite.id] + ":@SECLEVEL=0", "-groups", p.groups[v.group]}
	if v.cert != "" {
		args = append(args, "-cert", v.cert, "-key", v.key)
	}
	if !v.resume {
		return converse(t, "openssl", append(args, "-no_ticket")...)
	}
	file := filepath.Join(t.TempDir(), "session.pem")
	if err := converse(t, "openssl", append(args, "-sess_out", file)...); err != nil {
		return err
	}
	return converse(t, "openssl", append(args, "-sess_in", file)...)
}

func runGnuTLS(t *testing.T, p *program, v visit) error {
	priority := "NONE:+VERS-TLS1.2:+AEAD:+SIGN-ALL:+COMP-NULL:" + p.suites[v.suite.id] + ":" + p.groups[v.group]
	args := []string{"--port", v.port(), "--sni-hostname", serverName, "--verify-hostname", serverName, "--logfile", os.DevNull}
	switch {
	case v.rawServer:
		priority += ":+CTYPE-SRV-RAWPK"
		args = append(args, "--insecure") // nothing says that the key is the right one
	default:
		priority += ":+CTYPE-SRV-X509"
		args = append(args, "--x509cafile", v.ca)
	}
	switch {
	case v.rawClient != "":
		priority += ":+CTYPE-CLI-RAWPK"
		args = append(args, "--rawpkkeyfile", v.key, "--rawpkfile", v.rawClient)
	default:
		priority += ":+CTYPE-CLI-X509"
		if v.cert != "" {
			args = append(args, "--x509certfile", v.cert, "--x509keyfile", v.key)
		}
	}
	if v.resume {
		args = append(args, "--resume", "--waitresumption")
	} else {
		priority += ":%NO_TICKETS"
	}
	return converse(t, "gnutls-cli", append(args, "--priority", priority, "127.0.0.1")...)
}

// built are the C programs of testdata.
var built = map[string]string{}

var libraries = map[string][]string{
	"mbedtls_client": {"-lmbedtls", "-lmbedx509", "-lmbedcrypto"},
	"wolfssl_client": {"-lwolfssl"},
}

// build compiles a program of testdata.
func build(t *testing.T, name string) string {
	if built[name] == "" {
		dir, err := os.MkdirTemp("", "split-interop-")
		require.NoError(t, err)
		exe := filepath.Join(dir, name)
		args := append([]string{"-O1", "-Wall", "-Werror", "-o", exe, filepath.Join("testdata", name+".c")}, libraries[name]...)
		out, err := exec.Command("cc", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		built[name] = exe
	}
	return built[name]
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, exe := range built {
		os.RemoveAll(filepath.Dir(exe))
	}
	os.Exit(code)
}

func runC(t *testing.T, p *program, v visit) error {
	args := []string{v.port(), p.suites[v.suite.id], p.groups[v.group], v.ca}
	if v.cert != "" {
		args = append(args, v.cert, v.key)
	}
	if v.resume {
		args = append(args, "resume")
	}
	out, err := exec.Command(build(t, p.name), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %v\n%s", p.name, args, err, out)
	}
	if v.resume && !strings.Contains(string(out), "resumed=1") {
		return fmt.Errorf("%s %v: not resumed\n%s", p.name, args, out)
	}
	return nil
}

// TestInteropEverySuiteMethodAndCurve has each client, with each suite, method
// and curve that it has, shake hands and have a line echoed.
func TestInteropEverySuiteMethodAndCurve(t *testing.T) {
	w := theWorld()
	ca := w.file(t)
	for _, p := range programs {
		for _, s := range suites {
			if p.suites[s.id] == "" {
				continue
			}
			methods := []string{"ECDHE", "ECDHE-PMS"}
			groups := allGroups
			if s.staticRSA {
				methods, groups = []string{"RSA"}, groups[:1]
			}
			for _, method := range methods {
				for _, group := range groups {
					if p.groups[group] == "" {
						continue
					}
					t.Run(strings.Join([]string{p.name, s.name, method, group.String()}, "/"), func(t *testing.T) {
						server := serve(t, &Config{
							Chains: []*Chain{w.ecdsa.chain, w.rsa.chain}, StaticRSA: true, Groups: []tls.CurveID{group},
							KeyServerEphemeral: method == "ECDHE-PMS",
						})
						require.NoError(t, p.run(t, p, visit{addr: server.addr, suite: s, group: group, ca: ca}))
						got := server.outcome(t)
						assert.NoError(t, got.err)
						assert.Equal(t, line, string(got.read))
						assert.Equal(t, s.id, got.conn.ConnectionState().CipherSuite)
						if !s.staticRSA {
							assert.Equal(t, group, got.conn.ConnectionState().CurveID)
						}
					})
				}
			}
		}
	}
}

func TestInteropTickets(t *testing.T) {
	w := theWorld()
	ca := w.file(t)
	for _, p := range programs {
		for _, id := range []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_GCM_SHA256} {
			if p.suites[id] == "" {
				continue
			}
			t.Run(p.name+"/"+SuiteName(id), func(t *testing.T) {
				keys := []TicketKey{NewTicketKey()}
				server := serve(t, &Config{
					Chains: []*Chain{w.ecdsa.chain, w.rsa.chain}, StaticRSA: true, TicketKeys: func() []TicketKey { return keys },
				})
				require.NoError(t, p.run(t, p, visit{addr: server.addr, suite: suiteByID(id), group: tls.X25519, ca: ca, resume: true}))
				for _, resumed := range []bool{false, true} {
					got := server.outcome(t)
					assert.NoError(t, got.err)
					assert.Equal(t, resumed, got.conn.ConnectionState().DidResume)
				}
			})
		}
	}
}

func TestInteropClientCertificates(t *testing.T) {
	w := theWorld()
	ca := w.file(t)
	for _, p := range programs {
		for name, id := range map[string]identity{"ECDSA": w.client, "RSA": w.clientRSA} {
			for _, suite := range []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_GCM_SHA256} {
				if p.suites[suite] == "" {
					continue
				}
				t.Run(p.name+"/"+name+"/"+SuiteName(suite), func(t *testing.T) {
					server := serve(t, &Config{
						Chains: []*Chain{w.ecdsa.chain, w.rsa.chain}, StaticRSA: true,
						ClientAuth: RequireClientCert, ClientCAs: w.roots,
					})
					v := visit{addr: server.addr, suite: suiteByID(suite), group: tls.CurveP256, ca: ca}
					v.cert, v.key = id.files(t)
					require.NoError(t, p.run(t, p, v))
					got := server.outcome(t)
					require.NoError(t, got.err)
					assert.Equal(t, id.cert.Raw, got.conn.ConnectionState().PeerCertificates[0].Raw)

					v.cert, v.key = "", ""
					assert.Error(t, p.run(t, p, v), "a client without a certificate is refused")
					assert.Error(t, server.outcome(t).err)
				})
			}
		}
	}
}

// TestInteropRawPublicKeys is with GnuTLS, which has RFC 7250.
func TestInteropRawPublicKeys(t *testing.T) {
	w := theWorld()
	public := filepath.Join(t.TempDir(), "raw.pem")
	spki := w.client.cert.RawSubjectPublicKeyInfo
	require.NoError(t, os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), 0o600))
	_, key := w.client.files(t)
	id := ski.CertificateKeyID(w.client.cert)
	gnutls := programs[1]
	for _, s := range suites {
		if s.staticRSA {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			cfg := &Config{
				Chains: []*Chain{w.ecdsa.chain, w.rsa.chain}, ClientAuth: RequireClientCert, ClientKeys: []ski.KeyID{id},
			}
			server := serve(t, cfg)
			v := visit{addr: server.addr, suite: s, group: tls.CurveP256, ca: w.file(t), rawServer: true, rawClient: public, key: key}
			require.NoError(t, gnutls.run(t, gnutls, v))
			got := server.outcome(t)
			require.NoError(t, got.err)
			peer, ok := got.conn.PeerPublicKeyID()
			assert.True(t, ok)
			assert.Equal(t, id, peer)
			assert.Empty(t, got.conn.ConnectionState().PeerCertificates)

			v.rawServer = false
			require.NoError(t, gnutls.run(t, gnutls, v), "only the client's is raw")
			require.NoError(t, server.outcome(t).err)

			other := *cfg
			other.ClientKeys = []ski.KeyID{{1}}
			server = serve(t, &other)
			v.addr = server.addr
			assert.Error(t, gnutls.run(t, gnutls, v))
			var e *Error
			require.ErrorAs(t, server.outcome(t).err, &e)
			assert.Equal(t, AccessDenied, e.Alert)
		})
	}
}
