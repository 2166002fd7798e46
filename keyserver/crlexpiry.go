package keyserver

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// CRLExpired says what becomes of peers when the CRL that speaks for their
// certificates is past its nextUpdate (RFC 5280, Section 5.1.2.5).
type CRLExpired string

// The values of CRLExpired.
const (
	// CRLExpiredWarn lets them in all the same: what the CRL revokes stays
	// revoked, and what has been revoked since is not known.
	CRLExpiredWarn CRLExpired = "warn"
	// CRLExpiredRefuse lets them in again when there is a newer CRL.
	CRLExpiredRefuse CRLExpired = "refuse"
)

// RefuseExpired makes the Revocations refuse a certificate unless its authority,
// and each authority above that is known, has a CRL that is not past its
// nextUpdate. It is called before the Revocations are used.
func (r *Revocations) RefuseExpired() { r.refuse = true }

// crlAuthority is one of the authorities whose CRLs count.
type crlAuthority struct {
	*x509.Certificate
	signer ski.KeyID       // of its CRLs: two authorities can have one name
	above  []*crlAuthority // those that have issued its certificate; none of a root
}

func newCRLAuthorities(certs []*x509.Certificate) []*crlAuthority {
	all := make([]*crlAuthority, len(certs))
	for i, cert := range certs {
		all[i] = &crlAuthority{Certificate: cert, signer: ski.CertificateKeyID(cert)}
	}
	for _, a := range all {
		for _, b := range all {
			if !bytes.Equal(a.RawSubject, a.RawIssuer) && bytes.Equal(b.RawSubject, a.RawIssuer) && a.CheckSignatureFrom(b.Certificate) == nil {
				a.above = append(a.above, b)
			}
		}
	}
	return all
}

// newest returns the CRL of an authority with the highest number; nil for none.
func (r *Revocations) newest(a *crlAuthority) (newest *revocationList) {
	for _, l := range *r.now.Load() {
		if l.signer == a.signer && bytes.Equal(l.issuer, a.RawSubject) && (newest == nil || l.number.Cmp(newest.number) > 0) {
			newest = l
		}
	}
	return newest
}

func (l *revocationList) expired(now time.Time) bool {
	return !l.nextUpdate.IsZero() && now.After(l.nextUpdate)
}

// unknown returns why nobody can tell at a time whether a certificate is revoked
// that an authority has issued; "" if a CRL does. Of several certificates above
// it, as of a root that was renewed, one is enough. The depth bounds the way up.
func (r *Revocations) unknown(a *crlAuthority, now time.Time, depth int) (reason string) {
	switch l := r.newest(a); {
	case l == nil:
		return fmt.Sprintf("there is no CRL of %q, and crl_expired is refuse", a.Subject)
	case l.expired(now):
		return fmt.Sprintf("the CRL of %q should have been replaced by %s, and crl_expired is refuse", a.Subject, l.nextUpdate.UTC().Format(time.RFC3339))
	}
	if depth == 0 {
		return ""
	}
	for _, above := range a.above {
		if reason = r.unknown(above, now, depth-1); reason == "" {
			return ""
		}
	}
	return reason
}

// unknownOf is unknown for the authority of a certificate. Of several
// certificates of one authority, as where two others vouch for it, one is enough.
func (r *Revocations) unknownOf(cert *x509.Certificate, now time.Time) (reason string) {
	if !r.refuse {
		return ""
	}
	var named []*crlAuthority
	all := true // of them are fine, so that it does not matter which has issued the certificate
	for _, a := range r.authorities {
		if bytes.Equal(a.RawSubject, cert.RawIssuer) {
			named = append(named, a)
			if why := r.unknown(a, now, len(r.authorities)); why != "" {
				reason, all = why, false
			}
		}
	}
	if all || len(named) == 1 {
		return reason
	}
	reason = ""
	for _, a := range named {
		if cert.CheckSignatureFrom(a.Certificate) != nil { // Another of the same name has issued it.
			continue
		}
		if reason = r.unknown(a, now, len(r.authorities)); reason == "" {
			return ""
		}
	}
	return reason
}

// unsure reports whether all that speaks against a peer is that no CRL says
// whether its certificate is revoked.
func (s *Server) unsure(peer ski.Peer) bool {
	if s.revocations == nil || peer.Certificate == nil || s.revocations.unknownOf(peer.Certificate, s.revocations.clock()) == "" {
		return false
	}
	edges := s.policy.Load().match(peer)
	_, suspended := s.suspensions.find(peer, edges)
	return len(edges) > 0 && !suspended && s.revocations.distrusted(peer.Certificate) == ""
}

// errUnsure is why the sessions of such peers end. They keep the ticket keys
// that they have: they have lost no right to them, and the other edges of the
// site go on with the same.
var errUnsure error = unsureError{}

type unsureError struct{}

func (unsureError) Error() string { return "no CRL says whether the edge's certificate is revoked" }

func (unsureError) Unwrap() error { return net.ErrClosed } // See Sessions.

// Health returns why no certificate at all is let in at the moment, or nil.
func (r *Revocations) Health() error {
	if !r.refuse {
		return nil
	}
	now, first := r.clock(), ""
	for _, a := range r.authorities {
		reason := r.unknown(a, now, len(r.authorities))
		if reason == "" {
			return nil
		}
		if first == "" {
			first = reason
		}
	}
	return fmt.Errorf("no edge is let in: %s", first)
}

// NextUpdates returns when the CRL of each authority is to be replaced, by the
// authority's name; without those that do not say.
func (r *Revocations) NextUpdates() map[string]time.Time {
	all := make(map[string]time.Time)
	for _, a := range r.authorities {
		l := r.newest(a)
		if l == nil || l.nextUpdate.IsZero() {
			continue
		}
		name := a.Subject.String()
		if before, ok := all[name]; !ok || l.nextUpdate.Before(before) {
			all[name] = l.nextUpdate
		}
	}
	return all
}

// Warnings returns a line for each authority whose CRL should have been
// replaced, does not say when it is to be, or is not there.
func (r *Revocations) Warnings(now time.Time) (lines []string) {
	for _, a := range r.authorities {
		if line, _ := r.warning(a, now); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// warning returns the line of Warnings for an authority, and the CRL if it has
// expired.
func (r *Revocations) warning(a *crlAuthority, now time.Time) (line string, expired *revocationList) {
	then := ""
	if r.refuse {
		then = ": its edges are refused"
	}
	switch l := r.newest(a); {
	case l == nil:
		return fmt.Sprintf("%s: it has no CRL of %q%s", r.file, a.Subject, then), nil
	case l.expired(now):
		return fmt.Sprintf("%s: CRL number %v of %q should have been replaced by %s%s",
			r.file, l.number, a.Subject, l.nextUpdate.UTC().Format(time.RFC3339), then), l
	case l.nextUpdate.IsZero():
		return fmt.Sprintf("%s: CRL number %v of %q has no nextUpdate: nobody notices when it is out of date", r.file, l.number, a.Subject), nil
	}
	return "", nil
}

// news returns the lines of Warnings that are new: those for CRLs that have
// expired since it was last called, and, if the CRLs have changed, all others. It
// is called by one goroutine.
func (r *Revocations) news(changed bool) (lines []string) {
	for _, a := range r.authorities {
		line, expired := r.warning(a, r.clock())
		switch {
		case expired != nil && !expired.told:
			expired.told = true
			lines = append(lines, line)
		case expired == nil && line != "" && changed:
			lines = append(lines, line)
		}
	}
	return lines
}
