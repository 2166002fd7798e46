package edgeserver

import (
	"context"
	"crypto"
	"crypto/tls"
	"net"
	"slices"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
	"github.com/tlsski/tlsski/ski"
)

// The values of Site.Engine.
const (
	// EngineStandard is crypto/tls.
	EngineStandard = "standard"
	// EngineSplit is the TLS 1.2 of this project: the session keys are derived
	// in it from the PreMasterSecret.
	EngineSplit = "split"
)

// secureConn is a TLS connection of either engine.
type secureConn interface {
	stream
	HandshakeContext(context.Context) error
	ConnectionState() tls.ConnectionState
	NetConn() net.Conn
}

// engines begin TLS connections: with crypto/tls, or with the split engine
// where the site of the client's server name wants that.
type engines struct {
	sites    *sites
	standard *tls.Config
	// anySplit says that a site has the split engine, all that every connection
	// is for it, whatever the ClientHello says.
	anySplit, all bool
}

func newEngines(table *sites, standard *tls.Config) engines {
	e := engines{sites: table, standard: standard, all: true}
	for _, s := range table.all {
		isSplit := s.split != nil
		e.anySplit = e.anySplit || isSplit
		e.all = e.all && isSplit && !s.has(ski.TLS13)
	}
	return e
}

// begin returns the TLS connection over c. Where both engines are in use it
// reads the ClientHello first, for which it waits no longer than ctx.
func (e *engines) begin(ctx context.Context, c *conn) (secureConn, error) {
	useSplit := e.all
	if e.anySplit && !e.all {
		stop := context.AfterFunc(ctx, func() { c.Conn.Close() })
		defer stop()
		hello, read, err := split.Peek(c.Conn)
		if err != nil {
			return nil, err
		}
		c.replay = read
		useSplit = e.isForSplit(c.LocalAddr(), hello)
	}
	c.engine = EngineStandard
	if useSplit {
		c.engine = EngineSplit
		return split.Server(c, e.splitConfig), nil
	}
	return tls.Server(c, e.standard), nil
}

// isForSplit decides for a ClientHello, or for what was none, which then is
// crypto/tls's to refuse.
func (e *engines) isForSplit(local net.Addr, hello *split.ClientHello) bool {
	if hello == nil {
		return false
	}
	s := e.sites.at(local).find(hello.ServerName)
	return s != nil && s.split != nil && !(s.has(ski.TLS13) && hello.Supports13())
}

// splitConfig is split.GetConfig.
func (e *engines) splitConfig(ctx context.Context, hello *split.ClientHello) (*split.Config, error) {
	c := connFrom(ctx)
	bound := e.sites.bind(c, hello.ServerName)
	if err := c.begin(); err != nil {
		return nil, err
	}
	if !bound || c.site.split == nil {
		return nil, nil
	}
	c.site.awaitAnswer(ctx)
	config := c.site.served.Load().split
	if c.site.refusesHTTP(hello.ALPNProtocols) {
		other := *config
		other.NextProtos = notHTTP
		return &other, nil
	}
	return config, nil
}

// has reports whether the site serves a version: one of its Versions, or of the
// engine's defaults.
func (s *Site) has(p ski.Protocol) bool {
	if len(s.Versions) == 0 {
		return s.Engine != EngineSplit || p == ski.TLS12
	}
	return slices.Contains(s.Versions, string(p))
}

// splitConfig returns what the split engine is to do for the site, but for the
// Chains, which can be others later.
func (s *site) splitConfig(keys *keyLog) *split.Config {
	cfg := &split.Config{
		StaticRSA:          s.StaticRSA,
		Groups:             s.groupCodes(),
		NextProtos:         s.nextProtos(),
		LegacyMasterSecret: s.LegacyMasterSecret,
		KeyServerEphemeral: s.Method == string(ski.MethodECDHEPMS),
		TLS13:              s.has(ski.TLS13) && !s.draft,
		TicketKeys:         s.splitTickets(),
		KeyLog:             keys.masterSecret(),
	}
	s.askClientsOfSplit(cfg)
	return cfg
}

// splitChains returns the chains as the split engine has them.
func splitChains(chains []*ski.Certificate) (all []*split.Chain) {
	for _, chain := range chains {
		standard := chain.ForClientHello(&tls.ClientHelloInfo{})
		key := chain.Key
		signedBy, _ := split.SignedBy(standard.Certificate) // loadChain has parsed them all
		all = append(all, &split.Chain{
			Certificates: standard.Certificate,
			Leaf:         chain.Leaf,
			Schemes:      standard.SupportedSignatureAlgorithms,
			SignedBy:     signedBy,
			Key: func(ctx context.Context, c ski.Connection) crypto.MessageSigner {
				return key.ForConnection(ctx, c).PrivateKey()
			},
			Ephemeral: func(ctx context.Context, c ski.Connection, group tls.CurveID, randoms []byte, opts crypto.SignerOpts) (*split.Ephemeral, error) {
				made, err := key.ForConnection(ctx, c).NewEphemeral(ctx, group, randoms, opts)
				if err != nil {
					return nil, err
				}
				return &split.Ephemeral{Params: made.Params, Signature: made.Signature, PreMasterSecret: made.PreMasterSecret}, nil
			},
		})
	}
	return all
}
