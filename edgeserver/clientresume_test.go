package edgeserver

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestAClientCertificateThatHasExpiredIsNotResumed: a session ends with it.
func TestAClientCertificateThatHasExpiredIsNotResumed(t *testing.T) {
	p, ca := newPKI(t), newClientCA(t, "authority")
	for _, way := range ways {
		e := start(t, Config{Sites: []Site{{
			Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir, Engine: way.engine,
			ClientCertificates: ClientCertificates{Mode: ClientCertificatesRequired, CA: ca.file},
		}}}, p.transport())
		cache, alice, later := new(oneSession), ca.alice(t), time.Duration(0)
		clock := func() time.Time { return time.Now().Add(later) }
		site := e.sites.all[0]
		site.config.Time = clock
		if site.split != nil {
			site.split.Time = clock
		}
		visits := func() (resumed bool, err error) {
			e := e.on(e.also(t, "127.0.0.1:0")) // which serves after what was set before
			state, err := e.dialAndRead(p, &tls.Config{
				ServerName: "a.test", MaxVersion: way.version, ClientSessionCache: cache, Certificates: []tls.Certificate{alice}})
			if err != nil {
				return false, err
			}
			return state.DidResume, nil
		}
		for _, want := range []bool{false, true} {
			resumed, err := visits()
			require.NoError(t, err)
			assert.Equal(t, want, resumed, way.name)
		}
		later = 2 * time.Hour
		_, err := visits()
		assertAlert(t, 45, err) // certificate_expired, of a full handshake
	}
}
