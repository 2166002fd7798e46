package keyserver

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"flag"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"testing/cryptotest"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

var update = flag.Bool("update", false, "write testdata/vectors/input-*.json, and the test keys if there are none")

// vector is one file of testdata/vectors: a request of a peer that may use all
// keys with all methods, but nothing legacy.
type vector struct {
	Name  string `json:"name"`
	Class string `json:"class"`         // "output", or the error with hyphens
	Key   string `json:"key,omitempty"` // the file of the private key
	// First is the file of the first exchange, of which State is, and Client the
	// private key whose point is the input.
	First   string        `json:"first,omitempty"`
	Client  hexBytes      `json:"client,omitempty"`
	Request vectorRequest `json:"request"`
	Want    vectorWant    `json:"want"`
	// Encoded has both messages as an encoder gives them: in CBOR, as
	// hexadecimal digits, and in JSON.
	Encoded struct {
		CBOR vectorMessages `json:"cbor"`
		JSON vectorMessages `json:"json"`
	} `json:"encoded"`
}

type vectorMessages struct {
	Request  string `json:"request"`
	Response string `json:"response"`
}

// encode fills in Encoded.
func (v *vector) encode(t testing.TB) {
	resp := &ski.Response{Output: v.Want.Output, Params: v.Want.Params, State: v.Want.State, Error: v.Want.Error}
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		question, err := ski.EncodeRequest(f, v.Request.request())
		if err != nil { // an encoder does not give what no key server can parse
			question = skitest.RequestMessage(v.Request.request()).Encode(f)
		}
		answer, err := ski.EncodeResponse(f, resp)
		require.NoError(t, err)
		if f == ski.CBOR {
			v.Encoded.CBOR = vectorMessages{hex.EncodeToString(question), hex.EncodeToString(answer)}
		} else {
			v.Encoded.JSON = vectorMessages{string(question), string(answer)}
		}
	}
}

type vectorRequest struct {
	Protocol      ski.Protocol        `json:"protocol"`
	SPKI          ski.KeyID           `json:"spki"`
	Method        ski.Method          `json:"method,omitempty"`
	Hash          ski.Hash            `json:"hash,omitempty"`
	Scheme        tls.SignatureScheme `json:"scheme,omitempty"`
	ClientVersion uint16              `json:"client_version,omitempty"`
	ServerName    string              `json:"server_name,omitempty"`
	Group         tls.CurveID         `json:"group,omitempty"`
	State         hexBytes            `json:"state,omitempty"`
	Input         hexBytes            `json:"input"`
}

// vectorWant is the error or the output. Where Signature is set, that is one of
// many: an RSA-PSS signature is random, and so is what is signed with ECDHE-PMS:
// these are checked by their public key.
type vectorWant struct {
	Output    hexBytes  `json:"output,omitempty"`
	Params    hexBytes  `json:"params,omitempty"`
	State     hexBytes  `json:"state,omitempty"`
	Signature bool      `json:"signature,omitempty"`
	Error     ski.Error `json:"error,omitempty"`
	Reason    string    `json:"reason,omitempty"` // in the audit record
}

func (r *vectorRequest) request() *ski.Request {
	return &ski.Request{
		Protocol: r.Protocol, SPKI: r.SPKI, Method: r.Method, Hash: r.Hash, Scheme: r.Scheme,
		ClientVersion: r.ClientVersion, ServerName: r.ServerName, Input: r.Input, Group: r.Group, State: r.State,
	}
}

