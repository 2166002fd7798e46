package cmd_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A group that is off by default has to be named twice: in the key server's
// policy and in the edge server's site. What only the site has is found at the
// start of the edge server.
func TestGroupsOfPolicyAndSite(t *testing.T) {
	c := newConformanceSetup(t)
	require.NoError(t, os.Mkdir(c.path("site"), 0o700))
	c.write("policy.yaml", `
edges: [{name: edge, dns: [edge.test]}]
rules:
  - {edges: [edge], keys: [ecdsa, ed25519], methods: [ECDHE, ECDHE-PMS]}
  - {edges: [edge], keys: [rsa], methods: [ECDHE, ECDHE-PMS], groups: [secp521r1, secp256r1]}
`)
	c.write("keyserver.yaml", `
listen: 127.0.0.1:0
certificate: ks.pem
key: ks.key
client_ca: pki/ca.pem
keys: keys
policy: policy.yaml
audit: {file: audit.log}
`)
	_, ks := c.start("msg=listening addr=", "ski-keyserver", "-config", c.path("keyserver.yaml"))
	requests := func() (lines []string) {
		log, err := os.ReadFile(c.path("audit.log"))
		require.NoError(t, err)
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, `"event":"request"`) {
				lines = append(lines, line)
			}
		}
		return lines
	}
	for engine, asked := range map[string]int{ // at the start: for each group of TLS 1.2, and for TLS 1.3
		"standard": 3 + 3 + 4, "split": 2 + 2 + 3, "split, method: ECDHE-PMS": 2 + 2 + 3,
	} {
		start := len(requests())
		c.write("edge.yaml", `
listen: ["127.0.0.1:0"]
keyserver: {url: "coaps://`+ks+`/ski", certificate: edge.pem, key: edge.key, ca: pki/ca.pem}
sites:
  - {names: [rsa.test], certificates: [rsa.crt], static: site, engine: `+engine+`, groups: [secp256r1, secp521r1]}
  - {names: [ecdsa.test], certificates: [ecdsa.crt], static: site, engine: `+engine+`, groups: [x25519, secp521r1]}
  - {names: [ed25519.test], certificates: [ed25519.crt], static: site, engine: `+engine+`}
`)
		_, addr := c.start("msg=listening addr=", "ski-edgeserver", "-config", c.path("edge.yaml"))
		require.Eventually(t, func() bool { return len(requests())-start >= asked }, time.Minute, 5*time.Millisecond, engine)
		assert.Equal(t, 1, strings.Count(strings.Join(requests()[start:], ""), `"reason":"no rule grants the group"`), engine)
		for _, tc := range []struct {
			site, groups string
			group        string // in the audit log; "" where the key server is not asked
			reason       string
			alert        string
		}{
			{"rsa", "P-521", "secp521r1", "", ""},
			{"rsa", "X25519:P-256", "secp256r1", "", ""},
			{"rsa", "P-384", "", "", "handshake failure"},
			{"ecdsa", "P-521:P-256", "secp521r1", "no rule grants the group", "internal error"},
			{"ecdsa", "X25519:P-256", "x25519", "", ""},
			{"ed25519", "P-521", "", "", "handshake failure"},
		} {
			before := len(requests())
			_, out, status := run(t, "", "openssl", "s_client", "-connect", addr, "-servername", tc.site+".test", "-tls1_2",
				"-CAfile", c.path(tc.site+".crt"), "-verify_return_error", "-brief", "-groups", tc.groups)
			assert.Equal(t, tc.alert == "", status == 0, "%s %+v: %s", engine, tc, out)
			assert.Contains(t, out, tc.alert, "%s %+v", engine, tc)
			after := requests()[before:]
			if tc.group == "" {
				assert.Empty(t, after, "%s %+v", engine, tc)
				continue
			}
			require.NotEmpty(t, after, "%s %+v", engine, tc)
			for _, line := range after {
				assert.Contains(t, line, `"group":"`+tc.group+`"`)
				assert.Equal(t, tc.reason != "", strings.Contains(line, `"reason"`), line)
				assert.Contains(t, line, tc.reason)
			}
		}
	}
}
