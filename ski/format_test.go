package ski_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// request returns a sound request.
func request() *ski.Request {
	return &ski.Request{Protocol: ski.TLS12, SPKI: ski.KeyID(spki), Hash: ski.SHA256, Input: ecdheInput}
}

func TestFormat(t *testing.T) {
	assert.EqualValues(t, 60, ski.CBOR.ContentFormat())
	assert.EqualValues(t, 50, ski.JSON.ContentFormat())
	assert.Equal(t, "application/cbor", ski.CBOR.MediaType())
	assert.Equal(t, "application/json", ski.JSON.MediaType())
	assert.Equal(t, "CBOR JSON Format(7)", ski.CBOR.String()+" "+ski.JSON.String()+" "+ski.Format(7).String())
	_, err := ski.DecodeRequest(7, []byte("{}"))
	assert.ErrorIs(t, err, ski.MalformedRequest)
	_, err = ski.DecodeResponse(7, []byte("{}"))
	assert.ErrorIs(t, err, ski.MalformedRequest)
}

func TestEncodeRefusesWhatCannotBeDecoded(t *testing.T) {
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		for name, change := range map[string]func(*ski.Request){
			"no protocol":        func(r *ski.Request) { r.Protocol = "" },
			"unknown protocol":   func(r *ski.Request) { r.Protocol = "TLS 2.0" },
			"unknown method":     func(r *ski.Request) { r.Method = "PSK" },
			"unknown hash":       func(r *ski.Request) { r.Hash = "SHA-1" },
			"no input":           func(r *ski.Request) { r.Input = nil },
			"server name":        func(r *ski.Request) { r.ServerName = "a b" },
			"long server name":   func(r *ski.Request) { r.ServerName = strings.Repeat("a", ski.MaxServerNameLen+1) },
			"input alone":        func(r *ski.Request) { r.Input = make([]byte, ski.MaxMessageSize+1) },
			"input and the rest": func(r *ski.Request) { r.Input = make([]byte, ski.MaxMessageSize) },
		} {
			r := request()
			change(r)
			data, err := ski.EncodeRequest(f, r)
			assert.ErrorIs(t, err, ski.MalformedRequest, name)
			assert.Nil(t, data, name)
		}
		for name, r := range map[string]*ski.Response{
			"neither":             {},
			"both":                {Output: []byte{1}, Error: ski.RequestDenied},
			"unknown error":       {Error: "teapot"},
			"output alone":        {Output: make([]byte, ski.MaxMessageSize+1)},
			"output and the rest": {Output: make([]byte, ski.MaxMessageSize)},
		} {
			data, err := ski.EncodeResponse(f, r)
			assert.ErrorIs(t, err, ski.MalformedRequest, name)
			assert.Nil(t, data, name)
		}
	}
}