type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func readVectors(t testing.TB) []vector {
	files, err := filepath.Glob(vectors + "/input-*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var all []vector
	for _, f := range files {
		data, err := os.ReadFile(f)
		require.NoError(t, err)
		var v vector
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		require.NoError(t, d.Decode(&v), f)
		require.Equal(t, "input-"+v.Name+".json", filepath.Base(f))
		all = append(all, v)
	}
	return all
}

func TestVectors(t *testing.T) {
	if *update {
		writeKeys(t)
		writeVectors(t)
	}
	keys := testKeys()
	for _, v := range readVectors(t) {
		vectorTest(t, v.Name, func(t *testing.T) {
			encoded := v.Encoded
			v.encode(t)
			require.Equal(t, encoded, v.Encoded)
			s := newTestServer(t, keys)
			resp, rec := s.ask(edgePeer, v.Request.request())
			require.Equal(t, v.Want.Error, resp.Error, rec.Reason)
			require.Equal(t, v.Want.Reason, rec.Reason)
			if v.Want.Error != "" {
				return
			}
			if !v.Want.Signature {
				require.Equal(t, []byte(v.Want.Output), resp.Output)
			}
			if v.Request.Method != ski.MethodRSA && v.First == "" {
				signed := func(params []byte) *ski.Request {
					r := v.Request.request()
					r.Input = append(bytes.Clone(r.Input), params...)
					return r
				}
				verify(t, keys, signed(resp.Params), resp.Output)
				verify(t, keys, signed(v.Want.Params), v.Want.Output)
			}
		})
	}
}

// vectorTest runs a test at the time at which all vectors were made, which is
// when testing/synctest begins, since a state can be used for 30 seconds.
func vectorTest(t *testing.T, name string, test func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// verify checks a signature with the standard library, by the request alone.
func verify(t testing.TB, keys KeyStore, req *ski.Request, signature []byte) {
	t.Helper()
	_, pub, ok := keys.Lookup(req.SPKI)
	require.True(t, ok)
	hash := req.Hash.Func()
	switch req.Scheme {
	case tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256, tls.PKCS1WithSHA256:
		hash = crypto.SHA256
	case tls.ECDSAWithP384AndSHA384, tls.PSSWithSHA384, tls.PKCS1WithSHA384:
		hash = crypto.SHA384
	case tls.ECDSAWithP521AndSHA512, tls.PSSWithSHA512, tls.PKCS1WithSHA512:
		hash = crypto.SHA512
	}
	_, isRSA := pub.(*rsa.PublicKey)
	if hash == 0 && req.Scheme != tls.Ed25519 {
		hash = crypto.SHA1
		if isRSA && !req.Protocol.Is12() {
			hash = crypto.MD5SHA1
		}
	}
	var digest []byte
	switch hash {
	case 0:
	case crypto.MD5SHA1:
		m, s := md5.Sum(req.Input), sha1.Sum(req.Input)
		digest = append(m[:], s[:]...)
	default:
		h := hash.New()
		h.Write(req.Input)
		digest = h.Sum(nil)
	}
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		require.True(t, ecdsa.VerifyASN1(pub, digest, signature))
	case ed25519.PublicKey:
		require.True(t, ed25519.Verify(pub, req.Input, signature))
	case *rsa.PublicKey:
		require.Len(t, signature, pub.Size())
		if req.Scheme>>8 == 8 {
			require.NoError(t, rsa.VerifyPSS(pub, hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
		} else {
			require.NoError(t, rsa.VerifyPKCS1v15(pub, hash, digest, signature))
		}
	}
}

// writeKeys makes the test keys, once: a new key would change all vectors.
func writeKeys(t *testing.T) {
	dir := filepath.Join(vectors, "input-keys")
	if _, err := os.Stat(dir); err == nil {
		return
	}
	require.NoError(t, os.MkdirAll(dir, 0o755))
	write := func(name string, key any, err error) {
		require.NoError(t, err)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(t, err)
		text := []byte("TEST KEY. It is public: never use it outside of tests.\n\n")
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".pem"), text, 0o600))
	}
	for name, curve := range map[string]elliptic.Curve{p256: elliptic.P256(), p384: elliptic.P384(), p521: elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		write(name, key, err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	write(rsa2048, rsaKey, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	write(ed, edKey, err)
}

// writeVectors writes what the server answers now: look at the difference
// before committing it. What is random comes from a generator that each name
// seeds, so that a vector changes only with what it is about.
func writeVectors(t *testing.T) {
	keys := testKeys()
	old, err := filepath.Glob(vectors + "/input-*.json")
	require.NoError(t, err)
	for _, f := range old {
		require.NoError(t, os.Remove(f))
	}
	for name, r := range vectorRequests(keys) {
		vectorTest(t, name, func(t *testing.T) { writeVector(t, keys, vector{Name: name, Request: r}) })
	}
	for name, v := range secondExchanges(t) {
		vectorTest(t, name, func(t *testing.T) { v.Name = name; writeVector(t, keys, v) })
	}
}

func writeVector(t *testing.T, keys testStore, v vector) {
	sum := sha256.Sum256([]byte(v.Name))
	cryptotest.SetGlobalRandom(t, binary.BigEndian.Uint64(sum[:]))
	name, r := v.Name, v.Request
	resp, rec := newTestServer(t, keys).ask(edgePeer, r.request())
	v.Class = "output"
	switch {
	case resp.Error != "":
		v.Class = string(bytes.ReplaceAll([]byte(resp.Error), []byte(" "), []byte("-")))
		v.Want = vectorWant{Error: resp.Error, Reason: rec.Reason}
	case r.Scheme>>8 == 8 && r.Scheme != tls.Ed25519, len(resp.State) > 0:
		v.Want = vectorWant{Signature: true, Output: resp.Output, Params: resp.Params, State: resp.State}
	default:
		v.Want.Output = resp.Output
	}
	if name, _, ok := keys.Lookup(r.SPKI); ok {
		v.Key = "input-keys/" + name + ".pem"
	}
	v.encode(t)
	var data bytes.Buffer
	e := json.NewEncoder(&data)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	require.NoError(t, e.Encode(v))
	require.NoError(t, os.WriteFile(filepath.Join(vectors, "input-"+name+".json"), data.Bytes(), 0o644))
}

// secondExchanges are those of ECDHE-PMS, whose first ones are written already.
func secondExchanges(t *testing.T) map[string]vector {
	firsts := map[string]vector{}
	for _, v := range readVectors(t) {
		firsts[v.Name] = v
	}
	second := func(first string, length int, change func(*vectorRequest)) vector {
		f := firsts[first]
		group := f.Request.Group
		scalar := append([]byte{0}, bytes.Repeat([]byte{0x42}, length-1)...)
		private, err := ephemeralGroups[group].NewPrivateKey(scalar)
		require.NoError(t, err)
		v := vector{First: "input-" + first + ".json", Client: scalar, Request: vectorRequest{
			Protocol: f.Request.Protocol, SPKI: f.Request.SPKI, Method: ski.MethodECDHEPMS, State: bytes.Clone(f.Want.State), Input: private.PublicKey().Bytes(),
		}}
		change(&v.Request)
		return v
	}
	good := func(*vectorRequest) {}
	return map[string]vector{
		"pms-p256-second":          second("pms-p256", 32, good),
		"pms-p384-second":          second("pms-p384", 48, good),
		"pms-p521-second":          second("pms-p521", 66, good),
		"pms-x25519-second":        second("pms-x25519-name", 32, good),
		"pms-second-hash-ignored":  second("pms-p256", 32, func(r *vectorRequest) { r.Hash = ski.SHA512 }),
		"bad-pms-point-off-curve":  second("pms-p256", 32, func(r *vectorRequest) { r.Input[64] ^= 1 }),
		"bad-pms-point-of-other":   second("pms-p256", 32, func(r *vectorRequest) { r.Input = basePoint(secp384r1) }),
		"bad-pms-low-order":        second("pms-x25519-name", 32, func(r *vectorRequest) { r.Input = make([]byte, 32) }),
		"bad-pms-state-changed":    second("pms-p256", 32, func(r *vectorRequest) { r.State[50] ^= 1 }),
		"bad-pms-state-other-key":  second("pms-p256", 32, func(r *vectorRequest) { r.SPKI = firsts["pms-p384"].Request.SPKI }),
		"bad-pms-state-other-dtls": second("pms-p256", 32, func(r *vectorRequest) { r.Protocol = ski.DTLS12 }),
	}
}

// formed is an input that begins and, on X25519, ends as told.
func formed(group uint16, begin, end string) []byte {
	in := ecdhe(group, basePoint(group))
	copy(in, begin)
	copy(in[len(in)-len(end):], end)
	return in
}

// dheFormed is an input that begins with a header whose two last bytes are the
// length of the rest.
func dheFormed(group string, header ...byte) []byte {
	in := dhInput(group)
	n := len(in) - len(header) - 2
	copy(in, append(header, byte(n>>8), byte(n)))
	return in
}

func vectorRequests(keys testStore) map[string]vectorRequest {
	id := keys.id
	pub := keys.public(rsa2048).(*rsa.PublicKey)
	g256 := basePoint(secp256r1)
	offCurve := bytes.Clone(g256)
	offCurve[64] ^= 1
	compressed := append([]byte{2 + g256[64]&1}, g256[1:33]...)
	explicit := ecdhe(secp256r1, g256)
	explicit[64] = 1
	lowOrder := make([]byte, 32)
	lowOrder[0] = 1
	ffdhe, ys := dhGroupNamed("ffdhe2048")
	prime, minusOne := ffdhe.p.Bytes(), new(big.Int).Sub(ffdhe.p, big.NewInt(1)).Bytes()
	client := bytes.Replace(certificateVerify(32), []byte("server"), []byte("client"), 1)
	epms := func(version uint16) []byte {
		return rawEncrypt(pub, encodedMessage(pub, preMasterSecret(version)))
	}

	return map[string]vectorRequest{
		"ecdhe-p256":         {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: ecdhe(secp256r1, g256)},
		"ecdhe-p384":         {Protocol: ski.TLS12, SPKI: id(p384), Hash: ski.SHA384, Input: ecdhe(secp384r1, basePoint(secp384r1))},
		"ecdhe-p521":         {Protocol: ski.DTLS12, SPKI: id(p521), Hash: ski.SHA512, Input: ecdhe(secp521r1, basePoint(secp521r1))},
		"ecdhe-rsa-x25519":   {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodECDHE, Hash: ski.SHA256, Input: ecdhe(x25519, basePoint(x25519))},
		"ecdhe-rsa-pss":      {Protocol: ski.TLS12, SPKI: id(rsa2048), Scheme: tls.PSSWithSHA256, Input: ecdhe(x25519, basePoint(x25519))},
		"ecdhe-ed25519":      {Protocol: ski.TLS12, SPKI: id(ed), Scheme: tls.Ed25519, Input: ecdhe(x25519, basePoint(x25519))},
		"tls13-p256-sha256":  {Protocol: ski.TLS13, SPKI: id(p256), Scheme: tls.ECDSAWithP256AndSHA256, Input: certificateVerify(32)},
		"tls13-p256-sha384":  {Protocol: ski.TLS13, SPKI: id(p256), Scheme: tls.ECDSAWithP256AndSHA256, Input: certificateVerify(48)},
		"tls13-rsa-pss":      {Protocol: ski.DTLS13, SPKI: id(rsa2048), Scheme: tls.PSSWithSHA512, Input: certificateVerify(32)},
		"rsa-premaster":      {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodRSA, Input: epms(0x0303)},
		"rsa-premaster-dtls": {Protocol: ski.DTLS12, SPKI: id(rsa2048), Method: ski.MethodRSA, ClientVersion: 0xFEFD, Input: epms(0xFEFD)},

		"dhe-ffdhe2048": {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA256, Input: dhInput("ffdhe2048")},
		"dhe-ffdhe4096": {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA384, Input: dhInput("ffdhe4096")},
		"dhe-modp2048":  {Protocol: ski.DTLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA512, Input: dhInput("modp_2048")},
		"dhe-rsa-pss":   {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Scheme: tls.PSSWithSHA256, Input: dhInput("modp_3072")},

		"pms-p256":        {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodECDHEPMS, Hash: ski.SHA256, Group: secp256r1, Input: randoms()},
		"pms-p384":        {Protocol: ski.TLS12, SPKI: id(p384), Method: ski.MethodECDHEPMS, Hash: ski.SHA384, Group: secp384r1, Input: randoms()},
		"pms-p521":        {Protocol: ski.DTLS12, SPKI: id(rsa2048), Method: ski.MethodECDHEPMS, Hash: ski.SHA512, Group: secp521r1, Input: randoms()},
		"pms-x25519-name": {Protocol: ski.TLS12, SPKI: id(ed), Method: ski.MethodECDHEPMS, Scheme: tls.Ed25519, Group: x25519, ServerName: "www.example.com", Input: randoms()},

		"bad-dhe-of-ecdsa-key":   {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodDHE, Hash: ski.SHA256, Input: dhInput("ffdhe2048")},
		"bad-dhe-tls13":          {Protocol: ski.TLS13, SPKI: id(rsa2048), Method: ski.MethodDHE, Scheme: tls.PSSWithSHA256, Input: dhInput("ffdhe2048")},
		"bad-dhe-other-prime":    {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA256, Input: dhe(bytes.Repeat([]byte{0xfb}, 256), []byte{2}, []byte{4})},
		"bad-dhe-generator":      {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA256, Input: dhe(prime, []byte{5}, ys)},
		"bad-dhe-ys-1":           {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA256, Input: dhe(prime, []byte{2}, []byte{1})},
		"bad-dhe-ys-p-less-1":    {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA256, Input: dhe(prime, []byte{2}, minusOne)},
		"bad-dhe-bytes-after-ys": {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA256, Input: append(dhInput("ffdhe2048"), 0)},
		"bad-dhe-as-ecdhe":       {Protocol: ski.TLS12, SPKI: id(rsa2048), Hash: ski.SHA256, Input: dhInput("ffdhe6144")},
		"bad-ecdhe-as-dhe":       {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA256, Input: ecdhe(secp256r1, g256)},

		"bad-pms-tls13":         {Protocol: ski.TLS13, SPKI: id(p256), Method: ski.MethodECDHEPMS, Scheme: tls.ECDSAWithP256AndSHA256, Group: secp256r1, Input: randoms()},
		"bad-pms-group":         {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodECDHEPMS, Hash: ski.SHA256, Group: 30, Input: randoms()},
		"bad-pms-neither":       {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodECDHEPMS, Hash: ski.SHA256, Input: randoms()},
		"bad-pms-short-randoms": {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodECDHEPMS, Hash: ski.SHA256, Group: x25519, Input: randoms()[:63]},
		"bad-pms-ecdhe-input":   {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodECDHEPMS, Hash: ski.SHA256, Group: secp256r1, Input: ecdhe(secp256r1, g256)},
		"bad-pms-state":         {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodECDHEPMS, State: bytes.Repeat([]byte{0x5a}, stateOverhead), Input: g256},
		"bad-pms-state-short":   {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodECDHEPMS, State: []byte{1}, Input: g256},
		"bad-pms-sha1":          {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodECDHEPMS, Group: x25519, Input: randoms()},

		"bad-form-ber":            {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(secp256r1, "\x30\x81\x82", "")},
		"bad-form-ber-members":    {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "\x30\x62\x0c\x60", "")},
		"bad-form-ber-structure":  {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "\x30\x62\x02\x01\x00\x30\x00\xff\xff", "")},
		"bad-form-ber-time":       {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "\x30\x62\xc2\x02\x04\x00\x18\x0f20261129000000Z\xff\xff", "")},
		"bad-form-ber-high-tag":   {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "\x3f\x10\x61\x0c\x5f", "")},
		"bad-form-ber-indefinite": {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "\x31\x80", "\x00\x00")},
		"bad-form-cose":           {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "\x84\x6aSignature1\x43\xa1\x01\x26\x40\x58\x53", "")},
		"bad-form-sshsig":         {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "SSHSIG\x00\x00\x00\x04file", "")},
		"bad-form-ssh":            {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "\x00\x00\x00\x20ssh-ed25519-cert-v01@openssh.com", "")},
		"bad-form-openpgp":        {Protocol: ski.TLS12, SPKI: id(rsa2048), Hash: ski.SHA256, Input: formed(x25519, "", "\x04\x00\x01\x08\x00\x00\x04\xff\x00\x00\x00\x06")},
		"bad-form-handshake":      {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "\x01\x00\x00\x60\x03\x03", "")},
		"bad-form-handshake-dtls": {Protocol: ski.DTLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "\x01\x00\x00\x58\x00\x00\x00\x00\x00\x00\x00\x58\xfe\xfd", "")},
		"bad-form-jws":            {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "eyJhbGciOiJFUzI1NiIsImI2NCI6ZmFsc2UsImNyaXQiOlsiYjY0Il19.", "")},
		"bad-form-jws-lenient":    {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "!CiAgey Jh\nbGciIDogIkVTMjU2IiB9.", "")},
		"bad-form-ike":            {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: formed(x25519, "\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x21\x20\x22\x20\x00\x00\x00\x00\x00\x00\x00\x50", "")},
		"bad-form-tls13-openpgp":  {Protocol: ski.TLS13, SPKI: id(p256), Scheme: tls.ECDSAWithP256AndSHA256, Input: append(certificateVerify(32)[:118], "\x04\x00\x13\x08\x00\x00\x04\xff\x00\x00\x00\x06"...)},
		"bad-pms-form":            {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodECDHEPMS, Hash: ski.SHA256, Group: x25519, Input: formed(x25519, "\x84\x6aSignature1\x43\xa1\x01\x26\x40\x58\x53", "")[:64]},
		"bad-dhe-form":            {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodDHE, Hash: ski.SHA256, Input: dheFormed("ffdhe2048", 0x30, 0x82)},
		// What only begins or ends like one of these is signed.
		"ecdhe-almost-ber":     {Protocol: ski.TLS12, SPKI: id(ed), Scheme: tls.Ed25519, Input: formed(secp256r1, "\x30\x81\x81", "")},
		"ecdhe-almost-members": {Protocol: ski.TLS12, SPKI: id(ed), Scheme: tls.Ed25519, Input: formed(x25519, "\x30\x62\x0c\x40", "\x04\xff\x00\x00\x00\x5f")},

		"bad-no-such-key":        {Protocol: ski.TLS12, SPKI: ski.KeyID{1}, Hash: ski.SHA256, Input: ecdhe(secp256r1, g256)},
		"bad-sha1-not-granted":   {Protocol: ski.TLS12, SPKI: id(p256), Input: ecdhe(secp256r1, g256)},
		"bad-tls10-not-granted":  {Protocol: ski.TLS10, SPKI: id(p256), Input: ecdhe(secp256r1, g256)},
		"bad-explicit-curve":     {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: explicit},
		"bad-group":              {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: ecdhe(30, make([]byte, 56))},
		"bad-point-off-curve":    {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: ecdhe(secp256r1, offCurve)},
		"bad-point-compressed":   {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: ecdhe(secp256r1, compressed)},
		"bad-x25519-low-order":   {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: ecdhe(x25519, lowOrder)},
		"bad-bytes-after-point":  {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: append(ecdhe(secp256r1, g256), 0)},
		"bad-tls13-as-tls12":     {Protocol: ski.TLS12, SPKI: id(p256), Hash: ski.SHA256, Input: certificateVerify(32)},
		"bad-tls12-as-tls13":     {Protocol: ski.TLS13, SPKI: id(p256), Scheme: tls.ECDSAWithP256AndSHA256, Input: ecdhe(secp256r1, g256)},
		"bad-tls13-client":       {Protocol: ski.TLS13, SPKI: id(p256), Scheme: tls.ECDSAWithP256AndSHA256, Input: client},
		"bad-tls13-no-scheme":    {Protocol: ski.TLS13, SPKI: id(p256), Hash: ski.SHA256, Input: certificateVerify(32)},
		"bad-tls13-curve":        {Protocol: ski.TLS13, SPKI: id(p384), Scheme: tls.ECDSAWithP256AndSHA256, Input: certificateVerify(32)},
		"bad-scheme-of-rsa":      {Protocol: ski.TLS12, SPKI: id(p256), Scheme: tls.PSSWithSHA256, Input: ecdhe(secp256r1, g256)},
		"bad-rsa-short":          {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodRSA, Input: epms(0x0303)[1:]},
		"bad-rsa-not-below":      {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodRSA, Input: pub.N.Bytes()},
		"bad-rsa-of-ecdsa-key":   {Protocol: ski.TLS12, SPKI: id(p256), Method: ski.MethodRSA, Input: make([]byte, 256)},
		"bad-rsa-client-version": {Protocol: ski.TLS12, SPKI: id(rsa2048), Method: ski.MethodRSA, ClientVersion: 0x0302, Input: epms(0x0302)},
	}
}
