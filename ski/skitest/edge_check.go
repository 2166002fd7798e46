package skitest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"math/big"

	"github.com/fxamacker/cbor/v2"

	"github.com/tlsski/tlsski/ski"
)

// check reads a question and says which rules it breaks. The request is nil if
// it cannot be parsed.
func (e *Edge) check(q *Question) (ski.Format, *ski.Request, []Violation) {
	v := &violations{list: []Violation{}}
	v.unless(q.Method == "POST" || q.Method == "PUT", "the method is POST, or PUT", coap, "it is %q", q.Method)
	v.unless(e.Path == "" || q.Path == e.Path, "the path is the key server's", sectionSKI, "it is %q", q.Path)
	format, ok := formatOf(q.ContentType)
	v.unless(ok, "the Content-Format or Content-Type is that of CBOR or JSON", sectionSKI, "it is %q", q.ContentType)
	if q.Accept != "" {
		_, ok := formatOf(q.Accept)
		v.unless(ok, "the answer is wanted in CBOR or JSON", sectionSKI, "Accept is %q", q.Accept)
	}
	v.unless(len(q.Body) <= ski.MaxMessageSize, "a request has at most 4096 bytes", messages, "it has %d", len(q.Body))
	req, err := ski.DecodeRequest(format, q.Body)
	if err != nil {
		v.add("the request can be parsed, and its attributes have their types and values", sectionSKI, err.Error())
		return format, nil, v.list
	}
	if format == ski.CBOR {
		_, err := cbor.Diagnose(q.Body)
		v.unless(err == nil, "the request is well-formed CBOR", "RFC 8949, Section 3", "%v", err)
	}
	if e.DraftOnly {
		v.extensions(req)
	}
	v.algorithm(req)
	if !isProbe(req) {
		v.input(req)
	}
	v.key(e, req)
	if hasRandoms(req) && !isProbe(req) {
		v.unless(!e.repeated(req.Input[ski.RandomLen:2*ski.RandomLen], req.Input), "a ServerRandom is new in each handshake",
			"RFC 5246, Section 7.4.1.3", "an earlier request, with other parameters, has the same")
	}
	return format, req, v.list
}

// isProbe reports whether the input is one byte or, to ask about a group, no more
// than randoms of zeros, curve_type and group: edge servers ask so whether their
// keys are there.
func isProbe(r *ski.Request) bool {
	const randoms = 2 * ski.RandomLen
	return len(r.Input) == 1 || len(r.Input) == randoms+3 && bytes.Equal(r.Input[:randoms], make([]byte, randoms))
}

// hasRandoms reports whether the input begins with ClientRandom and
// ServerRandom.
func hasRandoms(r *ski.Request) bool {
	return !r.Protocol.Is13() && r.KeyExchange() != ski.MethodRSA && len(r.State) == 0 && len(r.Input) >= 2*ski.RandomLen
}

func digest(b []byte) [32]byte { return sha256.Sum256(b) }

// violations collects those of one request.
type violations struct{ list []Violation }

func (v *violations) add(rule, section, found string) {
	v.list = append(v.list, Violation{rule, section, found})
}

func (v *violations) unless(kept bool, rule, section, found string, args ...any) {
	if !kept {
		v.add(rule, section, fmt.Sprintf(found, args...))
	}
}

// extensions finds what the draft does not have.
func (v *violations) extensions(r *ski.Request) {
	const rule = "a request of the draft alone has no extension"
	v.unless(!r.Protocol.Is13(), rule, sectionSKI, "'protocol' is %q", r.Protocol)
	v.unless(r.KeyExchange() != ski.MethodECDHEPMS, rule, sectionSKI, "'method' is %q", r.Method)
	v.unless(r.Scheme == 0, rule, sectionSKI, "'scheme' is sent")
	v.unless(r.ClientVersion == 0, rule, sectionSKI, "'client_version' is sent")
	v.unless(r.ServerName == "", rule, sectionSKI, "'server_name' is sent")
	v.unless(r.Group == 0, rule, sectionSKI, "'group' is sent")
	v.unless(len(r.State) == 0, rule, sectionSKI, "'state' is sent")
}

