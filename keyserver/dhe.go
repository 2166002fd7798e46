package keyserver

import (
	"encoding/binary"
	"errors"
	"math/big"
	"slices"
	"sync"

	"github.com/tlsski/tlsski/ski"
)

// dhGroup is a group of numbers modulo a safe prime p = 2q + 1, whose generator
// dhGenerator has the order q.
type dhGroup struct {
	name string
	p    *big.Int
}

// dhGenerator is that of all groups served.
const dhGenerator = 2

// dhGroups are those of RFC 7919, Appendix A, and of RFC 3526 from 2048 bits.
// Other parameters could have a back door that nobody can see.
var dhGroups = sync.OnceValue(func() []dhGroup {
	var all []dhGroup
	for _, f := range []struct {
		name     string
		constant *big.Int
		members  []struct{ bits, x int64 }
	}{
		{"ffdhe", eulersNumber(dhConstantBits), []struct{ bits, x int64 }{
			{2048, 560316}, {3072, 2625351}, {4096, 5736041}, {6144, 15705020}, {8192, 10965728},
		}},
		{"modp_", pi(dhConstantBits), []struct{ bits, x int64 }{
			{2048, 124476}, {3072, 1690314}, {4096, 240904}, {6144, 929484}, {8192, 4743158},
		}},
	} {
		for _, m := range f.members {
			name := f.name + big.NewInt(m.bits).String()
			all = append(all, dhGroup{name, dhPrime(uint(m.bits), f.constant, m.x)})
		}
	}
	return all
})

// dhConstantBits is how many bits behind the point the largest of the primes
// takes of its constant.
const dhConstantBits = 8192 - 130

// dhPrime returns 2^b - 2^(b-64) + (floor(2^(b-130) * c) + x) * 2^64 - 1, where
// c is given with dhConstantBits (RFC 7919, Appendix A; RFC 3526, Section 3).
func dhPrime(b uint, c *big.Int, x int64) *big.Int {
	one := big.NewInt(1)
	p := new(big.Int).Lsh(one, b)
	p.Sub(p, new(big.Int).Lsh(one, b-64))
	middle := new(big.Int).Rsh(c, dhConstantBits-(b-130))
	middle.Add(middle, big.NewInt(x))
	p.Add(p, middle.Lsh(middle, 64))
	return p.Sub(p, one)
}

// guardBits are calculated beyond those asked for: each of the some thousand
// terms of a series is up to one too small in the last place.
const guardBits = 64

// eulersNumber returns floor(2^bits * e), from the sum of 1/k!.
func eulersNumber(bits uint) *big.Int {
	sum, term := new(big.Int), new(big.Int).Lsh(big.NewInt(1), bits+guardBits)
	for k := int64(1); term.Sign() > 0; k++ {
		sum.Add(sum, term)
		term.Quo(term, big.NewInt(k))
	}
	return sum.Rsh(sum, guardBits)
}

// pi returns floor(2^bits * pi), with Machin's formula:
// pi/4 = 4 arctan(1/5) - arctan(1/239).
func pi(bits uint) *big.Int {
	sum := arctanInverse(5, bits+guardBits)
	sum.Sub(sum.Lsh(sum, 2), arctanInverse(239, bits+guardBits))
	return sum.Rsh(sum, guardBits-2)
}

// arctanInverse returns 2^bits * arctan(1/x).
func arctanInverse(x int64, bits uint) *big.Int {
	sum, square := new(big.Int), big.NewInt(x*x)
	power := new(big.Int).Quo(new(big.Int).Lsh(big.NewInt(1), bits), big.NewInt(x))
	for k := int64(1); power.Sign() != 0; k += 2 {
		sum.Add(sum, new(big.Int).Quo(power, big.NewInt(k)))
		power.Quo(power, square).Neg(power)
	}
	return sum
}

// checkServerDHParams checks ClientRandom + ServerRandom + ServerDHParams (RFC
// 5246, Section 7.4.3): dh_p, dh_g and dh_Ys, each behind its length of two
// bytes. The randoms can be anything; newToBeSigned looks at them.
func checkServerDHParams(input []byte) error {
	const randoms = 2 * ski.RandomLen
	if len(input) < randoms {
		return errors.New("the input is too short for two randoms and ServerDHParams")
	}
	p, rest, okP := cutVector16(input[randoms:])
	g, rest, okG := cutVector16(rest)
	ys, rest, okY := cutVector16(rest)
	if !okP || !okG || !okY || len(rest) > 0 {
		return errors.New("the input does not end with dh_Ys of ServerDHParams")
	}
	group, ok := findDHGroup(p)
	switch {
	case !ok:
		return errors.New("dh_p of ServerDHParams is not one of the primes served")
	case !slices.Equal(g, []byte{dhGenerator}):
		return errors.New("dh_g of ServerDHParams is not the generator of its group")
	case len(ys) > len(p):
		return errors.New("dh_Ys of ServerDHParams is longer than dh_p")
	case !group.contains(new(big.Int).SetBytes(ys)):
		return errors.New("dh_Ys of ServerDHParams is not a public key of its group")
	}
	return nil
}

// cutVector16 cuts off an opaque<0..2^16-1> (RFC 5246, Section 4.3).
func cutVector16(data []byte) (vector, rest []byte, ok bool) {
	if len(data) < 2 {
		return nil, nil, false
	}
	n, data := int(binary.BigEndian.Uint16(data)), data[2:]
	if len(data) < n {
		return nil, nil, false
	}
	return data[:n], data[n:], true
}

// findDHGroup finds a group by dh_p, without leading zeros.
func findDHGroup(p []byte) (dhGroup, bool) {
	all := dhGroups()
	i := slices.IndexFunc(all, func(g dhGroup) bool {
		return g.p.BitLen() == 8*len(p) && g.p.Cmp(new(big.Int).SetBytes(p)) == 0
	})
	if i < 0 {
		return dhGroup{}, false
	}
	return all[i], true
}

// contains reports whether y can be a public key: 1 < y < p-1 (RFC 7919,
// Section 5.1). That leaves numbers of the order q, as the generator has, and of
// 2q, which give away the last bit of the edge's private key: that is the edge's
// affair, and to find it out takes long.
func (g dhGroup) contains(y *big.Int) bool {
	one := big.NewInt(1)
	return y.Cmp(one) > 0 && y.Cmp(new(big.Int).Sub(g.p, one)) < 0
}
