package keyserver

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/internal/guarded"
	"github.com/tlsski/tlsski/ski"
)

// maxCRLFile bounds what is read of a CRL file, in bytes: some 400,000
// certificates.
const maxCRLFile = 16 << 20

// Revocations are the certificates that the CRLs (RFC 5280, Section 5) of a
// file revoke. Its methods can be called by many goroutines at once.
type Revocations struct {
	file        string
	authorities []*crlAuthority
	refuse      bool             // see RefuseExpired
	clock       func() time.Time // tests set it
	reading     sync.Mutex
	seen        fs.FileInfo // of the file as it was last read
	told        string      // why it could not be read the last time
	now         atomic.Pointer[[]*revocationList]
}

// revocationList is one CRL of an authority.
type revocationList struct {
	issuer     []byte    // DER of its name
	signer     ski.KeyID // of its key: two can have one name while one follows the other
	number     *big.Int
	nextUpdate time.Time            // zero where it does not say
	told       bool                 // that it has expired
	digest     []byte               // of signer and serials
	serials    map[string]time.Time // by the big-endian bytes of the serial number
}

// OpenRevocations reads the CRLs in a file: one in DER or any number in PEM,
// each signed by one of the authorities. It refuses a file that another user can
// change or replace.
func OpenRevocations(file string, authorities []*x509.Certificate) (*Revocations, error) {
	r := &Revocations{file: file, authorities: newCRLAuthorities(authorities), clock: time.Now}
	r.now.Store(new([]*revocationList))
	_, err := r.Reload()
	return r, err
}

// Reload reads the file again if it has changed. Where it cannot be used the
// CRLs stay as they were, and the error is returned once for each change of
// the file. So it is where an authority has no CRL any more or one with a lower
// number than before: that one is old, or part of the file is missing, by
// mistake or to let a revoked edge in again.
func (r *Revocations) Reload() (changed bool, err error) {
	r.reading.Lock()
	defer r.reading.Unlock()
	info, err := os.Stat(r.file)
	if err != nil {
		return false, r.unread(err)
	}
	if r.seen != nil && os.SameFile(info, r.seen) && info.ModTime().Equal(r.seen.ModTime()) && info.Size() == r.seen.Size() {
		return false, nil
	}
	r.seen = info
	// Signed or not, who can put an old one in its place lets a revoked edge in
	// again with the next restart.
	data, err := guarded.Read(r.file, guarded.Trusted, maxCRLFile)
	if err != nil {
		return false, r.unread(err)
	}
	r.told = ""
	lists, err := parseCRLs(data, r.authorities)
	if err != nil {
		return false, fmt.Errorf("%s: %w", r.file, err)
	}
	for _, before := range *r.now.Load() {
		if err := before.replacedBy(lists); err != nil {
			return false, fmt.Errorf("%s: %w", r.file, err)
		}
	}
	r.now.Store(&lists)
	return true, nil
}

// unread returns an error that it has not returned before. What was wrong may be
// put right without a change of the file: its mode, or a folder's.
func (r *Revocations) unread(err error) error {
	r.seen = nil
	if r.told == err.Error() {
		return nil
	}
	r.told = err.Error()
	return err
}

// replacedBy reports whether the lists have one of the same authority that is
// not older.
func (l *revocationList) replacedBy(lists []*revocationList) error {
	err := errors.New("the CRL is missing that comes after number " + l.number.String() + " of an authority")
	for _, now := range lists {
		switch {
		case now.signer != l.signer || !bytes.Equal(now.issuer, l.issuer):
		case now.number.Cmp(l.number) >= 0:
			return nil
		default:
			err = fmt.Errorf("the CRL has number %v, which is before %v", now.number, l.number)
		}
	}
	return err
}

// Len returns how many certificates are revoked.
func (r *Revocations) Len() int {
	n := 0
	for _, l := range *r.now.Load() {
		n += len(l.serials)
	}
	return n
}

// revoked returns why a certificate is not to be trusted: for the reasons of
// distrusted, or because no CRL can tell (RefuseExpired). "" is none.
func (r *Revocations) revoked(cert *x509.Certificate) string {
	if reason := r.distrusted(cert); reason != "" {
		return reason
	}
	return r.unknownOf(cert, r.clock())
}

