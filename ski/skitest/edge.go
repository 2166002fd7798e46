package skitest

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"sync"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Edge is the key server's role for a test of an edge server: it checks each
// request, answers it, or does to the answer what a Fault says.
type Edge struct {
	// KeyServer answers. Required.
	KeyServer *KeyServer
	// Keys are the public halves of what the KeyServer has, for checks of how a
	// request fits its key.
	Keys []crypto.PublicKey
	// Path is the resource. "" takes any.
	Path string
	// Binding is that of Config.
	Binding string
	// DraftOnly says that the edge server is to send no extension.
	DraftOnly bool
	// Faults are what goes wrong with the answers, in turn and again from the
	// start. nil means nothing.
	Faults []EdgeFault
	// Delay is that of the fault slow. 0 means 2 s.
	Delay time.Duration
	// Report gets what is found, before the answer goes out. It is called by
	// one goroutine at a time.
	Report func(EdgeReport)

	mu      sync.Mutex
	n       int
	randoms map[string][32]byte // what was asked with a ServerRandom
}

// EdgeReport is what is found in one request.
type EdgeReport struct {
	Number  int       `json:"number"` // from 1
	Time    time.Time `json:"time"`
	Peer    string    `json:"peer"`
	Format  string    `json:"format,omitempty"` // "CBOR" or "JSON"
	Request *EdgeSaid `json:"request,omitempty"`
	// Violations are the rules that the request breaks.
	Violations []Violation `json:"violations"`
	// Probe says that the input is a single byte, or ends behind the group, which can
	// only be refused: by that an edge server learns whether its key is there.
	Probe bool `json:"probe,omitempty"`
	// Fault is what was done to the answer: its name, or "".
	Fault string `json:"fault,omitempty"`
	// Answer is what the answer said before that: "output" or an error.
	Answer string `json:"answer"`
}

// EdgeSaid is a request without its input.
type EdgeSaid struct {
	Protocol      ski.Protocol `json:"protocol"`
	Method        ski.Method   `json:"method"`
	SPKI          ski.KeyID    `json:"spki"`
	Hash          ski.Hash     `json:"hash,omitempty"`
	Scheme        string       `json:"scheme,omitempty"`
	ClientVersion string       `json:"client_version,omitempty"`
	ServerName    string       `json:"server_name,omitempty"`
	Exchange      int          `json:"exchange,omitempty"` // with ECDHE-PMS: 1 or 2
	InputLen      int          `json:"input_bytes"`
}

// Violation is a rule that a request breaks.
type Violation struct {
	Rule    string `json:"rule"`
	Section string `json:"section"`
	Found   string `json:"found"`
}

// EdgeAnswer is an Answer, and what a binding is to do wrong with it.
type EdgeAnswer struct {
	Answer
	// OtherToken says that the answer goes out with another token than the
	// request's (RFC 7252, Section 5.3.1). Bindings without tokens ignore it.
	OtherToken bool
	// RetryAfter is sent as Max-Age or Retry-After, in whole seconds. 0 means neither.
	RetryAfter time.Duration
}

// Serve answers one question from peer, an address. It returns nil where there
// shall be no answer.
func (e *Edge) Serve(ctx context.Context, peer string, q *Question) *EdgeAnswer {
	format, req, violations := e.check(q)
	report := EdgeReport{Time: time.Now(), Peer: peer, Violations: violations, Format: format.String()}
	resp := ski.Failed(ski.MalformedRequest)
	if req != nil {
		report.Request, report.Probe = said(req), isProbe(req)
		resp = e.KeyServer.ServeSKI(ctx, ski.Peer{}, req)
	}
	report.Answer = "output"
	if resp.Error != "" {
		report.Answer = string(resp.Error)
	}
	out := format
	if f, ok := formatOf(q.Accept); ok {
		out = f
	}
	body, err := ski.EncodeResponse(out, resp)
	if err != nil {
		panic(err) // KeyServer keeps its contract
	}
	a := &EdgeAnswer{Answer: Answer{Status: e.status(resp.Error), ContentType: out.MediaType(), Body: body}}

	e.mu.Lock()
	e.n++
	report.Number = e.n
	var fault *EdgeFault
	if len(e.Faults) > 0 {
		fault = &e.Faults[(e.n-1)%len(e.Faults)]
		report.Fault = fault.Name
	}
	if e.Report != nil {
		e.Report(report)
	}
	e.mu.Unlock()
	if fault == nil || fault.apply == nil {
		return a
	}
	return fault.apply(&faulty{ctx: ctx, edge: e, format: out, request: req, response: resp, answer: a})
}

// status returns that of an answer (docs/protocol.md, section 2).
func (e *Edge) status(err ski.Error) int {
	if err == "" && e.Binding == "coap" {
		return 204
	}
	return statuses[err]
}

func said(r *ski.Request) *EdgeSaid {
	s := &EdgeSaid{
		Protocol: r.Protocol, Method: r.KeyExchange(), SPKI: r.SPKI, Hash: r.Hash,
		ServerName: r.ServerName, InputLen: len(r.Input),
	}
	if r.Scheme != 0 {
		s.Scheme = fmt.Sprintf("0x%04x", uint16(r.Scheme))
	}
	if r.ClientVersion != 0 {
		s.ClientVersion = fmt.Sprintf("0x%04x", r.ClientVersion)
	}
	if r.Method == ski.MethodECDHEPMS {
		s.Exchange = 1
		if len(r.State) > 0 {
			s.Exchange = 2
		}
	}
	return s
}

// repeated reports whether a ServerRandom has been in another request. The same
// request again is no repetition: edges ask again where no answer comes.
func (e *Edge) repeated(serverRandom []byte, input []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.randoms == nil || len(e.randoms) > 1<<16 {
		e.randoms = map[string][32]byte{}
	}
	sum := digest(input)
	before, known := e.randoms[string(serverRandom)]
	e.randoms[string(serverRandom)] = sum
	return known && !bytes.Equal(before[:], sum[:])
}
