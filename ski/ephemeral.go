package ski

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
)

// Ephemeral is an ephemeral ECDH key that the key server has made for one
// handshake of (D)TLS 1.0 to 1.2 (MethodECDHEPMS). The edge has the public half
// with its signature; who holds the private half is the key server, or rather
// nobody: it is sealed in what Ephemeral keeps, for the key server alone.
type Ephemeral struct {
	// Params is the ServerECDHParams and Signature the signature over
	// ClientRandom + ServerRandom + Params, both as they go into the
	// ServerKeyExchange (RFC 8422, Section 5.4).
	Params    []byte
	Signature []byte

	key    *Key
	group  tls.CurveID
	state  []byte
	origin *member // who gave state, where a Client asked
}

// NewEphemeral has the key server make an ephemeral key of a group (secp256r1,
// secp384r1, secp521r1 or x25519) for the handshake with these randoms,
// ClientRandom + ServerRandom, and sign it. opts is as for SignMessage.
//
// The key server answers it as long as its policy grants 'ECDHE-PMS', which is
// an extension: a Key that is DraftOnly cannot ask. The error is as that of
// SignMessage.
func (k *Key) NewEphemeral(ctx context.Context, group tls.CurveID, randoms []byte, opts crypto.SignerOpts) (*Ephemeral, error) {
	switch {
	case k.draftOnly:
		return nil, errors.New("ski: ECDHE-PMS is beyond the draft")
	case len(randoms) != 2*RandomLen:
		return nil, fmt.Errorf("ski: ClientRandom and ServerRandom have %d bytes, not %d", len(randoms), 2*RandomLen)
	}
	if err := CheckRandoms(randoms, group); err != nil {
		return nil, err
	}
	req := k.ephemeralRequest(randoms)
	req.Group = group
	if err := k.algorithm(req, opts); err != nil {
		return nil, err
	}
	resp, err := k.ask(ctx, req)
	switch {
	case err != nil:
		return nil, err
	case !isParamsOf(resp.Params, group):
		return nil, fmt.Errorf("ski: the key server's 'params' are not ServerECDHParams of %v", group)
	}
	if err := k.checkSignature(resp.Output); err != nil {
		return nil, err
	}
	return &Ephemeral{Params: resp.Params, Signature: resp.Output, key: k, group: group, state: resp.State, origin: resp.origin}, nil
}

// PreMasterSecret has the key server do the key agreement with the client's
// public value, the point of the ClientKeyExchange without its length byte. It
// can be had once, and within the time that the key server gives: 30 seconds.
// The result is as long as a coordinate of the group (RFC 8422, Section 5.10)
// and the caller's, to be cleared.
//
// The error is MalformedRequest where the client's point is not one of the
// group, RequestDenied where it is too late or the second time, and otherwise
// as that of SignMessage.
func (e *Ephemeral) PreMasterSecret(ctx context.Context, point []byte) ([]byte, error) {
	req := e.key.ephemeralRequest(point)
	req.State, req.origin = e.state, e.origin
	resp, err := e.key.ask(ctx, req)
	if err != nil {
		return nil, err
	}
	if want := coordinateLen(e.group); len(resp.Output) != want {
		clear(resp.Output)
		return nil, fmt.Errorf("ski: the key server's PreMasterSecret has %d bytes, not %d", len(resp.Output), want)
	}
	return resp.Output, nil
}

// coordinateLen returns the length in bytes of a group's coordinates, which is
// that of its shared secrets.
func coordinateLen(group tls.CurveID) int {
	switch group {
	case tls.CurveP384:
		return 48
	case tls.CurveP521:
		return 66
	}
	return 32
}

func (k *Key) ephemeralRequest(input []byte) *Request {
	req := k.request(MethodECDHEPMS, input)
	if req.Protocol == "" {
		req.Protocol = TLS12 // as in Decrypt
	}
	return req
}

// isParamsOf reports whether params is ServerECDHParams with a named curve
// (RFC 8422, Section 5.4) that is group, and a point to its end.
func isParamsOf(params []byte, group tls.CurveID) bool {
	return len(params) > paramsHead && params[0] == namedCurve &&
		tls.CurveID(params[1])<<8|tls.CurveID(params[2]) == group && int(params[3]) == len(params)-paramsHead
}

// ServerECDHParams begins with curve_type, namedcurve(2) and the length of the
// point.
const paramsHead, namedCurve = 4, 3

// pointLen returns the length in bytes of a group's public keys, uncompressed.
func pointLen(group tls.CurveID) int {
	if group == tls.X25519 {
		return 32
	}
	return 1 + 2*coordinateLen(group)
}
