package cmd_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// ecdheInput is ClientRandom, ServerRandom, and the base point of P-256 as
// ServerECDHParams, in hexadecimal.
var ecdheInput = strings.Repeat("11", 32) + strings.Repeat("22", 32) + "03001741" +
	"046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296" +
	"4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"

// libcoap's clients share nothing with us, neither CoAP nor DTLS nor TLS.
func TestLibcoapClientsAreServed(t *testing.T) {
	d := startDev(t)
	psk := readPSK(t, d)
	withCertificate := []string{"-c", d.endpoints.EdgeCert, "-j", d.endpoints.EdgeKey, "-C", d.endpoints.KeyServerCA, "-R", d.endpoints.KeyServerCA}
	withPSK := []string{"-u", psk.Identity, "-k", string(psk.Key)}
	input, err := hex.DecodeString(ecdheInput)
	require.NoError(t, err)
	good := &ski.Request{Protocol: ski.TLS12, SPKI: d.endpoints.Sites[0].SPKI, Hash: ski.SHA256, Input: input}
	requests := []struct {
		name   string
		format ski.Format
		number string // of the Content-Format
		req    *ski.Request
		want   ski.Error
	}{
		{"CBOR", ski.CBOR, "60", good, ""},
		{"JSON", ski.JSON, "50", good, ""},
		{"unknown key", ski.CBOR, "60", &ski.Request{Protocol: ski.TLS12, SPKI: ski.KeyID{1}, Hash: ski.SHA256, Input: input}, ski.SPKINotFound},
		{"malformed", ski.CBOR, "60", &ski.Request{Protocol: ski.TLS12, SPKI: good.SPKI, Hash: ski.SHA256, Input: input[1:]}, ski.MalformedRequest},
	}
	for _, client := range []string{"coap-client-openssl", "coap-client-gnutls"} {
		for _, way := range []struct {
			name, endpoint, peer, binding string // the last two in the key server's log
			flags                         []string
		}{
			{"DTLS, certificate", d.endpoints.KeyServer.CoAPS, "CN=", "", withCertificate},
			{"DTLS, pre-shared key", d.endpoints.KeyServer.CoAPS, "id=psk:" + psk.Identity, "", withPSK},
			{"TLS, certificate", d.endpoints.KeyServer.CoAPSTCP, "CN=", "binding=coaps+tcp", withCertificate},
		} {
			before := len(d.read("keyserver/keyserver.log"))
			for _, tc := range requests {
				t.Run(client+" "+way.name+" "+tc.name, func(t *testing.T) {
					body, err := ski.EncodeRequest(tc.format, tc.req)
					require.NoError(t, err)
					dir := t.TempDir()
					request, answer := filepath.Join(dir, "request"), filepath.Join(dir, "answer")
					require.NoError(t, os.WriteFile(request, body, 0o600))
					args := append([]string{"-m", "post", "-t", tc.number, "-A", tc.number, "-f", request, "-o", answer, "-B", "60"}, way.flags...)
					_, all, status := run(t, "", client, append(args, way.endpoint)...)
					require.Zero(t, status, all)
					data, err := os.ReadFile(answer)
					if tc.want != "" {
						// For an answer with an error code, the client prints the payload.
						assert.Contains(t, all, string(tc.want))
						return
					}
					require.NoError(t, err, all)
					resp, err := ski.DecodeResponse(tc.format, data)
					require.NoError(t, err)
					assert.NotEmpty(t, resp.Output)
				})
			}
			require.Eventually(t, func() bool { // Nobody waits for the log.
				log := d.read("keyserver/keyserver.log")[before:]
				return strings.Contains(log, way.peer) && strings.Contains(log, way.binding)
			}, time.Minute, 10*time.Millisecond, "%s, %s", way.peer, way.binding)
		}
	}
}

// The commands of docs/interop.md give the output that stands there.
func TestTheCommandsOfTheInteropDocumentGiveTheirOutput(t *testing.T) {
	document, err := os.ReadFile("../docs/interop.md")
	require.NoError(t, err)
	for _, name := range []string{"curl", "libcoap", "OpenSSL"} {
		t.Run(name, func(t *testing.T) {
			_, section, ok := strings.Cut(string(document), "\n## "+name+"\n")
			require.True(t, ok)
			section, _, _ = strings.Cut(section, "\n## ")
			runSection(t, startDev(t), section)
		})
	}
}

// runSection runs the commands of a section in one shell and compares.
func runSection(t *testing.T, d *devSetup, section string) {
	t.Helper()
	script, want := "cd "+d.dir+"\n", ""
	inBlock, commands := false, 0
	for line := range strings.Lines(section) {
		switch command, isCommand := strings.CutPrefix(line, "$ "); {
		case strings.HasPrefix(line, "```"):
			inBlock = !inBlock
		case inBlock && isCommand:
			commands++
			script += fmt.Sprintf("echo '# %d'\n%s", commands, command)
			want += fmt.Sprintf("# %d\n", commands)
		case inBlock:
			want += line
		}
	}
	require.NotZero(t, commands)
	out, all, status := run(t, "", "sh", "-c", script)
	require.Zero(t, status, all)
	// What is not the same each time: signatures, their padding, and the date.
	varies := regexp.MustCompile(`"output":"[^"]*"} *|(?i:date): .*|X{9,}|\r`)
	assert.Equal(t, varies.ReplaceAllString(want, ""), varies.ReplaceAllString(out, ""), all)
}

// readPSK returns the pre-shared key that the key server of skictl dev knows.
// libcoap's clients take it as text, so that its bytes must be some: it is
// another one, and the key server reads its file again.
func readPSK(t *testing.T, d *devSetup) ski.PSK {
	t.Helper()
	data, err := os.ReadFile(d.endpoints.EdgePSK)
	require.NoError(t, err)
	all, err := ski.ParsePSKs(d.endpoints.EdgePSK, data)
	require.NoError(t, err)
	all[0].Key = []byte(hex.EncodeToString(all[0].Key[:16]))
	next := filepath.Join(d.dir, "keyserver", "next.psk")
	require.NoError(t, os.WriteFile(next, fmt.Appendf(nil, "%s:%x\n", all[0].Identity, all[0].Key), 0o600))
	require.NoError(t, os.Rename(next, filepath.Join(d.dir, "keyserver", "edges.psk")))
	require.Eventually(t, func() bool {
		return strings.Contains(d.read("keyserver/keyserver.log"), `msg="pre-shared keys read"`)
	}, time.Minute, 20*time.Millisecond)
	return all[0]
}
