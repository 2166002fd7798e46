package split

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// resuming makes one full handshake and returns what makes a client that
// resumes it.
func resuming(t *testing.T, h *hostile) func() *rogue {
	first := h.rogue()
	first.hello = first.hello.with(extSessionTicket, nil)
	require.NoError(t, first.handshake())
	require.NotEmpty(t, first.ticket)
	first.conn.Close()
	require.False(t, h.outcome(t).conn.ConnectionState().DidResume)
	return func() *rogue {
		r := h.rogue()
		r.hello = r.hello.with(extSessionTicket, first.ticket)
		r.hello.sessionID = []byte("a session ID")
		r.resume = first.master
		return r
	}
}

// resumes does the handshake and returns whether it was a resumption.
func (h *hostile) resumes(r *rogue) bool {
	h.t.Helper()
	require.NoError(h.t, r.handshake())
	r.record(recordApplicationData, []byte("a"))
	_, _, err := r.readRecord()
	require.NoError(h.t, err)
	r.record(recordAlert, []byte{alertWarning, byte(CloseNotify)})
	got := h.outcome(h.t)
	require.NoError(h.t, got.err)
	if len(got.conn.ConnectionState().PeerCertificates) > 0 {
		assert.Equal(h.t, theWorld().client.cert.Raw, got.conn.ConnectionState().PeerCertificates[0].Raw)
	}
	return got.conn.ConnectionState().DidResume
}

func TestResumption(t *testing.T) {
	var later atomic.Int64
	var keys atomic.Pointer[[]TicketKey]
	oldKey, newKey := NewTicketKey(), NewTicketKey()
	keys.Store(&[]TicketKey{oldKey})
	cfg := hostileConfig()
	cfg.TicketKeys = func() []TicketKey { return *keys.Load() }
	cfg.Time = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	h := newHostile(t, cfg)
	again := resuming(t, h)

	r := again()
	assert.True(t, h.resumes(r))
	assert.Empty(t, r.ticket, "the ticket is good for as long as it was")
	assert.NotContains(t, r.extensions, extServerName, "RFC 6066, Section 3")

	r = again()
	r.hello = r.hello.without(extExtendedMasterSecret)
	h.refuses(r, HandshakeFailure, "RFC 7627, Section 5.3")

	r = again()
	r.hello.suites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
	assert.False(t, h.resumes(r), "another cipher suite")

	r = again()
	r.hello = r.hello.with(extServerName, []byte{0, 4, 0, 0, 1, 'a'})
	assert.False(t, h.resumes(r), "another server name")

	keys.Store(&[]TicketKey{newKey, oldKey})
	r = again()
	assert.True(t, h.resumes(r), "the key is an older one")
	assert.NotEmpty(t, r.ticket, "a ticket of the newest key")
	keys.Store(&[]TicketKey{newKey})
	r2 := again()
	r2.hello = r2.hello.with(extSessionTicket, r.ticket)
	assert.True(t, h.resumes(r2))
	assert.False(t, h.resumes(again()), "the key is gone")

	later.Store(int64(TicketLifetime + time.Second))
	r = again()
	r.hello = r2.hello
	r.identity = nil // It has expired too.
	assert.False(t, h.resumes(r), "too old")
}

// TestASessionKeepsItsMaxFragmentLength as RFC 6066, Section 4 has it: a client
// that wants another gets another session.
func TestASessionKeepsItsMaxFragmentLength(t *testing.T) {
	key := NewTicketKey()
	cfg := hostileConfig()
	cfg.TicketKeys = func() []TicketKey { return []TicketKey{key} }
	h := newHostile(t, cfg)
	first := h.rogue()
	first.hello = first.hello.with(extSessionTicket, nil).with(extMaxFragmentLength, []byte{2})
	require.NoError(t, first.handshake())
	first.conn.Close()
	h.outcome(t)
	for _, tt := range []struct {
		what      string
		extension uint16
		content   []byte
		resumed   bool
		answer    []byte // in the same extension
	}{
		{"the same", extMaxFragmentLength, []byte{2}, true, []byte{2}},
		{"a shorter one", extMaxFragmentLength, []byte{1}, false, []byte{1}},
		{"a longer one", extMaxFragmentLength, []byte{3}, false, []byte{3}},
		{"none", extSessionTicket, first.ticket, false, nil},
		{"record_size_limit, which is of a connection", extRecordSizeLimit, []byte{2, 0}, false, []byte{0x40, 0}},
	} {
		r := h.rogue()
		r.hello, r.resume = r.hello.with(extSessionTicket, first.ticket).with(tt.extension, tt.content), first.master
		assert.Equal(t, tt.resumed, h.resumes(r), tt.what)
		if tt.answer != nil {
			assert.Equal(t, tt.answer, r.extensions[tt.extension], tt.what)
		}
	}

	out, err := exec.Command("openssl", "s_client", "-connect", h.addr, "-tls1_2", "-servername", serverName, "-maxfraglen", "1024", "-reconnect").CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Equal(t, 5, strings.Count(string(out), "Reused, TLSv1.2"), string(out))
}

