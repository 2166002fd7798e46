package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/tlsski/tlsski/cmd/internal/skiurl"
	"github.com/tlsski/tlsski/edgeserver"
	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skihttp"
)

// keyServers are the clients of the key servers, by the names sites call them.
type keyServers map[string]*skiurl.Set

// start begins to look their names up.
func (all keyServers) start() {
	for _, set := range all {
		set.Start()
	}
}

// Close closes them all.
func (all keyServers) Close() {
	for _, set := range all {
		set.Close()
	}
}

// newServer makes the edge server and its clients of the key servers, of which
// it needs none where it has its own.
func newServer(cfg edgeserver.Config, own ownKeyServer, log *slog.Logger) (*edgeserver.Server, keyServers, error) {
	if own != nil {
		srv, err := edgeserver.New(cfg, own, log)
		return srv, nil, err
	}
	all := keyServers{}
	srv, err := all.newServer(cfg, log)
	if err != nil {
		all.Close()
		return nil, nil, err
	}
	return srv, all, nil
}

func (all keyServers) newServer(cfg edgeserver.Config, log *slog.Logger) (*edgeserver.Server, error) {
	transports := map[string]ski.Transport{}
	var identities []tls.Certificate
	bySHA1 := map[string]*skihttp.JavaKeyServer{} // whose keys have the names of certificates
	used := cfg.UsedKeyServers()
	for _, name := range slices.Sorted(maps.Keys(used)) {
		k := used[name]
		cc := skiurl.Config{ServerName: k.ServerName, Logger: log}
		var err error
		if k.PSK != "" {
			cc.PSK, err = k.PreSharedKey()
		} else {
			cc.Certificate, cc.RootCAs, err = k.Credentials()
		}
		if err != nil {
			return nil, err
		}
		if k.JavaNames != "" {
			cc.Java = new(skihttp.JavaKeyServer)
		}
		if k.JavaNames == "sha1" {
			bySHA1[name] = cc.Java
		}
		client := &ski.Client{Timeout: k.Timeout, Balance: k.Balance, MaxExtra: k.Hedge.MaxExtra}
		set, err := skiurl.NewSet(k.Endpoints(), cc, client, nil)
		if wrong := (*skiurl.URLError)(nil); errors.As(err, &wrong) {
			return nil, cfg.ErrorAt(cfg.URLField(name, wrong.Index), wrong.Err)
		}
		client.OnHealth = func(h ski.Health) {
			logHealth(log, h)
			if !h.Answers {
				set.Kick()
			}
		}
		all[name], transports[name] = set, client
		identities = append(identities, cc.Certificate)
	}
	srv, err := edgeserver.NewWithKeyServers(cfg, transports, log)
	if err != nil {
		return nil, err
	}
	for _, identity := range identities {
		if err := notASiteKey(identity, srv.Sites()); err != nil {
			srv.Close()
			return nil, err
		}
	}
	for name, java := range bySHA1 { // before anything is asked
		java.KeyName = certificateNames(srv.Sites(), name)
	}
	return srv, nil
}

// certificateNames names keys for the key server in Java by the certificates of
// the sites that use it: elsewhere the same key may have another certificate.
func certificateNames(sites []edgeserver.SiteInfo, keyServer string) func(ski.KeyID) (string, error) {
	var all []*x509.Certificate
	for _, site := range sites {
		if site.KeyServer == keyServer {
			all = append(all, site.Leaves...)
		}
	}
	return skihttp.CertificateNames(all...)
}

func logHealth(log *slog.Logger, h ski.Health) {
	if h.Answers {
		log.Info("the key server answers again", "keyserver", h.Endpoint, "after", h.Down.Round(time.Millisecond))
	} else {
		log.Warn("the key server does not answer", "keyserver", h.Endpoint, "error", h.Err)
	}
}

// endpoints returns the URLs of all key servers that sites use, those of keyserver
// first.
func endpoints(cfg edgeserver.Config) (urls []string) {
	used := cfg.UsedKeyServers()
	for _, name := range slices.Sorted(maps.Keys(used)) {
		for _, url := range used[name].Endpoints() {
			if !slices.Contains(urls, url) {
				urls = append(urls, url)
			}
		}
	}
	return urls
}

// notASiteKey refuses an identity on the SKI channel whose key is also that of
// a site: the edge server would then have what it must not have.
func notASiteKey(identity tls.Certificate, sites []edgeserver.SiteInfo) error {
	if identity.Leaf == nil {
		return nil // It is a pre-shared key.
	}
	id := ski.CertificateKeyID(identity.Leaf)
	for _, site := range sites {
		for i, leaf := range site.Leaves {
			if ski.CertificateKeyID(leaf) == id {
				return fmt.Errorf("keyserver.key is the private key of the site certificate %s: "+
					"an edge server must not have it, give the edge a key of its own", site.Certificates[i])
			}
		}
	}
	return nil
}
