//go:build cgo

package hsm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/tlsski/tlsski/ski"
)

// decryptsLikeGo asks the store to decrypt right and wrong paddings.
func decryptsLikeGo(ctx context.Context, store *Store, id ski.KeyID, pub *rsa.PublicKey) error {
	size := pub.Size()
	good := func() []byte {
		em := random(size)
		for i := range em {
			if em[i] == 0 {
				em[i] = 1
			}
		}
		em[0], em[1], em[size-49] = 0, 2, 0
		return em
	}
	for name, c := range map[string]struct {
		change func(em []byte)
		ok     bool
	}{
		"right":               {func([]byte) {}, true},
		"secret of zeros":     {func(em []byte) { clear(em[size-48:]) }, true},
		"block type 1":        {func(em []byte) { em[1] = 1 }, false},
		"no leading zero":     {func(em []byte) { em[0] = 1 }, false},
		"zero in the padding": {func(em []byte) { em[2] = 0 }, false},
		"longer secret":       {func(em []byte) { em[size-50], em[size-49] = 0, 7 }, false},
		"shorter secret":      {func(em []byte) { em[size-48], em[size-49] = 0, 7 }, false},
		"no separator":        {func(em []byte) { em[size-49] = 7 }, false},
		"many leading zeros":  {func(em []byte) { clear(em[:100]) }, false},
		"the number 1":        {func(em []byte) { clear(em); em[size-1] = 1 }, false},
	} {
		em := good()
		c.change(em)
		m := new(big.Int).SetBytes(em)
		ciphertext := new(big.Int).Exp(m, big.NewInt(int64(pub.E)), pub.N).FillBytes(make([]byte, size))
		secret := make([]byte, 48)
		rand.Read(secret)
		before := bytes.Clone(secret)
		if err := store.DecryptPreMasterSecret(ctx, id, ciphertext, secret); err != nil {
			return err
		}
		want := before
		if c.ok {
			want = em[size-48:]
		}
		if !bytes.Equal(secret, want) {
			return errors.New(name)
		}
		// What the comment of unpadPreMasterSecret says of the token.
		length := 0
		k := store.now.Load().byID[id]
		if err := k.token.do(ctx, func(s *session) error {
			raw, err := k.decryptRaw(s, ciphertext)
			length = len(raw)
			return err
		}); err != nil {
			return err
		}
		if length != size {
			return fmt.Errorf("%s: the token returned %d bytes of %d", name, length, size)
		}
	}
	return nil
}
