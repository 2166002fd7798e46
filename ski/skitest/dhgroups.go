package skitest

import (
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"strings"
)

// DHGroup is a group of finite field Diffie-Hellman, with the generator 2.
type DHGroup struct {
	// Name is that of RFC 7919, or "modp" and the bits for one of RFC 3526.
	Name  string
	prime *big.Int
}

// The groups that the cases use. Their primes are written out, so that they
// are not those of a key server that has computed them wrongly.
var (
	FFDHE2048 = DHGroup{"ffdhe2048", primeOf(ffdhe2048)} // RFC 7919, Appendix A.1
	FFDHE4096 = DHGroup{"ffdhe4096", primeOf(ffdhe4096)} // RFC 7919, Appendix A.3
	MODP2048  = DHGroup{"modp2048", primeOf(modp2048)}   // RFC 3526, Section 3
)

// DHEInput returns an input of method DHE: two random randoms, and
// ServerDHParams with a fresh key of the group.
func DHEInput(g DHGroup) []byte {
	// Short exponents are enough for these primes (RFC 7919, Section 5.2).
	private := new(big.Int).SetBytes(randomBytes(48))
	public := new(big.Int).Exp(big.NewInt(2), private, g.prime)
	return serverDHParams(Randoms(), g.prime.Bytes(), []byte{2}, public.FillBytes(make([]byte, len(g.prime.Bytes()))))
}

// serverDHParams appends ServerDHParams (RFC 5246, Section 7.4.3) with any
// numbers.
func serverDHParams(to, p, g, ys []byte) []byte {
	for _, number := range [][]byte{p, g, ys} {
		to = binary.BigEndian.AppendUint16(to, uint16(len(number)))
		to = append(to, number...)
	}
	return to
}

func primeOf(digits string) *big.Int {
	b, err := hex.DecodeString(strings.ReplaceAll(digits, "\n", ""))
	if err != nil {
		panic(err)
	}
	return new(big.Int).SetBytes(b)
}

const (
	ffdhe2048 = `
ffffffffffffffffadf85458a2bb4a9aafdc5620273d3cf1d8b9c583ce2d3695a9e13641146433fbcc939dce249b3ef97d2fe363630c75d8f681b202aec4617a
d3df1ed5d5fd65612433f51f5f066ed0856365553ded1af3b557135e7f57c935984f0c70e0e68b77e2a689daf3efe8721df158a136ade73530acca4f483a797a
bc0ab182b324fb61d108a94bb2c8e3fbb96adab760d7f4681d4f42a3de394df4ae56ede76372bb190b07a7c8ee0a6d709e02fce1cdf7e2ecc03404cd28342f61
9172fe9ce98583ff8e4f1232eef28183c3fe3b1b4c6fad733bb5fcbc2ec22005c58ef1837d1683b2c6f34a26c1b2effa886b423861285c97ffffffffffffffff`
	ffdhe4096 = `
ffffffffffffffffadf85458a2bb4a9aafdc5620273d3cf1d8b9c583ce2d3695a9e13641146433fbcc939dce249b3ef97d2fe363630c75d8f681b202aec4617a
d3df1ed5d5fd65612433f51f5f066ed0856365553ded1af3b557135e7f57c935984f0c70e0e68b77e2a689daf3efe8721df158a136ade73530acca4f483a797a
bc0ab182b324fb61d108a94bb2c8e3fbb96adab760d7f4681d4f42a3de394df4ae56ede76372bb190b07a7c8ee0a6d709e02fce1cdf7e2ecc03404cd28342f61
9172fe9ce98583ff8e4f1232eef28183c3fe3b1b4c6fad733bb5fcbc2ec22005c58ef1837d1683b2c6f34a26c1b2effa886b4238611fcfdcde355b3b6519035b
bc34f4def99c023861b46fc9d6e6c9077ad91d2691f7f7ee598cb0fac186d91caefe130985139270b4130c93bc437944f4fd4452e2d74dd364f2e21e71f54bff
5cae82ab9c9df69ee86d2bc522363a0dabc521979b0deada1dbf9a42d5c4484e0abcd06bfa53ddef3c1b20ee3fd59d7c25e41d2b669e1ef16e6f52c3164df4fb
7930e9e4e58857b6ac7d5f42d69f6d187763cf1d5503400487f55ba57e31cc7a7135c886efb4318aed6a1e012d9e6832a907600a918130c46dc778f971ad0038
092999a333cb8b7a1a1db93d7140003c2a4ecea9f98d0acc0a8291cdcec97dcf8ec9b55a7f88a46b4db5a851f44182e1c68a007e5e655f6affffffffffffffff`
	modp2048 = `
ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404ddef9519b3cd3a431b302b0a6df25f1437
4fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7edee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf05
98da48361c55d39a69163fa8fd24cf5f83655d23dca3ad961c62f356208552bb9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b
e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf6955817183995497cea956ae515d2261898fa051015728e5a8aacaa68ffffffffffffffff`
)
