package ski

import (
	"context"
	"errors"
	"fmt"
)

// Error is one of the four errors that go over the wire (draft, Section 5.2).
// They say little on purpose (REQ 6): the reason is in the key server's audit
// log. An Error is an error: errors.Is(err, ski.RequestDenied) works on what a
// Key or a Client returns.
type Error string

// The four errors of the draft.
const (
	RequestDenied    Error = "request denied"
	SPKINotFound     Error = "spki not found"
	MalformedRequest Error = "malformed request"
	UnspecifiedError Error = "unspecified error"
)

// Valid reports whether e is one of the four errors.
func (e Error) Valid() bool {
	switch e {
	case RequestDenied, SPKINotFound, MalformedRequest, UnspecifiedError:
		return true
	}
	return false
}

func (e Error) Error() string { return "ski: the key server answered '" + string(e) + "'" }

// ErrOverloaded is the UnspecifiedError of a key server that has too much to do
// (Response.Overloaded).
var ErrOverloaded = fmt.Errorf("%w: it is overloaded", UnspecifiedError)

// MalformedError says what is wrong with a message. It stays on the machine
// that found it: on the wire it is 'malformed request'. It holds the name of
// an attribute and a fixed text, never a value of the message, so that it can
// be logged.
type MalformedError struct {
	// Attribute is the key in the message's map, or empty where the message as
	// a whole is at fault.
	Attribute string
	// Reason says what is wrong with it.
	Reason string
}

func (e *MalformedError) Error() string {
	if e.Attribute == "" {
		return "ski: malformed message: " + e.Reason
	}
	return "ski: malformed message: '" + e.Attribute + "' " + e.Reason
}

// Is makes errors.Is(err, MalformedRequest) true: it is what the wire says.
func (e *MalformedError) Is(target error) bool { return target == MalformedRequest }

func malformed(attribute, reason string) *MalformedError {
	return &MalformedError{Attribute: attribute, Reason: reason}
}

// TransportError is a failure to get an answer at all: the key server could
// not be reached, did not answer in time, or did not speak SKI.
type TransportError struct {
	// Endpoint is the key server's URL.
	Endpoint string
	// Op says what failed: "wait", where too many requests were in flight to send
	// one more, "dial", "request", or "answer" where the key server has answered,
	// but with something that is not SKI.
	Op string
	// Err is the cause.
	Err error
	// Permanent says that asking the same key server again would fail in the
	// same way: its certificate is not trusted, or it does not speak SKI.
	Permanent bool
}

func (e *TransportError) Error() string {
	return fmt.Sprintf("ski: %s %s: %v", e.Op, e.Endpoint, e.Err)
}

func (e *TransportError) Unwrap() error { return e.Err }

// inVain reports whether asking the same key server again, within the time of one
// request, would fail in the same way.
func (e *TransportError) inVain() bool { return e.Permanent || errors.Is(e.Err, ErrRefused) }

// Timeout reports whether the time given ran out (net.Error has the same
// method).
func (e *TransportError) Timeout() bool { return errors.Is(e.Err, context.DeadlineExceeded) }

// Answered reports whether the key server has answered, where err is what a
// Transport returned: nil, or a *TransportError that says that the answer is not
// one of SKI. What a key server answers to MethodRSA may depend on the plaintext.
func Answered(err error) bool {
	te := (*TransportError)(nil)
	if err == nil || !errors.As(err, &te) {
		return err == nil
	}
	return te.Op == "answer" && !errors.Is(te.Err, context.DeadlineExceeded) && !errors.Is(te.Err, context.Canceled)
}

// ErrBareDigest is the answer of Key.Sign. A key server signs only what it has
// hashed itself, so that it is no general signing oracle (draft, Section
// 4.2.3): the whole message has to be handed to SignMessage.
var ErrBareDigest = errors.New("ski: a key server does not sign a bare digest: " +
	"hand the whole message to SignMessage (crypto.MessageSigner)")
