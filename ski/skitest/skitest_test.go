package skitest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

var keys = sync.OnceValue(func() []crypto.Signer {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return []crypto.Signer{ec, rsaKey, ed}
})

func publics() (all []crypto.PublicKey) {
	for _, k := range keys() {
		all = append(all, k.Public())
	}
	return all
}

func keyID(pub crypto.PublicKey) ski.KeyID {
	id, err := ski.PublicKeyID(pub)
	if err != nil {
		panic(err)
	}
	return id
}

func request() *ski.Request {
	return &ski.Request{Protocol: ski.TLS12, SPKI: keyID(publics()[0]), Hash: ski.SHA256, Input: skitest.ECDHEInput(tls.CurveP256)}
}

// outcomes runs the suite.
func outcomes(t *testing.T, cfg skitest.Config) map[string]skitest.Result {
	t.Helper()
	results := map[string]skitest.Result{}
	require.NoError(t, skitest.Run(t.Context(), cfg, func(r skitest.Result) { results[r.Name()] = r }))
	return results
}

func TestEachCaseHasANameAndASection(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range skitest.Cases() {
		assert.Regexp(t, regexp.MustCompile(`^[a-z]+(-[a-z]+)?\d*/[a-z0-9_-]+$`), c.Name)
		assert.False(t, seen[c.Name], "two cases are %s", c.Name)
		seen[c.Name] = true
		assert.Regexp(t, regexp.MustCompile(`^(draft, Section|RFC \d+, Section|docs/protocol\.md, section) \d`), c.Section, c.Name)
		assert.NotEmpty(t, c.Rule, c.Name)
	}
}

// A key server that checks nothing passes what is about right requests, and
// fails what is about wrong ones.
func TestTheSuiteTellsWhatAKeyServerDoesNotCheck(t *testing.T) {
	results := outcomes(t, skitest.Config{Exchanger: skitest.InMemory(skitest.NewKeyServer(keys()...), ski.Peer{}), Keys: publics()})
	for name, want := range map[string]skitest.Outcome{
		"cbor/ecdhe/ecdsa-sha-256":               skitest.Pass,
		"json/ecdhe/rsa-sha-512":                 skitest.Pass,
		"cbor/dhe/ffdhe2048":                     skitest.Pass,
		"cbor/dhe/prime-unknown":                 skitest.Fail,
		"json/dhe/public-one":                    skitest.Fail,
		"cbor/ecdhe-pms/p521":                    skitest.Pass,
		"cbor/ecdhe-pms/state-used":              skitest.Fail, // it keeps nothing
		"cbor/ecdhe-pms/state-expired":           skitest.Skip,
		"cbor/ecdhe-pms/state-of-other-protocol": skitest.Fail,
		"cbor/tls13/ed25519":                     skitest.Pass,
		"cbor/rsa/premaster":                     skitest.Pass,
		"json/attributes/spki-missing":           skitest.Pass,
		"cbor/order/spki-not-found":              skitest.Pass,
		"cbor/ecdhe/point-off-curve":             skitest.Fail,
		"json/tls13/client":                      skitest.Fail,
		"cbor/ecdhe/bare-digest":                 skitest.Pass, // too short for two randoms
		"cbor/rsa/padding":                       skitest.Fail, // a random secret each time
		"cbor/order/denied":                      skitest.Skip,
		"cbor/rsa/padding-error":                 skitest.Skip,
		"cbor/binding/success":                   skitest.Skip,
		"cbor/channel/anonymous":                 skitest.Skip,
		"json/encoding/json-base64-url":          skitest.Pass,
		"cbor/encoding/cbor-huge-length":         skitest.Pass,
	} {
		assert.Equal(t, want, results[name].Outcome, "%s: %s", name, results[name].Reason)
	}
	assert.Equal(t, "needs a key that exists and is not granted", results["cbor/order/denied"].Reason)
}

// What is out of scope is left out by its name and nothing else is.
func TestSkipping(t *testing.T) {
	cfg := skitest.Config{Exchanger: skitest.InMemory(skitest.NewKeyServer(keys()...), ski.Peer{}), Keys: publics()}
	cfg.Skip = []string{"extensions", "rsa", "json/attributes/hash-sha1", "ecdhe/input-long"}
	results := outcomes(t, cfg)
	assert.Equal(t, "out of scope: extensions", results["cbor/tls13/ecdsa"].Reason)
	assert.Equal(t, "out of scope: rsa", results["json/rsa/premaster"].Reason)
	assert.Equal(t, "out of scope: json/attributes/hash-sha1", results["json/attributes/hash-sha1"].Reason)
	assert.Equal(t, skitest.Pass, results["cbor/attributes/hash-sha1"].Outcome)
	assert.Equal(t, "out of scope: ecdhe/input-long", results["cbor/ecdhe/input-long"].Reason)
	assert.NotEqual(t, skitest.Skip, results["cbor/ecdhe/input-short"].Outcome)

	cfg.Skip = []string{"rsa/premastr"}
	err := skitest.Run(t.Context(), cfg, func(skitest.Result) { t.Error("nothing must run") })
	assert.ErrorContains(t, err, `"rsa/premastr" is neither a case nor a group`)
}

