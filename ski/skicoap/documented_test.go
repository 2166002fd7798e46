package skicoap

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The other tests count in these constants.
func TestTheSecurityDocumentHasTheBoundsOfHandshakes(t *testing.T) {
	document, err := os.ReadFile("../../docs/security.md")
	require.NoError(t, err)
	assert.Contains(t, string(document), fmt.Sprintf("%d places, and %[1]d for known addresses", maxHandshakes))
	assert.Contains(t, string(document), fmt.Sprintf("each has %d ms", handshakeGrace.Milliseconds()))
	assert.Contains(t, string(document), "five flights at most")
	assert.Equal(t, 5, maxFlights)
}
