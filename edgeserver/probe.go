package edgeserver

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strconv"
	"strings"
	"sync"

	"github.com/tlsski/tlsski/ski"
)

// SiteInfo describes a site that is ready to serve.
type SiteInfo struct {
	Site
	// Leaves are the first certificates of Site.Certificates, in their order. Of a
	// file that cannot be used any more it is the one that it had.
	Leaves []*x509.Certificate
	// Served are those that clients get: others where Server.Pending names some.
	Served []*x509.Certificate
}

// Sites returns what the Server serves, in the order of the Config.
func (s *Server) Sites() []SiteInfo {
	return s.current().sites.infos()
}

func (t *sites) infos() (infos []SiteInfo) {
	for _, site := range t.all {
		info := SiteInfo{Site: site.Site}
		site.renewing.Lock()
		for _, place := range site.slots {
			info.Leaves = append(info.Leaves, place.chain().Leaf)
			if place.now != nil {
				info.Served = append(info.Served, place.now.Leaf)
			}
		}
		site.renewing.Unlock()
		infos = append(infos, info)
	}
	return infos
}

// Probe asks the key server, each of several, for the key of each certificate that
// is served, and logs a warning for each that it would not use or that it cannot be
// asked for. Those that wait (Pending) are asked for anyway.
// It returns when all answers are there, at the latest after KeyServer.Timeout.
func (s *Server) Probe(ctx context.Context) {
	g := s.current()
	if !g.acquire() { // It has ended.
		return
	}
	defer g.release()
	var wg sync.WaitGroup
	for _, site := range g.sites.all {
		all := site.asking.each()
		for file, chain := range site.inUse() {
			for name, asked := range all {
				wg.Go(func() { s.probe(ctx, site, name, asked, file, chain) })
			}
		}
	}
	wg.Wait()
}

// javaProbe is an input that the key server in Java signs: it looks at nothing but
// the length, and at that before it looks for the key. It is as good as random:
// nobody has the private half of its key.
func javaProbe() []byte {
	input := make([]byte, 2*ski.RandomLen)
	rand.Read(input)
	private, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	point := private.PublicKey().Bytes()
	return append(append(input, 3, 0, byte(tls.CurveP256), byte(len(point))), point...)
}

// each returns the key servers, by name where there are several. A key that one
// of them lacks shows otherwise only when that one's turn comes.
func (a asking) each() map[string]asking {
	pool, ok := a.transport.(interface{ Members() []ski.Transport })
	if !ok {
		a.notFound = nil
		return map[string]asking{"": a}
	}
	all := map[string]asking{}
	for i, t := range pool.Members() {
		name := strconv.Itoa(i)
		if named, ok := t.(interface{ Endpoint() string }); ok {
			name = named.Endpoint()
		}
		one := &ski.Client{Transports: []ski.Transport{t}, Timeout: a.timeout}
		if client, ok := pool.(*ski.Client); ok {
			one.OnAttempt = client.OnAttempt
		}
		all[name] = asking{transport: one, timeout: a.timeout, known: a.known}
	}
	return all
}

func (s *Server) probe(ctx context.Context, site *site, keyServer string, asked asking, file string, chain *ski.Certificate) {
	log := s.log.With("site", site.label, "certificate", file, "spki", chain.Key.ID())
	if keyServer != "" {
		log = log.With("keyserver", keyServer)
	}
	served := true
	for _, question := range site.questions(chain) {
		groups, err := asked.refuses(ctx, question)
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil: // The edge server stops.
			return
		}
		served = false
		refused := log
		if len(groups) > 0 {
			refused = log.With("groups", strings.Join(groups, ", "))
		}
		refused.Warn("the key server does not serve the key: handshakes will fail",
			"protocol", question.Protocol, "method", question.Method, "reason", reason(err), "error", err)
		if !errors.Is(err, ski.RequestDenied) {
			return // The others have the same answer, or none.
		}
	}
	if served {
		log.Info("the key server has the key")
	}
}

