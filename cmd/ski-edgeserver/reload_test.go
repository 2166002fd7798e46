package main

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// replace puts data in the place of a file, as a renewal of certificates does.
func replace(t *testing.T, file string, data []byte) {
	require.NoError(t, os.WriteFile(file+".new", data, 0o600))
	require.NoError(t, os.Rename(file+".new", file))
}

// request asks for / over a new connection, and returns the certificate and the
// answer.
func request(t *testing.T, addr, name string) (*x509.Certificate, string) {
	c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprint(c, "GET /site.txt HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	return c.ConnectionState().PeerCertificates[0], string(answer)
}

// A process gets another certificate, which it notices, a configuration with a
// fault, which it refuses, another identity on the SKI channel, and another site.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writePKI(dir))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "site.txt"), []byte("hello"), 0o644))
	p := startProcess(t, dir, startKeyServer(t, dir), staticSite)
	addr := p.until(t, `msg=listening addr=(127\.0\.0\.1:\d+)`)[1]
	p.until(t, `msg="the key server has the key" site=site.test`)
	first, answer := request(t, addr, "site.test")
	assert.Contains(t, answer, "hello")
	open, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "site.test", InsecureSkipVerify: true})
	require.NoError(t, err)
	defer open.Close()

	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "site.pem"), filepath.Join(dir, "site.key"))
	require.NoError(t, err)
	renewed, err := certificate(pair.PrivateKey.(*ecdsa.PrivateKey), "site.test")
	require.NoError(t, err)
	replace(t, filepath.Join(dir, "site.pem"), renewed)
	p.until(t, `msg="configuration loaded"`)
	second, _ := request(t, addr, "site.test")
	assert.NotEqual(t, first.Raw, second.Raw)
	block, _ := pem.Decode(renewed)
	assert.Equal(t, block.Bytes, second.Raw)

	config := filepath.Join(dir, "edge.yaml")
	good, err := os.ReadFile(config)
	require.NoError(t, err)
	replace(t, config, []byte(strings.Replace(string(good), "site.pem", "none.pem", 1)))
	p.until(t, `level=ERROR msg="configuration refused, the one before stays" error="\S+edge.yaml:3:\d+: sites\[0\].certificates\[0\]: .*none.pem: no such file`)
	replace(t, config, []byte(string(good)+"log: [\n"))
	require.NoError(t, p.Process.Signal(syscall.SIGHUP))
	p.until(t, `msg="configuration refused, the one before stays" error="\S+edge.yaml:4:`)
	_, answer = request(t, addr, "site.test")
	assert.Contains(t, answer, "hello")

	// The key server takes no other identity: the new client is asked.
	stranger := t.TempDir()
	require.NoError(t, writePKI(stranger))
	for _, name := range []string{"edge.pem", "edge.key"} {
		data, err := os.ReadFile(filepath.Join(stranger, name))
		require.NoError(t, err)
		replace(t, filepath.Join(dir, name), data)
	}
	replace(t, config, []byte(strings.Replace(string(good), "names: [site.test]", "default: true", 1)))
	p.until(t, `msg="configuration loaded"(?s:.*)msg="configuration loaded"`)
	p.until(t, `level=WARN msg="the key server does not serve the key: handshakes will fail" site=default`)

	// The connection of the beginning goes on.
	fmt.Fprint(open, "GET /site.txt HTTP/1.0\r\n\r\n")
	rest, err := io.ReadAll(open)
	require.NoError(t, err)
	assert.Contains(t, string(rest), "hello")

	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, 0, p.end())
}
