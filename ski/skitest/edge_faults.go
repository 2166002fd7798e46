package skitest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// EdgeFault is something wrong with an answer.
type EdgeFault struct {
	// Name is what it is chosen by.
	Name string
	// Does says what is done.
	Does string
	// Expect is what an edge server that conforms makes of it.
	Expect string

	apply func(*faulty) *EdgeAnswer
}

// faulty is an answer that a fault is done to.
type faulty struct {
	ctx      context.Context
	edge     *Edge
	format   ski.Format
	request  *ski.Request // nil if it could not be parsed
	response *ski.Response
	answer   *EdgeAnswer
}

const (
	goesOn = "the handshake goes on"
	fails  = "no output is used; ECDHE fails at once, RSA goes on with a random secret"
	refuse = "the refusal is understood: ECDHE fails at once; RSA goes on with a random secret, whatever the error (RFC 5246, Section 7.4.7.1)"
	random = "RSA goes on with a random secret, and fails as with a PreMasterSecret that is another (RFC 5246, Section 7.4.7.1)"
)

// EdgeFaults returns all faults there are.
func EdgeFaults() []EdgeFault {
	return []EdgeFault{
		{"none", "the answer is right", goesOn, nil},
		{"unknown-attribute", "the answer has an attribute more", goesOn, (*faulty).unknownAttribute},
		{"slow", "the answer comes after --delay", goesOn + " if that is within the edge's time-out", (*faulty).slow},
		{"request-denied", "the error 'request denied'", refuse, answers(ski.RequestDenied)},
		{"spki-not-found", "the error 'spki not found'", refuse, answers(ski.SPKINotFound)},
		{"malformed-request", "the error 'malformed request'", refuse, answers(ski.MalformedRequest)},
		{"unspecified-error", "the error 'unspecified error'", refuse, answers(ski.UnspecifiedError)},
		{"overloaded", "the error 'unspecified error' with the code of overload (5.03, 503)",
			"the request is asked again within the edge's time-out, elsewhere first; RSA is not, and goes on with a random secret", (*faulty).overloaded},
		{"error-in-2.04", "'request denied' with the code of success (2.04, 200)", refuse, (*faulty).errorInSuccess},
		{"silent", "no answer", "the request times out, and is asked elsewhere where there are more key servers", (*faulty).silent},
		{"wrong-signature", "one bit of the output is wrong", "the client refuses the signature; edge servers that verify end the handshake first", (*faulty).wrongSignature},
		{"other-answer", "the output for another input", "as for wrong-signature", (*faulty).otherAnswer},
		{"other-token", "the answer has another token (CoAP alone)", "the answer is ignored (RFC 7252, Section 5.3.2)", (*faulty).otherToken},
		{"truncated-cbor", "the message ends too early, in CBOR or JSON", fails, (*faulty).truncated},
		{"trailing-byte", "there is a byte after the message", fails, (*faulty).trailingByte},
		{"output-and-error", "the message has both", fails, (*faulty).both},
		{"neither", "the message has neither 'output' nor 'error'", fails, body(Message{})},
		{"output-empty", "'output' is empty", fails, body(Message{{"output", []byte{}}})},
		{"output-text", "'output' is text that is not base64", fails, body(Message{{"output", "*"}})},
		{"output-twice", "'output' is there twice", fails, (*faulty).twice},
		{"unknown-error", "'error' is none of the four", fails, body(Message{{"error", "teapot"}})},
		{"other-format", "the message is in the other format than it says", fails, (*faulty).otherFormat},
		{"not-ski", "the code of success with text", fails, notSKI(true, "text/plain", "it works")},
		{"empty", "the code of success with nothing", fails, notSKI(true, "", "")},
		{"code-alone", "an error's code without a message", fails, notSKI(false, "", "")},
		{"short-secret", "a PreMasterSecret of 47 bytes", random, (*faulty).shortSecret},
		{"long-secret", "a PreMasterSecret of 49 bytes", random, (*faulty).longSecret},
		{"older-secret", "a PreMasterSecret with the version of TLS 1.1", random, (*faulty).olderSecret},
		{"too-large", "an output of 5000 bytes", fails, body(Message{{"output", make([]byte, 5000)}})},
	}
}

// FindEdgeFaults returns those of the names.
func FindEdgeFaults(names []string) ([]EdgeFault, error) {
	var faults []EdgeFault
	all := EdgeFaults()
	for _, name := range names {
		i := slices.IndexFunc(all, func(f EdgeFault) bool { return f.Name == name })
		if i < 0 {
			known := make([]string, len(all))
			for i, f := range all {
				known[i] = f.Name
			}
			return nil, fmt.Errorf("%q is not one of the faults %s", name, strings.Join(known, ", "))
		}
		faults = append(faults, all[i])
	}
	return faults, nil
}

