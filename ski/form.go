package ski

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
)

// FormError says that what is to be signed has the form of something that is
// signed elsewhere. Its signature would be valid there too, so neither a Key
// asks for it nor does a key server make it.
type FormError struct {
	// Form names what the input could be read as.
	Form string
}

func (e *FormError) Error() string {
	return "ski: what is to be signed could be read as " + e.Form
}

// otherForms are the forms of what is signed with the same algorithms outside of
// (D)TLS servers. Verifiers that encode anew what they verify accept one
// encoding; those that hash what they have parsed accept what their parser does,
// and for them each of these functions accepts more than any parser should.
var otherForms = []struct {
	name string
	is   func(input []byte) bool
}{
	{"a BER SEQUENCE or SET", isBER},
	{"a COSE Sig_structure", isCOSE},
	{"content with an OpenPGP trailer", isOpenPGP},
	{"an SSH signature's content", isSSH},
	{"handshake messages of a TLS client", isHandshake},
	{"a JSON Web Signature's content", isJWS},
	{"an IKEv2 message", isIKE},
}

// CheckForm returns a *FormError if input, which a TLS server's key is to sign,
// could be read as something else that is signed: a BER SEQUENCE or SET, as in
// certificates, certification requests, CRLs, OCSP answers, CMS; a COSE
// Sig_structure; OpenPGP; SSH; a TLS or DTLS client's handshake messages; JWS;
// IKEv2. docs/protocol.md, section 3, has the rules.
//
// Each is a form that ClientRandom + ServerRandom and parameters have by chance
// with a probability of less than one in a million. An edge takes another group
// or ServerRandom then, as far as it can.
func CheckForm(input []byte) error {
	for _, f := range otherForms {
		if f.is(input) {
			return &FormError{f.name}
		}
	}
	return nil
}

// CheckRandoms returns the error of CheckForm if it is the same whatever the
// public key in the ServerECDHParams of group is: ClientRandom + ServerRandom
// force the form. Without an error almost all public keys have none, and one
// that has is replaced by another.
func CheckRandoms(randoms []byte, group tls.CurveID) error {
	params := make([]byte, paramsHead+pointLen(group))
	params[0], params[1], params[2], params[3] = namedCurve, byte(group>>8), byte(group), byte(pointLen(group))
	for i := range params[paramsHead:] {
		params[paramsHead+i] = 0xff // which continues no form
	}
	return CheckForm(append(randoms[:len(randoms):len(randoms)], params...))
}

// isCOSE reports whether input begins like a Sig_structure (RFC 9052, Section
// 4.4) or a Countersign_structure (RFC 9338, Section 3.3): an array of which the
// first element is the text "Signature", "Signature1" or "CounterSignature". It is
// found in any encoding of the heads before it, and behind tags.
func isCOSE(input []byte) bool {
	const within = 48
	return bytes.Contains(input[:min(len(input), within)], []byte("Signature"))
}

// isSSH reports whether input begins with "SSHSIG" (the file PROTOCOL.sshsig of
// OpenSSH), like a certificate or another proof of a host key, with the name of an
// algorithm or a purpose as a string (RFC 4251, Section 5), or like the
// request of user authentication (RFC 4252, Section 7) with the session's ID
// before it. The names are of 28 bytes and more. A look at fewer than 16 would
// often mistake for one the ClientRandom of a client that puts its clock there and
// has just been started in 1970.
func isSSH(input []byte) bool {
	const userauthRequest, minName = 50, 16
	if bytes.HasPrefix(input, []byte("SSHSIG")) {
		return true
	}
	if len(input) < 4 || input[0]|input[1]|input[2] != 0 || int(input[3]) > len(input)-4 {
		return false
	}
	n := int(input[3])
	text, rest := input[4:4+n], input[4+n:]
	return n >= minName && allOf(text[:minName], isPrintable) ||
		bytes.HasPrefix(rest, []byte{userauthRequest, 0, 0, 0})
}

// isHandshake reports whether input is whole handshake messages of which the
// first is a ClientHello, which is what a client's CertificateVerify covers up
// to TLS 1.2 (RFC 5246, Section 7.4.8): with the headers of TLS or of DTLS (RFC
// 6347, Section 4.2.6), or behind a ClientHello of version 2.0 (RFC 5246,
// Appendix E.2).
func isHandshake(input []byte) bool {
	const clientHello, headerTLS, headerDTLS, headerV2 = 1, 4, 12, 9
	if len(input) < headerV2 || input[0] != clientHello {
		return false
	}
	if areMessages(input, headerTLS) || areMessages(input, headerDTLS) {
		return true
	}
	hello := headerV2
	for i := 3; i < headerV2; i += 2 { // the lengths of cipher_specs, session_id and challenge
		hello += int(binary.BigEndian.Uint16(input[i:]))
	}
	return input[1] == 3 && hello <= len(input) && areMessages(input[hello:], headerTLS)
}

