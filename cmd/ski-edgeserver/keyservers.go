package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/cmd/internal/skiurl"
	"github.com/tlsski/tlsski/edgeserver"
	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skihttp"
)

// keyServer is the client of a key server of the configuration, or of several
// with the same keys. A reload that leaves it as it is leaves its sessions, and
// what is known of who answers.
type keyServer struct {
	*skiurl.Set
	client   *ski.Client
	identity tls.Certificate        // of the edge
	bySHA1   *skihttp.JavaKeyServer // whose keys have the names of certificates; or nil
	from     madeFrom
	started  bool
	users    atomic.Int32 // the configurations it is in
}

// madeFrom is all that a keyServer depends on.
type madeFrom struct {
	cfg   string
	files [sha256.Size]byte
}

func newMadeFrom(k edgeserver.KeyServer) madeFrom {
	files := sha256.New()
	for _, name := range []string{k.Certificate, k.Key, k.CA, k.PSK} {
		data, _ := os.ReadFile(name) // Whoever needs it has the error.
		fmt.Fprintf(files, "%x\n", sha256.Sum256(data))
		clear(data)
	}
	return madeFrom{fmt.Sprintf("%#v", k), [sha256.Size]byte(files.Sum(nil))}
}

// keyServers are those of a configuration, by the names sites call them.
type keyServers map[string]*keyServer

// start begins to look the names of those up that are new.
func (all keyServers) start() {
	for _, k := range all {
		if !k.started {
			k.started = true
			k.Start()
		}
	}
}

// retry has those asked at once that refuse this edge.
func (all keyServers) retry() {
	for _, k := range all {
		k.Retry()
	}
}

// Close closes those that are in no other configuration.
func (all keyServers) Close() {
	for _, k := range all {
		if k.users.Add(-1) == 0 {
			k.Set.Close()
		}
	}
}

// transports are for edgeserver.
func (all keyServers) transports() map[string]ski.Transport {
	transports := map[string]ski.Transport{}
	for name, k := range all {
		transports[name] = k.client
	}
	return transports
}

// openKeyServers makes the clients of the key servers that sites of cfg use, or
// takes them over from before, where they are the same. count is told of each
// question to one, by its URL.
func openKeyServers(cfg edgeserver.Config, before keyServers, count func(url string, a ski.Attempt), log *slog.Logger) (keyServers, error) {
	all := keyServers{}
	used := cfg.UsedKeyServers()
	for _, name := range slices.Sorted(maps.Keys(used)) {
		k, from := before[name], newMadeFrom(used[name])
		if k == nil || k.from != from || k.bySHA1 != nil {
			var err error
			if k, err = newKeyServer(&cfg, name, used[name], log); err != nil {
				all.Close()
				return nil, err
			}
			k.from = from
			k.client.OnAttempt = func(a ski.Attempt) {
				k.Note(a)
				count(k.URL(a.Transport), a)
			}
		}
		k.users.Add(1)
		all[name] = k
	}
	return all, nil
}

func newKeyServer(cfg *edgeserver.Config, name string, k edgeserver.KeyServer, log *slog.Logger) (*keyServer, error) {
	cc := skiurl.Config{ServerName: k.ServerName, MTU: k.MTU, Logger: log}
	var err error
	if k.PSK != "" {
		cc.PSK, err = k.PreSharedKey()
	} else {
		cc.Certificate, cc.RootCAs, err = k.Credentials()
	}
	if err != nil {
		return nil, err
	}
	made := &keyServer{
		client:   &ski.Client{Timeout: k.Timeout, Balance: k.Balance, MaxExtra: k.Hedge.MaxExtra},
		identity: cc.Certificate,
	}
	if k.JavaNames != "" {
		cc.Java = &skihttp.JavaKeyServer{UnsafeStaticRSA: k.UnsafeJavaStaticRSA}
	}
	if k.JavaNames == "sha1" {
		made.bySHA1 = cc.Java
	}
	made.Set, err = skiurl.NewSet(k.Endpoints(), cc, made.client, nil)
	if wrong := (*skiurl.URLError)(nil); errors.As(err, &wrong) {
		return nil, cfg.ErrorAt(cfg.URLField(name, wrong.Index), wrong.Err)
	}
	made.client.OnHealth = func(h ski.Health) { logHealth(log, h) }
	return made, nil
}

// check refuses an identity that is a site's, and tells those that want to know
// the sites' certificates, before anything is asked.
func (all keyServers) check(sites []edgeserver.SiteInfo) error {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := notASiteKey(all[name].identity, sites); err != nil {
			return err
		}
		if java := all[name].bySHA1; java != nil {
			java.KeyName = certificateNames(sites, name)
		}
	}
	return nil
}

// certificateNames names keys for the key server in Java by the certificates of
// the sites that use it: elsewhere the same key may have another certificate.
func certificateNames(sites []edgeserver.SiteInfo, keyServer string) func(ski.KeyID) (string, error) {
	var all []*x509.Certificate
	for _, site := range sites {
		if site.KeyServer == keyServer {
			all = append(all, site.Leaves...)
			all = append(all, site.Served...)
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
