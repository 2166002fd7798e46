package split

import (
	"bytes"
	"crypto/tls"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// Extensions that this server knows (IANA: TLS ExtensionType Values).
const (
	extServerName           uint16 = 0
	extMaxFragmentLength    uint16 = 1
	extSupportedGroups      uint16 = 10
	extPointFormats         uint16 = 11
	extSignatureAlgorithms  uint16 = 13
	extALPN                 uint16 = 16
	extClientCertType       uint16 = 19
	extServerCertType       uint16 = 20
	extExtendedMasterSecret uint16 = 23
	extRecordSizeLimit      uint16 = 28
	extSessionTicket        uint16 = 35
	extSupportedVersions    uint16 = 43
	extSignatureAlgsCert    uint16 = 50
	extRenegotiationInfo    uint16 = 0xFF01
)

// Certificate types (RFC 7250, Section 3).
const (
	certTypeX509         uint8 = 0
	certTypeRawPublicKey uint8 = 2
)

// clientExtensions parse an extension of the ClientHello. They leave in the
// string what they have not read. Extensions that are not here are ignored, as
// RFC 5246, Section 7.4.1.4 asks.
var clientExtensions = map[uint16]func(*ClientHello, *cryptobyte.String) *Error{
	extServerName:           parseServerName,
	extMaxFragmentLength:    parseMaxFragmentLength,
	extSupportedGroups:      parseSupportedGroups,
	extPointFormats:         parsePointFormats,
	extSignatureAlgorithms:  func(h *ClientHello, s *cryptobyte.String) *Error { return parseSchemes(&h.Schemes, s) },
	extSignatureAlgsCert:    func(h *ClientHello, s *cryptobyte.String) *Error { return parseSchemes(&h.CertSchemes, s) },
	extALPN:                 parseALPN,
	extClientCertType:       parseClientCertType,
	extServerCertType:       parseServerCertType,
	extExtendedMasterSecret: func(h *ClientHello, _ *cryptobyte.String) *Error { h.extendedMasterSecret = true; return nil },
	extRecordSizeLimit:      parseRecordSizeLimit,
	extSessionTicket:        parseSessionTicket,
	extSupportedVersions:    parseSupportedVersions,
	extRenegotiationInfo:    parseRenegotiationInfo,
}

// parseServerName reads server_name (RFC 6066, Section 3): one name of a host.
// Other types of names have never been defined.
func parseServerName(h *ClientHello, s *cryptobyte.String) *Error {
	var list, name cryptobyte.String
	var nameType uint8
	if !s.ReadUint16LengthPrefixed(&list) || !list.ReadUint8(&nameType) || nameType != 0 ||
		!list.ReadUint16LengthPrefixed(&name) || len(name) == 0 || len(name) > 255 || !list.Empty() {
		return fail(DecodeError, "malformed server_name")
	}
	if bytes.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fail(IllegalParameter, "server_name has a character that no host name has")
	}
	h.ServerName = string(name)
	return nil
}

// parseMaxFragmentLength reads max_fragment_length (RFC 6066, Section 4).
func parseMaxFragmentLength(h *ClientHello, s *cryptobyte.String) *Error {
	if !s.ReadUint8(&h.maxFragmentLength) {
		return fail(DecodeError, "malformed max_fragment_length")
	}
	if h.maxFragmentLength < 1 || h.maxFragmentLength > 4 {
		return fail(IllegalParameter, "max_fragment_length is none of its values")
	}
	return nil
}

// parseRecordSizeLimit reads record_size_limit (RFC 8449, Section 4).
func parseRecordSizeLimit(h *ClientHello, s *cryptobyte.String) *Error {
	if !s.ReadUint16(&h.recordSizeLimit) {
		return fail(DecodeError, "malformed record_size_limit")
	}
	if h.recordSizeLimit < 64 {
		return fail(IllegalParameter, "record_size_limit is below 64")
	}
	return nil
}

