package split

import (
	"crypto/tls"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// ClientHello is a client's first message (RFC 5246, Section 7.4.1.2) with the
// extensions that this server knows. Lists are in the client's order.
type ClientHello struct {
	Version      uint16 // client_version
	Random       []byte
	SessionID    []byte
	CipherSuites []uint16

	ServerName    string // in lower or upper case, as sent
	ALPNProtocols []string
	// Groups is nil where the extension is absent, as are Schemes and Versions.
	Groups  []tls.CurveID
	Schemes []tls.SignatureScheme
	// CertSchemes are those for the signatures in certificates, where the client
	// tells them apart (RFC 8446, Section 4.2.3).
	CertSchemes []tls.SignatureScheme
	// Versions are those of supported_versions (RFC 8446, Section 4.2.1).
	Versions []uint16

	extendedMasterSecret bool
	secureRenegotiation  bool
	sessionTicket        bool
	ticket               []byte
	pointFormats         bool
	serverCertTypes      []uint8
	clientCertTypes      []uint8
	maxFragmentLength    uint8  // 0 where absent
	recordSizeLimit      uint16 // 0 where absent
}

// Supports13 reports whether the client can do TLS 1.3.
func (h *ClientHello) Supports13() bool { return slices.Contains(h.Versions, tls.VersionTLS13) }

func (h *ClientHello) offers(suite uint16) bool { return slices.Contains(h.CipherSuites, suite) }

// parseClientHello parses the body of a ClientHello. What it keeps is copied.
func parseClientHello(body []byte) (*ClientHello, *Error) {
	h := new(ClientHello)
	s := cryptobyte.String(slices.Clone(body))
	var suites, compression, sessionID cryptobyte.String
	if !s.ReadUint16(&h.Version) || !s.ReadBytes(&h.Random, 32) ||
		!s.ReadUint8LengthPrefixed(&sessionID) || len(sessionID) > 32 ||
		!s.ReadUint16LengthPrefixed(&suites) || len(suites) == 0 ||
		!s.ReadUint8LengthPrefixed(&compression) || len(compression) == 0 {
		return nil, fail(DecodeError, "malformed ClientHello")
	}
	h.SessionID = sessionID
	for !suites.Empty() {
		var id uint16
		if !suites.ReadUint16(&id) {
			return nil, fail(DecodeError, "malformed list of cipher suites")
		}
		h.CipherSuites = append(h.CipherSuites, id)
	}
	if !slices.Contains(compression, 0) {
		return nil, fail(IllegalParameter, "the null compression is not offered")
	}
	h.secureRenegotiation = h.offers(emptyRenegotiationInfo)
	if s.Empty() {
		return h, nil // without extensions
	}
	var extensions cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return nil, fail(DecodeError, "malformed ClientHello")
	}
	return h, h.parseExtensions(extensions)
}

func (h *ClientHello) parseExtensions(s cryptobyte.String) *Error {
	seen := map[uint16]bool{}
	for !s.Empty() {
		var id uint16
		var data cryptobyte.String
		if !s.ReadUint16(&id) || !s.ReadUint16LengthPrefixed(&data) {
			return fail(DecodeError, "malformed list of extensions")
		}
		if seen[id] {
			// RFC 5246, Section 7.4.1.4: at most one of each type.
			return fail(IllegalParameter, "extension %d twice", id)
		}
		seen[id] = true
		if parse := clientExtensions[id]; parse != nil {
			if err := parse(h, &data); err != nil {
				return err
			}
			if !data.Empty() {
				return fail(DecodeError, "extension %d has bytes after its end", id)
			}
		}
	}
	return nil
}
