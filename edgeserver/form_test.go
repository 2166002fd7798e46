package edgeserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// Clients whose ClientRandom gives what is to be signed a form that a key server
// never signs: it does not even hear of them, with either engine and method.
func TestAClientThatForcesAFormCostsTheKeyServerNothing(t *testing.T) {
	for name, c := range map[string]struct {
		engine, method string
		alert          uint8
	}{
		"standard":              {EngineStandard, "", 40}, // handshake_failure
		"split":                 {EngineSplit, "", 47},    // illegal_parameter
		"split, with ECDHE-PMS": {EngineSplit, "ECDHE-PMS", 47},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			var asked atomic.Int32
			keys := pmsKeyServer(p.transport(), "")
			e := start(t, Config{Sites: []Site{{
				Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "a"), Engine: c.engine, Method: c.method,
			}}}, ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
				asked.Add(1)
				return keys.RoundTrip(ctx, req)
			}))
			dial := func(random string) error {
				conn, err := e.dial(p, &tls.Config{
					ServerName: "a.test", MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.CurveP256},
					Rand: io.MultiReader(strings.NewReader(random), rand.Reader),
				})
				if err == nil {
					conn.Close()
				}
				return err
			}
			before := asked.Load()
			for _, random := range []string{"SSHSIG", "\x85\x69Signature"} {
				assertAlert(t, c.alert, dial(random))
			}
			require.Equal(t, before, asked.Load())
			require.Eventually(t, func() bool {
				return strings.Count(e.log.String(), "could be read as") == 2
			}, time.Minute, time.Millisecond)
			require.NoError(t, dial(string(bytes.Repeat([]byte{1}, 32))))
			require.Greater(t, asked.Load(), before)
		})
	}
}
