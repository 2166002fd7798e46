package skicoap

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

const wellKnownCore = "/.well-known/core"

// resource is the SKI resource, with that of ticket keys below it, and what is
// said of them.
type resource struct {
	path    string
	tickets bool   // there are ticket keys
	links   []byte // RFC 6690
}

func newResource(path string, tickets bool) *resource {
	r := &resource{path: path, tickets: tickets, links: fmt.Appendf(nil, `<%s>;rt="tls-ski";ct="%d %d"`,
		path, ski.CBOR.ContentFormat(), ski.JSON.ContentFormat())}
	if tickets { // RFC 7641, Section 6
		r.links = fmt.Appendf(r.links, `,<%s%s>;rt="tls-ski-tickets";ct=%d;obs`, path, ticketsSegment, ski.CBOR.ContentFormat())
	}
	return r
}

// checkPath accepts what can go into Uri-Path options and back (RFC 7252,
// Section 6.5) without escapes.
func checkPath(path string) error {
	segments := strings.Split(path, "/")
	if segments[0] != "" || len(segments) < 2 {
		return fmt.Errorf("skicoap: the path %q does not begin with a slash", path)
	}
	for _, s := range segments[1:] {
		if s == "" || len(s) > 255 || strings.ContainsAny(s, "?#%\"<> ") {
			return fmt.Errorf("skicoap: the path %q has an unusable segment", path)
		}
	}
	return nil
}

// refusal is an answer that is not SKI's but CoAP's.
type refusal struct {
	code    codes.Code
	payload []byte // a diagnostic message (RFC 7252, Section 5.5.2), or content
	options message.Options
}

func refuse(code codes.Code, diagnostic string) *refusal {
	return &refusal{code: code, payload: []byte(diagnostic)}
}

// critical are the options a client may rely on. Any other critical option has
// to be refused (RFC 7252, Section 5.4.1).
var critical = map[message.OptionID]bool{
	message.URIHost:  true, // one host is served: whatever its name
	message.URIPort:  true,
	message.URIPath:  true,
	message.URIQuery: true, // none means anything but to ticket keys
	message.Accept:   true,
	message.Block1:   true,
	message.Block2:   true,
}

// check finds what CoAP has to say against a request before SKI sees it. It
// returns the formats of the body and of the answer.
func (r *resource) check(m *message.Message) (in, out ski.Format, _ *refusal) {
	for _, o := range m.Options {
		if o.ID&1 == 1 && !critical[o.ID] {
			return 0, 0, refuse(codes.BadOption, fmt.Sprintf("option %d", o.ID))
		}
	}
	path, err := m.Options.Path()
	if err != nil && !errors.Is(err, message.ErrOptionNotFound) {
		return 0, 0, refuse(codes.BadOption, "Uri-Path")
	}
	switch {
	case path == wellKnownCore && m.Code == codes.GET:
		return 0, 0, &refusal{codes.Content, bytes.Clone(r.links), contentFormat(uint16(message.AppLinkFormat))}
	case path == wellKnownCore:
		return 0, 0, refuse(codes.MethodNotAllowed, "GET only")
	case path != r.path:
		return 0, 0, refuse(codes.NotFound, "")
	case m.Code != codes.POST && m.Code != codes.PUT:
		return 0, 0, refuse(codes.MethodNotAllowed, "POST or PUT")
	}
	var ok bool
	if in, ok = format(m.Options.ContentFormat()); !ok {
		return 0, 0, refuse(codes.UnsupportedMediaType, "Content-Format 60 or 50")
	}
	out = in
	if accept, err := m.Options.Accept(); err == nil {
		if out, ok = format(accept, nil); !ok {
			return 0, 0, refuse(codes.NotAcceptable, "Accept 60 or 50")
		}
	}
	return in, out, nil
}

// format returns the Format of a Content-Format. One that is left out is taken
// for CBOR, the format of CoAP's world.
func format(mt message.MediaType, err error) (ski.Format, bool) {
	switch {
	case errors.Is(err, message.ErrOptionNotFound):
		return ski.CBOR, true
	case err != nil:
		return 0, false
	case uint16(mt) == ski.CBOR.ContentFormat():
		return ski.CBOR, true
	case uint16(mt) == ski.JSON.ContentFormat():
		return ski.JSON, true
	}
	return 0, false
}

func contentFormat(n uint16) message.Options {
	return message.Options{{ID: message.ContentFormat, Value: uintValue(uint32(n))}}
}

// uintValue encodes an option of type uint: big-endian, no leading zeros
// (RFC 7252, Section 3.2).
func uintValue(n uint32) []byte {
	b := []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	for len(b) > 0 && b[0] == 0 {
		b = b[1:]
	}
	return b
}

// responseCode returns the code that goes with a response, for those who look
// at nothing else. The message in the payload is what counts.
func responseCode(r *ski.Response) (codes.Code, message.Options) {
	if r.TooLarge {
		return codes.RequestEntityTooLarge, tooLarge().options
	}
	switch r.Error {
	case "":
		return codes.Changed, nil
	case ski.MalformedRequest:
		return codes.BadRequest, nil
	case ski.RequestDenied:
		if r.RetryAfter > 0 { // RFC 8516
			return codes.TooManyRequests, maxAge(r.RetryAfter)
		}
		return codes.Forbidden, nil
	case ski.SPKINotFound:
		return codes.NotFound, nil
	}
	if r.Overloaded { // RFC 7252, Section 5.9.3.4
		return codes.ServiceUnavailable, maxAge(r.RetryAfter)
	}
	return codes.InternalServerError, nil
}

// maxAge returns Max-Age with whole seconds, rounded up.
func maxAge(d time.Duration) message.Options {
	return message.Options{{ID: message.MaxAge, Value: uintValue(uint32(min(d.Seconds()+0.999, math.MaxUint32)))}}
}

// The options that hide an answer's length: from the range for experiments (RFC
// 7252, Section 12.2), elective and safe to forward, so that who does not know
// them ignores them (Section 5.4.1).
const (
	optionPadding     message.OptionID = 65000
	optionPaddingMore message.OptionID = 65004
)

// padding returns the options that make an answer n bytes longer than padding
// of 0 would. It is there in every answer that could need it, so that 0 is
// not the shortest by more.
func padding(n int) message.Options {
	n = max(0, n)
	// Values of 13 bytes need one more byte to say their length, and those of
	// 269 two (Section 3.1), so that two lengths cannot be had with one option.
	value, more := n, false
	switch {
	case n == 13 || n == 270:
		value, more = n-1, true
		if n == 270 {
			value = 268
		}
	case n > 270:
		value = n - 2
	case n > 13:
		value = n - 1
	}
	options := message.Options{{ID: optionPadding, Value: make([]byte, value)}}
	if more {
		options = append(options, message.Option{ID: optionPaddingMore})
	}
	return options
}
