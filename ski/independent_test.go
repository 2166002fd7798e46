package ski_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// checkVectors runs the check of the vectors in Python, with Debian's cbor2 and
// cryptography.
func checkVectors(folder string) (string, error) {
	out, err := exec.Command("/usr/bin/python3", filepath.Join(vectorDir, "check.py"), folder, "../docs/protocol.md").CombinedOutput()
	return string(out), err
}

// The vectors, the CDDL of docs/protocol.md, and an implementation that shares
// nothing with this one agree.
func TestAnIndependentImplementationAgreesWithTheVectors(t *testing.T) {
	out, err := checkVectors(vectorDir)
	require.NoError(t, err, out)
	assert.Contains(t, out, " right, 0 wrong")
}

// The check in Python finds what is wrong, or it would say nothing.
func TestTheIndependentCheckFindsWrongVectors(t *testing.T) {
	for _, tc := range []struct{ file, from, to, finds string }{
		{"codec-cbor-request-ecdhe.json", `"hash": "SHA-256"`, `"hash": "SHA-384"`, "hash is"},
		{"codec-cbor-request-duplicate-key.json", `"class": "malformed"`, `"class": "ok"`, "malformed here"},
		{"codec-json-request-ecdhe.json", `"class": "ok"`, `"class": "malformed"`, "well-formed here"},
		{"codec-cbor-response-both.json", `"class": "malformed"`, `"class": "ok"`, "does not match the CDDL"},
		{"tickets-five.json", `"from": 18`, `"from": 17`, "from is"},
		{"tickets-wrong-order.json", `"class": "malformed"`, `"class": "ok"`, "the order"},
		{"tickets-no-keys.json", `"class": "malformed"`, `"class": "ok"`, "does not match the CDDL"},
		{"tickets-one.json", `"class": "ok"`, `"class": "malformed"`, "well-formed here"},
		{"input-ecdhe-p256.json", `3044`, `3045`, ""},
		{"input-ecdhe-p256.json", `\"hash\":\"SHA-256\"`, `\"hash\":\"SHA-384\"`, "the requests differ"},
		{"input-pms-p256-second.json", `"client": "0042`, `"client": "0043`, "not the client's point"},
		{"input-pms-p521-second.json", `"first": "input-pms-p521.json"`, `"first": "input-pms-p384.json"`, "not that of the first exchange"},
		{"input-rsa-premaster.json", `"output": "0303`, `"output": "0302`, "output is"},
	} {
		t.Run(tc.file+" "+tc.to, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(vectorDir, tc.file))
			require.NoError(t, err)
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(filepath.Join(dir, "input-keys"), os.DirFS(filepath.Join(vectorDir, "input-keys"))))
			changed := strings.Replace(string(data), tc.from, tc.to, 1)
			require.NotEqual(t, string(data), changed, "%s is not in the file", tc.from)
			require.NoError(t, os.WriteFile(filepath.Join(dir, tc.file), []byte(changed), 0o600))
			right := 0
			for _, first := range []string{"input-pms-p384.json", "input-pms-p256.json"} {
				if strings.Contains(changed, `"first": "`+first+`"`) {
					right = 1
					data, err := os.ReadFile(filepath.Join(vectorDir, first))
					require.NoError(t, err)
					require.NoError(t, os.WriteFile(filepath.Join(dir, first), data, 0o600))
				}
			}
			out, err := checkVectors(dir)
			require.Error(t, err)
			assert.Contains(t, out, tc.finds)
			assert.Contains(t, out, fmt.Sprintf("%d right, 1 wrong", right))
		})
	}
}
