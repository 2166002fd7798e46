package cmd_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A group that is off by default has to be named twice: in the key server's
// policy and in the edge server's site.
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
	// requests counts those in the audit log for a key and a group, by what came
	// of them.
	requests := func(key, group, came string) int {
		log, err := os.ReadFile(c.path("audit.log"))
		require.NoError(t, err)
		return len(regexp.MustCompile(`"key_name":"`+key+`".*"group":"`+group+`".*"outcome":"`+came).FindAll(log, -1))
	}
	for _, engine := range []string{"standard", "split", "split, method: ECDHE-PMS"} {
		c.write("edge.yaml", `
listen: ["127.0.0.1:0"]
keyserver: {url: "coaps://`+ks+`/ski", certificate: edge.pem, key: edge.key, ca: pki/ca.pem}
sites:
  - {names: [rsa.test], certificates: [rsa.crt], static: site, engine: `+engine+`, groups: [secp256r1, secp521r1]}
  - {names: [ecdsa.test], certificates: [ecdsa.crt], static: site, engine: `+engine+`, groups: [x25519, secp521r1]}
  - {names: [ed25519.test], certificates: [ed25519.crt], static: site, engine: `+engine+`}
`)
		_, addr := c.start("msg=listening addr=", "ski-edgeserver", "-config", c.path("edge.yaml"))
		for _, tc := range []struct {
			site, groups string
			group        string // that the key server is asked for
			alert        string // "" for none
		}{
			{"rsa", "P-521", "secp521r1", ""},
			{"rsa", "X25519:P-256", "secp256r1", ""},
			{"rsa", "P-384", "", "handshake failure"},
			{"ecdsa", "P-521:P-256", "secp521r1", "internal error"},
			{"ecdsa", "X25519:P-256", "x25519", ""},
			{"ed25519", "P-521", "", "handshake failure"},
		} {
			before := requests(tc.site, tc.group, "output")
			_, out, status := run(t, "", "openssl", "s_client", "-connect", addr, "-servername", tc.site+".test", "-tls1_2",
				"-CAfile", c.path(tc.site+".crt"), "-verify_return_error", "-brief", "-groups", tc.groups)
			assert.Equal(t, tc.alert == "", status == 0, "%s %+v: %s", engine, tc, out)
			assert.Contains(t, out, tc.alert, "%s %+v", engine, tc)
			assert.Equal(t, tc.alert == "", requests(tc.site, tc.group, "output") > before, "%s %+v", engine, tc)
		}
		assert.Zero(t, requests("rsa", "secp384r1", ""), "a group that the site does not have is not asked for")
		assert.Zero(t, requests("ed25519", "secp521r1", ""), "nor is one that is off by default")
		assert.Positive(t, requests("ecdsa", "secp521r1", `request denied","reason":"no rule grants the group"`))
	}
}
