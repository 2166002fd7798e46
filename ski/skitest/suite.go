package skitest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Case is one rule that a key server keeps.
type Case struct {
	// Name is the group and the case: "attributes/spki-missing".
	Name string
	// Section is what demands it: "draft, Section 5.2", an RFC's section, or a
	// section of docs/protocol.md where the draft is silent.
	Section string
	// Rule is what is demanded.
	Rule string
	// Extension is set where the rule is about an extension to the draft.
	Extension bool
	// Needs is what a Config must have, or the case is skipped.
	Needs []Need
	// Formats are those that the case exists in. nil means both.
	Formats []ski.Format

	run   func(t *trial) error
	waits time.Duration // what it takes beside the key server's answers
}

// Need is something that a case cannot do without.
type Need string

// The needs.
const (
	NeedSigner    Need = "a key that signs"
	NeedECDSA     Need = "an ECDSA key"
	NeedP256      Need = "an ECDSA key on P-256"
	NeedRSA       Need = "an RSA key"
	NeedEd25519   Need = "an Ed25519 key"
	NeedDenied    Need = "a key that exists and is not granted"
	NeedStranger  Need = "a connection with a certificate of another authority"
	NeedAnonymous Need = "a connection without a certificate"
	NeedCoAP      Need = "the CoAP binding"
	NeedWire      Need = "a binding of the network"
	NeedRandom    Need = "rsa_failure: random"
	NeedErrorRSA  Need = "rsa_failure: error"
	NeedStaticRSA Need = "the method RSA granted"
	NeedPatience  Need = "patience: more than half a minute"
)

// Config is what the cases know of the key server.
type Config struct {
	// Exchanger reaches it, as an edge server that may use Keys. Required.
	Exchanger Exchanger
	// Binding is "coap" for CoAP over any transport, "http", or "" for none.
	Binding string
	// Keys are the public halves of keys that the edge may use for what the
	// method and the type of key allow. The first of each type is used.
	Keys []crypto.PublicKey
	// Denied is the public half of a key that the key server has and the edge
	// may not use. nil means that there is none.
	Denied crypto.PublicKey
	// RSAFailureError says that the key server answers a wrong PreMasterSecret
	// with 'malformed request', the draft's letter, and not with a secret that
	// looks right (docs/protocol.md, section 3.7).
	RSAFailureError bool
	// NoStaticRSA says that no key may be used with the method RSA.
	NoStaticRSA bool
	// Patience says that cases which wait for something to expire are run.
	Patience bool
	// Stranger reaches the key server with a certificate that its authorities
	// have not issued, Anonymous with none. nil means that neither can be done.
	Stranger, Anonymous Exchanger
	// Formats are those to run. nil means both.
	Formats []ski.Format
	// Skip names what is out of scope: a case ("rsa/padding"), a group ("rsa"),
	// "extensions", or a format ("json"). A name may begin with a format:
	// "json/attributes/spki-missing".
	Skip []string
	// Timeout bounds a case, beside what it waits by itself. 0 means 10 s.
	Timeout time.Duration
}

// Outcome is how a case ended.
type Outcome string

// The outcomes.
const (
	Pass Outcome = "pass"
	Fail Outcome = "fail"
	Skip Outcome = "skip"
)

// Result is what came of a case in one format.
type Result struct {
	Case     Case
	Format   ski.Format
	Outcome  Outcome
	Reason   string // of a failure or a skip
	Duration time.Duration
}

// Name is that of the case in its format: "cbor/attributes/spki-missing".
func (r *Result) Name() string { return strings.ToLower(r.Format.String()) + "/" + r.Case.Name }

// Run runs all cases one after the other and hands each result to report. The
// error says what is wrong with the Config; it is also that of a context that
// ends.
func Run(ctx context.Context, cfg Config, report func(Result)) error {
	if err := cfg.check(); err != nil {
		return err
	}
	for _, f := range cfg.formats() {
		for _, c := range Cases() {
			if len(c.Formats) > 0 && !slices.Contains(c.Formats, f) {
				continue
			}
			r := Result{Case: c, Format: f}
			if r.Reason = cfg.skips(&r); r.Reason != "" {
				r.Outcome = Skip
			} else {
				start := time.Now()
				r.Outcome, r.Reason = cfg.run(ctx, &c, f)
				r.Duration = time.Since(start)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			report(r)
		}
	}
	return nil
}

func (cfg *Config) run(ctx context.Context, c *Case, f ski.Format) (Outcome, string) {
	timeout := cfg.Timeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout+c.waits)
	defer cancel()
	if err := c.run(&trial{ctx: ctx, cfg: cfg, format: f}); err != nil {
		return Fail, err.Error()
	}
	return Pass, ""
}

// check finds names in Skip that are no names: a typing error would run what
// was to be skipped, or skip nothing in silence.
func (cfg *Config) check() error {
	if cfg.Exchanger == nil {
		return fmt.Errorf("skitest: Config needs an Exchanger")
	}
	known := map[string]bool{"extensions": true}
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		format := strings.ToLower(f.String())
		known[format] = true
		for _, c := range Cases() {
			group, _, _ := strings.Cut(c.Name, "/")
			for _, name := range []string{group, c.Name} {
				known[name], known[format+"/"+name] = true, true
			}
		}
	}
	for _, name := range cfg.Skip {
		if !known[strings.ToLower(name)] {
			return fmt.Errorf("skitest: %q is neither a case nor a group, a format or extensions", name)
		}
	}
	return nil
}

func (cfg *Config) formats() []ski.Format {
	if cfg.Formats == nil {
		return []ski.Format{ski.CBOR, ski.JSON}
	}
	return cfg.Formats
}

// skips returns why a case is skipped, or nothing.
func (cfg *Config) skips(r *Result) string {
	for _, name := range cfg.Skip {
		name = strings.ToLower(name)
		if name == "extensions" && r.Case.Extension ||
			strings.HasPrefix(r.Name()+"/", name+"/") || strings.HasPrefix(r.Case.Name+"/", name+"/") {
			return "out of scope: " + name
		}
	}
	for _, need := range r.Case.Needs {
		if !cfg.has(need) {
			return "needs " + string(need)
		}
	}
	return ""
}

func (cfg *Config) has(need Need) bool {
	switch need {
	case NeedSigner:
		return len(cfg.Keys) > 0
	case NeedECDSA:
		return keyOf[*ecdsa.PublicKey](cfg) != nil
	case NeedP256:
		pub := keyOf[*ecdsa.PublicKey](cfg)
		return pub != nil && pub.Params().BitSize == 256
	case NeedRSA:
		return keyOf[*rsa.PublicKey](cfg) != nil
	case NeedStaticRSA:
		return keyOf[*rsa.PublicKey](cfg) != nil && !cfg.NoStaticRSA
	case NeedEd25519:
		return keyOf[ed25519.PublicKey](cfg) != nil
	case NeedDenied:
		return cfg.Denied != nil
	case NeedStranger:
		return cfg.Stranger != nil
	case NeedAnonymous:
		return cfg.Anonymous != nil
	case NeedCoAP:
		return cfg.Binding == "coap"
	case NeedWire:
		return cfg.Binding != ""
	case NeedRandom:
		return !cfg.RSAFailureError
	case NeedErrorRSA:
		return cfg.RSAFailureError
	case NeedPatience:
		return cfg.Patience
	}
	return false
}

// keyOf returns the first key of a type, or that type's zero value.
func keyOf[T crypto.PublicKey](cfg *Config) (key T) {
	for _, k := range cfg.Keys {
		if key, ok := k.(T); ok {
			return key
		}
	}
	return key
}
