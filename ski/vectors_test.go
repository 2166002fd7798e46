package ski_test

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

var update = flag.Bool("update", false, "write the files in testdata/vectors from the cases in this package")

const vectorDir = "../testdata/vectors"

// vector is one encoded message and what a decoder has to make of it: a file
// of its own, so that other implementations can use it.
type vector struct {
	Name string `json:"name"`
	// Format is "CBOR" or "JSON", Message is "request" or "response".
	Format  string `json:"format"`
	Message string `json:"message"`
	// Class is "ok" or "malformed".
	Class string `json:"class"`
	// Attribute is the one at fault in a malformed message; it is left out
	// where the message as a whole is.
	Attribute string `json:"attribute,omitempty"`
	// Deterministic is whether an encoder gives the same bytes for the
	// decoded message.
	Deterministic bool `json:"deterministic,omitempty"`
	// Hex or Text is the encoded message.
	Hex  string `json:"hex,omitempty"`
	Text string `json:"text,omitempty"`
	// Request or Response is the decoded message, with bytes in hex.
	Request  *vectorRequest  `json:"request,omitempty"`
	Response *vectorResponse `json:"response,omitempty"`
}

type vectorRequest struct {
	Protocol      string `json:"protocol"`
	SPKI          string `json:"spki"`
	Method        string `json:"method"`
	Hash          string `json:"hash,omitempty"`
	Input         string `json:"input"`
	Scheme        uint16 `json:"scheme,omitempty"`
	ClientVersion uint16 `json:"client_version,omitempty"`
	ServerName    string `json:"server_name,omitempty"`
	Group         uint16 `json:"group,omitempty"`
	State         string `json:"state,omitempty"`
}

type vectorResponse struct {
	Output string `json:"output,omitempty"`
	Params string `json:"params,omitempty"`
	State  string `json:"state,omitempty"`
	Error  string `json:"error,omitempty"`
}

func (v *vector) file() string {
	return filepath.Join(vectorDir, "codec-"+strings.ToLower(v.Format)+"-"+v.Message+"-"+v.Name+".json")
}

func (v *vector) marshal(t *testing.T) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	require.NoError(t, e.Encode(v))
	return b.Bytes()
}

func (v *vector) format() ski.Format {
	if v.Format == "JSON" {
		return ski.JSON
	}
	return ski.CBOR
}

func (v *vector) data(t testing.TB) []byte {
	if v.Text != "" {
		return []byte(v.Text)
	}
	return unhex(t, v.Hex)
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	require.NoError(t, err)
	return b
}

// loadVectors reads the files of one kind of message.
func loadVectors(t testing.TB, format, message string) []*vector {
	files, err := filepath.Glob(filepath.Join(vectorDir, "codec-"+strings.ToLower(format)+"-"+message+"-*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var all []*vector
	for _, f := range files {
		data, err := os.ReadFile(f)
		require.NoError(t, err)
		v := new(vector)
		require.NoError(t, json.Unmarshal(data, v), f)
		all = append(all, v)
	}
	return all
}

// TestVectorFiles holds that the files are those of the cases, no more and no
// fewer.
func TestVectorFiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(vectorDir, "codec-*.json"))
	require.NoError(t, err)
	stale := map[string]bool{}
	for _, f := range files {
		stale[f] = true
	}
	seen := map[string]bool{}
	for _, v := range vectorCases() {
		file, want := v.file(), v.marshal(t)
		require.False(t, seen[file], "two cases for %s", file)
		seen[file] = true
		delete(stale, file)
		if *update {
			require.NoError(t, os.WriteFile(file, want, 0o644))
			continue
		}
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, string(want), string(got), "go test ./ski -run TestVectorFiles -update writes it anew")
	}
	for f := range stale {
		if *update {
			require.NoError(t, os.Remove(f))
			continue
		}
		assert.Fail(t, "no case makes this file", f)
	}
}

func TestRequestVectors(t *testing.T) {
	for _, format := range []string{"CBOR", "JSON"} {
		for _, v := range loadVectors(t, format, "request") {
			t.Run(format+"/"+v.Name, func(t *testing.T) {
				data := v.data(t)
				got, err := ski.DecodeRequest(v.format(), data)
				if v.Class == "malformed" {
					assertMalformed(t, v, err)
					assert.Nil(t, got)
					return
				}
				require.NoError(t, err)
				want := v.Request
				assert.Equal(t, ski.Protocol(want.Protocol), got.Protocol)
				assert.Equal(t, want.SPKI, got.SPKI.String())
				assert.Equal(t, ski.Method(want.Method), got.KeyExchange())
				assert.Equal(t, ski.Hash(want.Hash), got.Hash)
				assert.Equal(t, want.Input, hex.EncodeToString(got.Input))
				assert.Equal(t, tls.SignatureScheme(want.Scheme), got.Scheme)
				assert.Equal(t, want.ClientVersion, got.ClientVersion)
				assert.Equal(t, want.ServerName, got.ServerName)
				assert.Equal(t, tls.CurveID(want.Group), got.Group)
				assert.Equal(t, want.State, hex.EncodeToString(got.State))
				if v.Deterministic {
					again, err := ski.EncodeRequest(v.format(), got)
					require.NoError(t, err)
					assert.Equal(t, data, again)
				}
			})
		}
	}
}

func TestResponseVectors(t *testing.T) {
	for _, format := range []string{"CBOR", "JSON"} {
		for _, v := range loadVectors(t, format, "response") {
			t.Run(format+"/"+v.Name, func(t *testing.T) {
				data := v.data(t)
				got, err := ski.DecodeResponse(v.format(), data)
				if v.Class == "malformed" {
					assertMalformed(t, v, err)
					assert.Nil(t, got)
					return
				}
				require.NoError(t, err)
				assert.Equal(t, v.Response.Output, hex.EncodeToString(got.Output))
				assert.Equal(t, v.Response.Params, hex.EncodeToString(got.Params))
				assert.Equal(t, v.Response.State, hex.EncodeToString(got.State))
				assert.Equal(t, ski.Error(v.Response.Error), got.Error)
				if v.Deterministic {
					again, err := ski.EncodeResponse(v.format(), got)
					require.NoError(t, err)
					assert.Equal(t, data, again)
				}
			})
		}
	}
}

func assertMalformed(t *testing.T, v *vector, err error) {
	t.Helper()
	var m *ski.MalformedError
	require.ErrorAs(t, err, &m)
	assert.Equal(t, v.Attribute, m.Attribute, m.Reason)
	assert.ErrorIs(t, err, ski.MalformedRequest)
}
