package ski

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzCheckForm compares CheckForm with readers as lenient as any: what they read
// as a SEQUENCE or SET to the input's end is refused.
func FuzzCheckForm(f *testing.F) {
	for _, begin := range []string{
		"", "\x30\x62\x02\x01\x00\x30\x00", "\x30\x81\x82", "\x31\x62\x30\x2f", "\x30\x80\x02\x01\x00", "\x30\x62\x30\x80\x02\x01\x00", "\x3f\x10\x60", "\x30\x85\x01\x00\x00\x00\x5d",
	} {
		for _, end := range []string{"", "\x00\x00", "\x00\x81\x00", "\x00\x00\x00\x00"} {
			f.Add(inputOf(tls.X25519, begin, end))
			f.Add(inputOf(tls.CurveP256, begin, end))
		}
	}
	for _, in := range structures(f) {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if how := readAsBER(in); how != "" {
			require.Error(t, CheckForm(in), "%s: %x", how, in)
		}
	})
}

// The seeds of the fuzz target are what it is about: that each is read, and
// refused, is seen without fuzzing.
func TestWhatLenientReadersReadIsRefused(t *testing.T) {
	for name, in := range structures(t) {
		require.NotEmpty(t, readAsBER(in), name)
		require.Error(t, CheckForm(in), name)
	}
}

// structures are to-be-signed parts of an X.509 certificate and a certification
// request of 100 bytes with an Ed25519 key, each in DER and with bytes behind the
// members that are no element, and in BER of all kinds.
func structures(t testing.TB) map[string][]byte {
	key := "302a300506032b6570032100" + strings.Repeat("22", 32)
	times := "301e170d3236303130313030303030305a170d3336303130313030303030305a"
	certificate := "02030102033005" + "06032b6570" + "3000" + times + "3000" + key // 92 bytes
	request := "020100" + "3000" + key + "a000"                                    // 51 bytes
	members := func(s string) []byte {
		b, err := hex.DecodeString(s)
		require.NoError(t, err)
		return b
	}
	garbage := func(n int) []byte { return bytes.Repeat([]byte{0xff}, n) }
	whole := func(head string, parts ...[]byte) []byte {
		return append([]byte(head), bytes.Join(parts, nil)...)
	}
	c, r := members(certificate), members(request)
	return map[string][]byte{
		"certificate":                                whole("\x30\x5c", c),
		"certificate and something else":             whole("\x30\x62", c, garbage(6)),
		"request":                                    whole("\x30\x33", r),
		"request and something else":                 whole("\x30\x62", r, garbage(47)),
		"request, indefinite":                        whole("\x30\x80", r, []byte{0, 0}),
		"request, padded":                            whole("\x30\x84\x00\x00\x00\x33", r),
		"request, SEQUENCE in the form of high tags": whole("\x3f\x10\x33", r),
		"request, members of indefinite length":      whole("\x30\x37", members("020100"+"30800000"+key+"a0800000")),
		"request, lengths of members padded":         whole("\x30\x39", members("0282000100"+"308100"+key+"a083000000")),
	}
}

// readAsBER returns how the input is read as a SEQUENCE or SET, or nothing.
func readAsBER(in []byte) string {
	tag, length, contents, ok := lenientHeader(in)
	if ok && (tag.Cmp(big.NewInt(16)) == 0 || tag.Cmp(big.NewInt(17)) == 0) {
		switch {
		case length == nil:
			if rest, ok := lenientMembers(contents, true); ok && len(rest) == 0 {
				return "indefinite"
			}
		case !length.IsInt64() || length.Int64() != int64(len(contents)):
		case longLength(in):
			return "long"
		default:
			if _, ok := lenientMembers(contents, false); ok {
				return "short"
			}
		}
	}
	// Go's readers stop at the members that they know.
	algorithm := asn1.RawValue{FullBytes: []byte("\x30\x05\x06\x03\x2b\x65\x70")}
	signature := asn1.BitString{Bytes: make([]byte, 64), BitLength: 512}
	signed, err := asn1.Marshal([]any{asn1.RawValue{FullBytes: in}, algorithm, signature})
	if err != nil {
		return ""
	}
	if r, err := x509.ParseCertificateRequest(signed); err == nil && bytes.Equal(r.RawTBSCertificateRequest, in) {
		return "Go's certification request"
	}
	if c, err := x509.ParseCertificate(signed); err == nil && bytes.Equal(c.RawTBSCertificate, in) {
		return "Go's certificate"
	}
	if l, err := x509.ParseRevocationList(signed); err == nil && bytes.Equal(l.RawTBSRevocationList, in) {
		return "Go's CRL"
	}
	return ""
}

// longLength reports whether the length of an element has more than one octet.
func longLength(b []byte) bool {
	i := 1
	if b[0]&31 == 31 {
		for b[i] >= 0x80 {
			i++
		}
		i++
	}
	return b[i] >= 0x80
}

// lenientHeader reads identifier and length octets in any encoding. The tag is
// that of the universal class, otherwise -1; a length of nil is indefinite. A
// SEQUENCE or SET that says that it is primitive (X.690, Section 8.9.1) is none.
func lenientHeader(b []byte) (tag, length *big.Int, contents []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, nil, false
	}
	class, constructed, tag, b := b[0]>>6, b[0]&32 != 0, big.NewInt(int64(b[0]&31)), b[1:]
	if tag.Int64() == 31 {
		tag = new(big.Int)
		for {
			if len(b) == 0 {
				return nil, nil, nil, false
			}
			c := b[0]
			b = b[1:]
			tag.Or(tag.Lsh(tag, 7), big.NewInt(int64(c&127)))
			if c < 128 {
				break
			}
		}
	}
	if class != 0 || !constructed && (tag.Int64() == 16 || tag.Int64() == 17) {
		tag = big.NewInt(-1)
	}
	if len(b) == 0 {
		return nil, nil, nil, false
	}
	n, b := int(b[0]), b[1:]
	switch {
	case n < 128:
		return tag, big.NewInt(int64(n)), b, true
	case n == 128:
		return tag, nil, b, true
	case n-128 > len(b):
		return nil, nil, nil, false
	}
	return tag, new(big.Int).SetBytes(b[:n-128]), b[n-128:], true
}

// lenientMembers reads elements to the end, or to end-of-contents, which can have
// any encoding of its length, and returns what follows.
func lenientMembers(b []byte, indefinite bool) (rest []byte, ok bool) {
	for len(b) > 0 {
		tag, length, contents, ok := lenientHeader(b)
		switch {
		case !ok:
			return nil, false
		case indefinite && tag.Sign() == 0 && length != nil && length.Sign() == 0:
			return contents, true
		case length == nil:
			if b, ok = lenientMembers(contents, true); !ok {
				return nil, false
			}
		case length.Cmp(big.NewInt(int64(len(contents)))) > 0:
			return nil, false
		default:
			b = contents[length.Int64():]
		}
	}
	return nil, !indefinite
}
