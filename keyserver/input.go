package keyserver

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rsa"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/tlsski/tlsski/ski"
)

// toBeSigned is content that has been found to be what a TLS server signs in
// its handshake, and nothing else that is signed anywhere. Only newToBeSigned
// makes one, and nothing else is signed.
type toBeSigned struct{ content []byte }

// newToBeSigned takes content whose structure has been checked.
func newToBeSigned(content []byte) (toBeSigned, error) {
	if err := checkForm(ski.CheckForm(content)); err != nil {
		return toBeSigned{}, err
	}
	return toBeSigned{content}, nil
}

// checkForm gives the error of ski.CheckForm the words of a reason.
func checkForm(err error) error {
	if form := (*ski.FormError)(nil); errors.As(err, &form) {
		return errors.New("the input could be read as " + form.Form)
	}
	return err
}

// encryptedPreMasterSecret is what may be decrypted, and the versions that the
// plaintext may begin with. Only parseEncryptedPreMasterSecret makes one.
type encryptedPreMasterSecret struct {
	ciphertext []byte
	versions   versionRange
}

// parseToBeSigned parses the input of MethodECDHE and MethodDHE. No input can
// pass for that of another protocol or method: at offset 64 there is a 'T' in
// TLS 1.3; 3, 0, and a curve of 23 to 29 with ECDHE up to TLS 1.2; and with DHE
// a length of two bytes, which can be 3, 0, and the first byte of dh_p, 255.
func parseToBeSigned(req *ski.Request) (toBeSigned, error) {
	var err error
	switch {
	case req.KeyExchange() == ski.MethodDHE && req.Protocol.Is13():
		err = errors.New("this protocol has no DHE key exchange")
	case req.KeyExchange() == ski.MethodDHE:
		err = checkServerDHParams(req.Input)
	case req.Protocol.Is13():
		err = checkCertificateVerify(req.Input)
	default:
		err = checkServerKeyExchange(req.Input)
	}
	if err != nil {
		return toBeSigned{}, err
	}
	return newToBeSigned(req.Input)
}

// The content covered by a server's CertificateVerify (RFC 8446, Section
// 4.4.3): 64 spaces, the context string, a zero byte, the transcript hash. The
// other context string, for a client, is refused: a key server speaks for
// servers.
var certificateVerifyPrefix = append(bytes.Repeat([]byte{0x20}, 64),
	"TLS 1.3, server CertificateVerify\x00"...)

// checkCertificateVerify takes both lengths of transcript hash with every
// scheme: the cipher suite chooses that hash (RFC 8446, Section 4.4.1), and
// none of the schemes served binds it.
func checkCertificateVerify(input []byte) error {
	transcriptHash, ok := bytes.CutPrefix(input, certificateVerifyPrefix)
	switch {
	case !ok:
		return errors.New("the input is not the content of a server's CertificateVerify")
	case len(transcriptHash) != 32 && len(transcriptHash) != 48:
		return errors.New("the transcript hash has neither 32 nor 48 bytes")
	}
	return nil
}

// The fields of ServerECDHParams (RFC 8422, Section 5.4), which follow the two
// randoms: curve_type(1), namedcurve(2), the length of the point(1), the point.
const (
	curveTypeOffset   = 2 * ski.RandomLen
	namedCurveOffset  = curveTypeOffset + 1
	pointLengthOffset = namedCurveOffset + 2
	pointOffset       = pointLengthOffset + 1

	curveTypeNamedCurve = 3
)

// checkServerKeyExchange checks ClientRandom + ServerRandom +
// ServerECDHParams. The randoms can be anything; newToBeSigned looks at them.
func checkServerKeyExchange(input []byte) error {
	if len(input) < pointOffset {
		return errors.New("the input is too short for two randoms and ServerECDHParams")
	}
	if input[curveTypeOffset] != curveTypeNamedCurve {
		return errors.New("the curve_type of ServerECDHParams is not named_curve")
	}
	point := input[pointOffset:]
	if int(input[pointLengthOffset]) != len(point) {
		return errors.New("the input does not end with the point of ServerECDHParams")
	}
	return checkPoint(tls.CurveID(binary.BigEndian.Uint16(input[namedCurveOffset:])), point)
}

