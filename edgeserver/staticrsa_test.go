package edgeserver

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/cryptobyte"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
	"github.com/tlsski/tlsski/ski/tlsprf"
)

// rsaClient is a client of TLS_RSA_WITH_AES_128_GCM_SHA256 that encrypts what it
// is told and does all else as it should.
type rsaClient struct {
	conn       net.Conn
	random     []byte
	transcript []byte
	server     []byte // its random
}

// dialRSA goes as far as the ServerHelloDone.
func dialRSA(t *testing.T, addr, name string) *rsaClient {
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	c := &rsaClient{conn: conn, random: make([]byte, 32)}
	rand.Read(c.random)
	var b cryptobyte.Builder
	b.AddUint16(tls.VersionTLS12)
	b.AddBytes(c.random)
	b.AddBytes([]byte{0, 0, 2, 0, 0x9C, 1, 0}) // no session, one suite, no compression
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(0) // server_name
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				b.AddUint8(0)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
			})
		})
		b.AddBytes([]byte{0, 13, 0, 4, 0, 2, 4, 1, 0, 23, 0, 0}) // signature_algorithms, extended_master_secret
	})
	c.send(1, b.BytesOrPanic())
	for {
		kind, message := c.receive(t)
		if kind == 2 {
			c.server = message[6:38]
		}
		if kind == 14 {
			return c
		}
	}
}

// send sends a handshake message.
func (c *rsaClient) send(kind byte, body []byte) {
	message := append([]byte{kind, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	c.transcript = append(c.transcript, message...)
	c.conn.Write(record(handshake, message)) // An error shows when the answer is read.
}

// receive returns the next handshake message. It does not look for several in one
// record: neither engine does so here.
func (c *rsaClient) receive(t *testing.T) (kind byte, message []byte) {
	header := make([]byte, 5)
	_, err := io.ReadFull(c.conn, header)
	require.NoError(t, err)
	message = make([]byte, binary.BigEndian.Uint16(header[3:]))
	_, err = io.ReadFull(c.conn, message)
	require.NoError(t, err)
	require.Equal(t, byte(handshake), header[0], "%x", message)
	require.Len(t, message, 4+int(message[2])<<8+int(message[3]))
	c.transcript = append(c.transcript, message...)
	return message[0], message
}

// finish sends ClientKeyExchange, ChangeCipherSpec and a Finished that fits
// secret, and returns all that the server says then.
func (c *rsaClient) finish(t *testing.T, encrypted, secret []byte) string {
	c.send(16, append(binary.BigEndian.AppendUint16(nil, uint16(len(encrypted))), encrypted...))
	schedule, err := tlsprf.New(tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256)
	require.NoError(t, err)
	session := sha256.Sum256(c.transcript)
	master, err := schedule.ExtendedMasterSecret(secret, session[:])
	require.NoError(t, err)
	keys, err := schedule.Keys(master, c.random, c.server)
	require.NoError(t, err)
	finished, err := schedule.ClientFinished(master, session[:])
	require.NoError(t, err)
	block, err := aes.NewCipher(keys.ClientKey)
	require.NoError(t, err)
	aead, err := cipher.NewGCM(block)
	require.NoError(t, err)
	message := append([]byte{20, 0, 0, byte(len(finished))}, finished...)
	nonce := slices.Concat(keys.ClientIV, make([]byte, 8))
	header := []byte{0, 0, 0, 0, 0, 0, 0, 0, handshake, 3, 3, 0, byte(len(message))}
	sealed := aead.Seal(make([]byte, 8), nonce, message, header)
	c.conn.Write(slices.Concat(record(changeCipherSpec, []byte{1}), record(handshake, sealed)))
	c.conn.(*net.TCPConn).CloseWrite()
	said, err := io.ReadAll(c.conn)
	require.NoError(t, err)
	return fmt.Sprintf("%x", said)
}

// encryptBlock is RSA without padding.
func encryptBlock(pub *rsa.PublicKey, block []byte) []byte {
	m := new(big.Int).SetBytes(block)
	return m.Exp(m, big.NewInt(int64(pub.E)), pub.N).FillBytes(make([]byte, pub.Size()))
}

// badRecordMAC is the alert with which a handshake ends whose Finished cannot be
// decrypted, as it is on the wire.
const badRecordMAC = "15030300020214"

// withRSASite runs a test for a site with static RSA and either engine.
func withRSASite(t *testing.T, test func(t *testing.T, start func(ski.Transport) *edge)) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		t.Run(engine, func(t *testing.T) {
			p := newPKI(t)
			cfg := Config{Sites: []Site{{Names: []string{"rsa.test"}, Certificates: []string{p.rsa(t, "rsa.test")}, Static: p.dir, StaticRSA: true, Engine: engine}}}
			test(t, func(transport ski.Transport) *edge { return start(t, cfg, transport) })
		})
	}
}

