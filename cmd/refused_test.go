package cmd_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// guarded is a key server with an admin socket and an edge server of it, whose
// requests have minutes.
type guarded struct {
	*devSetup
	edge   *exec.Cmd
	edgeAt string
}

func startGuarded(t *testing.T, binding string) *guarded {
	g := &guarded{devSetup: startDev(t)}
	write := func(name, content string) string {
		file := filepath.Join(g.dir, name)
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		return file
	}
	config := regexp.MustCompile(`(?m)^(listen|coaps_tcp|https): .*$`).ReplaceAllString(g.read("keyserver/keyserver.yaml"), "$1: 127.0.0.1:0")
	config = strings.Replace(config, "file: audit.log", "file: guarded.log", 1) + "admin: guarded.sock\nstate: guarded.json\n"
	g.start("ski-keyserver", write("keyserver/guarded.yaml", config), "keyserver/guarded-server.log")
	listening := map[string]string{
		"coaps":     `msg=listening addr=(\S+)`,
		"https":     `msg="listening over HTTPS" addr=(\S+)`,
		"coaps+tcp": `msg="listening for CoAP over TLS" addr=(\S+)`,
	}[binding]
	url := binding + "://" + g.until("keyserver/guarded-server.log", listening) + "/ski"

	config = regexp.MustCompile(`(?m)^listen: .*$`).ReplaceAllString(g.read("edge/edge.yaml"), `listen: ["127.0.0.1:0"]`)
	config = regexp.MustCompile(`(?m)^  url: .*$`).ReplaceAllLiteralString(config, "  url: "+url+"\n  timeout: 10m") // longer than a client waits in visit
	g.edge = g.start("ski-edgeserver", write("edge/guarded.yaml", config), "edge/guarded.log")
	g.edgeAt = g.until("edge/guarded.log", `msg=listening addr=(\S+)`)
	// What it asks at its start, all at once over https, is done.
	require.Eventually(t, func() bool {
		return strings.Count(g.read("edge/guarded.log"), "the key server has the key") == 2*len(g.endpoints.Sites)
	}, time.Minute, 10*time.Millisecond)
	return g
}

// start runs a program until the end of the test.
func (g *guarded) start(program, config, log string) *exec.Cmd {
	file, err := os.Create(filepath.Join(g.dir, log))
	require.NoError(g.t, err)
	defer file.Close()
	cmd := exec.Command(filepath.Join(bin, program), "-config", config)
	cmd.Stderr = file
	require.NoError(g.t, cmd.Start())
	g.t.Cleanup(func() {
		assert.NoError(g.t, cmd.Process.Signal(os.Interrupt))
		assert.NoError(g.t, cmd.Wait())
		if g.t.Failed() {
			g.t.Logf("%s:\n%s", log, tail(g.read(log), 30))
		}
	})
	return cmd
}

// until waits until a log has a line, and returns what its parenthesis matches.
func (g *guarded) until(log, line string) string {
	g.t.Helper()
	var found []string
	require.Eventually(g.t, func() bool {
		found = regexp.MustCompile(line).FindStringSubmatch(g.read(log))
		return found != nil
	}, time.Minute, 10*time.Millisecond, line)
	return found[len(found)-1]
}

func (g *guarded) order(args ...string) {
	g.t.Helper()
	_, all, status := g.skictl(append([]string{"edge", "--socket", filepath.Join(g.dir, "keyserver/guarded.sock")}, args...)...)
	require.Zero(g.t, status, all)
}

// visit is a client's handshake. Its time is not what ends it.
func (g *guarded) visit() error {
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(g.endpoints.CA)
	require.NoError(g.t, err)
	roots.AppendCertsFromPEM(ca)
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "ecdsa.localhost"}}).DialContext(ctx, "tcp", g.edgeAt)
	if err != nil {
		return err
	}
	return conn.Close()
}

// cutOff are the ways to cut an edge off, and those to have it back.
var cutOff = map[string]struct{ off, on func(g *guarded) }{
	"suspended": {
		func(g *guarded) { g.order("suspend", "edge", "--reason", "disk found on the market") },
		func(g *guarded) { g.order("resume", "edge") },
	},
	"unknown": {
		func(g *guarded) { g.knows("another.ski.internal") },
		func(g *guarded) { g.knows("edge.ski.internal") },
	},
}

// knows has the policy know the edge by a name, which it may not have.
func (g *guarded) knows(name string) {
	g.t.Helper()
	policy := filepath.Join(g.dir, "keyserver/policy.yaml")
	changed := regexp.MustCompile(`(?m)^( +(?:dns|psk): ).*$`).ReplaceAllString(g.read("keyserver/policy.yaml"), "$1["+name+"]")
	require.NoError(g.t, os.WriteFile(policy+".new", []byte(changed), 0o600))
	loaded := strings.Count(g.read("keyserver/guarded-server.log"), "policy loaded")
	require.NoError(g.t, os.Rename(policy+".new", policy))
	require.Eventually(g.t, func() bool {
		return strings.Count(g.read("keyserver/guarded-server.log"), "policy loaded") > loaded
	}, time.Minute, 10*time.Millisecond)
}

// The clients of an edge that is cut off do not wait, and its key server has
// nothing to do with it but for a handshake now and then.
func TestAnEdgeThatIsCutOffAnswersAtOnce(t *testing.T) {
	for how, cut := range cutOff {
		for _, binding := range []string{"coaps", "coaps+tcp", "https"} {
			t.Run(how+", "+binding, func(t *testing.T) {
				t.Parallel()
				g := startGuarded(t, binding)
				require.NoError(t, g.visit())

				cut.off(g)
				began := time.Now()
				const clients = 100
				for range clients {
					assert.EqualError(t, g.visit(), "remote error: tls: internal error")
				}
				handshakes := strings.Count(g.read("keyserver/guarded-server.log"), "handshake failed")
				// Two at once, and one after half of 1 s, 2 s and so on at the soonest.
				most, soonest := 2, time.Second/2
				for waited := soonest; waited < time.Since(began); waited += soonest {
					most++
					soonest *= 2
				}
				assert.LessOrEqual(t, handshakes, most)
				// What is logged of a handshake, is after the client's alert.
				require.Eventually(t, func() bool { return strings.Count(g.read("edge/guarded.log"), "reason=refused") >= clients-2 },
					time.Minute, 10*time.Millisecond)
				assert.Equal(t, 1, strings.Count(g.read("edge/guarded.log"), `level=WARN msg="the key server refuses this edge`), "one line")

				cut.on(g)
				require.NoError(t, g.edge.Process.Signal(syscall.SIGHUP))
				g.until("edge/guarded.log", "the key server lets this edge in again")
				require.NoError(t, g.visit())
			})
		}
	}
}

// Without an operator at the edge, too, it is back when the pause is over.
func TestAResumedEdgeComesBackByItself(t *testing.T) {
	t.Parallel()
	g := startGuarded(t, "coaps")
	g.order("suspend", "edge")
	require.Error(t, g.visit())
	g.until("edge/guarded.log", "(the key server refuses this edge)")
	g.order("resume", "edge")
	require.Eventually(t, func() bool { return g.visit() == nil }, 2*time.Minute, 50*time.Millisecond)
}
