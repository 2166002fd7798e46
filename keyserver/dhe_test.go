package keyserver

import (
	"bytes"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// dhe returns the input of MethodDHE.
func dhe(p, g, ys []byte) []byte {
	in := randoms()
	for _, v := range [][]byte{p, g, ys} {
		in = append(append(in, byte(len(v)>>8), byte(len(v))), v...)
	}
	return in
}

// dhGroupNamed returns a group and a public key of it.
func dhGroupNamed(name string) (g dhGroup, ys []byte) {
	for _, g := range dhGroups() {
		if g.name == name {
			// The generator is a small number: this is one of full length.
			y := new(big.Int).Exp(big.NewInt(dhGenerator), new(big.Int).Rsh(g.p, 5), g.p)
			return g, y.FillBytes(make([]byte, g.p.BitLen()/8))
		}
	}
	panic(name)
}

func dhInput(name string) []byte {
	g, ys := dhGroupNamed(name)
	return dhe(g.p.Bytes(), []byte{dhGenerator}, ys)
}

// The groups are those that OpenSSL has by these names. p is a safe prime and
// 2 generates the squares.
func TestDHGroups(t *testing.T) {
	require.Len(t, dhGroups(), 10)
	for _, g := range dhGroups() {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			out, err := exec.Command("openssl", "genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:"+g.name).Output()
			require.NoError(t, err, "the openssl command is needed")
			block, _ := pem.Decode(out)
			var theirs struct { // DHParameter of PKCS #3
				P, G   *big.Int
				Length int `asn1:"optional"`
			}
			_, err = asn1.Unmarshal(block.Bytes, &theirs)
			require.NoError(t, err)
			require.Equal(t, theirs.P.Text(16), g.p.Text(16))
			require.Equal(t, int64(dhGenerator), theirs.G.Int64())

			q := new(big.Int).Rsh(g.p, 1)
			require.True(t, g.p.ProbablyPrime(0)) // Baillie-PSW
			require.True(t, q.ProbablyPrime(0))
			require.Equal(t, 1, big.Jacobi(big.NewInt(dhGenerator), g.p))
		})
	}
}

// Whatever is not exactly the parameters of a known group is malformed.
func TestBadDHParams(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	g, ys := dhGroupNamed("ffdhe2048")
	p, two := g.p.Bytes(), []byte{dhGenerator}
	changed := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 2
		return b
	}
	number := func(offset int64) []byte { return new(big.Int).Add(g.p, big.NewInt(offset)).Bytes() }
	odd := dhe(p, two, ys)
	odd[2*ski.RandomLen]++ // p's length goes beyond the end

	const prime, generator, public, end = "not one of the primes", "not the generator", "not a public key of its group", "does not end with dh_Ys"
	for name, c := range map[string]struct {
		input  []byte
		reason string
	}{
		"another prime":            {dhe(number(-2), two, ys), prime},
		"a composite":              {dhe(changed(p, 100), two, ys), prime},
		"a leading zero":           {dhe(append([]byte{0}, p...), two, ys), prime},
		"a prime cut short":        {dhe(p[:255], two, ys), prime},
		"no prime":                 {dhe(nil, two, ys), prime},
		"512 bits":                 {dhe(p[:64], two, ys[:64]), prime},
		"another generator":        {dhe(p, []byte{5}, ys), generator},
		"generator 1":              {dhe(p, []byte{1}, ys), generator},
		"generator with a zero":    {dhe(p, []byte{0, 2}, ys), generator},
		"no generator":             {dhe(p, nil, ys), generator},
		"Ys 0":                     {dhe(p, two, []byte{0}), public},
		"Ys empty":                 {dhe(p, two, nil), public},
		"Ys 1":                     {dhe(p, two, []byte{1}), public},
		"Ys p-1":                   {dhe(p, two, number(-1)), public},
		"Ys p":                     {dhe(p, two, number(0)), public},
		"Ys p+2":                   {dhe(p, two, number(2)), public},
		"Ys longer than p":         {dhe(p, two, append([]byte{0}, ys...)), "longer than dh_p"},
		"a byte after Ys":          {append(dhe(p, two, ys), 0), end},
		"the last byte missing":    {dhe(p, two, ys)[:len(odd)-1], end},
		"a length beyond the end":  {odd, end},
		"only the randoms":         {randoms(), end},
		"a random cut short":       {randoms()[:63], "too short for two randoms"},
		"the parameters of ECDHE":  {ecdhe(x25519, basePoint(x25519)), end},
		"a CertificateVerify's":    {certificateVerify(32), end},
		"ServerDHParams of length": {append(randoms(), 0xff, 0xff), end},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			s.refuses(&ski.Request{
				Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA256, Input: c.input,
			}, ski.MalformedRequest, c.reason)
		})
	}
	for n := range dhInput("ffdhe2048") {
		if n > 0 {
			s.refuses(&ski.Request{
				Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA256, Input: dhInput("ffdhe2048")[:n],
			}, ski.MalformedRequest, "the input")
		}
	}
}