// areMessages reports whether b is handshake messages, each behind a header of
// this many bytes that begins with msg_type(1) and length(3).
func areMessages(b []byte, header int) bool {
	for len(b) > 0 {
		if len(b) < header {
			return false
		}
		n := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
		if n > len(b)-header {
			return false
		}
		b = b[header+n:]
	}
	return true
}

// isOpenPGP reports whether input is what OpenPGP hashes: of a signature of
// version 4 to 6 it ends with the trailer of version, 0xFF and the length of the
// hashed part before it, of 4 or, in version 5, 8 bytes (RFC 9580, Section
// 5.2.4). What is signed in version 3 has no mark at its end; of it only a
// certification is found, which begins with the public key.
func isOpenPGP(input []byte) bool {
	version := func(b byte) bool { return b >= 3 && b <= 6 }
	n := len(input)
	if n >= 6 && input[n-5] == 0xff && version(input[n-6]) && int64(binary.BigEndian.Uint32(input[n-4:])) <= int64(n-6) {
		return true
	}
	if n >= 10 && input[n-9] == 0xff && version(input[n-10]) && binary.BigEndian.Uint64(input[n-8:]) <= uint64(n-10) {
		return true
	}
	return isOpenPGPKey(input)
}

// isOpenPGPKey reports whether input begins with a public key as it is hashed:
// 0x99, a length of 2 bytes, and a key of version 2 to 4 with its algorithm
// (RFC 9580, Section 5.5.2).
func isOpenPGPKey(input []byte) bool {
	const head, trailer = 3, 5
	if len(input) < head+8 || input[0] != 0x99 || int(binary.BigEndian.Uint16(input[1:])) > len(input)-head-trailer {
		return false
	}
	var algorithm byte
	switch input[head] {
	case 2, 3:
		algorithm = input[head+7]
	case 4:
		algorithm = input[head+5]
	}
	return algorithm >= 1 && algorithm <= 3 || algorithm >= 16 && algorithm <= 28
}

// isJWS reports whether input begins like the header of a JWS in base64url (RFC
// 7515, Section 5.1), a JSON object with a member, behind which the payload can be
// anything (RFC 7797, Section 5.2). Readers of base64 that skip other characters,
// and readers of JSON that take a byte order mark, white space, UTF-16 or UTF-32,
// do so here too.
func isJWS(input []byte) bool {
	text, isObject := bytes.CutPrefix(jsonIn(input), []byte(`{"`))
	return isObject && bytes.Contains(text, []byte(`":`))
}

// jsonIn decodes what there is of the alphabets of base64 in input (RFC 4648,
// Sections 4 and 5), without white space, byte order mark and zeros. Of what cannot
// be a JSON object it returns the first bytes only.
func jsonIn(input []byte) []byte {
	const longestMark = 3
	var text []byte
	var bits uint32 // of which the lowest n are not in text yet
	n := 0
	for _, c := range input {
		v, ok := base64Value(c)
		if !ok {
			continue
		}
		if bits, n = bits<<6|v, n+6; n < 8 {
			continue
		}
		n -= 8
		if c := byte(bits >> n); c != 0 && !bytes.ContainsRune([]byte(" \t\r\n"), rune(c)) {
			text = append(text, c)
		}
		if len(text) == longestMark+1 && !bytes.Contains(text, []byte("{")) {
			return text
		}
	}
	for _, mark := range []string{"\xef\xbb\xbf", "\xfe\xff", "\xff\xfe"} { // the last two without UTF-32's zeros
		text = bytes.TrimPrefix(text, []byte(mark))
	}
	return text
}

func base64Value(c byte) (v uint32, ok bool) {
	switch {
	case c >= 'A' && c <= 'Z':
		return uint32(c - 'A'), true
	case c >= 'a' && c <= 'z':
		return uint32(c-'a') + 26, true
	case c >= '0' && c <= '9':
		return uint32(c-'0') + 52, true
	case c == '-' || c == '+':
		return 62, true
	case c == '_' || c == '/':
		return 63, true
	}
	return 0, false
}

// isIKE reports whether input begins like the IKE_SA_INIT message that the AUTH
// payload covers (RFC 7296, Sections 2.15 and 3.1): after the SPIs and the next
// payload the major version 2, exchange type 34, the flag of an initiator or of a
// response, and message ID 0. Receivers take any minor version and any other flag.
func isIKE(input []byte) bool {
	const major, saInit, initiator, response = 2, 34, 0x08, 0x20
	return len(input) >= 28 && input[17]>>4 == major && input[18] == saInit &&
		input[19]&(initiator|response) != 0 && binary.BigEndian.Uint32(input[20:]) == 0
}

func isPrintable(c byte) bool { return c >= 0x21 && c <= 0x7e }

func allOf(b []byte, is func(byte) bool) bool {
	for _, c := range b {
		if !is(c) {
			return false
		}
	}
	return true
}
