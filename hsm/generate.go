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
// moment on. Nor can it be changed or copied, or used with other mechanisms than
// those that the package uses, as far as the token knows such limits; the KeyInfo
// says so. The URI's id becomes the CKA_ID; without one, it is 16 random bytes.
func Generate(ctx context.Context, cfg Config, template Template) (KeyInfo, error) {
	return generate(ctx, cfg, template, loadModule)
}

func generate(ctx context.Context, cfg Config, template Template, load loader) (KeyInfo, error) {
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
	info, err := s.generate(ctx, &cfg, t, g, load)
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
	allowed   []uint              // the mechanisms of the private key
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
		g.mechanism, g.allowed = pkcs11.CKM_EC_KEY_PAIR_GEN, []uint{pkcs11.CKM_ECDSA}
		if g.Type == "ed25519" {
			g.mechanism, g.allowed = ckmECEdwardsKeyPairGen, []uint{ckmEdDSA}
		}
		g.public = []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, []byte(kind.params))}
		return g, nil
	}
	g.mechanism = pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN
	g.public = []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, kind.bits),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
	}
	if g.Sign {
		g.allowed = append(g.allowed, pkcs11.CKM_RSA_PKCS, pkcs11.CKM_RSA_PKCS_PSS)
	}
	if g.Decrypt {
		g.allowed = append(g.allowed, pkcs11.CKM_RSA_X_509)
	}
	return g, nil
}

func (s *Store) generate(ctx context.Context, cfg *Config, t *target, g *generation, load loader) (KeyInfo, error) {
	// One session, which may write.
	mod, err := s.module(ctx, t.uri.ModulePath, load)
	if err != nil {
		return KeyInfo{}, err
	}
	var slot uint
	var info pkcs11.TokenInfo
	if err := within(ctx, func() (err error) { slot, info, err = slotOf(ctx, mod, t.uri); return err }); err != nil {
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
		found, err = t.discover(session, demands{})
		return err
	})
	switch {
	case err != nil:
		return KeyInfo{}, err
	case len(found) != 1:
		return KeyInfo{}, fmt.Errorf("the token has %d keys instead of the one that was made", len(found))
	case found[0].info.Problem != nil:
		return KeyInfo{}, fmt.Errorf("the key was made, but cannot be used: %w", found[0].info.Problem)
	case found[0].info.Extractable || !found[0].info.Sensitive:
		return KeyInfo{}, errors.New("the key was made, but the token did not do as it was told: the key can be taken off it (CKA_EXTRACTABLE is true or CKA_SENSITIVE false)")
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
	err := withOptional(g.lasting(), func(lasting []*pkcs11.Attribute) error {
		_, _, err := s.GenerateKeyPair(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(g.mechanism, nil)}, public, append(private, lasting...))
		return err
	})
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)) {
		return fmt.Errorf("the token cannot make keys of the type %s: %w", g.Type, err)
	}
	if err != nil {
		return fmt.Errorf("C_GenerateKeyPair: %w", err)
	}
	return nil
}

// lasting returns what keeps the private key as it is made. Not every token
// knows these attributes.
func (g *generation) lasting() []*pkcs11.Attribute {
	var allowed []byte // an array of CK_MECHANISM_TYPE (PKCS #11, "CKA_ALLOWED_MECHANISMS")
	for _, mechanism := range g.allowed {
		allowed = append(allowed, pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, mechanism).Value...)
	}
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, allowed),
		pkcs11.NewAttribute(pkcs11.CKA_COPYABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false),
	}
}

// withOptional calls f with all three attributes or, as long as the token
// refuses the template, with fewer: first without one, then without two.
func withOptional(three []*pkcs11.Attribute, f func([]*pkcs11.Attribute) error) (err error) {
	for _, without := range []int{0b000, 0b001, 0b010, 0b100, 0b011, 0b101, 0b110, 0b111} {
		var with []*pkcs11.Attribute
		for i, attribute := range three {
			if without>>i&1 == 0 {
				with = append(with, attribute)
			}
		}
		if err = f(with); !refusesTemplate(err) {
			return err
		}
	}
	return err
}

func refusesTemplate(err error) bool {
	for _, rv := range []pkcs11.Error{
		pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_TEMPLATE_INCONSISTENT,
	} {
		if errors.Is(err, rv) {
			return true
		}
	}
	return false
}