var nistCurves = map[tls.CurveID]ecdh.Curve{
	tls.CurveP256: ecdh.P256(),
	tls.CurveP384: ecdh.P384(),
	tls.CurveP521: ecdh.P521(),
}

// checkPoint checks an ephemeral public key. A point that is not on its curve,
// or of low order, would make the server's shared secret one that an attacker
// knows.
func checkPoint(group tls.CurveID, point []byte) error {
	if group == tls.X25519 {
		return checkX25519(point)
	}
	curve, ok := nistCurves[group]
	if !ok {
		return errors.New("the group of ServerECDHParams is not one of those served")
	}
	if _, err := curve.NewPublicKey(point); err != nil { // which takes the uncompressed form alone
		return errors.New("the point of ServerECDHParams is not on its curve")
	}
	return nil
}

// x25519LowOrder are the u-coordinates whose order divides the cofactor 8, so
// that every private key gives zero (RFC 7748, Section 6.1), in all encodings
// of 255 bits: the last two are 0 and 1 again.
var x25519LowOrder = [...][32]byte{
	u("0000000000000000000000000000000000000000000000000000000000000000"),
	u("0100000000000000000000000000000000000000000000000000000000000000"),
	u("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
	u("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
	u("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
	u("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
	u("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
}

func u(hexLittleEndian string) (u [32]byte) {
	if n, err := hex.Decode(u[:], []byte(hexLittleEndian)); err != nil || n != len(u) {
		panic("keyserver: " + hexLittleEndian)
	}
	return u
}

func checkX25519(point []byte) error {
	var masked [32]byte
	if len(point) != len(masked) {
		return errors.New("the point of ServerECDHParams does not have the length of its group")
	}
	copy(masked[:], point)
	masked[31] &= 0x7f // The last bit does not count (RFC 7748, Section 5).
	for _, low := range x25519LowOrder {
		if masked == low {
			return errors.New("the point of ServerECDHParams has a low order")
		}
	}
	return nil
}

// parseEncryptedPreMasterSecret parses the input of MethodRSA: a number below
// the modulus, as long as the modulus (RFC 8017, Section 7.2.2, step 1).
func parseEncryptedPreMasterSecret(req *ski.Request, pub *rsa.PublicKey) (encryptedPreMasterSecret, error) {
	var none encryptedPreMasterSecret
	if req.Protocol.Is13() {
		return none, errors.New("this protocol has no RSA key exchange")
	}
	versions, err := clientVersions(req.Protocol, req.ClientVersion)
	switch {
	case err != nil:
		return none, err
	case len(req.Input) != pub.Size():
		return none, fmt.Errorf("the input does not have the modulus' %d bytes", pub.Size())
	case bytes.Compare(req.Input, pub.N.FillBytes(make([]byte, pub.Size()))) >= 0:
		return none, errors.New("the input is not below the modulus")
	}
	return encryptedPreMasterSecret{req.Input, versions}, nil
}

// versionRange is the versions that a PreMasterSecret may begin with, as
// numbers; newest is lowest with DTLS, which counts downwards.
type versionRange struct{ lowest, highest, newest uint16 }

const (
	tls12  = 0x0303
	dtls12 = 0xFEFD
)

// clientVersions returns the versions that ClientHello.client_version may be:
// the one that the edge sent, or else all between the negotiated one and the
// newest that client_version is used for.
func clientVersions(p ski.Protocol, sent uint16) (versionRange, error) {
	negotiated := p.Wire()
	datagrams := p == ski.DTLS10 || p == ski.DTLS12
	if sent == 0 {
		if datagrams {
			return versionRange{lowest: dtls12, highest: negotiated, newest: dtls12}, nil
		}
		return versionRange{lowest: negotiated, highest: tls12, newest: tls12}, nil
	}
	// No server negotiates a version that is newer than the client's.
	sameFamily := sent>>8 == negotiated>>8
	if !sameFamily || (datagrams && sent > negotiated) || (!datagrams && sent < negotiated) {
		return versionRange{}, errors.New("'client_version' does not go with 'protocol'")
	}
	return versionRange{lowest: sent, highest: sent, newest: sent}, nil
}
