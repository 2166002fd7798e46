package hsm

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tlsski/tlsski/ski"
)

// DefaultMaxSessions is how many sessions are opened with a token.
const DefaultMaxSessions = 16

// Config says which keys a Store has. Its zero value has none.
type Config struct {
	// Keys are the keys, at least one.
	Keys []Key
	// MaxSessions is how many sessions there are with a token, and so how many
	// operations it does at once. Default 0: DefaultMaxSessions. A token that
	// has fewer sets its own limit.
	MaxSessions int
	// RequireNonExtractable refuses every key but those that nobody can get off
	// the token, nor could at any time: CKA_SENSITIVE, CKA_ALWAYS_SENSITIVE and
	// CKA_NEVER_EXTRACTABLE are true, CKA_EXTRACTABLE is false.
	RequireNonExtractable bool
	// RequireGenerated refuses every key but those that were made on the token
	// (CKA_LOCAL is true): of one that was put there, copies may exist.
	RequireGenerated bool
	// Dir is what relative paths are relative to. Default: the working folder.
	Dir string
	// Getenv returns the environment variables that pin-source=env:NAME and
	// pin-source=credential:NAME (CREDENTIALS_DIRECTORY) ask for, as os.Getenv
	// does. Default nil: there are none.
	Getenv func(string) string
	// Changed is called when a token has lost a key, and when one works again that
	// did not: Store.Reload then finds what else has changed. It must not wait, nor
	// call the Store. nil means nobody.
	Changed func()
	// Logger is told of tokens that fail and come back. Default: nobody.
	Logger *slog.Logger
}

// Key names one key, or all key pairs of a token.
type Key struct {
	// URI is a PKCS #11 URI (RFC 7512) that fits exactly one token.
	URI string
	// Name is what policies and logs call the key. Default: its CKA_LABEL, or
	// the hexadecimal digits of its CKA_ID where it has no label. Only for a URI
	// that names one key.
	Name string
	// PublicKey is a PEM file whose first certificate or public key is the
	// public half. Default: that which the token has. Only for a URI that names
	// one key.
	PublicKey string
}

// KeyInfo describes a key of a token.
type KeyInfo struct {
	// ID is the SPKI fingerprint; zero where the public half is not known.
	ID ski.KeyID `json:"spki"`
	// Name is what policies call the key.
	Name string `json:"name"`
	// Type is ec-p256, ec-p384, ec-p521, ed25519 or rsa-N with N the modulus'
	// length in bits.
	Type string `json:"type"`
	// Public is the public half.
	Public crypto.PublicKey `json:"-"`

	// URI names this one key, with module-path and without a PIN.
	URI string `json:"uri"`
	// Module, Token, Serial and Slot say where the key lives.
	Module string `json:"module"`
	Token  string `json:"token"`
	Serial string `json:"serial"`
	Slot   uint   `json:"slot"`
	// Label and CKAID are CKA_LABEL and CKA_ID, the latter in hexadecimal.
	Label string `json:"label"`
	CKAID string `json:"id"`

	// Signs and Decrypts say what the token lets the key do. Decrypts also
	// needs a token with raw RSA.
	Signs    bool `json:"signs"`
	Decrypts bool `json:"decrypts"`

	// What the token says of how well it keeps the key (PKCS #11, "Private key
	// objects"). A token that does not say is taken at its worst.
	Sensitive        bool `json:"sensitive"`
	AlwaysSensitive  bool `json:"always_sensitive"`
	Extractable      bool `json:"extractable"`
	NeverExtractable bool `json:"never_extractable"`
	Local            bool `json:"local"` // made on the token
	// Modifiable and Copyable say whether what stands here can be changed, for
	// the key or for a copy of it on the token.
	Modifiable bool `json:"modifiable"`
	Copyable   bool `json:"copyable"`
	// Mechanisms are all that the key can be used with (CKA_ALLOWED_MECHANISMS),
	// such as CKM_ECDSA; nil for no such limit.
	Mechanisms []string `json:"mechanisms,omitempty"`
	// Untold are the attributes that the token does not tell, such as CKA_LOCAL.
	Untold []string `json:"untold,omitempty"`

	// Certificates are those with this public key, on the token and in
	// Key.PublicKey.
	Certificates []*x509.Certificate `json:"-"`
	// Problem says why a Store would refuse the key; nil if it would not.
	Problem error `json:"-"`
}

// Stats is the state of one token.
type Stats struct {
	// Module, Token and Serial say which.
	Module, Token, Serial string
	// Sessions is how many there can be, Open how many there are, Busy how many
	// are in a call to the token, and Stuck how many of the busy ones are in one
	// that nobody waits for any more. Waiting is how many requests wait for a
	// session.
	Sessions, Open, Busy, Stuck, Waiting int
	// WrongSignatures is how many signatures did not fit the public half of their
	// key, and were kept back.
	WrongSignatures uint64
	// Err is why the token cannot be used at present, or nil.
	Err error
}

// ErrPIN is in the error of a token that does not take the PIN. Each further
// attempt, by another start too, brings a token closer to locking itself. A
// Store makes no second one with the same PIN.
var ErrPIN = errors.New("does not take the PIN")

// errSilent is for a token that has not returned from a call in any session.
var errSilent = errors.New("no call to it returns")

// errNoKey is for a caller that has not asked Lookup.
var errNoKey = errors.New("the key store has no such key")

// checkName keeps the name of a key apart from the other two ways in which a
// policy speaks of keys, and what no policy, log or metric can show out of them:
// a CKA_LABEL is what whoever made the key has put there.
func checkName(name string) error {
	switch _, err := ski.ParseKeyID(name); {
	case err == nil:
		return fmt.Errorf("the name %q looks like a fingerprint: choose another", name)
	case name == "", strings.Contains(name, "*"), !utf8.ValidString(name), strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("a key cannot have the name %q: choose another", name)
	}
	return nil
}

func (c *Config) changed() {
	if c.Changed != nil {
		c.Changed()
	}
}

func (c *Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

func (c *Config) path(name string) string {
	if c.Dir == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.Dir, name)
}
