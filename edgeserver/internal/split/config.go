package split

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Config is what one site wants of its connections. It is not changed while it
// is in use.
type Config struct {
	// Chains are tried in their order: a client gets the first that it
	// supports. At least one.
	Chains []*Chain
	// CipherSuites are those that are offered, whatever their order. Nil means
	// all that are implemented but TLS_RSA_*.
	CipherSuites []uint16
	// StaticRSA adds TLS_RSA_WITH_AES_128_GCM_SHA256 and
	// TLS_RSA_WITH_AES_256_GCM_SHA384, which have no forward secrecy, for
	// clients that support nothing better.
	StaticRSA bool
	// Groups are those for the ephemeral key, in order of preference, of
	// X25519, P-256, P-384 and P-521. Nil means the first three.
	Groups []tls.CurveID
	// KeyServerEphemeral has the key server make the ephemeral key (method
	// ECDHE-PMS): each of Chains needs its Ephemeral.
	KeyServerEphemeral bool
	// NextProtos are the protocols for ALPN, in order of preference. "h2" is
	// not negotiated with static RSA (RFC 9113, Section 9.2.2).
	NextProtos []string
	// LegacyMasterSecret accepts clients without extended_master_secret (RFC
	// 7627).
	LegacyMasterSecret bool
	// TLS13 says that the site can do TLS 1.3 elsewhere: its clients then find
	// the downgrade sentinel of RFC 8446, Section 4.1.3 in the server's random,
	// and TLS_FALLBACK_SCSV is taken for what it says.
	TLS13 bool
	// TicketKeys returns the keys of session tickets: the first makes tickets,
	// all of them open those of clients. Nil, or no key: no tickets.
	TicketKeys func() []TicketKey

	// ClientAuth says whether clients are asked for a certificate.
	ClientAuth ClientAuth
	// ClientCAs are the authorities of clients' certificates.
	ClientCAs *x509.CertPool
	// ClientKeys are the raw public keys (RFC 7250) that are accepted from
	// clients, by their fingerprints. None: clients cannot send one.
	ClientKeys []ski.KeyID

	// KeyLog gets each connection's master secret, in a form for debugging
	// that gives away everything that is sent. Nil, as it should be, for none.
	KeyLog func(clientRandom, masterSecret []byte)
	// Time returns the time at which certificates and tickets are valid. Nil
	// means time.Now.
	Time func() time.Time
}

// ClientAuth is a policy for clients' certificates.
type ClientAuth int

const (
	// NoClientCert does not ask for one.
	NoClientCert ClientAuth = iota
	// VerifyClientCertIfGiven asks, and accepts a client that has none. One
	// that it has must be valid.
	VerifyClientCertIfGiven
	// RequireClientCert refuses a client without a valid one.
	RequireClientCert
)

// Chain is a certificate chain, and the way to its private key.
type Chain struct {
	// Certificates are in DER, the site's own first.
	Certificates [][]byte
	// Leaf is the first of them.
	Leaf *x509.Certificate
	// Key returns the private key for one connection. It is a crypto.Decrypter
	// too where static RSA is to be possible. ski.Key is both.
	Key func(context.Context, ski.Connection) crypto.MessageSigner
	// Ephemeral has the key server make an ephemeral key for the handshake with
	// these randoms, ClientRandom + ServerRandom. It is needed only where
	// KeyServerEphemeral is set.
	Ephemeral func(ctx context.Context, c ski.Connection, group tls.CurveID, randoms []byte, opts crypto.SignerOpts) (*Ephemeral, error)
	// Schemes restricts the signature schemes. Nil means all that the key has.
	Schemes []tls.SignatureScheme
	// SignedBy are the algorithms that Certificates are signed with (SignedBy): a
	// client that names others gets another chain if there is one. Nil means
	// that no client does.
	SignedBy []x509.SignatureAlgorithm
}

// Ephemeral is a key server's ephemeral key for one handshake (method
// ECDHE-PMS).
type Ephemeral struct {
	// Params is the ServerECDHParams, Signature their signature with the
	// randoms, both as they go into the ServerKeyExchange.
	Params, Signature []byte
	// PreMasterSecret returns the secret shared with the client whose ECDHE
	// public value is point.
	PreMasterSecret func(ctx context.Context, point []byte) ([]byte, error)
}

// isRSA reports whether the chain is for suites with RSA.
func (c *Chain) isRSA() bool {
	_, ok := c.Leaf.PublicKey.(*rsa.PublicKey)
	return ok
}

// schemes returns the signature schemes that the chain's key can do.
func (c *Chain) schemes() []tls.SignatureScheme {
	possible := schemesOf(c.Leaf.PublicKey)
	if c.Schemes == nil {
		return possible
	}
	var allowed []tls.SignatureScheme
	for _, s := range possible {
		if slices.Contains(c.Schemes, s) {
			allowed = append(allowed, s)
		}
	}
	return allowed
}

// forClient reports whether the client can verify with the leaf's key: an ECDSA
// key's curve must be among its groups (RFC 8422, Section 5.1.1).
func (c *Chain) forClient(h *ClientHello) bool {
	switch pub := c.Leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return h.Groups == nil || slices.Contains(h.Groups, groupOf(pub))
	case *rsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}

func (c *Config) groups() []tls.CurveID {
	if c.Groups == nil {
		return defaultGroups
	}
	return c.Groups
}

// enabled reports whether the site offers a suite.
func (c *Config) enabled(s *suite) bool {
	if s.staticRSA {
		return c.StaticRSA
	}
	return c.CipherSuites == nil || slices.Contains(c.CipherSuites, s.id)
}

func (c *Config) now() time.Time {
	if c.Time == nil {
		return time.Now()
	}
	return c.Time()
}

func (c *Config) ticketKeys() []TicketKey {
	if c.TicketKeys == nil {
		return nil
	}
	return c.TicketKeys()
}