// A key server that never answers fails each case and holds nothing up for
// longer.
func TestASilentKeyServerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := ski.HandlerFunc(func(ctx context.Context, _ ski.Peer, _ *ski.Request) *ski.Response {
			<-ctx.Done()
			return ski.Failed(ski.UnspecifiedError)
		})
		cfg := skitest.Config{Exchanger: skitest.InMemory(silent, ski.Peer{}), Keys: publics(), Timeout: time.Second}
		results := outcomes(t, cfg)
		assert.Equal(t, skitest.Fail, results["cbor/ecdhe/ecdsa-sha-256"].Outcome)
		assert.LessOrEqual(t, results["cbor/ecdhe/ecdsa-sha-256"].Duration, time.Second)
	})
}

func TestFaultsOfATransport(t *testing.T) {
	server := skitest.NewKeyServer(keys()...)
	direct := ski.Direct(server, ski.Peer{})
	req := request()

	faulty := skitest.Faulty(direct, skitest.Failed("dial"), nil, skitest.FailedAfter(), skitest.Refused(ski.RequestDenied))
	_, err := faulty.RoundTrip(t.Context(), req)
	assert.ErrorIs(t, err, skitest.ErrInjected)
	assert.Empty(t, server.Requests(), "the key server has not heard of it")
	resp, err := faulty.RoundTrip(t.Context(), req)
	require.NoError(t, err)
	assert.NoError(t, skitest.Verify(publics()[0], req, resp.Output))
	server.Forget()
	_, err = faulty.RoundTrip(t.Context(), req)
	assert.ErrorIs(t, err, skitest.ErrInjected)
	assert.Len(t, server.Forget(), 1, "the key server has done it")
	resp, err = faulty.RoundTrip(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, ski.RequestDenied, resp.Error)
	resp, err = faulty.RoundTrip(t.Context(), req)
	require.NoError(t, err)
	assert.NotEmpty(t, resp.Output, "the faults are used up")

	resp, err = skitest.Always(direct, skitest.AnsweringAnother()).RoundTrip(t.Context(), req)
	require.NoError(t, err)
	assert.Error(t, skitest.Verify(publics()[0], req, resp.Output))

	resp, err = skitest.Always(direct, skitest.Altered(func(r *ski.Response) { r.Output[8] ^= 1 })).RoundTrip(t.Context(), req)
	require.NoError(t, err)
	assert.Error(t, skitest.Verify(publics()[0], req, resp.Output))
}

// A Client gets over the faults that another key server does not have.
func TestAClientGetsOverFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		direct := ski.Direct(skitest.NewKeyServer(keys()...), ski.Peer{})
		for _, fault := range []skitest.Fault{
			skitest.Failed("dial"), skitest.FailedForGood("dial"), skitest.FailedAfter(), skitest.Silent(), skitest.Delayed(time.Hour),
		} {
			c := &ski.Client{Transports: []ski.Transport{skitest.Always(direct, fault), direct}}
			resp, err := c.RoundTrip(t.Context(), request())
			require.NoError(t, err)
			assert.NotEmpty(t, resp.Output)
		}
	})
}