// inquiry is a kind of question that handshakes ask, for each group that their
// ephemeral keys can have. There is none where the key server sees none.
type inquiry struct {
	ski.Request
	groups []tls.CurveID
}

// questions returns one for each kind of question that handshakes with a chain ask:
// a key server can deny one and grant another.
//
// The input is what no handshake needs signed or decrypted. That a key server finds
// that malformed means that it has the key and would use it for this edge: it
// looks for those first.
func (s *site) questions(chain *ski.Certificate) (all []inquiry) {
	add := func(req ski.Request, groups ...tls.CurveID) {
		req.SPKI, req.Input = chain.Key.ID(), []byte{0}
		if !s.draft && len(s.Names) > 0 && s.Names[0][0] != '*' {
			req.ServerName = s.Names[0]
		}
		if s.java {
			req.Input, groups = javaProbe(), nil
		}
		all = append(all, inquiry{req, groups})
	}
	if s.has(ski.TLS12) {
		req := ski.Request{Protocol: ski.TLS12, Method: ski.MethodECDHE, Hash: ski.SHA256}
		if s.Method == string(ski.MethodECDHEPMS) {
			req.Method = ski.MethodECDHEPMS
		}
		add(req, s.groupCodes()...)
		if _, ok := chain.Leaf.PublicKey.(*rsa.PublicKey); ok && s.StaticRSA && !s.java {
			add(ski.Request{Protocol: ski.TLS12, Method: ski.MethodRSA})
		}
	}
	if s.has(ski.TLS13) && !s.draft && !s.java {
		add(ski.Request{Protocol: ski.TLS13, Method: ski.MethodECDHE, Scheme: scheme(chain.Leaf.PublicKey)})
	}
	return all
}

// requests returns what is asked, for each of the groups.
func (q inquiry) requests() []*ski.Request {
	if len(q.groups) == 0 {
		return []*ski.Request{&q.Request}
	}
	var all []*ski.Request
	for _, group := range q.groups {
		req := q.Request
		if req.Method == ski.MethodECDHEPMS {
			req.Group = group
		} else { // parameters that end behind the group, which a policy can judge by
			req.Input = append(make([]byte, 2*ski.RandomLen), 3, byte(group>>8), byte(group))
		}
		all = append(all, &req)
	}
	return all
}

// with returns the question for another chain.
func (q inquiry) with(chain *ski.Certificate) inquiry {
	q.SPKI = chain.Key.ID()
	if q.Scheme != 0 {
		q.Scheme = scheme(chain.Leaf.PublicKey)
	}
	return q
}

// scheme returns a signature scheme of TLS 1.3 for a key (RFC 8446, Section 4.2.3).
func scheme(key crypto.PublicKey) tls.SignatureScheme {
	switch key := key.(type) {
	case ed25519.PublicKey:
		return tls.Ed25519
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P384():
			return tls.ECDSAWithP384AndSHA384
		case elliptic.P521():
			return tls.ECDSAWithP521AndSHA512
		}
		return tls.ECDSAWithP256AndSHA256
	}
	return tls.PSSWithSHA256
}

// refuses asks a question for each of its groups. It returns those for which the
// key server would not do what the question is for, and an error that says why.
func (a asking) refuses(ctx context.Context, q inquiry) (groups []string, err error) {
	for i, req := range q.requests() {
		one := a.would(ctx, req)
		if one == nil {
			continue
		}
		if err = one; len(q.groups) > 0 {
			groups = append(groups, groupName(q.groups[i]))
		}
		if !errors.Is(err, ski.RequestDenied) {
			return groups, err // The others have the same answer, or none.
		}
	}
	return groups, err
}

// would returns nil if the key server would do what a request is for.
func (a asking) would(ctx context.Context, req *ski.Request) error {
	resp, err := a.RoundTrip(ctx, req)
	if err == nil && resp.Error != ski.MalformedRequest {
		err = resp.Err()
	}
	return err
}
