package ski_test

import (
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// A padded answer says the same, and there is no length that it cannot have.
func TestAPaddedResponseIsTheSameResponse(t *testing.T) {
	deterministic, err := cbor.CoreDetEncOptions().EncMode()
	require.NoError(t, err)
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		for _, resp := range []*ski.Response{
			{Output: []byte{1}}, {Output: make([]byte, 72)}, {Output: make([]byte, 512)},
			ski.Failed(ski.RequestDenied), ski.Failed(ski.MalformedRequest),
		} {
			for longest := len(resp.Output) + 1; longest < 1100; longest++ {
				data, err := ski.EncodeResponse(f, resp)
				require.NoError(t, err)
				n := (&ski.Response{OutputLen: longest}).PaddedBodyLen(f)
				padded := ski.PadResponse(f, data, n)
				require.Len(t, padded, n)
				got, err := ski.DecodeResponse(f, padded)
				require.NoError(t, err)
				require.Equal(t, resp, got)
				if f == ski.CBOR {
					var pairs map[string]any
					require.NoError(t, cbor.Unmarshal(padded, &pairs))
					again, err := deterministic.Marshal(pairs)
					require.NoError(t, err)
					require.Equal(t, padded, again, "deterministic encoding")
				}
			}
		}
	}
}

func TestAResponseThatIsTooLongIsNotPadded(t *testing.T) {
	data, err := ski.EncodeResponse(ski.CBOR, &ski.Response{Output: make([]byte, 72)})
	require.NoError(t, err)
	for _, n := range []int{0, len(data), len(data) + 8} {
		assert.Equal(t, data, ski.PadResponse(ski.CBOR, append([]byte(nil), data...), n))
	}
}
