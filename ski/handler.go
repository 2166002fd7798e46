package ski

import (
	"context"
	"crypto/x509"
	"net/netip"
)

// Handler is the key server's side of SKI: a function from an authenticated
// peer and a request to a response. It is called by many goroutines at once.
// It never returns nil; where it has nothing better, UnspecifiedError.
//
// The context ends when the answer can no longer be delivered: the peer's
// session is gone or the server stops.
//
// The request belongs to the Handler until it returns. The response's Output
// belongs to the caller, which clears it once it is on the wire: it may be a
// PreMasterSecret.
type Handler interface {
	ServeSKI(ctx context.Context, peer Peer, req *Request) *Response
}

// MalformedHandler is a Handler that wants to know of the messages that could
// not be parsed, to audit them. A binding calls it instead of answering
// MalformedRequest by itself.
type MalformedHandler interface {
	ServeMalformed(ctx context.Context, peer Peer, err error) *Response
}

// The HandlerFunc type lets an ordinary function be a Handler.
type HandlerFunc func(ctx context.Context, peer Peer, req *Request) *Response

// ServeSKI calls f.
func (f HandlerFunc) ServeSKI(ctx context.Context, peer Peer, req *Request) *Response {
	return f(ctx, peer, req)
}

// Transport is the edge server's side: it carries one request to a key server
// and its response back. It is called by many goroutines at once.
//
// An answer of the key server, an error answer included, comes back as a
// Response with a nil error. An error means that there is none; it is a
// *TransportError, the context's, or a *MalformedError for a request that
// cannot be sent. When the context ends, RoundTrip returns at once.
type Transport interface {
	RoundTrip(ctx context.Context, req *Request) (*Response, error)
}

// The TransportFunc type lets an ordinary function be a Transport.
type TransportFunc func(ctx context.Context, req *Request) (*Response, error)

// RoundTrip calls f.
func (f TransportFunc) RoundTrip(ctx context.Context, req *Request) (*Response, error) {
	return f(ctx, req)
}

// Peer is who asks, as the channel authenticated it.
type Peer struct {
	// Addr is where the peer's datagrams or segments come from. A session over DTLS
	// may move to another port, but not to another IP address.
	Addr netip.AddrPort
	// SPKI is the fingerprint of the public key in the peer's certificate; zero
	// for a peer that has none.
	SPKI KeyID
	// PSK is the identity of the pre-shared key (RFC 4279) that a peer without
	// a certificate has shown to have; empty for others.
	PSK string
	// DNSNames and URIs are the subject alternative names of the peer's
	// certificate.
	DNSNames []string
	URIs     []string
	// Certificate is the peer's verified certificate; nil for a peer with a
	// pre-shared key.
	Certificate *x509.Certificate
}

// PeerFromCertificate returns the Peer at addr that proved possession of the
// key in cert.
func PeerFromCertificate(addr netip.AddrPort, cert *x509.Certificate) Peer {
	p := Peer{
		Addr:        netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()),
		SPKI:        CertificateKeyID(cert),
		DNSNames:    cert.DNSNames,
		Certificate: cert,
	}
	for _, u := range cert.URIs {
		p.URIs = append(p.URIs, u.String())
	}
	return p
}

// ID returns what the peer is told apart by, whatever else it has in common
// with others.
func (p Peer) ID() PeerID { return PeerID{SPKI: p.SPKI, PSK: p.PSK} }

// Direct returns a Transport that calls h in the same process as peer, with no
// wire between: key server and edge server in one. It is a TicketSource, of
// what h has if that is a TicketHandler.
func Direct(h Handler, peer Peer) Transport { return &direct{h, peer} }

type direct struct {
	handler Handler
	peer    Peer
}

// RoundTrip calls the Handler.
func (d *direct) RoundTrip(ctx context.Context, req *Request) (*Response, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	resp := d.handler.ServeSKI(ctx, d.peer, req)
	if resp == nil {
		return nil, &TransportError{Endpoint: "embedded", Op: "answer", Err: ErrNoResponse}
	}
	return resp, nil
}

// Serve answers one encoded request: it decodes body, asks h, and encodes the
// response in the same terms. It is what every binding does between its own
// framing and the Handler. A body that is too large is to be handed over like
// any other, whole or cut behind MaxMessageSize+1 bytes, so that the Handler
// learns of it. The returned slice is the caller's, to be cleared
// once it is sent; it has at most MaxMessageSize bytes.
func Serve(ctx context.Context, h Handler, peer Peer, in Format, body []byte, out Format) ([]byte, *Response) {
	req, err := DecodeRequest(in, body)
	var resp *Response
	if err != nil {
		resp = serveMalformed(ctx, h, peer, err)
	} else {
		resp = h.ServeSKI(ctx, peer, req)
	}
	if resp == nil {
		resp = Failed(UnspecifiedError)
	}
	data, err := EncodeResponse(out, resp)
	if err != nil { // The Handler broke its contract; the peer still gets an answer.
		clear(resp.Output)
		resp = Failed(UnspecifiedError)
		data, _ = EncodeResponse(out, resp)
	}
	clear(resp.Output)
	if len(body) > MaxMessageSize {
		r := *resp // the Handler may have given it to others too
		r.TooLarge = true
		resp = &r
	}
	return data, resp
}

func serveMalformed(ctx context.Context, h Handler, peer Peer, err error) *Response {
	if m, ok := h.(MalformedHandler); ok {
		return m.ServeMalformed(ctx, peer, err)
	}
	return Failed(MalformedRequest)
}
