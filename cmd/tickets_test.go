package cmd_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Two edge servers, one over DTLS and one over TLS, share the tickets of a site
// that the policy of a running key server is given.
func TestTwoEdgeServersShareTheTicketsOfASite(t *testing.T) {
	d := startDev(t)
	f := &fleet{devSetup: d, roots: x509.NewCertPool()}
	ca, err := os.ReadFile(d.endpoints.CA)
	require.NoError(t, err)
	f.roots.AppendCertsFromPEM(ca)
	setPolicy := func(loads int, tickets string) {
		t.Helper()
		policy, _, _ := strings.Cut(d.read("keyserver/policy.yaml"), "tickets:")
		next := filepath.Join(d.dir, "keyserver/next.yaml")
		require.NoError(t, os.WriteFile(next, []byte(policy+tickets), 0o600))
		require.NoError(t, os.Rename(next, filepath.Join(d.dir, "keyserver/policy.yaml")))
		require.Eventually(t, func() bool {
			return strings.Count(d.read("keyserver/keyserver.log"), "policy loaded") == loads
		}, time.Minute, 10*time.Millisecond)
	}
	setPolicy(1, "tickets:\n  - {name: shop, edges: [edge]}\n")

	config := strings.ReplaceAll(d.read("edge/edge.yaml"), d.edgeAddr(), "127.0.0.1:0")
	config = strings.Replace(config, "    static: ecdsa.localhost\n", "    static: ecdsa.localhost\n    tickets: shared\n    ticket_site: shop\n", 1)
	var addrs []string
	logs := []string{"edge/udp.log", "edge/tcp.log"}
	for i, url := range []string{d.endpoints.KeyServer.CoAPS, d.endpoints.KeyServer.CoAPSTCP} {
		file := filepath.Join(d.dir, "edge", filepath.Base(logs[i])+".yaml")
		require.NoError(t, os.WriteFile(file, []byte(strings.Replace(config, d.endpoints.KeyServer.CoAPS, url, 1)), 0o600))
		edge := exec.Command(filepath.Join(bin, "ski-edgeserver"), "-config", file)
		log, err := os.Create(filepath.Join(d.dir, logs[i]))
		require.NoError(t, err)
		edge.Stderr = log
		require.NoError(t, edge.Start())
		require.NoError(t, log.Close())
		t.Cleanup(func() {
			assert.NoError(t, edge.Process.Signal(os.Interrupt))
			assert.NoError(t, edge.Wait())
		})
		listening := regexp.MustCompile(`msg=listening addr=(\S+)`)
		require.Eventually(t, func() bool {
			text := d.read(logs[i])
			return listening.MatchString(text) && strings.Count(text, `msg="ticket keys"`) == 1
		}, time.Minute, 10*time.Millisecond)
		addrs = append(addrs, listening.FindStringSubmatch(d.read(logs[i]))[1])
	}

	requests := func() int { return strings.Count(d.read("keyserver/audit.log"), `"key_name":"ecdsa.localhost"`) }
	visit := func(edge int, c *tls.Config) bool {
		t.Helper()
		f.edgeAt = addrs[edge]
		resumed, err := f.visit(c)
		require.NoError(t, err)
		return resumed
	}
	clients := []*tls.Config{{}, {MaxVersion: tls.VersionTLS12}}
	for _, c := range clients {
		c.ServerName, c.ClientSessionCache = "ecdsa.localhost", tls.NewLRUClientSessionCache(1)
		require.False(t, visit(0, c))
		before := requests()
		assert.True(t, visit(1, c))
		assert.True(t, visit(0, c))
		assert.Equal(t, before, requests(), "the key server was not asked")
	}
	assert.Equal(t, 2, strings.Count(d.read("keyserver/audit.log"), `"ticket_site":"shop"`))

	out, all, status := run(t, "", filepath.Join(bin, "skictl"), "tickets", "--endpoint", d.endpoints.KeyServer.CoAPS,
		"--cert", d.endpoints.EdgeCert, "--key", d.endpoints.EdgeKey, "--ca", d.endpoints.KeyServerCA, "shop")
	require.Zero(t, status, all)
	assert.Contains(t, out, "makes tickets")

	setPolicy(2, "tickets:\n  - {name: shop, edges: [edge], generation: 1}\n")
	for i := range addrs {
		require.Eventually(t, func() bool { return strings.Count(d.read(logs[i]), `msg="ticket keys"`) == 2 }, time.Minute, 10*time.Millisecond)
	}
	for _, c := range clients {
		assert.False(t, visit(1, c), "what was made before opens nothing")
		assert.True(t, visit(0, c))
	}
}
