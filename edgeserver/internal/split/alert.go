package split

import (
	"errors"
	"fmt"
)

// Alert is a TLS alert description (RFC 5246, Section 7.2).
type Alert uint8

// The alerts that a server sends.
const (
	CloseNotify              Alert = 0
	UnexpectedMessage        Alert = 10
	BadRecordMAC             Alert = 20
	RecordOverflow           Alert = 22
	HandshakeFailure         Alert = 40
	BadCertificate           Alert = 42
	UnsupportedCertificate   Alert = 43
	CertificateExpired       Alert = 45
	IllegalParameter         Alert = 47
	UnknownCA                Alert = 48
	AccessDenied             Alert = 49
	DecodeError              Alert = 50
	DecryptError             Alert = 51
	ProtocolVersion          Alert = 70
	InternalError            Alert = 80
	InappropriateFallback    Alert = 86  // RFC 7507, Section 3
	NoRenegotiation          Alert = 100 // a warning
	UnrecognizedName         Alert = 112 // RFC 6066, Section 9
	NoApplicationProtocol    Alert = 120 // RFC 7301, Section 3.2
	alertWarning, alertFatal       = 1, 2
)

// Error is a connection that this side has ended: the alert that the client
// gets and the reason, which stays here.
type Error struct {
	Alert  Alert
	Reason string
	// Err is the cause, where something else failed.
	Err error
}

// ErrNoCertificate is the Err of an Error: the client has no certificate, and has
// to have one.
var ErrNoCertificate = errors.New("a certificate is required")

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("split: %s (alert %d)", e.Reason, e.Alert)
	}
	return fmt.Sprintf("split: %s (alert %d): %v", e.Reason, e.Alert, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

func fail(a Alert, format string, args ...any) *Error {
	return &Error{Alert: a, Reason: fmt.Sprintf(format, args...)}
}
