package split

import (
	"bytes"
	"crypto/tls"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestHostileHello has ClientHellos that are whole, but wrong.
func TestHostileHello(t *testing.T) {
	h := newHostile(t, hostileConfig())
	good := func() *helloSpec { return goodHello(gcm(), tls.X25519) }
	change := func(do func(*helloSpec)) *helloSpec {
		s := good()
		do(s)
		return s
	}
	tests := []struct {
		what  string
		hello *helloSpec
		want  Alert
	}{
		{"SSL 3.0", change(func(s *helloSpec) { s.version = 0x0300 }), ProtocolVersion},
		{"TLS 1.1", change(func(s *helloSpec) { s.version = 0x0302 }), ProtocolVersion},
		{"TLS 1.1 by fallback", change(func(s *helloSpec) { s.version, s.suites = 0x0302, append(s.suites, fallbackSCSV) }), InappropriateFallback},
		{"only TLS 1.3", good().with(extSupportedVersions, []byte{2, 3, 4}), ProtocolVersion},
		{"no suite in common", change(func(s *helloSpec) { s.suites = []uint16{0x002F, 0xC013, emptyRenegotiationInfo} }), HandshakeFailure},
		{"only CBC", change(func(s *helloSpec) { s.suites = []uint16{0xC009, 0xC00A, 0xC023} }), HandshakeFailure},
		{"only the renegotiation signal", change(func(s *helloSpec) { s.suites = []uint16{emptyRenegotiationInfo} }), HandshakeFailure},
		{"no suite", change(func(s *helloSpec) { s.suites = nil }), DecodeError},
		{"no compression", change(func(s *helloSpec) { s.compression = nil }), DecodeError},
		{"only compressed", change(func(s *helloSpec) { s.compression = []byte{1} }), IllegalParameter},
		{"session ID of 33 bytes", change(func(s *helloSpec) { s.sessionID = make([]byte, 33) }), DecodeError},
		{"without signature_algorithms", good().without(extSignatureAlgorithms), HandshakeFailure},
		{"only SHA-1", good().with(extSignatureAlgorithms, u16s(0x0203, 0x0201)), HandshakeFailure},
		{"only schemes of another key", good().with(extSignatureAlgorithms, u16s(0x0401, 0x0807)), HandshakeFailure},
		{"no group in common", good().with(extSupportedGroups, u16s(30, 256)), HandshakeFailure},
		{"the certificate's curve not supported", good().with(extSupportedGroups, u16s(29)), HandshakeFailure},
		{"without extended master secret", good().without(extExtendedMasterSecret), HandshakeFailure},
		{"renegotiation_info of a renegotiation", good().with(extRenegotiationInfo, append([]byte{12}, make([]byte, 12)...)), HandshakeFailure},
		{"ec_point_formats without uncompressed", good().with(extPointFormats, []byte{1, 1}), IllegalParameter},
		{"max_fragment_length 0", good().with(extMaxFragmentLength, []byte{0}), IllegalParameter},
		{"max_fragment_length 5", good().with(extMaxFragmentLength, []byte{5}), IllegalParameter},
		{"record_size_limit 63", good().with(extRecordSizeLimit, []byte{0, 63}), IllegalParameter},
		{"server_name with a line end", good().with(extServerName, []byte{0, 6, 0, 0, 3, 'a', '\n', 'b'}), IllegalParameter},
		{"server_name of type 1", good().with(extServerName, []byte{0, 6, 1, 0, 3, 'a', 'b', 'c'}), DecodeError},
		{"two server_names", good().with(extServerName, []byte{0, 8, 0, 0, 1, 'a', 0, 0, 1, 'b'}), DecodeError},
		{"only OpenPGP certificates", good().with(extServerCertType, []byte{1, 1}), UnsupportedCertificate},
		{"only raw public keys of clients", good().with(extClientCertType, []byte{1, 2}), UnsupportedCertificate},
		{"extended_master_secret with content", good().with(extExtendedMasterSecret, []byte{0}), DecodeError},
	}
	for id := range clientExtensions {
		twice := good().with(id, firstOf(good(), id))
		twice.extensions = append(twice.extensions, extension{id, firstOf(good(), id)})
		if id == extClientCertType || id == extServerCertType || id == extALPN || id == extSupportedVersions {
			continue // Their content decides first; a twin of an unknown extension is below.
		}
		tests = append(tests, struct {
			what  string
			hello *helloSpec
			want  Alert
		}{"an extension twice", twice, IllegalParameter})
	}
	twice := good().with(0xABCD, nil)
	twice.extensions = append(twice.extensions, extension{0xABCD, nil})
	tests = append(tests, struct {
		what  string
		hello *helloSpec
		want  Alert
	}{"an unknown extension twice", twice, IllegalParameter})
	for _, tt := range tests {
		r := h.rogue()
		r.hello = tt.hello
		h.refuses(r, tt.want, tt.what)
	}
}

// firstOf returns valid content of an extension.
func firstOf(h *helloSpec, id uint16) []byte {
	for _, e := range h.extensions {
		if e.id == id {
			return e.data
		}
	}
	switch id {
	case extMaxFragmentLength:
		return []byte{1}
	case extRecordSizeLimit:
		return []byte{1, 0}
	case extRenegotiationInfo:
		return []byte{0}
	case extSignatureAlgsCert:
		return u16s(0x0403)
	}
	return nil
}

// TestHostileExtensions cuts and lengthens the content of each extension.
func TestHostileExtensions(t *testing.T) {
	cfg := hostileConfig()
	cfg.NextProtos = []string{"http/1.1"}
	h := newHostile(t, cfg)
	contents := map[uint16][]byte{
		extServerName:          {0, 6, 0, 0, 3, 'a', 'b', 'c'},
		extMaxFragmentLength:   {1},
		extSupportedGroups:     u16s(23, 29),
		extPointFormats:        {2, 0, 1},
		extSignatureAlgorithms: u16s(0x0403, 0x0804),
		extSignatureAlgsCert:   u16s(0x0403, 0x0804),
		extALPN:                {0, 9, 8, 'h', 't', 't', 'p', '/', '1', '.', '1'},
		extServerCertType:      {2, 0, 2},
		extClientCertType:      {2, 0, 2},
		extRecordSizeLimit:     {1, 0},
		extSupportedVersions:   {4, 3, 4, 3, 3},
		extRenegotiationInfo:   {0},
	}
	for id, content := range contents {
		r := h.rogue()
		r.hello = goodHello(gcm(), tls.X25519).with(id, content)
		require.NoError(t, r.handshake(), "extension %d", id)
		r.conn.Close()
		h.outcome(t)
		for n := range content {
			r := h.rogue()
			r.hello = goodHello(gcm(), tls.X25519).with(id, content[:n])
			h.refuses(r, DecodeError, "an extension cut short")
		}
		r = h.rogue()
		r.hello = goodHello(gcm(), tls.X25519).with(id, append(slices.Clone(content), 0))
		h.refuses(r, DecodeError, "an extension with a byte more")
		if len(content) > 1 && id != extRecordSizeLimit {
			r = h.rogue()
			empty := make([]byte, 1)
			if id == extServerName || id == extSupportedGroups || id == extSignatureAlgorithms || id == extALPN {
				empty = make([]byte, 2)
			}
			r.hello = goodHello(gcm(), tls.X25519).with(id, empty)
			h.refuses(r, DecodeError, "an extension with an empty list")
		}
	}
	r := h.rogue()
	r.hello = goodHello(gcm(), tls.X25519).with(extALPN, []byte{0, 3, 2, 'h', '2'})
	h.refuses(r, NoApplicationProtocol, "ALPN without a protocol in common")
}

// TestHostileFirstBytes sends what is no ClientHello of TLS at all.
func TestHostileFirstBytes(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for what, bytes := range map[string]string{
		"HTTP":        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"SSH":         "SSH-2.0-OpenSSH_9.2\r\n",
		"zeros":       "\x00\x00\x00\x00\x00\x00",
		"version 2.0": "\x16\x02\x00\x00\x01\x01",
	} {
		r := h.rogue()
		r.conn.Write([]byte(bytes))
		got := h.outcome(t)
		record := tls.RecordHeaderError{}
		require.ErrorAs(t, got.err, &record, what)
		assert.Equal(t, bytes[:5], string(record.RecordHeader[:]))
		_, _, err := r.readRecord()
		assert.NotErrorIs(t, err, &alertError{})
		assert.NotContains(t, err.Error(), "alert", what)
	}
	r := h.rogue()
	r.conn.Write([]byte("\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10"))
	h.refused(r, r.answer(), ProtocolVersion, "a ClientHello of SSL 2.0")

	r = h.rogue()
	r.conn.Write([]byte{22, 3, 1, 0, 0})
	h.refused(r, r.answer(), UnexpectedMessage, "an empty first record")
}

func TestTheFirstRecordMayHaveAnyVersionOfTLS(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for _, version := range []uint16{0x0300, 0x0301, 0x0302, 0x0303} {
		r := h.rogue()
		r.on("ClientHello", func(contentType uint8, payload []byte) { r.raw(contentType, version, payload) })
		require.NoError(t, r.handshake())
		r.conn.Close()
		h.outcome(t)
	}
}

func TestVersionsAboveTLS12AreAnsweredWithTLS12(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for _, version := range []uint16{0x0304, 0x03FF, 0x0400} {
		r := h.rogue()
		r.hello.version = version
		require.NoError(t, r.handshake())
		r.conn.Close()
		assert.EqualValues(t, tls.VersionTLS12, h.outcome(t).conn.ConnectionState().Version)
	}
}

func TestFallbackWhereTheSiteHasTLS13(t *testing.T) {
	cfg := hostileConfig()
	h := newHostile(t, cfg)
	r := h.rogue()
	r.hello.suites = append(r.hello.suites, fallbackSCSV)
	require.NoError(t, r.handshake(), "TLS 1.2 is the best that there is")
	assert.False(t, bytes.HasSuffix(r.random, []byte("DOWNGRD\x01")))
	r.conn.Close()
	h.outcome(t)

	with13 := *cfg
	with13.TLS13 = true
	h = newHostile(t, &with13)
	r = h.rogue()
	r.hello.suites = append(r.hello.suites, fallbackSCSV)
	h.refuses(r, InappropriateFallback, "TLS_FALLBACK_SCSV")
	r = h.rogue()
	require.NoError(t, r.handshake())
	assert.True(t, bytes.HasSuffix(r.random, []byte("DOWNGRD\x01")), "RFC 8446, Section 4.1.3")
	r.conn.Close()
	h.outcome(t)
}

func TestLegacyMasterSecretIsASwitch(t *testing.T) {
	cfg := hostileConfig()
	cfg.LegacyMasterSecret = true
	h := newHostile(t, cfg)
	r := h.rogue()
	r.hello = r.hello.without(extExtendedMasterSecret)
	require.NoError(t, r.handshake())
	assert.NotContains(t, r.extensions, extExtendedMasterSecret)
	r.conn.Close()
	h.outcome(t)
}

func TestTheServerHelloHasOnlyWhatTheClientHasSent(t *testing.T) {
	h := newHostile(t, hostileConfig())
	r := h.rogue()
	r.hello.suites = r.hello.suites[:1]
	r.hello = r.hello.without(extServerName).without(extPointFormats)
	require.NoError(t, r.handshake())
	assert.Equal(t, map[uint16][]byte{extExtendedMasterSecret: {}}, r.extensions)
	r.conn.Close()
	h.outcome(t)

	r = h.rogue()
	r.hello = r.hello.with(extMaxFragmentLength, []byte{2}).with(extRecordSizeLimit, []byte{0x20, 0}).with(extClientCertType, []byte{1, 0}).with(extServerCertType, []byte{2, 2, 0})
	require.NoError(t, r.handshake())
	assert.Equal(t, map[uint16][]byte{
		extExtendedMasterSecret: {}, extServerName: {}, extPointFormats: {1, 0}, extRenegotiationInfo: {0},
		extRecordSizeLimit: {0x40, 0}, extClientCertType: {0}, extServerCertType: {2},
	}, r.extensions, "record_size_limit is there instead of max_fragment_length (RFC 8449, Section 5)")
	r.conn.Close()
	h.outcome(t)
}