// Every group is served, in both formats: the largest fits in a message.
func TestDHE(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	for _, g := range dhGroups() {
		for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
			req := &ski.Request{Protocol: ski.DTLS12, SPKI: keys.id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA512, Input: dhInput(g.name)}
			body, err := ski.EncodeRequest(f, req)
			require.NoError(t, err)
			_, resp := ski.Serve(t.Context(), s, edgePeer, f, body, f)
			require.NoError(t, resp.Err())
			require.Equal(t, 256, resp.OutputLen)
		}
	}
	g, _ := dhGroupNamed("modp_3072")
	for _, ys := range [][]byte{{4}, {0, 0, 4}} { // leading zeros are the edge's choice, and are signed as they are
		req := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodDHE, Scheme: 0x0804, Input: dhe(g.p.Bytes(), []byte{2}, ys)}
		resp, rec := s.ask(edgePeer, req)
		require.NoError(t, resp.Err(), rec.Reason)
		verify(t, keys, req, resp.Output)
		require.Equal(t, ski.MethodDHE, rec.Method)
		require.Equal(t, "rsa_pss_rsae_sha256", rec.Scheme)
	}
}

// DHE is for RSA keys, and up to TLS 1.2.
func TestDHEOfOtherKeysAndProtocols(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	in := dhInput("ffdhe2048")
	s.refuses(&ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Method: ski.MethodDHE, Hash: ski.SHA256, Input: in},
		ski.MalformedRequest, "the key is not an RSA key")
	s.refuses(&ski.Request{Protocol: ski.TLS12, SPKI: keys.id(ed), Method: ski.MethodDHE, Scheme: 0x0807, Input: in},
		ski.MalformedRequest, "the key is not an RSA key")
	for _, p := range []ski.Protocol{ski.TLS13, ski.DTLS13} {
		s.refuses(&ski.Request{Protocol: p, SPKI: keys.id(rsa2048), Method: ski.MethodDHE, Scheme: 0x0804, Input: in},
			ski.MalformedRequest, "this protocol has no DHE key exchange")
	}
}

// What passes is put together again from what a decoder that knows nothing of
// the parser's finds in it.
func FuzzServerDHParams(f *testing.F) {
	for _, g := range dhGroups() {
		f.Add(dhInput(g.name))
	}
	f.Add(ecdhe(x25519, basePoint(x25519)))
	f.Fuzz(func(t *testing.T, input []byte) {
		if checkServerDHParams(input) != nil {
			return
		}
		length := func(at int) int { return int(input[at])<<8 | int(input[at+1]) }
		n := length(64)
		p := new(big.Int).SetBytes(input[66 : 66+n])
		ys := new(big.Int).SetBytes(input[66+n+5:])
		require.GreaterOrEqual(t, p.BitLen(), 2048)
		require.Equal(t, []byte{0, 1, 2}, input[66+n:66+n+3])
		require.Len(t, input, 66+n+5+length(66+n+3))
		require.Equal(t, 1, ys.Cmp(big.NewInt(1)))
		require.Equal(t, 1, new(big.Int).Sub(p, ys).Cmp(big.NewInt(1)))
	})
}
