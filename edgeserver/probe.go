package edgeserver

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"strconv"
	"sync"

	"github.com/tlsski/tlsski/ski"
)

// SiteInfo describes a site that is ready to serve.
type SiteInfo struct {
	Site
	// Leaves are the first certificates of Site.Certificates, in their order.
	Leaves []*x509.Certificate
}

// Sites returns what the Server serves, in the order of the Config.
func (s *Server) Sites() []SiteInfo {
	var infos []SiteInfo
	for _, site := range s.current().sites.all {
		info := SiteInfo{Site: site.Site}
		for _, chain := range site.chains {
			info.Leaves = append(info.Leaves, chain.Leaf)
		}
		infos = append(infos, info)
	}
	return infos
}

// Probe asks the key server, each of several, for the key of each certificate, and
// logs a warning for each that it would not use or that it cannot be asked for.
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
		for i, chain := range site.chains {
			for name, asked := range all {
				wg.Go(func() { s.probe(ctx, site, name, asked, site.Certificates[i], chain.Key.ID()) })
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
		all[name] = asking{one, a.timeout, a.known}
	}
	return all
}

func (s *Server) probe(ctx context.Context, site *site, keyServer string, asked asking, file string, key ski.KeyID) {
	err := site.ask(ctx, asked, key)
	log := s.log.With("site", site.label, "certificate", file, "spki", key)
	if keyServer != "" {
		log = log.With("keyserver", keyServer)
	}
	switch {
	case err == nil:
		log.Info("the key server has the key")
	case ctx.Err() != nil: // The edge server stops.
	default:
		log.Warn("the key server does not serve the key: handshakes will fail",
			"reason", reason(err), "error", err)
	}
}

// ask asks a key server for one of the site's keys, and returns nil if it would
// use it.
func (s *site) ask(ctx context.Context, asked asking, key ski.KeyID) error {
	// The input is what no handshake needs signed. That a key server finds
	// that malformed means that it has the key and would use it for this
	// edge: it looks for those first.
	req := &ski.Request{Protocol: ski.TLS12, SPKI: key, Hash: ski.SHA256, Input: []byte{0}}
	if s.Method == string(ski.MethodECDHEPMS) {
		req.Method, req.Group = ski.MethodECDHEPMS, tls.CurveP256
	}
	if !s.draft && len(s.Names) > 0 && s.Names[0][0] != '*' {
		req.ServerName = s.Names[0]
	}
	if s.java {
		req.Input = javaProbe()
	}
	resp, err := asked.RoundTrip(ctx, req)
	if err == nil && resp.Error != ski.MalformedRequest {
		err = resp.Err()
	}
	return err
}
