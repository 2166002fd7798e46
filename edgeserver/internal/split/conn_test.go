package split

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// goClient returns what a client of crypto/tls wants.
func goClient(suite uint16, group tls.CurveID) *tls.Config {
	c := &tls.Config{
		RootCAs: theWorld().roots, ServerName: serverName,
		MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{group},
		NextProtos: []string{"h2", "http/1.1"},
	}
	if suite != 0 {
		c.CipherSuites = []uint16{suite}
	}
	return c
}

// talk sends a line and returns what comes back.
func talk(t *testing.T, c *tls.Conn, line string) {
	_, err := io.WriteString(c, line)
	require.NoError(t, err)
	answer := make([]byte, len(line))
	_, err = io.ReadFull(c, answer)
	require.NoError(t, err)
	assert.Equal(t, line, string(answer))
}

func TestGoClientEverySuiteMethodAndCurve(t *testing.T) {
	w := theWorld()
	for _, method := range []string{"ECDHE", "ECDHE-PMS", "RSA"} {
		for _, s := range suites {
			for _, group := range allGroups {
				if s.staticRSA != (method == "RSA") || s.id == 0xC0AC || s.id == 0xC0AE {
					continue // crypto/tls has no CCM
				}
				t.Run(fmt.Sprintf("%s/%s/%v", method, s.name, group), func(t *testing.T) {
					server := serve(t, &Config{
						Chains: []*Chain{w.ecdsa.chain, w.rsa.chain}, StaticRSA: true, Groups: allGroups,
						KeyServerEphemeral: method == "ECDHE-PMS", NextProtos: []string{"h2", "http/1.1"},
					})
					client := goClient(s.id, group)
					if !s.rsa {
						client.CurvePreferences = append(client.CurvePreferences, tls.CurveP256) // that of the certificate
					}
					c, err := tls.Dial("tcp", server.addr, client)
					require.NoError(t, err)
					talk(t, c, "hello")
					c.Close()
					got := server.outcome(t)
					require.NoError(t, got.err)
					state := got.conn.ConnectionState()
					assert.Equal(t, s.id, state.CipherSuite)
					if s.staticRSA {
						assert.Equal(t, "http/1.1", state.NegotiatedProtocol)
					} else {
						assert.Equal(t, "h2", state.NegotiatedProtocol)
						assert.Equal(t, c.ConnectionState().CurveID, state.CurveID)
					}
				})
			}
		}
	}
}

// pair returns both ends of a connection whose handshake is done.
func pair(t *testing.T, cfg *Config) (*Conn, *tls.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	dialed := make(chan *tls.Conn, 1)
	go func() {
		c, err := tls.Dial("tcp", l.Addr().String(), goClient(0, tls.CurveP256))
		assert.NoError(t, err)
		dialed <- c
	}()
	raw, err := l.Accept()
	require.NoError(t, err)
	server := Server(raw, fixed(cfg))
	require.NoError(t, server.Handshake())
	client := <-dialed
	require.NotNil(t, client)
	t.Cleanup(func() { client.Close(); server.Close() })
	return server, client
}

func ecdsaOnly() *Config { return &Config{Chains: []*Chain{theWorld().ecdsa.chain}} }

// TestReadGoesOnAfterADeadline is what net/http needs to take a connection
// from one reader to the next.
func TestReadGoesOnAfterADeadline(t *testing.T) {
	server, client := pair(t, ecdsaOnly())
	buf := make([]byte, 100)
	for range 3 {
		require.NoError(t, server.SetReadDeadline(time.Unix(1, 0)))
		_, err := server.Read(buf)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	require.NoError(t, server.SetReadDeadline(time.Time{}))
	_, err := io.WriteString(client, "hello")
	require.NoError(t, err)
	n, err := server.Read(buf)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(buf[:n]))
}

func TestAWriteThatADeadlineEndsIsTheLast(t *testing.T) {
	server, _ := pair(t, ecdsaOnly())
	require.NoError(t, server.SetWriteDeadline(time.Unix(1, 0)))
	_, err := server.Write([]byte("hello"))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, server.SetWriteDeadline(time.Time{}))
	_, err = server.Write([]byte("hello"))
	require.Error(t, err, "the client would find a record missing, or half of one")
}

func TestCloseWriteLeavesReading(t *testing.T) {
	server, client := pair(t, ecdsaOnly())
	require.NoError(t, server.CloseWrite())
	require.NoError(t, server.CloseWrite())
	_, err := server.Write([]byte("more"))
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = client.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	_, err = io.WriteString(client, "hello")
	require.NoError(t, err)
	require.NoError(t, client.CloseWrite())
	got, err := io.ReadAll(server)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(got))
}

func TestCloseEndsReadAndWrite(t *testing.T) {
	server, client := pair(t, ecdsaOnly())
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := server.Read(make([]byte, 1))
		assert.Error(t, err)
	})
	wg.Go(func() {
		for {
			if _, err := server.Write(make([]byte, 1<<20)); err != nil {
				return // the client does not read
			}
		}
	})
	_, err := io.ReadFull(client, make([]byte, 1<<20))
	require.NoError(t, err)
	server.Close()
	wg.Wait()
	assert.Equal(t, tls.VersionName(tls.VersionTLS12), tls.VersionName(server.ConnectionState().Version))
}

