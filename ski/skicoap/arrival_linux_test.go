package skicoap

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// A connected socket hears nothing from another address.
func TestAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	ca := newTestCA(t)
	for _, all := range []string{"0.0.0.0:0", "[::]:0", ":0"} {
		s := serve(t, all, ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
		for _, at := range []string{"127.0.0.1", "127.0.0.2", "[::1]"} {
			if at == "[::1]" && all == "0.0.0.0:0" {
				continue
			}
			cfg := ca.client()
			cfg.ServerName = "localhost"
			c, err := NewClient(fmt.Sprintf("coaps://%s:%d", at, s.Addr().Port()), cfg)
			require.NoError(t, err)
			require.NoError(t, ask(t.Context(), c, 1), "%s of %s", at, all)
			assert.NoError(t, c.Close())
		}
	}
}
