package edgeserver

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The types of records (RFC 5246, Section 6.2.1).
const (
	changeCipherSpec = 20
	handshake        = 22
	applicationData  = 23
)

// record makes a record of TLS 1.2.
func record(contentType byte, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{contentType, 3, 3}, uint16(len(payload))), payload...)
}

// mangler is the connection of a TLS client that sends something else than it
// means to.
type mangler struct {
	net.Conn
	records [][]byte // of what has been sent
	mangle  func(c net.Conn, n int, record []byte)
}

func (m *mangler) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := 5 + int(binary.BigEndian.Uint16(rest[3:]))
		r := slices.Clone(rest[:n])
		m.records = append(m.records, r)
		m.mangle(m.Conn, len(m.records)-1, r)
		rest = rest[n:]
	}
	return len(b), nil
}

// at mangles the n-th record and leaves all others.
func at(n int, mangle func(c net.Conn, record []byte)) func(net.Conn, int, []byte) {
	return func(c net.Conn, i int, r []byte) {
		if i == n {
			mangle(c, r)
			return
		}
		c.Write(r)
	}
}

// instead has the client send something else as its n-th record.
func instead(n int, other func(record []byte) []byte) func(net.Conn, int, []byte) {
	return at(n, func(c net.Conn, r []byte) { c.Write(other(r)) })
}

// inPieces cuts a record's payload into records of n bytes.
func inPieces(r []byte, n int) (pieces []byte) {
	for piece := range slices.Chunk(r[5:], n) {
		pieces = append(pieces, record(r[0], piece)...)
	}
	return pieces
}