// distrusted returns why a certificate is not to be trusted whatever the CRLs'
// age: it, or that of an authority it comes from, is revoked, or its authority is
// not known. "" is none. What a CRL out of date revokes stays revoked.
func (r *Revocations) distrusted(cert *x509.Certificate) string {
	if since, ok := r.listed(cert); ok {
		return "the certificate was revoked at " + since.UTC().Format(time.RFC3339)
	}
	known := false
	for _, a := range r.authorities {
		if !bytes.Equal(a.RawSubject, cert.RawIssuer) {
			continue
		}
		known = true
		// Another of the same name may have issued it.
		if since, ok := r.authorityRevoked(a.Certificate, len(r.authorities)); ok && cert.CheckSignatureFrom(a.Certificate) == nil {
			return "the certificate's authority was revoked at " + since.UTC().Format(time.RFC3339)
		}
	}
	if !known { // It came with one in between, which may have been revoked, and whose CRL would be refused.
		return "the certificate's authority is not in client_ca: no CRL says whether it is revoked"
	}
	return ""
}

// authorityRevoked is for an authority between the certificates of edges and a
// root. The depth bounds the way up.
func (r *Revocations) authorityRevoked(a *x509.Certificate, depth int) (since time.Time, ok bool) {
	if since, ok = r.listed(a); ok || depth == 0 || bytes.Equal(a.RawSubject, a.RawIssuer) {
		return since, ok
	}
	for _, above := range r.authorities {
		if !bytes.Equal(above.RawSubject, a.RawIssuer) {
			continue
		}
		if since, ok = r.authorityRevoked(above.Certificate, depth-1); ok && a.CheckSignatureFrom(above.Certificate) == nil {
			return since, true
		}
	}
	return time.Time{}, false
}

// listed reports when a CRL of its issuer says that a certificate was revoked.
func (r *Revocations) listed(cert *x509.Certificate) (since time.Time, ok bool) {
	for _, l := range *r.now.Load() {
		if bytes.Equal(l.issuer, cert.RawIssuer) {
			if since, ok = l.serials[string(cert.SerialNumber.Bytes())]; ok {
				return since, true
			}
		}
	}
	return time.Time{}, false
}

func parseCRLs(data []byte, authorities []*crlAuthority) ([]*revocationList, error) {
	var lists []*revocationList
	add := func(der []byte) error {
		l, err := parseCRL(der, authorities)
		if err == nil {
			lists = append(lists, l)
		}
		return err
	}
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		return lists, add(data)
	}
	block, rest := pem.Decode(data)
	for ; block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			continue
		}
		if err := add(block.Bytes); err != nil {
			return nil, err
		}
	}
	switch {
	case bytes.Contains(rest, []byte("-----BEGIN")):
		return nil, errors.New("it has a block that is not whole")
	case len(lists) == 0:
		return nil, errors.New("it has no CRL")
	}
	return lists, nil
}

func parseCRL(der []byte, authorities []*crlAuthority) (*revocationList, error) {
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	var signer ski.KeyID
	err = fmt.Errorf("no authority of client_ca is called %q, as the CRL's issuer is", crl.Issuer)
	for _, a := range authorities {
		if !bytes.Equal(a.RawSubject, crl.RawIssuer) {
			continue
		}
		if err = crl.CheckSignatureFrom(a.Certificate); err == nil {
			signer = a.signer
			break
		}
	}
	if err != nil {
		return nil, err
	}
	for _, e := range crl.Extensions {
		if e.Critical { // RFC 5280, Section 5.2: it must not be used then. A delta CRL has one.
			return nil, fmt.Errorf("the CRL has the critical extension %v, which is not known here", e.Id)
		}
	}
	l := &revocationList{
		issuer:     crl.RawIssuer,
		signer:     signer,
		number:     crl.Number,
		nextUpdate: crl.NextUpdate,
		serials:    make(map[string]time.Time, len(crl.RevokedCertificateEntries)),
	}
	if l.number == nil { // of a version 1 CRL
		l.number = new(big.Int)
	}
	for _, e := range crl.RevokedCertificateEntries {
		l.serials[string(e.SerialNumber.Bytes())] = e.RevocationTime
	}
	l.digest = l.digestSerials()
	return l, nil
}