// An edge server's request is held against each rule.
func TestEdgeViolations(t *testing.T) {
	pub := publics()
	tls13 := &ski.Request{Protocol: ski.TLS13, SPKI: keyID(pub[0]), Scheme: tls.ECDSAWithP256AndSHA256, Input: skitest.CertificateVerifyInput(32)}
	dhe := &ski.Request{Protocol: ski.TLS12, SPKI: keyID(pub[1]), Method: ski.MethodDHE, Hash: ski.SHA256, Input: skitest.DHEInput(skitest.FFDHE2048)}
	pms := &ski.Request{Protocol: ski.TLS12, SPKI: keyID(pub[0]), Method: ski.MethodECDHEPMS, Hash: ski.SHA256, Group: tls.X25519, Input: skitest.Randoms()}
	state := skitest.NewKeyServer(keys()...).ServeSKI(t.Context(), ski.Peer{}, pms).State
	second := &ski.Request{Protocol: ski.TLS12, SPKI: keyID(pub[0]), Method: ski.MethodECDHEPMS, State: state, Input: bytes.Repeat([]byte{9}, 32)}
	changed := func(r *ski.Request, change func(*ski.Request)) []byte {
		c := *r
		c.Input = append([]byte(nil), r.Input...)
		change(&c)
		return skitest.RequestMessage(&c).Encode(ski.CBOR)
	}
	for _, tc := range []struct {
		name      string
		body      []byte
		draftOnly bool
		want      string // of the rule; "" for none
	}{
		{"a good one", changed(request(), func(*ski.Request) {}), true, ""},
		{"a good one of TLS 1.3", changed(tls13, func(*ski.Request) {}), false, ""},
		{"a probe", changed(request(), func(r *ski.Request) { r.Input = []byte{0} }), false, ""},
		{"a probe for a group", changed(request(), func(r *ski.Request) { r.Input = append(make([]byte, 64), 3, 0, 23) }), false, ""},
		{"TLS 1.3 in the draft", changed(tls13, func(*ski.Request) {}), true, "no extension"},
		{"an extension in the draft", changed(request(), func(r *ski.Request) { r.ServerName = "a.test" }), true, "no extension"},
		{"not CBOR", []byte("?"), false, "can be parsed"},
		{"no spki", skitest.RequestMessage(request()).Without("spki").Encode(ski.CBOR), false, "can be parsed"},
		{"another key", changed(request(), func(r *ski.Request) { r.SPKI[0] ^= 1 }), false, "fingerprint of a key"},
		{"input", changed(request(), func(r *ski.Request) { r.Input = r.Input[:80] }), false, "ServerECDHParams"},
		{"curve_type", changed(request(), func(r *ski.Request) { r.Input[64] = 1 }), false, "ServerECDHParams"},
		{"group", changed(request(), func(r *ski.Request) { r.Input[66] = 99 }), false, "ServerECDHParams"},
		{"point", changed(request(), func(r *ski.Request) { r.Input[100] ^= 1 }), false, "ephemeral key is valid"},
		{"hash before TLS 1.2", changed(request(), func(r *ski.Request) { r.Protocol = ski.TLS11 }), false, "no hash is negotiated"},
		{"no scheme", changed(tls13, func(r *ski.Request) { r.Scheme = 0 }), false, "'scheme' is required"},
		{"scheme of another type", changed(tls13, func(r *ski.Request) { r.Scheme = tls.PSSWithSHA256 }), false, "'scheme' fits the key"},
		{"scheme of another curve", changed(tls13, func(r *ski.Request) { r.Scheme = tls.ECDSAWithP384AndSHA384 }), false, "'scheme' fits the key"},
		{"context string", changed(tls13, func(r *ski.Request) { r.Input[73] ^= 1 }), false, "CertificateVerify"},
		{"RSA of an ECDSA key", changed(request(), func(r *ski.Request) { r.Method = ski.MethodRSA }), false, "for RSA keys"},
		{"DHE", changed(dhe, func(*ski.Request) {}), true, ""},
		{"DHE cut", changed(dhe, func(r *ski.Request) { r.Input = r.Input[:len(r.Input)-1] }), false, "ServerDHParams"},
		{"DHE without parameters", changed(dhe, func(r *ski.Request) { r.Input = r.Input[:2] }), false, "ServerDHParams"},
		{"DHE prime", changed(dhe, func(r *ski.Request) { clear(r.Input[66:100]) }), false, "2048 bits or more"},
		{"DHE public key", changed(dhe, func(r *ski.Request) { clear(r.Input[len(r.Input)-256:]) }), false, "ephemeral key is valid"},
		{"DHE of an ECDSA key", changed(dhe, func(r *ski.Request) { r.SPKI = keyID(pub[0]) }), false, "for RSA keys"},
		{"DHE in TLS 1.3", changed(dhe, func(r *ski.Request) { r.Protocol, r.Scheme = ski.TLS13, tls.PSSWithSHA256 }), false, "no ServerDHParams"},
		{"ECDHE-PMS", changed(pms, func(*ski.Request) {}), false, ""},
		{"ECDHE-PMS in the draft", changed(pms, func(*ski.Request) {}), true, "no extension"},
		{"ECDHE-PMS group", changed(pms, func(r *ski.Request) { r.Group = 256 }), false, "'group' is one of those"},
		{"ECDHE-PMS randoms", changed(pms, func(r *ski.Request) { r.Input = r.Input[1:] }), false, "first exchange"},
		{"ECDHE-PMS in TLS 1.3", changed(pms, func(r *ski.Request) { r.Protocol, r.Scheme = ski.TLS13, tls.ECDSAWithP256AndSHA256 }), false, "no PreMasterSecret"},
		{"second exchange", changed(second, func(*ski.Request) {}), false, ""},
		{"second exchange in the draft", changed(second, func(*ski.Request) {}), true, "no extension"},
		{"state", changed(second, func(r *ski.Request) { r.State = append([]byte{9}, r.State...) }), false, "brought back as it was given"},
		{"point", changed(second, func(r *ski.Request) { r.Input = append([]byte{32}, r.Input...) }), false, "without its length"},
		{"RSA input", changed(request(), func(r *ski.Request) { r.Method, r.SPKI = ski.MethodRSA, keyID(pub[1]) }), false, "EncryptedPreMasterSecret"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var report skitest.EdgeReport
			edge := &skitest.Edge{
				KeyServer: skitest.NewKeyServer(keys()...), Keys: pub, DraftOnly: tc.draftOnly,
				Report: func(r skitest.EdgeReport) { report = r },
			}
			a := edge.Serve(t.Context(), "192.0.2.1:1", &skitest.Question{Method: "POST", ContentType: "application/cbor", Body: tc.body})
			require.NotNil(t, a)
			if tc.want == "" {
				assert.Empty(t, report.Violations)
				return
			}
			require.NotEmpty(t, report.Violations)
			var rules []string
			for _, v := range report.Violations {
				rules = append(rules, v.Rule)
				assert.NotEmpty(t, v.Section)
			}
			assert.Contains(t, strings.Join(rules, "\n"), tc.want)
		})
	}
}