// algorithm checks that 'hash' and 'scheme' go with 'protocol' and 'method'.
func (v *violations) algorithm(r *ski.Request) {
	if r.KeyExchange() == ski.MethodRSA {
		v.unless(!r.Protocol.Is13(), "TLS 1.3 has no static RSA", "RFC 8446, Section 1.2", "'method' is RSA")
		return
	}
	v.unless(!r.Protocol.Is13() || r.Scheme != 0, "'scheme' is required with TLS 1.3", processing, "it is missing")
	older := !r.Protocol.Is12() && !r.Protocol.Is13()
	v.unless(!older || r.Hash == "", "before TLS 1.2 no hash is negotiated", "RFC 5246, Section 7.4.1.4.1", "'hash' is %q", r.Hash)
	v.unless(!older || r.Scheme == 0, "before TLS 1.2 no scheme is negotiated", "RFC 5246, Section 7.4.1.4.1", "'scheme' is sent")
}

// input checks its structure.
func (v *violations) input(r *ski.Request) {
	switch {
	case r.KeyExchange() == ski.MethodECDHE && r.Protocol.Is13():
		hash, ok := bytes.CutPrefix(r.Input, certificateVerify("TLS 1.3, server CertificateVerify", nil))
		v.unless(ok && (len(hash) == 32 || len(hash) == 48), "'input' is the content covered by a server's CertificateVerify",
			"RFC 8446, Section 4.4.3", "it has %d bytes and another structure", len(r.Input))
	case r.KeyExchange() == ski.MethodECDHE:
		v.ecdhParams(r)
	case r.KeyExchange() == ski.MethodDHE:
		v.dhParams(r)
	case r.KeyExchange() == ski.MethodECDHEPMS:
		v.ephemeral(r)
	}
}

func (v *violations) ecdhParams(r *ski.Request) {
	const rule = "'input' is ClientRandom, ServerRandom and ServerECDHParams"
	if len(r.Input) < 68 || len(r.Input) != 68+int(r.Input[67]) {
		v.add(rule, sectionSKI, fmt.Sprintf("it has %d bytes, which do not end with the point", len(r.Input)))
		return
	}
	if r.Input[64] != 3 {
		v.add(rule, "RFC 8422, Section 5.4", fmt.Sprintf("curve_type is %d, not named_curve", r.Input[64]))
		return
	}
	group := tls.CurveID(binary.BigEndian.Uint16(r.Input[65:]))
	curve, ok := curves[group]
	if !ok {
		v.add(rule, "RFC 8422, Section 5.1.1", fmt.Sprintf("the group is %d", group))
		return
	}
	_, err := curve.NewPublicKey(r.Input[68:])
	v.unless(err == nil, "the ephemeral key is valid", sectionDH, "the point is not one of %s", group)
}

// dhParams takes any prime for a good one that is long enough: which are known
// is the key server's affair.
func (v *violations) dhParams(r *ski.Request) {
	v.unless(!r.Protocol.Is13(), "TLS 1.3 signs no ServerDHParams", "RFC 8446, Section 4.4.3", "'method' is DHE")
	numbers, ok := cutDHParams(r.Input)
	if !ok {
		v.add("'input' is ClientRandom, ServerRandom and ServerDHParams", sectionDHParams,
			fmt.Sprintf("it has %d bytes, which do not end with dh_Ys", len(r.Input)))
		return
	}
	p, ys := numbers[0], numbers[2]
	v.unless(p.BitLen() >= 2048, "dh_p has 2048 bits or more", processing, "it has %d", p.BitLen())
	one := big.NewInt(1)
	v.unless(ys.Cmp(one) > 0 && ys.Cmp(new(big.Int).Sub(p, one)) < 0, "the ephemeral key is valid: 1 < dh_Ys < dh_p - 1",
		"RFC 7919, Section 5.1", "dh_Ys is not between them")
}

// cutDHParams returns dh_p, dh_g and dh_Ys.
func cutDHParams(input []byte) (numbers [3]*big.Int, ok bool) {
	if len(input) < 2*ski.RandomLen {
		return numbers, false
	}
	rest := input[2*ski.RandomLen:]
	for i := range numbers {
		if len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)) {
			return numbers, false
		}
		n := 2 + int(binary.BigEndian.Uint16(rest))
		numbers[i] = new(big.Int).SetBytes(rest[2:n])
		rest = rest[n:]
	}
	return numbers, len(rest) == 0
}

