package edgeserver

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// Whatever is done to the certificate files of sites whose handshakes succeed, all
// handshakes go on succeeding, and all that can be served comes to be served.
func TestNoSequenceOfReloadsBreaksASiteThatWorks(t *testing.T) {
	p, authority := newPKI(t), newPKI(t) // whose keys no key server has
	names := []string{"a.test", "b.test", "c.test"}
	served := map[ski.KeyID]bool{} // by the key server
	works := func(leaf *x509.Certificate, name string) bool {
		return invalid(leaf, time.Now()) == "" && covers(leaf, name) && served[ski.CertificateKeyID(leaf)]
	}
	keys := []crypto.Signer{sharedRSA(), otherRSA()}
	for range 4 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
		require.NoError(t, err)
		keys = append(keys, key)
	}
	content := func(key crypto.Signer, from, life time.Duration, names ...string) []byte {
		data, err := os.ReadFile(authority.issueFrom(t, key, time.Now().Add(from), life, names...))
		require.NoError(t, err)
		return data
	}
	for _, i := range []int{0, 2} {
		served[pair{key: keys[i]}.id()] = true
		p.keys.Add(keys[i])
	}
	pool := map[string][]string{}
	cfg := Config{KeyServer: fixed}
	for i, name := range names {
		for _, file := range []string{name + ".1", name + ".2", "shared"} {
			file = filepath.Join(p.dir, file)
			pool[name] = append(pool[name], file)
			require.NoError(t, os.WriteFile(file, content(keys[2], -time.Hour, month, names...), 0o600))
		}
		engine := []string{EngineStandard, EngineSplit, EngineStandard}[i]
		cfg.Sites = append(cfg.Sites, Site{Names: []string{name}, Certificates: pool[name][:1], Static: p.dir, Engine: engine})
	}
	e := start(t, cfg, p.transport())
	e.renewalPause = 2 * time.Millisecond
	pick := func(n int) bool { return rand.N(n) == 0 }
	var done []string
	for range 400 {
		done = done[max(0, len(done)-20):]
		if pick(6) {
			key := keys[rand.N(len(keys))]
			served[pair{key: key}.id()] = true
			p.keys.Add(key)
			done = append(done, "add "+pair{key: key}.id().String()[:6])
		}
		if pick(12) { // Another key that nobody has.
			key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
			require.NoError(t, err)
			keys[2+rand.N(4)] = key
		}
		name := names[rand.N(3)]
		file := pool[name][rand.N(3)]
		key := keys[rand.N(len(keys))]
		data := content(key, -time.Hour, month, names...)
		what := "key " + pair{key: key}.id().String()[:6]
		switch rand.N(10) {
		case 0:
			data, what = data[:len(data)-50], "broken"
		case 1:
			data, what = content(key, time.Hour, month, names...), what+" not yet"
		case 2:
			data, what = content(key, -time.Hour, -time.Minute, names...), what+" expired"
		case 3:
			data, what = content(key, -time.Hour, month, name), what+" only "+name
		}
		require.NoError(t, os.WriteFile(file, data, 0o600))
		done = append(done, filepath.Base(file)+" "+what)
		sites := slices.Clone(cfg.Sites)
		if pick(2) {
			i := rand.N(3)
			files := slices.Clone(pool[names[i]])
			rand.Shuffle(3, func(i, j int) { files[i], files[j] = files[j], files[i] })
			sites[i].Certificates = files[:1+rand.N(3)]
			done = append(done, names[i]+": "+strings.ReplaceAll(strings.Join(sites[i].Certificates, " "), p.dir+"/", ""))
		}
		next := cfg
		next.Sites = sites
		_, err := e.Reload(next, over(p.transport()))
		if err != nil {
			done = append(done, "refused")
		} else {
			cfg = next
		}
		require.Eventually(t, func() bool {
			for _, info := range e.Sites() {
				for _, leaf := range info.Leaves {
					if works(leaf, info.Names[0]) && !slices.ContainsFunc(info.Served, leaf.Equal) {
						return false
					}
				}
			}
			return true
		}, time.Minute, time.Millisecond, "what works is not served: %v", done)
		for _, info := range e.Sites() {
			require.NotEmpty(t, info.Served)
			for _, leaf := range info.Served {
				require.True(t, works(leaf, info.Names[0]), "%s: key %s, %s: %s", info.Names[0],
					ski.CertificateKeyID(leaf), invalid(leaf, time.Now()), strings.Join(done, "\n"))
			}
		}
	}
}