func answers(e ski.Error) func(*faulty) *EdgeAnswer {
	return func(f *faulty) *EdgeAnswer {
		f.answer.Status = f.edge.status(e)
		return f.says(Message{{"error", string(e)}})
	}
}

func body(m Message) func(*faulty) *EdgeAnswer {
	return func(f *faulty) *EdgeAnswer {
		f.answer.Status = f.edge.status("")
		return f.says(m)
	}
}

func notSKI(success bool, contentType, text string) func(*faulty) *EdgeAnswer {
	return func(f *faulty) *EdgeAnswer {
		f.answer.Answer = Answer{Status: 500, ContentType: contentType, Body: []byte(text)}
		if success {
			f.answer.Status = f.edge.status("")
		}
		return f.answer
	}
}

func (f *faulty) says(m Message) *EdgeAnswer {
	f.answer.Body = m.Encode(f.format)
	return f.answer
}

func (f *faulty) message() Message {
	if f.response.Error != "" {
		return Message{{"error", string(f.response.Error)}}
	}
	return Message{{"output", f.response.Output}}
}

func (f *faulty) unknownAttribute() *EdgeAnswer {
	return f.says(append(f.message(), Pair{"x-conformance", "ignore me"}))
}

func (f *faulty) slow() *EdgeAnswer {
	delay := f.edge.Delay
	if delay == 0 {
		delay = 2 * time.Second
	}
	select {
	case <-time.After(delay):
		return f.answer
	case <-f.ctx.Done():
		return nil
	}
}

func (f *faulty) errorInSuccess() *EdgeAnswer {
	return body(Message{{"error", string(ski.RequestDenied)}})(f)
}

func (f *faulty) overloaded() *EdgeAnswer {
	f.answer.Status, f.answer.RetryAfter = 503, time.Second
	return f.says(Message{{"error", string(ski.UnspecifiedError)}})
}

func (f *faulty) silent() *EdgeAnswer { return nil }

func (f *faulty) wrongSignature() *EdgeAnswer {
	if f.response.Error != "" {
		return f.answer
	}
	output := bytes.Clone(f.response.Output)
	output[len(output)-1] ^= 1
	return f.says(Message{{"output", output}})
}

// secret answers RSA with another output, and all else as it should be.
func (f *faulty) secret(output []byte) *EdgeAnswer {
	if f.request == nil || f.request.KeyExchange() != ski.MethodRSA || f.response.Error != "" {
		return f.answer
	}
	return f.says(Message{{"output", output}})
}

func (f *faulty) shortSecret() *EdgeAnswer {
	return f.secret(f.response.Output[:max(len(f.response.Output)-1, 0)])
}

func (f *faulty) longSecret() *EdgeAnswer { return f.secret(append(bytes.Clone(f.response.Output), 0)) }

func (f *faulty) olderSecret() *EdgeAnswer { return f.secret(PreMasterSecret(0x0302)) }

func (f *faulty) otherAnswer() *EdgeAnswer {
	if f.request == nil || f.request.KeyExchange() == ski.MethodRSA {
		return f.wrongSignature()
	}
	other := *f.request
	other.Input = bytes.Clone(other.Input)
	other.Input[0] ^= 1
	f.response = f.edge.KeyServer.ServeSKI(f.ctx, ski.Peer{}, &other)
	return f.says(f.message())
}

func (f *faulty) otherToken() *EdgeAnswer {
	f.answer.OtherToken = true
	return f.answer
}

func (f *faulty) truncated() *EdgeAnswer {
	f.answer.Body = f.answer.Body[:len(f.answer.Body)-1]
	return f.answer
}

func (f *faulty) trailingByte() *EdgeAnswer {
	f.answer.Body = append(f.answer.Body, '0')
	return f.answer
}

func (f *faulty) both() *EdgeAnswer {
	return f.says(append(f.message().Without("error").With("output", []byte{1}), Pair{"error", string(ski.RequestDenied)}))
}

func (f *faulty) twice() *EdgeAnswer {
	m := f.message()
	return f.says(append(m, m...))
}

func (f *faulty) otherFormat() *EdgeAnswer {
	other := ski.JSON
	if f.format == ski.JSON {
		other = ski.CBOR
	}
	f.answer.Body = f.message().Encode(other)
	return f.answer
}
