package ski_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func FuzzDecodeRequestCBOR(f *testing.F)  { fuzzRequest(f, ski.CBOR) }
func FuzzDecodeRequestJSON(f *testing.F)  { fuzzRequest(f, ski.JSON) }
func FuzzDecodeResponseCBOR(f *testing.F) { fuzzResponse(f, ski.CBOR) }
func FuzzDecodeResponseJSON(f *testing.F) { fuzzResponse(f, ski.JSON) }

// What can be decoded can be encoded in both formats, always to the same
// bytes, and decoded from them again without loss. What cannot is malformed and
// nothing else.
func fuzzRequest(f *testing.F, format ski.Format) {
	for _, v := range loadVectors(f, format.String(), "request") {
		f.Add(v.data(f))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := ski.DecodeRequest(format, data)
		if err != nil {
			requireMalformed(t, err)
			require.Nil(t, req)
			return
		}
		require.NoError(t, req.Validate())
		req.Method = req.KeyExchange() // The default is not encoded.
		for _, out := range []ski.Format{ski.CBOR, ski.JSON} {
			encoded, err := ski.EncodeRequest(out, req)
			if tooLarge(err) {
				continue
			}
			require.NoError(t, err)
			again, err := ski.DecodeRequest(out, encoded)
			require.NoError(t, err)
			again.Method = again.KeyExchange()
			require.Equal(t, req, again)
			twice, err := ski.EncodeRequest(out, again)
			require.NoError(t, err)
			assert.Equal(t, encoded, twice)
		}
	})
}

func fuzzResponse(f *testing.F, format ski.Format) {
	for _, v := range loadVectors(f, format.String(), "response") {
		f.Add(v.data(f))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		resp, err := ski.DecodeResponse(format, data)
		if err != nil {
			requireMalformed(t, err)
			require.Nil(t, resp)
			return
		}
		require.NotEqual(t, len(resp.Output) > 0, resp.Error != "", "exactly one of output and error")
		for _, out := range []ski.Format{ski.CBOR, ski.JSON} {
			encoded, err := ski.EncodeResponse(out, resp)
			if tooLarge(err) {
				continue
			}
			require.NoError(t, err)
			again, err := ski.DecodeResponse(out, encoded)
			require.NoError(t, err)
			require.Equal(t, resp, again)
			twice, err := ski.EncodeResponse(out, again)
			require.NoError(t, err)
			assert.Equal(t, encoded, twice)
		}
	})
}

// tooLarge reports whether a message that fitted in one encoding does not in
// another, as base64 is longer than bytes.
func tooLarge(err error) bool {
	var m *ski.MalformedError
	return errors.As(err, &m) && m.Attribute == "" && m.Reason == "it has more than 4096 bytes"
}

func requireMalformed(t *testing.T, err error) {
	var m *ski.MalformedError
	require.ErrorAs(t, err, &m)
	require.ErrorIs(t, err, ski.MalformedRequest)
	require.NotEmpty(t, m.Reason)
}