// parseSupportedGroups reads supported_groups (RFC 8422, Section 5.1.1).
func parseSupportedGroups(h *ClientHello, s *cryptobyte.String) *Error {
	list, ok := readUint16s(s)
	if !ok {
		return fail(DecodeError, "malformed supported_groups")
	}
	for _, v := range list {
		h.Groups = append(h.Groups, tls.CurveID(v))
	}
	return nil
}

// parsePointFormats reads ec_point_formats (RFC 8422, Section 5.1.2).
func parsePointFormats(h *ClientHello, s *cryptobyte.String) *Error {
	var list cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&list) || len(list) == 0 {
		return fail(DecodeError, "malformed ec_point_formats")
	}
	if !slices.Contains(list, 0) {
		return fail(IllegalParameter, "uncompressed points are not among the ec_point_formats")
	}
	h.pointFormats = true
	return nil
}

// parseSchemes reads signature_algorithms (RFC 5246, Section 7.4.1.4.1) and
// signature_algorithms_cert (RFC 8446, Section 4.2.3).
func parseSchemes(schemes *[]tls.SignatureScheme, s *cryptobyte.String) *Error {
	list, ok := readUint16s(s)
	if !ok {
		return fail(DecodeError, "malformed signature_algorithms")
	}
	for _, v := range list {
		*schemes = append(*schemes, tls.SignatureScheme(v))
	}
	return nil
}

// parseALPN reads application_layer_protocol_negotiation (RFC 7301, Section
// 3.1).
func parseALPN(h *ClientHello, s *cryptobyte.String) *Error {
	var list, name cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || list.Empty() {
		return fail(DecodeError, "malformed ALPN")
	}
	for !list.Empty() {
		if !list.ReadUint8LengthPrefixed(&name) || name.Empty() {
			return fail(DecodeError, "malformed ALPN")
		}
		h.ALPNProtocols = append(h.ALPNProtocols, string(name))
	}
	return nil
}

func parseClientCertType(h *ClientHello, s *cryptobyte.String) *Error {
	return parseCertTypes(&h.clientCertTypes, s)
}

func parseServerCertType(h *ClientHello, s *cryptobyte.String) *Error {
	return parseCertTypes(&h.serverCertTypes, s)
}

// parseCertTypes reads client_certificate_type and server_certificate_type
// (RFC 7250, Section 3).
func parseCertTypes(types *[]uint8, s *cryptobyte.String) *Error {
	var list cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&list) || len(list) == 0 {
		return fail(DecodeError, "malformed certificate type extension")
	}
	*types = list
	return nil
}

// parseSessionTicket reads session_ticket (RFC 5077, Section 3.2): all of it
// is the ticket.
func parseSessionTicket(h *ClientHello, s *cryptobyte.String) *Error {
	h.sessionTicket = true
	s.ReadBytes(&h.ticket, len(*s))
	return nil
}

// parseSupportedVersions reads supported_versions (RFC 8446, Section 4.2.1).
func parseSupportedVersions(h *ClientHello, s *cryptobyte.String) *Error {
	var list cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&list) || list.Empty() {
		return fail(DecodeError, "malformed supported_versions")
	}
	for !list.Empty() {
		var v uint16
		if !list.ReadUint16(&v) {
			return fail(DecodeError, "malformed supported_versions")
		}
		h.Versions = append(h.Versions, v)
	}
	return nil
}

// parseRenegotiationInfo reads renegotiation_info (RFC 5746, Section 3.6): in
// an initial handshake it is empty.
func parseRenegotiationInfo(h *ClientHello, s *cryptobyte.String) *Error {
	var verifyData cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&verifyData) {
		return fail(DecodeError, "malformed renegotiation_info")
	}
	if !verifyData.Empty() {
		return fail(HandshakeFailure, "renegotiation_info is not that of an initial handshake")
	}
	h.secureRenegotiation = true
	return nil
}

// readUint16s reads a list, not empty, of two-byte values.
func readUint16s(s *cryptobyte.String) ([]uint16, bool) {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || list.Empty() {
		return nil, false
	}
	var values []uint16
	for !list.Empty() {
		var v uint16
		if !list.ReadUint16(&v) {
			return nil, false
		}
		values = append(values, v)
	}
	return values, true
}
