package split

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
)

// ContentType (RFC 5246, Section 6.2.1).
const (
	recordChangeCipherSpec uint8 = 20
	recordAlert            uint8 = 21
	recordHandshake        uint8 = 22
	recordApplicationData  uint8 = 23
)

const (
	recordHeaderLen = 5
	// maxOverhead is by how much any of the suites makes a record longer: the
	// explicit nonce and the tag. RFC 5246, Section 6.2.3 allows more, for
	// ciphers that are not here.
	maxOverhead = explicitNonceLen + 16
	// smallRecords is what is enough for a ClientHello, and for the requests of
	// most clients. Only a longer record gets a buffer for the longest: there are
	// many clients that are idle, or that send nothing at all.
	smallRecords = 2 << 10
)

// errRecordLimit is the end of a connection whose keys have protected as many
// records as they may.
var errRecordLimit = errors.New("split: the connection's keys have protected as many records as they may")

// recordReader reads the records of TLS.
type recordReader struct {
	conn  net.Conn
	buf   []byte // made at the first read, and anew for the first long record
	start int    // buf[start:end] has been read from conn but not returned
	end   int

	limit      int         // of the plaintext's length
	protection *Protection // nil before the ChangeCipherSpec
	seq        uint64
	// first is true until a whole record is there, negotiated once the version
	// is agreed.
	first, negotiated bool
}

// next returns the type and the plaintext of the next record, which stays valid
// until the next call. An *Error is the client's fault; others are those of the
// connection, io.EOF only between two records.
func (r *recordReader) next() (uint8, []byte, error) {
	if r.buf == nil {
		r.buf = make([]byte, smallRecords)
	}
	if err := r.fill(recordHeaderLen); err != nil {
		return 0, nil, err
	}
	header := r.buf[r.start : r.start+recordHeaderLen]
	contentType, version, length := header[0], binary.BigEndian.Uint16(header[1:]), int(binary.BigEndian.Uint16(header[3:]))
	if err := r.checkHeader(header, contentType, version, length); err != nil {
		return 0, nil, err
	}
	if err := r.fill(recordHeaderLen + length); err != nil {
		return 0, nil, err
	}
	payload := r.buf[r.start+recordHeaderLen : r.start+recordHeaderLen+length]
	r.start += recordHeaderLen + length
	r.first = false
	if r.protection != nil {
		if r.seq >= r.protection.MaxRecords() {
			return 0, nil, &Error{CloseNotify, "the client's keys are used up", errRecordLimit}
		}
		var err error
		if payload, err = r.protection.Open(r.seq, contentType, version, payload); err != nil {
			return 0, nil, &Error{BadRecordMAC, "a record cannot be decrypted", err}
		}
		r.seq++
	}
	if len(payload) == 0 && contentType != recordApplicationData {
		// RFC 5246, Section 6.2.1.
		return 0, nil, fail(UnexpectedMessage, "an empty record of type %d", contentType)
	}
	return contentType, payload, nil
}

func (r *recordReader) checkHeader(header []byte, contentType uint8, version uint16, length int) error {
	if r.first {
		if err := r.checkFirst(header, contentType); err != nil {
			return err
		}
	}
	most := r.limit
	// The ciphers are all AEAD: the plaintext's length is known before it is.
	if r.protection != nil {
		most += r.protection.Overhead()
	}
	switch {
	case contentType < recordChangeCipherSpec || contentType > recordApplicationData:
		return fail(UnexpectedMessage, "a record of type %d", contentType)
	case version>>8 != 3 || r.negotiated && version != tls.VersionTLS12:
		// Before that a client may write any version there (RFC 5246, Appendix
		// E.1).
		return fail(ProtocolVersion, "a record of version %#04x", version)
	case length > most:
		return fail(RecordOverflow, "a record of %d bytes", length)
	}
	return nil
}

// checkFirst tells what does not speak TLS at all, which gets no alert, and
// the ClientHello of SSL 2.0.
func (r *recordReader) checkFirst(header []byte, contentType uint8) error {
	if header[0]&0x80 != 0 && header[2] == 1 {
		return fail(ProtocolVersion, "a ClientHello of SSL 2.0")
	}
	if contentType < recordChangeCipherSpec || contentType > recordApplicationData || header[1] != 3 {
		err := tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake", Conn: r.conn}
		copy(err.RecordHeader[:], header)
		return err
	}
	return nil
}

// fill reads until there are n bytes at buf[start:].
func (r *recordReader) fill(n int) error {
	if r.start == r.end {
		r.start, r.end = 0, 0
	}
	if r.start+n > len(r.buf) {
		buf := r.buf
		if n > len(buf) {
			buf = make([]byte, recordHeaderLen+maxPlaintext+maxOverhead)
		}
		r.end = copy(buf, r.buf[r.start:r.end])
		r.buf, r.start = buf, 0
	}
	for r.end-r.start < n {
		got, err := r.conn.Read(r.buf[r.end:])
		r.end += got
		if err != nil && r.end-r.start < n {
			if err == io.EOF && r.end > r.start {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// protect changes to the keys of the next epoch.
func (r *recordReader) protect(p *Protection) { r.protection, r.seq = p, 0 }

// recordWriter writes the records of TLS. Its error is for good: part of a
// record may have been sent.
type recordWriter struct {
	conn       net.Conn
	buf        []byte // records that wait for flush
	limit      int
	protection *Protection // nil before the ChangeCipherSpec
	seq        uint64
	err        error
}

// add puts data into as many records as it takes. Those of application data
// are not empty.
func (w *recordWriter) add(contentType uint8, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), w.limit)
		if err := w.addRecord(contentType, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (w *recordWriter) addRecord(contentType uint8, fragment []byte) error {
	if w.err != nil {
		return w.err
	}
	length := len(fragment)
	if w.protection != nil {
		// One record is kept for the alert that says so.
		if w.seq >= w.protection.MaxRecords()-1 && contentType != recordAlert || w.seq >= w.protection.MaxRecords() {
			return errRecordLimit
		}
		length += w.protection.Overhead()
	}
	w.buf = append(w.buf, contentType, tls.VersionTLS12>>8, tls.VersionTLS12&0xFF, byte(length>>8), byte(length))
	if w.protection == nil {
		w.buf = append(w.buf, fragment...)
		return nil
	}
	w.buf = w.protection.Seal(w.buf, w.seq, contentType, tls.VersionTLS12, fragment)
	w.seq++
	return nil
}

// flush sends what has been added.
func (w *recordWriter) flush() error {
	if w.err != nil {
		return w.err
	}
	if len(w.buf) == 0 {
		return nil
	}
	_, w.err = w.conn.Write(w.buf)
	w.buf = w.buf[:0]
	return w.err
}

// protect changes to the keys of the next epoch.
func (w *recordWriter) protect(p *Protection) { w.protection, w.seq = p, 0 }
