package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/hsm"
	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
)

// site is the private key of a site in a file.
type site struct {
	id  ski.KeyID
	pem []byte
}

func newSite(t *testing.T) site {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, writeKey(file, key))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	id, err := ski.PublicKeyID(&key.PublicKey)
	require.NoError(t, err)
	return site{id, text}
}

// put puts a key into a file, whole.
func (s site) put(t *testing.T, file string) {
	t.Helper()
	require.NoError(t, os.WriteFile(file+".new", s.pem, 0o600))
	require.NoError(t, os.Rename(file+".new", file))
}

// answer is what the key server says of a key: "" for a signature.
func (d *daemon) answer(id ski.KeyID) ski.Error {
	d.t.Helper()
	own := *d.req
	own.SPKI = id
	resp, err := d.client.RoundTrip(d.t.Context(), &own)
	require.NoError(d.t, err)
	return resp.Error
}

// until waits for an answer.
func (d *daemon) until(id ski.KeyID, want ski.Error) {
	d.t.Helper()
	require.Eventually(d.t, func() bool { return d.answer(id) == want }, time.Minute, 10*time.Millisecond)
}

// Within its sandbox: a key comes, another goes, and comes back by a signal, and
// all the while the others are served.
func TestKeysComeAndGoWhileTheKeyServerRuns(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	first, second := d.req.SPKI, newSite(t)
	file := filepath.Join(dir, "keys", "second.test.pem")
	require.Equal(t, ski.SPKINotFound, d.answer(second.id))

	second.put(t, file)
	line := d.logged(`msg="a key is new"`)
	require.Contains(t, line, "key=second.test spki="+second.id.String())
	require.Contains(t, d.logged("msg=keys"), "new=1 gone=0 unchanged=2")
	require.Empty(t, d.answer(second.id))

	require.NoError(t, os.Remove(filepath.Join(dir, "keys", "ecdsa.test.pem")))
	require.Contains(t, d.logged(`msg="a key is gone"`), "key=ecdsa.test spki="+first.String())
	require.Equal(t, ski.SPKINotFound, d.answer(first))
	require.Empty(t, d.answer(second.id))

	d.signal(syscall.SIGHUP)
	d.logged(`msg="policy loaded"`)
	require.Equal(t, ski.SPKINotFound, d.answer(first))
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
	audit, err := os.ReadFile(filepath.Join(dir, "audit.log"))
	require.NoError(t, err)
	require.Contains(t, string(audit), `"event":"key-added","key":"`+second.id.String()+`","key_name":"second.test"`)
	require.Contains(t, string(audit), `"event":"key-removed","key":"`+first.String()+`","key_name":"ecdsa.test"`)
}