func TestARefusedSessionLeavesNoSecretBehind(t *testing.T) {
	key := NewTicketKey()
	secret := bytes.Repeat([]byte{7}, 48)
	ticket, err := key.seal(&session{suite: gcm().id, extendedMasterSecret: true, created: time.Now(), masterSecret: secret})
	require.NoError(t, err)
	for _, tt := range []struct {
		what   string
		hello  ClientHello
		secret []byte
	}{
		{"it is resumed", ClientHello{CipherSuites: []uint16{gcm().id}, extendedMasterSecret: true}, secret},
		{"another suite", ClientHello{extendedMasterSecret: true}, make([]byte, 48)},
		{"no extended master secret", ClientHello{CipherSuites: []uint16{gcm().id}}, make([]byte, 48)},
	} {
		s, _ := openTicket([]TicketKey{key}, ticket)
		require.NotNil(t, s)
		ok, _ := hostileConfig().canResume(s, &tt.hello, new(agreement))
		assert.Equal(t, tt.what == "it is resumed", ok)
		assert.Equal(t, tt.secret, s.masterSecret, tt.what)
	}
}

func TestTicketsOfAnotherSite(t *testing.T) {
	a, b := hostileConfig(), hostileConfig()
	keyA, keyB := NewTicketKey(), NewTicketKey()
	a.TicketKeys = func() []TicketKey { return []TicketKey{keyA} }
	b.TicketKeys = func() []TicketKey { return []TicketKey{keyB} }
	again := resuming(t, newHostile(t, a))
	r := again()
	siteB := newHostile(t, b)
	other := siteB.rogue()
	other.hello, other.resume = r.hello, r.resume
	assert.False(t, siteB.resumes(other))
}

func TestATicketThatHasBeenTamperedWithIsNoTicket(t *testing.T) {
	cfg := hostileConfig()
	key := NewTicketKey()
	cfg.TicketKeys = func() []TicketKey { return []TicketKey{key} }
	h := newHostile(t, cfg)
	again := resuming(t, h)
	ticket := firstOf(again().hello, extSessionTicket)
	for i := range ticket {
		if i > 60 && i%31 != 0 && i < len(ticket)-3 {
			continue
		}
		r := again()
		changed := slices.Clone(ticket)
		changed[i] ^= 1
		r.hello = r.hello.with(extSessionTicket, changed)
		assert.False(t, h.resumes(r), "byte %d", i)
	}
	for _, n := range []int{1, 15, 16, 17, 28, 29, 44, len(ticket) - 1} {
		r := again()
		r.hello = r.hello.with(extSessionTicket, ticket[:n])
		assert.False(t, h.resumes(r), "%d bytes of it", n)
	}
}

func TestAResumptionNeedsItsFinished(t *testing.T) {
	cfg := hostileConfig()
	key := NewTicketKey()
	cfg.TicketKeys = func() []TicketKey { return []TicketKey{key} }
	h := newHostile(t, cfg)
	again := resuming(t, h)

	r := again()
	r.resume = bytes.Repeat([]byte{1}, 48)
	r.handshake() // fails at the server's Finished
	r.conn.Close()
	assert.Error(t, h.outcome(t).err)

	r = again()
	r.on("Finished", func(contentType uint8, payload []byte) {
		changed := slices.Clone(payload)
		changed[10] ^= 1
		r.record(contentType, changed)
	})
	h.refuses(r, DecryptError, "bad Finished")
	r = again()
	r.on("Finished", func(uint8, []byte) { r.record(recordApplicationData, []byte("GET /")) })
	h.refuses(r, UnexpectedMessage, "data before Finished")
	r = again()
	r.on("ChangeCipherSpec", func(uint8, []byte) {
		r.record(recordHandshake, frame(TypeClientKeyExchange, make([]byte, 33)))
	})
	h.refuses(r, UnexpectedMessage, "a key exchange within a resumption")
	r = again()
	r.on("Finished", func(contentType uint8, payload []byte) { r.raw(contentType, 0x0303, payload) })
	h.refuses(r, BadRecordMAC, "Finished in the clear")
}