// ephemeral is for ECDHE-PMS.
func (v *violations) ephemeral(r *ski.Request) {
	v.unless(!r.Protocol.Is13(), "TLS 1.3 has no PreMasterSecret", sectionPMS, "'method' is ECDHE-PMS")
	if len(r.State) == 0 {
		_, ok := curves[r.Group]
		v.unless(ok, "'group' is one of those served", sectionPMS, "it is %d", r.Group)
		v.unless(len(r.Input) == 2*ski.RandomLen, "'input' of the first exchange is ClientRandom and ServerRandom", sectionPMS,
			"it has %d bytes", len(r.Input))
		return
	}
	group, private := openState(r.State)
	if private == nil {
		v.add("'state' is brought back as it was given", sectionPMS, fmt.Sprintf("it has %d bytes and is not one of this key server", len(r.State)))
		return
	}
	_, err := private.Curve().NewPublicKey(r.Input)
	v.unless(err == nil, "'input' of the second exchange is the client's point, without its length", sectionPMS,
		"its %d bytes are no point of %s: the client's, or the edge server's mistake", len(r.Input), group)
}

// key checks that the request fits its key.
func (v *violations) key(e *Edge, r *ski.Request) {
	var pub crypto.PublicKey
	for _, k := range e.Keys {
		if keyID(k) == r.SPKI {
			pub = k
		}
	}
	if pub == nil {
		v.add("'spki' is the fingerprint of a key that the key server has", sectionSKI, "there is none of "+r.SPKI.String())
		return
	}
	rsaKey, isRSA := pub.(*rsa.PublicKey)
	if r.KeyExchange() == ski.MethodRSA {
		if !isRSA {
			v.add("method RSA is for RSA keys", sectionRSA, fmt.Sprintf("the key is a %T", pub))
			return
		}
		v.unless(len(r.Input) == rsaKey.Size() && new(big.Int).SetBytes(r.Input).Cmp(rsaKey.N) < 0,
			"'input' is an EncryptedPreMasterSecret: as long as the modulus, and below it", sectionRSA,
			"it has %d bytes, the modulus %d", len(r.Input), rsaKey.Size())
		return
	}
	v.unless(isRSA || r.KeyExchange() != ski.MethodDHE, "method DHE is for RSA keys", processing, "the key is a %T", pub)
	const rule = "'scheme' fits the key"
	if len(r.State) > 0 {
		return // what the first exchange has said counts
	}
	_, isEd := pub.(ed25519.PublicKey)
	v.unless(!isEd || r.Scheme == tls.Ed25519, rule, processing, "an Ed25519 key is asked for 0x%04x", uint16(r.Scheme))
	if r.Scheme == 0 {
		return
	}
	_, isECDSA := pub.(*ecdsa.PublicKey)
	switch r.Scheme {
	case tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512:
		v.unless(isECDSA, rule, processing, "0x%04x is for ECDSA keys", uint16(r.Scheme))
		v.unless(!isECDSA || !r.Protocol.Is13() || r.Scheme == tls13Scheme(pub), rule, "RFC 8446, Section 4.2.3", "0x%04x is for another curve", uint16(r.Scheme))
	case tls.Ed25519:
		v.unless(isEd, rule, processing, "0x%04x is for Ed25519 keys", uint16(r.Scheme))
	default:
		_, known := schemeHashes[r.Scheme]
		v.unless(known, "'scheme' is a SignatureScheme that is in use", "RFC 8446, Section 4.2.3", "it is 0x%04x", uint16(r.Scheme))
		v.unless(!known || isRSA, rule, processing, "0x%04x is for RSA keys", uint16(r.Scheme))
		v.unless(!r.Protocol.Is13() || r.Scheme>>8 == 8, "RSA signs with PSS in TLS 1.3", "RFC 8446, Section 4.2.3", "'scheme' is 0x%04x", uint16(r.Scheme))
	}
}
