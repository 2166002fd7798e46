package skicoap

import (
	"errors"
	"fmt"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"

	"github.com/tlsski/tlsski/ski"
)

// answer is what came back for a request.
type answer struct {
	code    codes.Code
	format  message.MediaType
	formErr error // why there is no format
	maxAge  uint32
	payload []byte
}

// newAnswer copies what is needed of m, which is go-coap's.
func newAnswer(m *pool.Message) (*answer, error) {
	if size, err := m.BodySize(); err != nil || size > ski.MaxMessageSize {
		return nil, fmt.Errorf("the answer has more than %d bytes", ski.MaxMessageSize)
	}
	payload, err := m.ReadBody()
	if err != nil {
		return nil, err
	}
	a := &answer{code: m.Code(), payload: payload}
	a.format, a.formErr = m.ContentFormat()
	a.maxAge, _ = m.GetOptionUint32(message.MaxAge)
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
	if err != nil {
		// Not wrapped: it is not this side's request that is malformed.
		return nil, fmt.Errorf("%s: %v", codeText(a.code), err)
	}
	clear(a.payload)
	if a.code>>5 != 2 && resp.Error == "" {
		clear(resp.Output)
		return nil, errors.New(codeText(a.code) + " with an output")
	}
	if a.code == codes.TooManyRequests {
		resp.RetryAfter = seconds(a.maxAge)
	}
	return resp, nil
}

// unexpected says what a CoAP answer without an SKI message means.
func (a *answer) unexpected() error {
	text := codeText(a.code) + " without an SKI message"
	if a.code == codes.NotFound {
		text += ": is the path right?"
	}
	return errors.New(text)
}

// codeText writes a code as the RFCs do: 4.04 NotFound.
func codeText(c codes.Code) string {
	return fmt.Sprintf("%d.%02d %s", c>>5, c&0x1f, c)
}
