package edgeserver

import (
	"crypto/tls"
	"io"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What net/http finds wrong with a connection is logged with its site.
func TestLogOfNetHTTPHasTheSite(t *testing.T) {
	p := newPKI(t)
	for _, engine := range []string{EngineStandard, EngineSplit} {
		e := start(t, Config{Sites: []Site{
			{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir, Engine: engine},
			{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: p.dir, Engine: engine},
		}}, p.transport())
		c, err := e.dial(p, &tls.Config{ServerName: "b.test", NextProtos: []string{"h2"}})
		require.NoError(t, err)
		defer c.Close()
		// A frame of HEADERS on stream 0, which is no stream.
		io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"+"\x00\x00\x01\x01\x04\x00\x00\x00\x00\x82")
		line := regexp.MustCompile(`level=WARN msg="http2: .*" site=b\.test`)
		require.Eventually(t, func() bool { return line.MatchString(e.log.String()) }, time.Minute, time.Millisecond)
	}
}