// The first half of another key is in the file of a key in use, for longer than
// files take to settle: the key goes on.
func TestAHalfWrittenFileLeavesTheKeyThatWasThere(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	file, other := filepath.Join(dir, "keys", "ecdsa.test.pem"), newSite(t)
	old := d.req.SPKI
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	require.NoError(t, err)
	defer f.Close()
	half := len(other.pem) / 2
	_, err = f.Write(other.pem[:half])
	require.NoError(t, err)
	refused := make(chan string, 1)
	go func() {
		for line := range d.log {
			if strings.Contains(line, "level=ERROR") && strings.Contains(line, "it has a PEM block that cannot be read") {
				refused <- line
				return
			}
		}
		close(refused)
	}()
	var line string
	for asked := 0; line == ""; asked++ {
		require.Empty(t, d.answer(old))
		select {
		case line = <-refused:
			require.Contains(t, line, "ecdsa.test.pem")
		default:
		}
	}
	require.Empty(t, d.answer(old))
	_, err = f.Write(other.pem[half:])
	require.NoError(t, err)
	require.NoError(t, f.Close())
	d.until(other.id, "")
	require.Equal(t, ski.SPKINotFound, d.answer(old))
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// As Kubernetes does it: the files are links into a directory that a link names,
// and that link is replaced.
func TestKeysBehindALinkThatIsReplaced(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeFiles(dir))
	at := func(names ...string) string { return filepath.Join(append([]string{dir, "keys"}, names...)...) }
	sites := []site{newSite(t), newSite(t)}
	for i, name := range []string{"..1", "..2"} {
		require.NoError(t, os.Mkdir(at(name), 0o700))
		sites[i].put(t, at(name, "www.test.pem"))
	}
	require.NoError(t, os.Symlink("..1", at("..data")))
	require.NoError(t, os.Symlink("..data/www.test.pem", at("www.test.pem")))
	d := startConfigured(t, dir, configYAML, nil)
	require.Empty(t, d.answer(sites[0].id))

	require.NoError(t, os.Symlink("..2", at("..next")))
	require.NoError(t, os.Rename(at("..next"), at("..data")))
	d.until(sites[1].id, "")
	require.Equal(t, ski.SPKINotFound, d.answer(sites[0].id))
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// As certbot does it: each file is a link to a version in a directory elsewhere,
// which the sandbox has to leave readable.
func TestKeyFilesThatAreLinksElsewhere(t *testing.T) {
	dir, archive := t.TempDir(), t.TempDir()
	require.NoError(t, os.Chmod(archive, 0o700))
	require.NoError(t, writeFiles(dir))
	sites := []site{newSite(t), newSite(t)}
	link := filepath.Join(dir, "keys", "www.test.pem")
	point := func(i int) {
		t.Helper()
		version := filepath.Join(archive, fmt.Sprintf("www%d.pem", i))
		sites[i].put(t, version)
		require.NoError(t, os.Symlink(version, link+".new"))
		require.NoError(t, os.Rename(link+".new", link))
	}
	point(0)
	d := startConfigured(t, dir, configYAML, nil)
	d.logged("msg=sandbox")
	require.Empty(t, d.answer(sites[0].id))
	point(1)
	d.until(sites[1].id, "")
	require.Equal(t, ski.SPKINotFound, d.answer(sites[0].id))
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// What takes all keys away in a moment by mistake is told from keys that were
// removed.
func TestAnUnreadableDirectoryTakesNoKeyAway(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	keys := filepath.Join(dir, "keys")
	require.NoError(t, os.Rename(keys, keys+".away"))
	d.signal(syscall.SIGHUP)
	require.Contains(t, d.logged("level=ERROR msg=keys"), "all keys stay as they were: stat "+keys)
	require.Empty(t, d.ask().Error)

	require.NoError(t, os.Mkdir(keys, 0o700))
	d.signal(syscall.SIGHUP)
	d.logged("there is no key left")
	require.Equal(t, ski.SPKINotFound, d.ask().Error)

	require.NoError(t, os.Remove(keys))
	require.NoError(t, os.Rename(keys+".away", keys))
	d.until(d.req.SPKI, "") // without a signal
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// Neither the key server's own key nor that of the audit log becomes a site's.
func TestTheKeyServersOwnKeyIsNotServed(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	own, err := os.ReadFile(filepath.Join(dir, "keyserver.key"))
	require.NoError(t, err)
	site{pem: own}.put(t, filepath.Join(dir, "keys", "own.pem"))
	require.Contains(t, d.logged("level=ERROR msg=keys"), "own: an edge could sign as this key server")
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// serverCertificate returns the certificate that the key server shows over TLS.
func serverCertificate(t *testing.T, addr string, protocols ...string) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
	require.NoError(t, err)
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// The key server's own certificate is renewed, with another key: first the one
// file, then the other. New handshakes of all bindings have the new one, and the
// sessions that stand go on.
func TestTheChannelsCertificateIsRenewedWhileTheKeyServerRuns(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}\nhttps: 127.0.0.1:0\ncoaps_tcp: 127.0.0.1:0\nmetrics: 127.0.0.1:0", nil)
	addr := func(line string) string { return regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(line)[1] }
	https := addr(d.logged(`msg="listening over HTTPS"`))
	coapTCP := addr(d.logged(`msg="listening for CoAP over TLS"`))
	metrics := addr(d.logged("msg=metrics"))
	at := func(name string) string { return filepath.Join(dir, name) }
	old := serverCertificate(t, https, "h2")
	overTCP := newCoAPClient(t, dir, "coaps+tcp://"+coapTCP+"/ski")
	askOver := func(client *skicoap.Client) {
		t.Helper()
		resp, err := client.RoundTrip(t.Context(), d.req)
		require.NoError(t, err)
		require.Empty(t, resp.Error)
	}
	askOver(d.client)
	askOver(overTCP)

	pair, err := tls.LoadX509KeyPair(at("ca.pem"), at("ca.key"))
	require.NoError(t, err)
	ca := &identity{pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)}
	next, err := newIdentity(t.TempDir(), "keyserver", ca, &x509.Certificate{
		DNSNames: []string{"keyserver.test"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(at("next.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: next.cert.Raw}), 0o644))
	require.NoError(t, writeKey(at("next.key"), next.key))

	require.NoError(t, os.Rename(at("next.pem"), at("keyserver.pem")))
	require.Contains(t, d.logged("the key server's certificate stays as it was"), "private key does not match public key")
	require.Equal(t, old.Raw, serverCertificate(t, https, "h2").Raw)
	require.NoError(t, os.Rename(at("next.key"), at("keyserver.key")))
	line := d.logged("the key server's certificate is new")
	require.Contains(t, line, "not_after="+next.cert.NotAfter.UTC().Format(time.RFC3339))

	require.Equal(t, next.cert.Raw, serverCertificate(t, https, "h2", "http/1.1").Raw)
	require.Equal(t, next.cert.Raw, serverCertificate(t, coapTCP, "coap").Raw)
	// Over DTLS an edge that trusts the new certificate alone gets a session.
	only := x509.NewCertPool()
	only.AddCert(next.cert)
	edge, err := tls.LoadX509KeyPair(at("edge.pem"), at("edge.key"))
	require.NoError(t, err)
	fresh, err := skicoap.NewClient(d.coaps, skicoap.ClientConfig{Certificate: edge, RootCAs: only, ServerName: "keyserver.test"})
	require.NoError(t, err)
	defer fresh.Close()
	askOver(fresh)
	askOver(d.client)
	askOver(overTCP)
	resp, err := http.Get("http://" + metrics + "/metrics")
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), "ski_keyserver_reload_faults{of=\"certificate\"} 0")
	require.Contains(t, string(body), "ski_keyserver_keys 2")

	d.signal(syscall.SIGTERM)
	sessions := 0
	for line := range d.log {
		if strings.Contains(line, "session begins") {
			sessions++
		}
	}
	require.Equal(t, 1, sessions, "only the one that is new")
	require.Zero(t, d.end())
}

func TestACertificateThatEdgeServersMayRefuseIsWarnedOf(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	at := func(name string) string { return filepath.Join(dir, name) }
	stranger, err := newIdentity(t.TempDir(), "other-ca", nil, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	require.NoError(t, err)
	other, err := newIdentity(dir, "other", stranger, &x509.Certificate{
		DNSNames: []string{"other.test"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	require.NoError(t, err)
	require.NoError(t, os.Rename(at("other.key"), at("keyserver.key")))
	require.NoError(t, os.Rename(at("other.pem"), at("keyserver.pem")))
	require.Contains(t, d.logged("lacks names of the one before"), "names=[keyserver.test]")
	require.Contains(t, d.logged("has another issuer"), other.cert.Issuer.String())
}

// The key of a site cannot become that of the channel either, and what is read at
// the start alone is named when it has changed.
func TestWhatCannotBeReadAgainIsSaid(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	f, err := os.OpenFile(filepath.Join(dir, "ca.pem"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("\n")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	d.signal(syscall.SIGHUP)
	require.Contains(t, d.logged("it takes a restart"), "file="+filepath.Join(dir, "ca.pem"))
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// A key is made on the token, and another is destroyed, by other programs: the one
// is served after a signal, the other is refused with the next request, and the
// token goes on.
func TestKeysOfATokenComeAndGo(t *testing.T) {
	d := startTokenDaemon(t, false)
	made, err := hsm.Generate(t.Context(), hsm.Config{Keys: []hsm.Key{{
		URI: "pkcs11:token=sites;object=other.test?pin-source=file:" + d.pin + "&module-path=" + softHSM,
	}}}, hsm.Template{Type: "ec-p256", Sign: true})
	require.NoError(t, err)
	require.Equal(t, ski.SPKINotFound, d.answer(made.ID))
	d.signal(syscall.SIGHUP)
	require.Contains(t, d.logged(`msg="a key is new"`), "key=other.test spki="+made.ID.String())
	require.Empty(t, d.answer(made.ID))

	for _, kind := range []string{"privkey", "pubkey"} {
		out, err := exec.Command("pkcs11-tool", "--module", softHSM, "--token-label", "sites", "--login", "--pin", "user-1234",
			"--delete-object", "--type", kind, "--label", "token.test").CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	require.Equal(t, ski.SPKINotFound, d.answer(d.key.ID))
	require.Contains(t, d.logged(`msg="a key is gone"`), "key=token.test spki="+d.key.ID.String())
	require.Equal(t, ski.SPKINotFound, d.answer(d.key.ID))
	require.Empty(t, d.answer(made.ID))
	require.Equal(t, "200 ok\n", d.health())
	d.signal(syscall.SIGTERM)
	for line := range d.log {
		require.NotContains(t, line, "operation failed")
		require.NotContains(t, line, "an HSM does not work")
	}
	require.Zero(t, d.end())
}

// A token that is away when it is asked again loses no key by that.
func TestATokenThatIsAwayKeepsItsKeys(t *testing.T) {
	d := startTokenDaemon(t, false)
	require.NoError(t, os.Rename(d.tokens, d.away))
	d.signal(syscall.SIGHUP)
	require.Contains(t, d.logged("level=ERROR msg=tokens"), "its keys stay as they were")
	require.Equal(t, ski.UnspecifiedError, d.ask().Error)
	require.NoError(t, os.Rename(d.away, d.tokens))
	d.until("healed", func() bool { return d.ask().Error == "" })
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// Nobody reads the audit log, at standard output, when a key goes: it is refused all
// the same, and the key server ends when it is told to.
func TestAKeyGoesAndTheKeyServerEndsWhereNobodyReadsTheAuditLog(t *testing.T) {
	dir := t.TempDir()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	d := startDaemon(t, dir, "audit: {file: '-'}", w)
	pipe := int(w.Fd())
	require.NoError(t, syscall.SetNonblock(pipe, true))
	for err == nil {
		_, err = syscall.Write(pipe, []byte{0})
	}
	require.ErrorIs(t, err, syscall.EAGAIN)
	require.NoError(t, syscall.SetNonblock(pipe, false)) // It is the key server's, too.
	require.NoError(t, os.Remove(filepath.Join(dir, "keys", "ecdsa.test.pem")))
	d.logged(`msg="a key is gone"`)
	d.signal(syscall.SIGTERM)
	ended := make(chan int)
	go func() { ended <- d.end() }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		require.Fail(t, "it does not end")
	}
}

// What is beside the keys and is none, such as a link to a backup, opens no other
// directory to the key server.
func TestTheSandboxReadsOnlyWhereKeysAre(t *testing.T) {
	dir, elsewhere, backup := t.TempDir(), t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(elsewhere, "www.key"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(backup, "old"), 0o700))
	require.NoError(t, os.Symlink(filepath.Join(elsewhere, "www.key"), filepath.Join(dir, "www.key")))
	require.NoError(t, os.Symlink(filepath.Join(backup, "old"), filepath.Join(dir, "old")))
	read, _ := folders(&keyserver.Config{Keys: dir})
	require.Contains(t, read, dir)
	require.Contains(t, read, elsewhere)
	require.NotContains(t, read, backup)
}