// attack tries every plaintext that attackers tell apart.
func attack(t *testing.T, addr string) {
	pub := &sharedRSA().PublicKey
	c := dialRSA(t, addr, "rsa.test")
	secret := skitest.PreMasterSecret(tls.VersionTLS12)
	encrypted, err := skitest.EncryptPreMasterSecret(pub, secret)
	require.NoError(t, err)
	require.NotContains(t, c.finish(t, encrypted, secret), badRecordMAC, "a right PreMasterSecret: the attack proves nothing")
	for _, wrong := range skitest.WrongPlaintexts(pub.Size()) {
		c := dialRSA(t, addr, "rsa.test")
		assert.Equal(t, badRecordMAC, c.finish(t, encryptBlock(pub, wrong.Block), wrong.Secret), "%s: %x", wrong.Name, wrong.Block)
	}
}

// Whatever a key server says of a wrong plaintext, the TLS client sees the same
// bytes as for a PreMasterSecret that is only another one (RFC 5246, Section
// 7.4.7.1). The plaintexts are those of tlsfuzzer's script for Bleichenbacher's
// attack.
func TestTheEdgeIsNoPaddingOracleWhateverTheKeyServerAnswers(t *testing.T) {
	withRSASite(t, func(t *testing.T, start func(ski.Transport) *edge) {
		for _, wrong := range skitest.WrongPreMasterSecrets() {
			t.Run(wrong.Name, func(t *testing.T) {
				attack(t, start(&skitest.PaddingOracle{Key: sharedRSA(), Wrong: wrong}).addr)
			})
		}
	})
}

func TestTheEdgeIsNoPaddingOracleWithOurKeyServer(t *testing.T) {
	store := new(keyserver.MemoryStore)
	require.NoError(t, store.Add("site", sharedRSA()))
	policy, err := keyserver.ParsePolicy("policy.yaml", []byte(`
edges: [{name: edge, dns: [edge]}]
rules: [{edges: [edge], keys: ["*"], methods: [RSA, ECDHE]}]
`), store)
	require.NoError(t, err)
	server, err := keyserver.New(keyserver.Options{
		Keys: store, Policy: policy, Audit: keyserver.NewAuditLog(io.Discard), Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	withRSASite(t, func(t *testing.T, start func(ski.Transport) *edge) {
		attack(t, start(ski.Direct(server, ski.Peer{SPKI: ski.KeyID{1}, DNSNames: []string{"edge"}})).addr)
	})
}

// The second question that an error leads to elsewhere takes time that a TLS
// client can measure, so that there is none.
func TestAnErrorOfRSALeadsToNoSecondQuestion(t *testing.T) {
	withRSASite(t, func(t *testing.T, start func(ski.Transport) *edge) {
		for _, wrong := range skitest.WrongPreMasterSecrets() {
			t.Run(wrong.Name, func(t *testing.T) {
				var first, second atomic.Int64
				counting := func(n *atomic.Int64) ski.Transport {
					oracle := &skitest.PaddingOracle{Key: sharedRSA(), Wrong: wrong}
					return ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
						n.Add(1)
						return oracle.RoundTrip(ctx, req)
					})
				}
				client := &ski.Client{Transports: []ski.Transport{counting(&first), counting(&second)}}
				defer client.Close()
				e := start(client)
				// More often than a key server may say 'unspecified error'.
				for range 5 {
					c := dialRSA(t, e.addr, "rsa.test")
					assert.Equal(t, badRecordMAC, c.finish(t, encryptBlock(&sharedRSA().PublicKey, make([]byte, 256)), make([]byte, 48)))
				}
				assert.EqualValues(t, 5, first.Load())
				assert.Zero(t, second.Load())
			})
		}
	})
}

// Without an answer the handshake ends, at once rather than with the Finished.
func TestWithoutAnAnswerAHandshakeOfRSAEnds(t *testing.T) {
	withRSASite(t, func(t *testing.T, start func(ski.Transport) *edge) {
		e := start(skitest.Always(ski.Direct(skitest.NewKeyServer(), ski.Peer{}), skitest.Failed("dial")))
		client := only(tls.TLS_RSA_WITH_AES_128_GCM_SHA256)
		client.ServerName, client.InsecureSkipVerify = "rsa.test", true
		_, err := tls.Dial("tcp", e.addr, client)
		assertAlert(t, internalError, err)
	})
}