// The same request again is a retry; another with its ServerRandom is not.
func TestEdgeViolationOfAServerRandomThatComesTwice(t *testing.T) {
	var found []int
	edge := &skitest.Edge{
		KeyServer: skitest.NewKeyServer(keys()...), Keys: publics(),
		Report: func(r skitest.EdgeReport) { found = append(found, len(r.Violations)) },
	}
	req := request()
	ask := func() {
		edge.Serve(t.Context(), "192.0.2.1:1", &skitest.Question{Method: "POST", ContentType: "application/cbor",
			Body: skitest.RequestMessage(req).Encode(ski.CBOR)})
	}
	ask()
	ask()
	req.Input[0] ^= 1
	ask()
	assert.Equal(t, []int{0, 0, 1}, found)
}

// rsaInput returns an EncryptedPreMasterSecret of TLS 1.2, and for which key it is.
func rsaInput(t *testing.T) (ski.KeyID, []byte) {
	for _, public := range publics() {
		if pub, ok := public.(*rsa.PublicKey); ok {
			id, err := ski.PublicKeyID(pub)
			require.NoError(t, err)
			input, err := skitest.EncryptPreMasterSecret(pub, skitest.PreMasterSecret(0x0303))
			require.NoError(t, err)
			return id, input
		}
	}
	require.FailNow(t, "there is no RSA key")
	return ski.KeyID{}, nil
}

// Each fault is one: what a client of the draft makes of the answer is not what
// it makes of a right one.
func TestEachFaultIsOne(t *testing.T) {
	for _, f := range skitest.EdgeFaults() {
		t.Run(f.Name, func(t *testing.T) {
			edge := &skitest.Edge{
				KeyServer: skitest.NewKeyServer(keys()...), Keys: publics(), Faults: []skitest.EdgeFault{f}, Delay: time.Millisecond,
			}
			req := request()
			if strings.HasSuffix(f.Name, "-secret") {
				req = &ski.Request{Protocol: ski.TLS12, Method: ski.MethodRSA}
				req.SPKI, req.Input = rsaInput(t)
			}
			a := edge.Serve(t.Context(), "192.0.2.1:1", &skitest.Question{Method: "POST", ContentType: "application/cbor",
				Body: skitest.RequestMessage(req).Encode(ski.CBOR)})
			right := a != nil && a.OK() && !a.OtherToken && a.ContentType == "application/cbor"
			if right {
				resp, err := ski.DecodeResponse(ski.CBOR, a.Body)
				right = err == nil && resp.Error == ""
				if req.Method == ski.MethodRSA {
					right = right && len(resp.Output) == ski.PreMasterSecretLen && resp.Output[1] == 3
				} else {
					right = right && skitest.Verify(publics()[0], req, resp.Output) == nil
				}
			}
			assert.Equal(t, f.Name == "none" || f.Name == "slow" || f.Name == "unknown-attribute", right)
			assert.NotEmpty(t, f.Does)
			assert.NotEmpty(t, f.Expect)
		})
	}
	_, err := skitest.FindEdgeFaults([]string{"none", "slowly"})
	assert.ErrorContains(t, err, `"slowly" is not one of the faults none, `)
}