// withHostileClients runs a test for a site a.test with either engine alone, and
// with the split engine beside a site of the other, for which the ClientHello is
// looked at first.
func withHostileClients(t *testing.T, test func(t *testing.T, engines int, dial func(version uint16, mangle func(net.Conn, int, []byte)) (*tls.Conn, error))) {
	for engines, engine := range []string{EngineStandard, EngineSplit, "both"} {
		t.Run(engine, func(t *testing.T) {
			p := newPKI(t)
			sites := []Site{{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a"), Engine: engine}}
			if engine == "both" {
				sites[0].Engine = EngineSplit
				sites = append(sites, Site{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: p.dir})
			}
			e := start(t, Config{Sites: sites}, p.transport())
			test(t, engines, func(version uint16, mangle func(net.Conn, int, []byte)) (*tls.Conn, error) {
				tcp, err := net.Dial("tcp", e.addr)
				require.NoError(t, err)
				t.Cleanup(func() { tcp.Close() })
				tcp.SetDeadline(time.Now().Add(time.Minute))
				c := tls.Client(&mangler{Conn: tcp, mangle: mangle}, &tls.Config{RootCAs: p.roots, ServerName: "a.test", MaxVersion: version})
				return c, c.Handshake()
			})
			_, body := get(t, e.client(t, p), "https://a.test/")
			assert.Equal(t, "this is a", body, "others are served as before")
		})
	}
}

func TestHandshakesInPieces(t *testing.T) {
	for name, mangle := range map[string]func(net.Conn, int, []byte){
		"segments of one byte": func(c net.Conn, _ int, r []byte) {
			for i := range r {
				c.Write(r[i : i+1])
			}
		},
		"a ClientHello in records of one byte": instead(0, func(r []byte) []byte { return inPieces(r, 1) }),
		"a ClientKeyExchange in two records":   instead(1, func(r []byte) []byte { return inPieces(r, len(r)-10) }),
	} {
		t.Run(name, func(t *testing.T) {
			withHostileClients(t, func(t *testing.T, _ int, dial func(uint16, func(net.Conn, int, []byte)) (*tls.Conn, error)) {
				c, err := dial(tls.VersionTLS12, mangle)
				require.NoError(t, err)
				fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				require.NoError(t, err)
				resp.Body.Close()
				assert.Equal(t, 200, resp.StatusCode)
			})
		})
	}
}

func TestHostileHandshakes(t *testing.T) {
	const v12, v13 = tls.VersionTLS12, tls.VersionTLS13
	var kept []byte
	tests := map[string]struct {
		version uint16
		mangle  func(net.Conn, int, []byte)
		// alerts are those of crypto/tls, the split engine, and both at one
		// address; 0 is none.
		alerts [3]uint8
	}{
		"a ClientHello that ends in the middle": {v12, at(0, func(c net.Conn, r []byte) {
			c.Write(r[:len(r)/2])
			c.(*net.TCPConn).CloseWrite()
		}), [3]uint8{}},
		"a ClientKeyExchange that ends in the middle": {v12, at(1, func(c net.Conn, r []byte) {
			c.Write(r[:len(r)/2])
			c.(*net.TCPConn).CloseWrite()
		}), [3]uint8{}},
		"a Finished that ends in the middle": {v13, at(2, func(c net.Conn, r []byte) {
			c.Write(r[:len(r)/2])
			c.(*net.TCPConn).CloseWrite()
		}), [3]uint8{}},
		"a record too long": {v12, instead(0, func(r []byte) []byte {
			return append([]byte{handshake, 3, 1, 0xff, 0xff}, r[5:]...)
		}), [3]uint8{22, 22, 22}}, // record_overflow
		"a record too long, later": {v12, instead(1, func(r []byte) []byte {
			return append([]byte{handshake, 3, 3, 0xff, 0xff}, r[5:]...)
		}), [3]uint8{22, 22, 22}},
		"a message too long": {v12, instead(0, func([]byte) []byte {
			return record(handshake, []byte{1, 0xff, 0xff, 0xff, 3, 3})
		}), [3]uint8{80, 50, 80}},
		"a ClientHello shorter than what is in it": {v12, instead(0, func(r []byte) []byte {
			r = r[:len(r)-4]
			binary.BigEndian.PutUint16(r[3:], uint16(len(r)-5))
			binary.BigEndian.PutUint16(r[7:], uint16(len(r)-9))
			return r
		}), [3]uint8{50, 50, 50}},
		"two ClientHellos": {v12, at(0, func(c net.Conn, r []byte) { c.Write(append(r, record(handshake, r[5:])...)) }),
			[3]uint8{10, 10, 10}}, // unexpected_message
		"a ClientKeyExchange first": {v12, instead(0, func([]byte) []byte {
			return record(handshake, []byte{16, 0, 0, 2, 1, 0})
		}), [3]uint8{10, 10, 10}},
		"a ChangeCipherSpec first": {v12, at(0, func(c net.Conn, r []byte) {
			c.Write(append(record(changeCipherSpec, []byte{1}), r...))
		}), [3]uint8{0, 10, 0}},
		"the ChangeCipherSpec before the ClientKeyExchange": {v12, func(c net.Conn, n int, r []byte) {
			switch n {
			case 1:
				kept = r
			case 2:
				c.Write(append(r, kept...))
			default:
				c.Write(r)
			}
		}, [3]uint8{10, 10, 10}},
		"a Finished in the clear": {v12, func(c net.Conn, n int, r []byte) {
			switch n {
			case 2: // the ChangeCipherSpec
			case 3:
				c.Write(record(handshake, append([]byte{20, 0, 0, 12}, make([]byte, 12)...)))
			default:
				c.Write(r)
			}
		}, [3]uint8{10, 10, 10}},
		"a Finished that is not": {v12, instead(3, func(r []byte) []byte { r[len(r)-1] ^= 1; return r }),
			[3]uint8{20, 20, 20}}, // bad_record_mac
		"a Finished that is not, in TLS 1.3": {v13, instead(2, func(r []byte) []byte { r[len(r)-1] ^= 1; return r }),
			[3]uint8{20, 20, 20}},
		"application data first": {v12, at(0, func(c net.Conn, r []byte) {
			c.Write(append(record(applicationData, []byte("GET / HTTP/1.1\r\n\r\n")), r...))
		}), [3]uint8{0, 10, 0}},
		"application data for the ClientKeyExchange": {v12, instead(1, func([]byte) []byte {
			return record(applicationData, []byte("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"))
		}), [3]uint8{10, 10, 10}},
		"a record of no known type": {v12, instead(1, func(r []byte) []byte { return record(99, r[5:]) }),
			[3]uint8{10, 10, 10}},
		"empty records without end": {v12, func(c net.Conn, n int, r []byte) {
			if n == 0 {
				for range 100 {
					r = append(record(handshake, nil), r...)
				}
			}
			c.Write(r)
		}, [3]uint8{10, 10, 10}},
		"nothing after the ClientHello": {v12, func(c net.Conn, n int, r []byte) {
			if n > 0 {
				c.(*net.TCPConn).CloseWrite()
				return
			}
			c.Write(r)
		}, [3]uint8{}},
	}
	withHostileClients(t, func(t *testing.T, engines int, dial func(uint16, func(net.Conn, int, []byte)) (*tls.Conn, error)) {
		for name, tt := range tests {
			if tt.version == v13 && engines > 0 {
				continue // the split engine has none
			}
			t.Run(name, func(t *testing.T) {
				c, err := dial(tt.version, tt.mangle)
				if err == nil { // TLS 1.3: the client has done its part
					_, err = c.Read(make([]byte, 1))
				}
				if alert := tt.alerts[engines]; alert != 0 {
					assertAlert(t, alert, err)
				} else {
					assert.ErrorIs(t, err, io.EOF)
				}
				tcp := c.NetConn().(*mangler).Conn
				_, err = io.Copy(io.Discard, tcp)
				if timeout, ok := err.(net.Error); ok {
					assert.False(t, timeout.Timeout(), "the connection stays open")
				}
			})
		}
	})
}
