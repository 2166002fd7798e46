package cmd_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The edge server's own TLS 1.2, with the real key server behind it.
func TestOpenSSLAtTheSplitEngine(t *testing.T) {
	d := startDev(t)
	for _, tc := range []struct {
		site, cipher, group string
		methods             []string // in the audit log
	}{
		{"ecdsa.localhost", "ECDHE-ECDSA-AES128-GCM-SHA256", "X25519:P-256", []string{"ECDHE-PMS", "ECDHE-PMS"}},
		{"ecdsa.localhost", "ECDHE-ECDSA-AES256-GCM-SHA384", "P-256", []string{"ECDHE-PMS", "ECDHE-PMS"}},
		{"ecdsa.localhost", "ECDHE-ECDSA-CHACHA20-POLY1305", "P-384:P-256", []string{"ECDHE-PMS", "ECDHE-PMS"}},
		{"ecdsa.localhost", "ECDHE-ECDSA-AES128-CCM", "P-256", []string{"ECDHE-PMS", "ECDHE-PMS"}},
		{"ecdsa.localhost", "ECDHE-ECDSA-AES128-CCM8:@SECLEVEL=0", "P-256", []string{"ECDHE-PMS", "ECDHE-PMS"}},
		{"rsa.localhost", "ECDHE-RSA-AES128-GCM-SHA256", "P-384", []string{"ECDHE-PMS", "ECDHE-PMS"}},
		{"rsa.localhost", "AES128-GCM-SHA256", "P-256", []string{"RSA"}},
	} {
		t.Run(tc.cipher, func(t *testing.T) {
			before := len(d.requests())
			_, out, status := run(t, "GET / HTTP/1.0\r\nHost: split."+tc.site+"\r\n\r\n", "openssl",
				"s_client", "-connect", d.edgeAddr(), "-servername", "split."+tc.site, "-CAfile", d.endpoints.CA,
				"-verify_return_error", "-verify_hostname", "split."+tc.site, "-brief", "-ign_eof",
				"-tls1_2", "-cipher", tc.cipher, "-groups", tc.group)
			require.Zero(t, status, out)
			cipher, _, _ := strings.Cut(tc.cipher, ":")
			assert.Contains(t, out, "Ciphersuite: "+cipher)
			assert.Contains(t, out, "Verification: OK")
			assert.Contains(t, out, "<h1>"+tc.site+"</h1>", "the page of the site")
			records := d.requests()[before:]
			require.Len(t, records, len(tc.methods))
			for i, method := range tc.methods {
				assert.Contains(t, records[i], `"method":"`+method+`"`)
				assert.Contains(t, records[i], `"outcome":"output"`)
			}
		})
	}
}
