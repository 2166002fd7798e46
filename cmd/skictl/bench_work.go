package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"sync/atomic"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// workload is what is asked, always with other randoms: key servers notice
// questions that come twice.
type workload struct {
	public   crypto.PublicKey
	key      ski.KeyID
	protocol ski.Protocol
	method   ski.Method
	hash     ski.Hash
	scheme   tls.SignatureScheme
	params   []byte           // ServerECDHParams or ServerDHParams, of the edge
	client   *ecdh.PrivateKey // of TLS clients, with ECDHE-PMS
	asked    atomic.Uint64
}

// makeEphemeral makes the ephemeral keys. They are the same in all questions:
// to make them is work of the edge and the client, which is not measured.
func (w *workload) makeEphemeral() (err error) {
	switch w.method {
	case ski.MethodDHE:
		w.params = skitest.DHEInput(skitest.FFDHE2048)[2*ski.RandomLen:]
	case ski.MethodECDHEPMS:
		w.client, err = ecdh.X25519().GenerateKey(rand.Reader)
	default:
		w.params = skitest.ECDHEInput(tls.X25519)[2*ski.RandomLen:]
	}
	return err
}

// question is an operation: a request and what its answer must be.
type question struct {
	*workload
	request *ski.Request
	secret  []byte // with method RSA
	verify  bool
}

// verifyEach is how many signatures go unverified for one that is not: the load
// comes from the same machine, as a rule.
const verifyEach = 64

func (w *workload) next() *question {
	q := &question{
		workload: w,
		request:  &ski.Request{Protocol: w.protocol, SPKI: w.key, Method: w.method, Scheme: w.scheme},
		verify:   w.asked.Add(1)%verifyEach == 1,
	}
	switch {
	case w.method == ski.MethodRSA:
		q.secret = skitest.PreMasterSecret(tls.VersionTLS12)
		input, err := skitest.EncryptPreMasterSecret(w.public.(*rsa.PublicKey), q.secret)
		if err != nil {
			panic(err) // the key is shorter than any that is in use
		}
		q.request.Input = input
		return q
	case w.protocol == ski.TLS13:
		q.request.Input = skitest.CertificateVerifyInput(32)
		return q
	case w.method == ski.MethodECDHEPMS:
		q.request.Group = tls.X25519
	}
	q.request.Input = w.signable()
	if w.scheme == 0 {
		q.request.Hash = w.hash
	}
	return q
}

// signable returns randoms and params that no key server finds malformed for their
// form. One in a million is by chance, and would count as a failure.
func (w *workload) signable() []byte {
	for {
		if input := append(skitest.Randoms(), w.params...); ski.CheckForm(input) == nil {
			return input
		}
	}
}

// ask asks, with ECDHE-PMS twice, and returns what is wrong with the answer.
func (q *question) ask(ctx context.Context, c ski.Transport) error {
	resp, err := c.RoundTrip(ctx, q.request)
	switch {
	case err != nil:
		return err
	case resp.Error != "":
		return resp.Error
	case q.method == ski.MethodECDHEPMS:
		return q.second(ctx, c, resp)
	case q.secret != nil && !bytes.Equal(q.secret, resp.Output):
		return errors.New("another PreMasterSecret")
	case q.secret == nil && q.verify:
		return skitest.Verify(q.public, q.request, resp.Output)
	}
	return nil
}

// second is the second exchange of ECDHE-PMS.
func (q *question) second(ctx context.Context, c ski.Transport, first *ski.Response) error {
	resp, err := c.RoundTrip(ctx, &ski.Request{
		Protocol: q.protocol, SPKI: q.key, Method: q.method, State: first.State, Input: q.client.PublicKey().Bytes(),
	})
	switch {
	case err != nil:
		return err
	case resp.Error != "":
		return resp.Error
	case !q.verify:
		return nil
	}
	q.request.Input = append(q.request.Input, first.Params...)
	if err := skitest.Verify(q.public, q.request, first.Output); err != nil {
		return err
	}
	server, err := ecdh.X25519().NewPublicKey(first.Params[min(4, len(first.Params)):])
	if err != nil {
		return err
	}
	secret, err := q.client.ECDH(server)
	if err == nil && !bytes.Equal(secret, resp.Output) {
		err = errors.New("another PreMasterSecret")
	}
	return err
}
