//go:build unix

package split

import (
	"crypto/tls"
	"io"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkDownload sends 1 GB from a server to a client of crypto/tls, with
// the split engine and with crypto/tls in turn, so that a busy machine is so for
// both. cpu-ms is the time that client and server have used together.
//
//	go test ./edgeserver/internal/split -run '^$' -bench Download -benchtime 1x
func BenchmarkDownload(b *testing.B) {
	w := theWorld()
	standard := &tls.Config{Certificates: []tls.Certificate{w.ecdsa.tls()}, MaxVersion: tls.VersionTLS12}
	for round := range 5 {
		b.Run("split/"+strconv.Itoa(round), func(b *testing.B) {
			download(b, func(c net.Conn) net.Conn { return Server(c, fixed(&Config{Chains: []*Chain{w.ecdsa.chain}})) })
		})
		b.Run("standard/"+strconv.Itoa(round), func(b *testing.B) {
			download(b, func(c net.Conn) net.Conn { return tls.Server(c, standard) })
		})
	}
}

func download(b *testing.B, server func(net.Conn) net.Conn) {
	const size = 1_000_000_000
	chunk := make([]byte, 64<<10)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer l.Close()
	b.SetBytes(size)
	before := cpuTime(b)
	for b.Loop() {
		go func() {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			c := server(raw)
			defer c.Close()
			for left := size; left > 0; left -= len(chunk) {
				if _, err := c.Write(chunk[:min(len(chunk), left)]); err != nil {
					return
				}
			}
		}()
		c, err := tls.Dial("tcp", l.Addr().String(), goClient(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.CurveP256))
		require.NoError(b, err)
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, c, make([]byte, 64<<10))
		require.NoError(b, err)
		require.EqualValues(b, size, n)
		c.Close()
	}
	b.ReportMetric(float64((cpuTime(b)-before).Milliseconds())/float64(b.N), "cpu-ms/op")
}

// cpuTime is the user and system time of the process.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