// TestReasons holds what the log says of a malformed message, and that it says
// nothing of what is in it.
func TestReasons(t *testing.T) {
	const secret = "s3cr3t"
	withJSON := func(key, raw string) string {
		return object(ecdhe.with(key, value{json: raw}).jsonOrder()...).json
	}
	for data, want := range map[string]string{
		``:       "it ends too early",
		`[]`:     "it is not a JSON object",
		`{"a":1`: "it ends too early",
		`{} {}`:  "it has bytes after the object",
		`{"` + secret + `":1,"` + secret + `":2}`: "it has a key twice",
		`{"a":` + secret + `}`:                    "it is not well-formed JSON",
		`{"a":[[]]}`:                              "it is nested more than 2 levels deep",
		`{"a":{"b":"b","b":1}}`:                   "it has a key twice",
		`{"a":{"b":{}}}`:                          "it is nested more than 2 levels deep",
		`{"a":{` + members(33) + `}}`:             "it has more than 32 pairs",
		`{"a":{` + members(32) + `},"b":["b"]}`:   "'spki' is missing",
		"{\"a\":\"" + secret + "\xff\"}":          "it is not UTF-8",
		strings.Repeat(" ", 4097):                 "it has more than 4096 bytes",
		`{}`:                                      "'spki' is missing",
		withJSON("protocol", `"`+secret+`"`):      "'protocol' is not one of the known versions",
		withJSON("method", `"`+secret+`"`):        "'method' is not one of the known methods",
		withJSON("hash", `"`+secret+`"`):          "'hash' is not one of the known hashes",
		withJSON("server_name", `"`+secret+`\n"`): "'server_name' has a character that no host name has",
		withJSON("server_name", `""`):             "'server_name' is empty",
		withJSON("input", `"`+secret+`!"`):        "'input' is not base64",
		withJSON("spki", `"`+secret+`+/"`):        "'spki' does not have 32 bytes",
		withJSON("scheme", `"`+secret+`"`):        "'scheme' is not an unsigned integer",
		withJSON("scheme", `70000`):               "'scheme' is not between 1 and 65535",
	} {
		_, err := ski.DecodeRequest(ski.JSON, []byte(data))
		assert.EqualError(t, err, "ski: malformed message: "+want)
	}
	for data, want := range map[string]string{
		"":                     "it is empty",
		"80":                   "it is not a CBOR map",
		"A1":                   "it ends too early",
		"A000":                 "it has bytes after the map",
		"A2616101616102":       "it has a key twice",
		"A10102":               "it has a key that is not text",
		"A1F602":               "it has a key that is not text",
		"A161611C":             "it is not well-formed CBOR",
		"A161618180":           "it is nested more than 2 levels deep",
		"A161618181818181":     "it is nested more than 2 levels deep",
		"A16161A2616101616102": "it has a key twice",
		"B821":                 "it has more than 32 pairs",
		"A1616199FFFF":         "it has an array that is too long",
		"A1647370 6B6981 1820": "'spki' is not a byte string",
		"A1647370 6B6978 0161": "'spki' is not a byte string",
		"A1647370 6B6940":      "'spki' is empty",
	} {
		_, err := ski.DecodeRequest(ski.CBOR, unhex(t, strings.ReplaceAll(data, " ", "")))
		assert.EqualError(t, err, "ski: malformed message: "+want, data)
	}
}

// members returns n members of a JSON object.
func members(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"%d":"0"`, i))
	}
	return strings.Join(all, ",")
}

// TestDecodeAllocation measures that the memory a malformed message takes
// depends on its real length, not on the lengths it claims.
func TestDecodeAllocation(t *testing.T) {
	for _, format := range []string{"CBOR", "JSON"} {
		for _, v := range loadVectors(t, format, "request") {
			data := v.data(t)
			perMessage := allocated(func() {
				_, err := ski.DecodeRequest(v.format(), data)
				if err != nil && !errors.Is(err, ski.MalformedRequest) {
					t.Error(err)
				}
			})
			assert.Less(t, perMessage, uint64(16<<10+16*len(data)), "%s %s", format, v.Name)
		}
	}
}

// A length that CBOR states is believed only as far as there are bytes.
func TestDecodeAllocationOfStatedLengths(t *testing.T) {
	lengths := []string{"18ff", "19ffff", "1a7fffffff", "1affffffff", "1b000000ffffffffff", "1b7fffffffffffffff", "1bffffffffffffffff"}
	for _, before := range []string{
		"",                     // the message itself
		"a1",                   // its key
		"a165696e707574",       // the value of a known key
		"a16178",               // and of an unknown one
		"a1617881", "a16178a1", // in an array, a map
		"a16178c2", "a165696e7075745f", // a big number, a chunk of a string of indefinite length
	} {
		for major := byte(0); major < 7; major++ {
			for _, length := range lengths {
				data := unhex(t, before+length)
				data[len(before)/2] |= major << 5
				perMessage := allocated(func() {
					_, err := ski.DecodeRequest(ski.CBOR, data)
					assert.ErrorIs(t, err, ski.MalformedRequest, "%x", data)
					_, err = ski.DecodeResponse(ski.CBOR, data)
					assert.ErrorIs(t, err, ski.MalformedRequest, "%x", data)
				})
				assert.Less(t, perMessage, uint64(16<<10), "%x", data)
			}
		}
	}
}

// allocated returns how many bytes f allocates, averaged over some runs.
func allocated(f func()) uint64 {
	const runs = 20
	f() // fills the caches of the libraries
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / runs
}

func TestMalformedError(t *testing.T) {
	_, err := ski.DecodeRequest(ski.CBOR, []byte{0xA0})
	var m *ski.MalformedError
	require.ErrorAs(t, err, &m)
	assert.Equal(t, ski.MalformedError{Attribute: "spki", Reason: "is missing"}, *m)
	assert.ErrorIs(t, err, ski.MalformedRequest)
	assert.NotErrorIs(t, err, ski.RequestDenied)
}