func TestASessionWithoutExtendedMasterSecret(t *testing.T) {
	cfg := hostileConfig()
	key := NewTicketKey()
	cfg.TicketKeys, cfg.LegacyMasterSecret = func() []TicketKey { return []TicketKey{key} }, true
	h := newHostile(t, cfg)
	first := h.rogue()
	first.hello = first.hello.with(extSessionTicket, nil).without(extExtendedMasterSecret)
	require.NoError(t, first.handshake())
	first.conn.Close()
	h.outcome(t)
	for _, extended := range []bool{true, false} {
		r := h.rogue()
		r.hello = r.hello.with(extSessionTicket, first.ticket)
		if !extended {
			r.hello = r.hello.without(extExtendedMasterSecret)
		}
		r.resume = first.master
		assert.Equal(t, !extended, h.resumes(r), "RFC 7627, Section 5.3")
	}
}

// TestASessionDoesNotLoseItsExtendedMasterSecret (RFC 7627, Section 5.3), also
// where clients without one are served.
func TestASessionDoesNotLoseItsExtendedMasterSecret(t *testing.T) {
	cfg := hostileConfig()
	key := NewTicketKey()
	cfg.TicketKeys, cfg.LegacyMasterSecret = func() []TicketKey { return []TicketKey{key} }, true
	h := newHostile(t, cfg)
	r := resuming(t, h)()
	r.hello = r.hello.without(extExtendedMasterSecret)
	h.refuses(r, HandshakeFailure, "the session had one")
}

// TestAResumptionIsNoWayAroundClientCertificates resumes at a server that has
// the same ticket keys but wants more of clients.
func TestAResumptionIsNoWayAroundClientCertificates(t *testing.T) {
	key := NewTicketKey()
	site := func(change func(*Config)) *hostile {
		cfg := hostileConfig()
		cfg.TicketKeys = func() []TicketKey { return []TicketKey{key} }
		change(cfg)
		return newHostile(t, cfg)
	}
	before := site(func(*Config) {})
	for _, tt := range []struct {
		what        string
		certificate bool // at the full handshake
		change      func(*Config)
	}{
		{"certificates have become required", false, func(c *Config) { c.ClientAuth = RequireClientCert }},
		{"the client's authority is gone", true, func(c *Config) { c.ClientCAs = x509.NewCertPool() }},
		{"certificates are not accepted any more", true, func(c *Config) { c.ClientCAs = nil }},
		{"clients are not asked any more", true, func(c *Config) { c.ClientAuth = NoClientCert }},
		{"the client's certificate has expired", true, func(c *Config) {
			c.Time = func() time.Time { return time.Now().Add(2 * time.Hour) }
		}},
	} {
		first := before.rogue()
		first.hello = first.hello.with(extSessionTicket, nil)
		if !tt.certificate {
			first.identity = nil
		}
		require.NoError(t, first.handshake())
		first.conn.Close()
		before.outcome(t)
		after := site(tt.change)
		r := after.rogue()
		r.hello, r.resume = r.hello.with(extSessionTicket, first.ticket), first.master
		if tt.certificate {
			r.identity = nil // It would be refused.
		}
		assert.False(t, after.resumes(r), tt.what)
	}
}

// TestASessionOfStaticRSAIsNotResumedForHTTP2 as RFC 9113, Section 9.2.2 has it.
func TestASessionOfStaticRSAIsNotResumedForHTTP2(t *testing.T) {
	key := NewTicketKey()
	cfg := hostileConfig()
	cfg.NextProtos = []string{"h2", "http/1.1"}
	cfg.TicketKeys = func() []TicketKey { return []TicketKey{key} }
	h := newHostile(t, cfg)
	first := newRogue(t, h.addr, goodHello(staticGCM(), tls.X25519).with(extSessionTicket, nil), tls.X25519)
	require.NoError(t, first.handshake())
	first.conn.Close()
	h.outcome(t)
	for protocol, resumed := range map[string]bool{"\x08http/1.1": true, "\x02h2": false} {
		r := h.rogue()
		r.resume = first.master
		r.hello = r.hello.with(extSessionTicket, first.ticket).with(extALPN, append([]byte{0, byte(len(protocol))}, protocol...))
		r.hello.suites = append(r.hello.suites, staticGCM().id)
		assert.Equal(t, resumed, h.resumes(r), protocol)
	}
}
