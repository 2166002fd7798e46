package split

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"errors"

	"golang.org/x/crypto/cryptobyte"
)

// defaultGroups are the groups for the ephemeral key, in the server's order of
// preference, where the Config has none.
var defaultGroups = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}

// curveTypeNamed is ECCurveType.named_curve (RFC 8422, Section 5.4).
const curveTypeNamed = 3

func curveOf(group tls.CurveID) ecdh.Curve {
	switch group {
	case tls.X25519:
		return ecdh.X25519()
	case tls.CurveP256:
		return ecdh.P256()
	case tls.CurveP384:
		return ecdh.P384()
	case tls.CurveP521:
		return ecdh.P521()
	}
	return nil
}

// groupOf returns the group of an ECDSA key, or 0.
func groupOf(pub *ecdsa.PublicKey) tls.CurveID {
	switch pub.Curve {
	case elliptic.P256():
		return tls.CurveP256
	case elliptic.P384():
		return tls.CurveP384
	case elliptic.P521():
		return tls.CurveP521
	}
	return 0
}

// serverECDHParams returns ServerECDHParams (RFC 8422, Section 5.4).
func serverECDHParams(group tls.CurveID, public []byte) []byte {
	var b cryptobyte.Builder
	b.AddUint8(curveTypeNamed)
	b.AddUint16(uint16(group))
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(public) })
	return b.BytesOrPanic()
}

// checkServerECDHParams checks what a key server has made, before the client
// gets it.
func checkServerECDHParams(params []byte, group tls.CurveID) error {
	s := cryptobyte.String(params)
	var curveType uint8
	var named uint16
	var point cryptobyte.String
	if !s.ReadUint8(&curveType) || curveType != curveTypeNamed || !s.ReadUint16(&named) ||
		tls.CurveID(named) != group || !s.ReadUint8LengthPrefixed(&point) || !s.Empty() {
		return errors.New("not the ServerECDHParams of the group")
	}
	return checkPublic(group, point)
}

// checkPublic checks an ECDHE public value: on the curve, uncompressed, not
// the point at infinity (RFC 8422, Section 5.11), and not one whose shared
// secret is zero whatever the other side has (RFC 7748, Section 6.1).
func checkPublic(group tls.CurveID, public []byte) error {
	curve := curveOf(group)
	pub, err := curve.NewPublicKey(public)
	if err != nil {
		return err
	}
	if group == tls.X25519 {
		// Any scalar does: it is a multiple of 8, which takes each point of
		// low order to zero, and that is an error.
		probe, err := curve.NewPrivateKey(append(make([]byte, 31), 64))
		if err != nil {
			return err
		}
		_, err = probe.ECDH(pub)
		return err
	}
	return nil
}
