package cmd_test

import (
	"encoding/json"
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

// ticketServer is a key server of what skictl dev leaves behind, with a state
// folder of its own.
type ticketServer struct {
	*devSetup
	name, addr string
	cmd        *exec.Cmd
}

func (s *ticketServer) state() string { return filepath.Join(s.dir, s.name, "state.json") }

// configure writes the configuration, with or without a line for the secret.
func (s *ticketServer) configure(line string) (file string) {
	s.t.Helper()
	config := regexp.MustCompile(`(?m)^(coaps_tcp|https|admin|state|metrics): .*\n`).ReplaceAllString(s.read("keyserver/keyserver.yaml"), "")
	config = regexp.MustCompile(`(?m)^listen: .*$`).ReplaceAllString(config, "listen: 127.0.0.1:0\nstate: "+s.state()+"\n"+line)
	config = strings.Replace(config, "file: audit.log", "file: "+filepath.Join(s.dir, s.name, "audit.log"), 1)
	file = filepath.Join(s.dir, "keyserver", s.name+".yaml")
	require.NoError(s.t, os.WriteFile(file, []byte(config), 0o600))
	return file
}

func (s *ticketServer) check(line string) string {
	s.t.Helper()
	out, all, status := run(s.t, "", filepath.Join(bin, "ski-keyserver"), "-config", s.configure(line), "-check")
	require.Zero(s.t, status, all)
	return out
}

func (s *ticketServer) start(line string) {
	s.t.Helper()
	s.cmd = exec.Command(filepath.Join(bin, "ski-keyserver"), "-config", s.configure(line))
	log, err := os.Create(filepath.Join(s.dir, s.name, "log"))
	require.NoError(s.t, err)
	defer log.Close()
	s.cmd.Stderr = log
	require.NoError(s.t, s.cmd.Start())
	s.t.Cleanup(s.stop)
	listening := regexp.MustCompile(`msg=listening addr=(\S+)`)
	require.Eventually(s.t, func() bool {
		m := listening.FindStringSubmatch(s.read(s.name + "/log"))
		if m != nil {
			s.addr = m[1]
		}
		return m != nil
	}, time.Minute, 10*time.Millisecond)
}

func (s *ticketServer) stop() {
	if s.cmd != nil {
		assert.NoError(s.t, s.cmd.Process.Signal(syscall.SIGTERM))
		assert.NoError(s.t, s.cmd.Wait())
		s.cmd = nil
	}
}

// ids returns the ids of the ticket keys, by their ends.
func (s *ticketServer) ids() map[string]string {
	s.t.Helper()
	out, all, status := run(s.t, "", filepath.Join(bin, "skictl"), "tickets", "--json", "--endpoint", "coaps://"+s.addr,
		"--cert", s.endpoints.EdgeCert, "--key", s.endpoints.EdgeKey, "--ca", s.endpoints.KeyServerCA, "shop")
	require.Zero(s.t, status, all)
	var line struct {
		Keys []struct{ ID, Until string }
	}
	require.NoError(s.t, json.Unmarshal([]byte(out), &line))
	require.GreaterOrEqual(s.t, len(line.Keys), 4)
	ids := map[string]string{}
	for _, k := range line.Keys {
		ids[k.Until] = k.ID
	}
	return ids
}

// assertShared holds that two key servers have the keys in common that both have:
// one may expire between the two questions.
func assertShared(t *testing.T, a, b map[string]string) {
	t.Helper()
	common := 0
	for until, id := range a {
		if other, ok := b[until]; ok {
			assert.Equal(t, id, other)
			common++
		}
	}
	assert.GreaterOrEqual(t, common, 3)
}

// The life of a site's ticket keys: a secret that two key servers begin with, and
// that is then removed; a third key server that comes later.
func TestTicketKeysGoOnWithoutTheirSecret(t *testing.T) {
	d := startDev(t)
	policy, _, _ := strings.Cut(d.read("keyserver/policy.yaml"), "tickets:")
	require.NoError(t, os.WriteFile(filepath.Join(d.dir, "keyserver/policy.yaml"), []byte(policy+"tickets:\n  - {name: shop, edges: [edge]}\n"), 0o600))
	secret := filepath.Join(d.dir, "keyserver/ticket.secret")
	require.NoError(t, os.WriteFile(secret, []byte(strings.Repeat("31", 16)), 0o600))
	const line = "ticket_secret_file: ticket.secret"
	var servers []*ticketServer
	for _, name := range []string{"one", "two", "three"} {
		require.NoError(t, os.Mkdir(filepath.Join(d.dir, name), 0o700))
		servers = append(servers, &ticketServer{devSetup: d, name: name})
	}
	one, two, three := servers[0], servers[1], servers[2]

	out := one.check(line)
	assert.Contains(t, out, "the start makes "+one.state()+".tickets, with which the key server goes on; then remove the setting, the file and its copies")
	require.NoFileExists(t, one.state()+".tickets", "a check makes nothing")
	one.start(line)
	two.start(line)
	first := one.ids()
	assertShared(t, first, two.ids())
	assert.Contains(t, d.read("one/log"), "yields all ticket keys of the past")
	require.Eventually(t, func() bool { _, err := os.Stat(one.state() + ".tickets"); return err == nil }, time.Minute, 10*time.Millisecond)
	out = one.check(line)
	assert.Contains(t, out, "ticket.secret still yields all ticket keys of the past: the key server goes on from "+one.state()+".tickets without it")

	one.stop()
	require.NoError(t, os.Remove(secret))
	out = one.check("")
	assert.Regexp(t, `(?m)^tickets +\S+one/state\.json\.tickets, which has no key of tickets that expired before `, out)
	assert.NotContains(t, out, "of the past")
	one.start("")
	assertShared(t, first, one.ids())
	assert.NotContains(t, d.read("one/log"), "no ticket secret")

	// The third would have keys of its own.
	assert.Regexp(t, `(?m)^tickets +a random secret of this process`, three.check(""))
	skictl := func(args ...string) (out, all string) {
		t.Helper()
		out, all, status := run(t, "", filepath.Join(bin, "skictl"), append([]string{"tickets"}, args...)...)
		require.Zero(t, status, all)
		return out, all
	}
	request, _ := skictl("request", "--state", three.state())
	sealed, all := skictl("export", "--state", one.state(), "--to", strings.TrimSpace(request))
	code := regexp.MustCompile(`check code: (\S+)`).FindStringSubmatch(all)
	require.NotNil(t, code, all)
	require.NotContains(t, sealed, code[1], "it takes another way")
	out, all, status := run(t, sealed, filepath.Join(bin, "skictl"), "tickets", "import", "--state", three.state(), "--code", code[1])
	require.Zero(t, status, all)
	assert.Equal(t, three.state()+".tickets: start the key server, without ticket_secret_file\n", out)
	three.start("")
	assertShared(t, first, three.ids())

	_, all, status = run(t, "", filepath.Join(bin, "skictl"), "tickets", "import", "--state", three.state(), "--code", code[1], strings.TrimSpace(sealed))
	assert.Equal(t, 1, status)
	assert.Contains(t, all, "'skictl tickets request' comes first, with the same --state")
	_, all, status = run(t, "", filepath.Join(bin, "skictl"), "tickets", "export", "--to", "x")
	assert.Equal(t, 1, status)
	assert.Contains(t, all, `required flag(s) "state" not set`)
}
