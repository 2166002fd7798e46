package skicoap

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

// answer is what came back for a request.
type answer struct {
	code    codes.Code
	format  message.MediaType
	formErr error // why there is no format
	maxAge  uint32
	payload []byte

	// Of an answer to a part of a request, or one that is a part itself:
	one, two *block
	etag     []byte
	observe  uint32 // if observed
	observed bool
	size1    uint32
}

// errUnusable is an answer that cannot be read as one.
var errUnusable = errors.New("the key server's answer is of no use")

// defaultMaxAge is what an answer without Max-Age means, in seconds (RFC 7252,
// Section 5.10.5).
const defaultMaxAge = 60

// newAnswer copies what is needed of m, which is the link's.
func newAnswer(m *message.Message) (*answer, error) {
	if len(m.Payload) > ski.MaxMessageSize {
		return nil, fmt.Errorf("%w: it has more than %d bytes", errUnusable, ski.MaxMessageSize)
	}
	a := &answer{code: m.Code, payload: bytes.Clone(m.Payload), maxAge: defaultMaxAge}
	a.format, a.formErr = m.Options.ContentFormat()
	if maxAge, err := m.Options.GetUint32(message.MaxAge); err == nil {
		a.maxAge = maxAge
	}
	var err error
	if a.one, err = findBlock(m.Options, message.Block1); err == nil {
		a.two, err = findBlock(m.Options, message.Block2)
	}
	if err != nil {
		clear(a.payload)
		return nil, fmt.Errorf("%w: %w", errUnusable, err)
	}
	if etag, err := m.Options.GetBytes(message.ETag); err == nil {
		a.etag = bytes.Clone(etag)
	}
	if n, err := m.Options.Observe(); err == nil {
		a.observe, a.observed = n, true
	}
	a.size1, _ = m.Options.GetUint32(message.Size1)
	return a, nil
}

func (a *answer) isSKI() bool {
	_, ok := format(a.format, a.formErr)
	return ok && (a.formErr == nil || a.code == codes.Changed)
}

// response reads the payload first and the code second: a key server may send
// its errors with 2.04.
func (a *answer) response() (*ski.Response, error) {
	if !a.isSKI() || len(a.payload) == 0 {
		return nil, a.unexpected()
	}
	f, _ := format(a.format, a.formErr)
	resp, err := ski.DecodeResponse(f, a.payload)
	clear(a.payload)
	if err != nil {
		// Not wrapped: it is not this side's request that is malformed.
		return nil, fmt.Errorf("%s: %v", codeText(a.code), err)
	}
	if a.code>>5 != 2 && resp.Error == "" {
		clear(resp.Output)
		return nil, errors.New(codeText(a.code) + " with an output")
	}
	switch {
	case a.code == codes.TooManyRequests:
		resp.RetryAfter = seconds(a.maxAge)
	case a.code == codes.ServiceUnavailable && resp.Error == ski.UnspecifiedError:
		resp.Overloaded, resp.RetryAfter = true, seconds(a.maxAge)
	}
	return resp, nil
}

// passing reports whether the same request may well be answered another time.
func (a *answer) passing() bool {
	return a.code == codes.ServiceUnavailable || a.code == codes.RequestEntityIncomplete
}

// unexpected says what a CoAP answer without an SKI message means.
func (a *answer) unexpected() error {
	text := codeText(a.code) + " without an SKI message"
	if a.code == codes.NotFound {
		text += ": is the path right?"
	}
	if a.code == codes.RequestEntityTooLarge && a.size1 > 0 {
		text += fmt.Sprintf(": at most %d bytes", a.size1)
	}
	return errors.New(text)
}

// codeText writes a code as the RFCs do: 4.04 NotFound.
func codeText(c codes.Code) string {
	name := c.String()
	if c == codes.RequestEntityIncomplete {
		name = "RequestEntityIncomplete" // go-coap has none for it
	}
	return fmt.Sprintf("%d.%02d %s", c>>5, c&0x1f, name)
}
