// Package skicoap carries SKI over CoAP (RFC 7252) on DTLS 1.2 (RFC 6347) with
// mutual authentication: the primary binding of the draft.
package skicoap