func TestBothDirectionsAtOnce(t *testing.T) {
	server, client := pair(t, ecdsaOnly())
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var wg sync.WaitGroup
	for _, ends := range []struct {
		from io.Writer
		to   io.Reader
	}{{server, client}, {client, server}} {
		wg.Go(func() {
			_, err := ends.from.Write(sent)
			assert.NoError(t, err)
		})
		wg.Go(func() {
			got := make([]byte, len(sent))
			_, err := io.ReadFull(ends.to, got)
			assert.NoError(t, err)
			assert.True(t, bytes.Equal(sent, got))
		})
	}
	wg.Wait()
}

func TestTheContextEndsTheHandshake(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := Server(ours, fixed(ecdsaOnly()))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.HandshakeContext(ctx) }()
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, context.Canceled, "it stays so")
	_, err = c.Write([]byte("a"))
	require.ErrorIs(t, err, context.Canceled)
	require.Error(t, c.CloseWrite())
	assert.False(t, c.ConnectionState().HandshakeComplete)
	_, ok := c.PeerPublicKeyID()
	assert.False(t, ok)
}

func TestNoSiteHasTheName(t *testing.T) {
	ours, theirs := net.Pipe()
	c := Server(ours, func(context.Context, *ClientHello) (*Config, error) { return nil, nil })
	go c.Handshake()
	err := tls.Client(theirs, goClient(0, tls.CurveP256)).Handshake()
	require.ErrorContains(t, err, "unrecognized name")
}

// TestAFatalAlertOfTheClientEndsWriting (RFC 5246, Section 7.2).
func TestAFatalAlertOfTheClientEndsWriting(t *testing.T) {
	server, r := rogueAfterHandshake(t)
	r.record(recordAlert, []byte{alertFatal, byte(InternalError)})
	_, err := server.Read(make([]byte, 1))
	require.ErrorAs(t, err, new(tls.AlertError))
	_, err = server.Write([]byte("more"))
	require.ErrorIs(t, err, net.ErrClosed)
}

// TestAClientThatDoesNotReadCannotKeepReadFromEnding: Write waits for such a
// client for as long as it likes, Read does not wait for Write.
func TestAClientThatDoesNotReadCannotKeepReadFromEnding(t *testing.T) {
	for name, record := range map[string]func(*rogue){
		"a fault":       func(r *rogue) { r.record(recordHandshake, frame(TypeFinished, make([]byte, 12))) },
		"a fatal alert": func(r *rogue) { r.record(recordAlert, []byte{alertFatal, byte(InternalError)}) },
	} {
		server, r := rogueAfterHandshake(t)
		writing, written := make(chan struct{}), make(chan error, 1)
		go func() {
			close(writing)
			_, err := server.Write(make([]byte, 64<<20))
			written <- err
		}()
		<-writing
		require.Eventually(t, func() bool {
			if server.writeMu.TryLock() {
				server.writeMu.Unlock()
				return false
			}
			return true
		}, time.Minute, time.Millisecond, name)
		read := make(chan error, 1)
		record(r)
		go func() {
			_, err := server.Read(make([]byte, 1))
			read <- err
		}()
		for _, ended := range []chan error{read, written} {
			select {
			case err := <-ended:
				require.Error(t, err, name)
			case <-time.After(time.Minute):
				require.FailNow(t, "it does not end", name)
			}
		}
	}
}

// rogueAfterHandshake returns both sides of a connection that has been made.
func rogueAfterHandshake(t *testing.T) (*Conn, *rogue) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	made := make(chan *Conn, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			close(made)
			return
		}
		c := Server(raw, fixed(ecdsaOnly()))
		c.Handshake()
		made <- c
	}()
	r := newRogue(t, l.Addr().String(), goodHello(gcm(), tls.X25519), tls.X25519)
	require.NoError(t, r.handshake())
	server := <-made
	require.NotNil(t, server)
	t.Cleanup(func() { server.Close() })
	return server, r
}

// TestThereAreNoExporters: crypto/tls's ConnectionState has a function in it that
// only crypto/tls can set.
func TestThereAreNoExporters(t *testing.T) {
	server := serve(t, ecdsaOnly())
	before := Server(nil, nil).ConnectionState()
	c, err := tls.Dial("tcp", server.addr, &tls.Config{RootCAs: theWorld().roots, ServerName: serverName})
	require.NoError(t, err)
	talk(t, c, "hello")
	require.NoError(t, c.Close())
	state := server.outcome(t).conn.ConnectionState()
	assert.True(t, state.HandshakeComplete)
	for _, s := range []tls.ConnectionState{before, state} {
		key, err := s.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
		assert.Error(t, err)
		assert.Empty(t, key)
		assert.Empty(t, s.TLSUnique)
	}
}
