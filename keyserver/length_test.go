package keyserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func TestOutputLenIsThatOfTheLongestSignature(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		require.NoError(t, err)
		longest := 0
		for i := range 100 { // each has the longest length with probability 1/4 or more
			signature, err := ecdsa.SignASN1(rand.Reader, key, []byte{byte(i)})
			require.NoError(t, err)
			longest = max(longest, len(signature))
		}
		assert.Equal(t, longest, signatureLen(key.Public()), curve.Params().Name)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	assert.Equal(t, 256, signatureLen(key.Public()))
	assert.Equal(t, answerLen{output: 48}, longestAnswer(&ski.Request{Method: ski.MethodRSA}, key.Public()))
	assert.Equal(t, answerLen{output: 256}, longestAnswer(&ski.Request{Method: ski.MethodDHE}, key.Public()))
}
