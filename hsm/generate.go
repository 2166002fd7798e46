//go:build cgo

package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Generate makes a key pair on the token of cfg's one URI, whose object is the
// label of the new pair, and which no other private key has. Nobody can get the
// private key off the token: it is sensitive and not extractable, from its first
// moment on. The URI's id becomes the CKA_ID; without one, it is 16 random bytes.
func Generate(ctx context.Context, cfg Config, template Template) (KeyInfo, error) {
	if len(cfg.Keys) != 1 {
		return KeyInfo{}, errors.New("one PKCS #11 URI is needed")
	}
	g, err := newGeneration(template)
	if err != nil {
		return KeyInfo{}, err
	}
	t, err := newTarget(&cfg, cfg.Keys[0])
	if err != nil {
		return KeyInfo{}, err
	}
	if t.uri.Object == nil || *t.uri.Object == "" {
		return KeyInfo{}, fmt.Errorf("%s: it has no object: say what the key is to be called", t.uri)
	}
	if err := checkName(*t.uri.Object); err != nil {
		return KeyInfo{}, fmt.Errorf("%s: %w", t.uri, err)
	}
	s := new(Store)
	defer s.Close()
	info, err := s.generate(ctx, &cfg, t, g)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("%s: %w", t.uri, err)
	}
	return info, nil
}

// generation is a Template in the terms of PKCS #11.
type generation struct {
	Template
	mechanism uint
	public    []*pkcs11.Attribute // what makes the type
}

func newGeneration(template Template) (*generation, error) {
	g := &generation{Template: template}
	if !g.Sign && !g.Decrypt {
		return nil, errors.New("a key is for signing, for decryption, or both")
	}
	kind, ok := keyTypes[g.Type]
	if !ok {
		return nil, fmt.Errorf("the type %q is none of %s", g.Type, KeyTypes())
	}
	if kind.bits == 0 {
		if g.Decrypt {
			return nil, errors.New("only RSA keys decrypt")
		}
		g.mechanism = pkcs11.CKM_EC_KEY_PAIR_GEN
		if g.Type == "ed25519" {
			g.mechanism = ckmECEdwardsKeyPairGen
		}
		g.public = []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, []byte(kind.params))}
		return g, nil
	}
	g.mechanism = pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN
	g.public = []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, kind.bits),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
	}
	return g, nil
}

func (s *Store) generate(ctx context.Context, cfg *Config, t *target, g *generation) (KeyInfo, error) {
	// One session, which may write.
	mod, err := s.module(ctx, t.uri.ModulePath, loadModule)
	if err != nil {
		return KeyInfo{}, err
	}
	var slot uint
	var info pkcs11.TokenInfo
	if err := within(ctx, func() (err error) { slot, info, err = slotOf(mod, t.uri); return err }); err != nil {
		return KeyInfo{}, err
	}
	if err := checkLogin(info, t.hasPIN); err != nil {
		return KeyInfo{}, err
	}
	if info.Flags&pkcs11.CKF_WRITE_PROTECTED != 0 {
		return KeyInfo{}, errors.New("the token is write-protected")
	}
	t.token = newToken(mod, slot, info, t.pin, cfg, true)
	s.tokens = append(s.tokens, t.token)
	t.token.start(1)

	id := t.uri.ID
	if id == nil {
		id = make([]byte, 16)
		rand.Read(id)
	}
	label := []byte(*t.uri.Object)
	made := false
	var found []*privateKey
	err = t.token.do(ctx, func(session *session) (err error) {
		// A job can be done twice: the pair is made once.
		if !made {
			if err := session.checkFree(id, label); err != nil {
				return err
			}
			made = true
			if err := session.generate(g, id, label); err != nil {
				return err
			}
		}
		t.uri.ID = id
		found, err = t.discover(session, true)
		return err
	})
	switch {
	case err != nil:
		return KeyInfo{}, err
	case len(found) != 1:
		return KeyInfo{}, fmt.Errorf("the token has %d keys instead of the one that was made", len(found))
	case found[0].info.Problem != nil:
		return KeyInfo{}, fmt.Errorf("the key was made, but cannot be used: %w", found[0].info.Problem)
	}
	return found[0].info, nil
}

// checkFree refuses a label or an id that another private key has.
func (s *session) checkFree(id, label []byte) error {
	for _, k := range []struct {
		key  *privateKey
		what string
	}{
		{&privateKey{label: label}, "object"},
		{&privateKey{ckaID: id}, "id"},
	} {
		taken, err := s.findAll(k.key.template()...)
		if err != nil {
			return err
		}
		if len(taken) > 0 {
			return fmt.Errorf("the token has a private key with this %s already: choose another", k.what)
		}
	}
	return nil
}

func (s *session) generate(g *generation, id, label []byte) error {
	public := append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, g.Sign),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, g.Decrypt),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, false),
	}, g.public...)
	private := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, g.Sign),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, g.Decrypt),
		// True unless said otherwise on some tokens, and as good as decrypting.
		pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN_RECOVER, false),
		pkcs11.NewAttribute(pkcs11.CKA_DERIVE, false),
	}
	_, _, err := s.GenerateKeyPair(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(g.mechanism, nil)}, public, private)
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)) {
		return fmt.Errorf("the token cannot make keys of the type %s: %w", g.Type, err)
	}
	if err != nil {
		return fmt.Errorf("C_GenerateKeyPair: %w", err)
	}
	return nil
}
