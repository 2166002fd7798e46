package skicoap

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/stretchr/testify/require"
)

// sessionStore is a pion SessionStore in memory.
type sessionStore struct{ sync.Map }

func (s *sessionStore) Set(key []byte, one dtls.Session) error {
	s.Store(string(key), one)
	return nil
}

func (s *sessionStore) Get(key []byte) (dtls.Session, error) {
	if one, ok := s.Load(string(key)); ok {
		return one.(dtls.Session), nil
	}
	return dtls.Session{}, nil
}

func (s *sessionStore) Del(key []byte) error {
	s.Delete(string(key))
	return nil
}

// TestMain is also the key server's side of BenchmarkReconnection, a process of
// its own so that its processor time can be told from the client's.
func TestMain(m *testing.M) {
	if file := os.Getenv(benchServer); file != "" {
		serveHandshakes(file)
		return
	}
	os.Exit(m.Run())
}

const benchServer = "SKICOAP_BENCH_SERVER"

var benchPSK = dtls.WithPSK(func([]byte) ([]byte, error) { return bytes.Repeat([]byte{7}, 32), nil })

// BenchmarkReconnection is what docs/design/0007 decides on: the processor time
// of the server for a handshake, with and without pion's SessionStore on both
// sides, side by side. Each figure is the median of five rounds of b.N
// handshakes.
func BenchmarkReconnection(b *testing.B) {
	ca := newTestCA(b)
	file := pemFile(b, ca.keyServer())
	ways := map[string][]dtls.ClientOption{
		"certificates": {dtls.WithCertificates(ca.edge()), dtls.WithInsecureSkipVerify(true), dtls.WithServerName("localhost"),
			dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)},
		"pre-shared key": {benchPSK, dtls.WithPSKIdentityHint([]byte("edge-1")), dtls.WithServerName("localhost"), dtls.WithCipherSuites(pskSuites...)},
	}
	const rounds = 5
	for _, name := range []string{"certificates", "pre-shared key"} {
		b.Run(name, func(b *testing.B) {
			var cpu [2][]float64 // without a store, with one
			stored := 0
			for range rounds {
				for i, store := range []string{"", "store"} {
					options := slices.Clone(ways[name])
					if store != "" {
						options = append(options, dtls.WithSessionStore(new(sessionStore)))
					}
					s := startHandshakes(b, file, store)
					handshake(b, s.addr, options) // the one to resume
					before, _ := s.status()
					for range b.N {
						handshake(b, s.addr, options)
					}
					after, n := s.status()
					cpu[i] = append(cpu[i], float64(after-before)/float64(b.N))
					stored = n // with a store, at last
					s.end()
				}
			}
			for i := range cpu {
				slices.Sort(cpu[i])
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(cpu[0][rounds/2], "µs-without")
			b.ReportMetric(cpu[1][rounds/2], "µs-with-store")
			b.ReportMetric(float64(stored), "sessions-stored")
		})
	}
}

// serveHandshakes does handshakes, and for each line on standard input tells
// its processor time in µs and how many sessions it has stored.
func serveHandshakes(file string) {
	cert, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		panic(err)
	}
	options := []dtls.ServerOption{benchPSK, dtls.WithCertificates(cert), dtls.WithClientAuth(dtls.RequireAnyClientCert),
		dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, pskSuites[0])}
	kept := new(sessionStore)
	if os.Getenv("STORE") != "" {
		options = append(options, dtls.WithSessionStore(kept))
	}
	l, err := dtls.ListenWithOptions("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, options...)
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				if conn.(*dtls.Conn).HandshakeContext(ctx) == nil {
					_, _ = conn.Read(make([]byte, 1)) // until the client closes
				}
			}()
		}
	}()
	fmt.Println(l.Addr())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		n := 0
		kept.Range(func(any, any) bool { n++; return true })
		fmt.Println((u.Utime.Nano()+u.Stime.Nano())/1000, n)
	}
}

type handshakeServer struct {
	b     *testing.B
	addr  *net.UDPAddr
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

func startHandshakes(b *testing.B, file, store string) *handshakeServer {
	b.Helper()
	s := &handshakeServer{b: b, cmd: exec.Command(os.Args[0])}
	s.cmd.Env = append(os.Environ(), benchServer+"="+file, "STORE="+store)
	s.cmd.Stderr = os.Stderr
	var err error
	s.in, err = s.cmd.StdinPipe()
	require.NoError(b, err)
	out, err := s.cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, s.cmd.Start())
	s.lines = bufio.NewScanner(out)
	require.True(b, s.lines.Scan())
	s.addr, err = net.ResolveUDPAddr("udp", s.lines.Text())
	require.NoError(b, err)
	return s
}

func (s *handshakeServer) status() (cpu int64, stored int) {
	s.b.Helper()
	_, err := fmt.Fprintln(s.in)
	require.NoError(s.b, err)
	require.True(s.b, s.lines.Scan())
	_, err = fmt.Sscan(s.lines.Text(), &cpu, &stored)
	require.NoError(s.b, err)
	return cpu, stored
}

func (s *handshakeServer) end() {
	require.NoError(s.b, s.in.Close())
	require.NoError(s.b, s.cmd.Wait())
}

func handshake(b *testing.B, addr *net.UDPAddr, options []dtls.ClientOption) {
	b.Helper()
	conn, err := dtls.DialWithOptions("udp", addr, options...)
	require.NoError(b, err)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	require.NoError(b, conn.HandshakeContext(ctx))
	require.NoError(b, conn.Close())
}
