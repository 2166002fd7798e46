package keyserver

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const leastConfig = "certificate: c.pem\nkey: c.key\nclient_ca: ca.pem\nkeys: keys\npolicy: policy.yaml\n"

func loadConfig(t *testing.T, text string) (*Config, string, error) {
	dir := folder(t, nil)
	file := filepath.Join(dir, "ks.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	c, err := LoadConfig(file)
	return c, dir, err
}

func TestConfigDefaults(t *testing.T) {
	c, dir, err := loadConfig(t, leastConfig)
	require.NoError(t, err)
	require.Equal(t, &Config{
		Listen: ":5684", Path: "/ski",
		Certificate: dir + "/c.pem", Key: dir + "/c.key", ClientCA: dir + "/ca.pem",
		Keys: dir + "/keys", HSM: HSMConfig{Dir: dir}, Policy: dir + "/policy.yaml",
		Audit: AuditConfig{File: "-", ReserveMiB: 64, CheckpointRecords: 1000, CheckpointInterval: Duration(time.Minute)}, RSAFailure: RSAFailureRandom, CRLExpired: CRLExpiredWarn,
		MaxInFlight: 4096, MaxWait: Duration(2 * time.Second), ShutdownTimeout: Duration(10 * time.Second), Sandbox: SandboxAuto,
		Log: LogConfig{Level: "info", Format: "text"},
	}, c)
	require.Empty(t, c.Warnings())
	secret, err := c.RSAFailureSecret()
	require.NoError(t, err)
	require.Nil(t, secret)
}

func TestConfigAll(t *testing.T) {
	c, dir, err := loadConfig(t, `
listen: 127.0.0.1:0
path: /a/b
mtu: 576
certificate: /etc/c.pem
key: ../c.key
client_ca: ca.pem
keys: keys
policy: policy.yaml
state: state.json
audit: {file: audit.log, required: true, key: audit.key, max_size_mib: 100, sync: true, reserve_mib: 9, witness: /w/w, checkpoint_records: 10, checkpoint_interval: 5s}
rsa_failure: error
rsa_failure_secret_file: secret
state_key_file: state.key
rsa_workers: 3
max_in_flight: 10
shutdown_timeout: 1m30s
sandbox: off
log: {level: warn, format: json}
`)
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:0", c.Listen)
	require.Equal(t, "/etc/c.pem", c.Certificate)
	require.Equal(t, filepath.Join(filepath.Dir(dir), "c.key"), c.Key)
	require.Equal(t, AuditConfig{
		File: dir + "/audit.log", Required: true, Key: dir + "/audit.key",
		MaxSizeMiB: 100, Sync: true, ReserveMiB: 9, Witness: "/w/w", CheckpointRecords: 10, CheckpointInterval: Duration(5 * time.Second),
	}, c.Audit)
	require.Equal(t, RSAFailureError, c.RSAFailure)
	require.EqualValues(t, 3, c.RSAWorkers)
	require.EqualValues(t, 576, c.MTU)
	require.EqualValues(t, 10, c.MaxInFlight)
	require.Equal(t, Duration(90*time.Second), c.ShutdownTimeout)
	require.Equal(t, SandboxOff, c.Sandbox)
	require.Len(t, c.Warnings(), 2)

	var out bytes.Buffer
	log := c.Logger(&out)
	log.Info("no")
	log.Warn("yes")
	require.Equal(t, 1, strings.Count(out.String(), "\n"))
	require.Contains(t, out.String(), `"msg":"yes"`)

	_, err = c.RSAFailureSecret()
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(dir+"/secret", make([]byte, 31), 0o600))
	_, err = c.RSAFailureSecret()
	require.ErrorContains(t, err, "less than 32 bytes")
	require.NoError(t, os.WriteFile(dir+"/secret", make([]byte, 32), 0o600))
	secret, err := c.RSAFailureSecret()
	require.NoError(t, err)
	require.Len(t, secret, 32)
	require.NoError(t, os.Chmod(dir+"/secret", 0o640))
	_, err = c.RSAFailureSecret()
	require.ErrorContains(t, err, "group or others")

	require.NoError(t, os.WriteFile(dir+"/state.key", make([]byte, 31), 0o600))
	_, err = c.StateKey()
	require.ErrorContains(t, err, "less than 32 bytes")
	require.NoError(t, os.WriteFile(dir+"/state.key", make([]byte, 33), 0o600))
	key, err := c.StateKey()
	require.NoError(t, err)
	require.Len(t, key, 33)
}

func TestConfigOfAnHSM(t *testing.T) {
	c, dir, err := loadConfig(t, strings.Replace(leastConfig, "keys: keys", `hsm:
  keys:
    - uri: pkcs11:token=sites?pin-source=file:pin
    - {uri: 'pkcs11:token=other;object=www', name: www.example.com, public: www.pem}
  max_sessions: 8
  require_non_extractable: true
  require_generated: true
  folders: [tokens, /etc/softhsm]
  network: true`, 1))
	require.NoError(t, err)
	require.Equal(t, HSMConfig{
		Keys: []HSMKey{
			{URI: "pkcs11:token=sites?pin-source=file:pin"},
			{URI: "pkcs11:token=other;object=www", Name: "www.example.com", Public: dir + "/www.pem"},
		},
		MaxSessions: 8, RequireNonExtractable: true, RequireGenerated: true, Folders: []string{dir + "/tokens", "/etc/softhsm"}, Network: true, Dir: dir,
	}, c.HSM)
}

func TestConfigErrors(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no keys":           {strings.Replace(leastConfig, "keys: keys\n", "", 1), `ks.yaml:1:1: both "keys" and "hsm" are missing`},
		"hsm without":       {leastConfig + "hsm:\n  max_sessions: 3\n", "ks.yaml:7:3: 'hsm' needs 'keys'"},
		"hsm key":           {leastConfig + "hsm:\n  keys:\n    - name: www\n", "ks.yaml:8:7: a key needs a 'uri'"},
		"hsm sessions":      {leastConfig + "hsm: {keys: [{uri: 'pkcs11:'}], max_sessions: 1.5}\n", "it is not a whole number"},
		"hsm and files":     {leastConfig + "hsm:\n  keys: [{uri: 'pkcs11:'}]\n  require_non_extractable: true\n", "ks.yaml:8:28: the keys of the folder"},
		"hsm or files":      {leastConfig + "hsm:\n  keys: [{uri: 'pkcs11:'}]\n  require_generated: true\n", "were not made on a token"},
		"empty":             {"", "ks.yaml:1:1: the file is empty"},
		"missing":           {strings.Replace(leastConfig, "policy: policy.yaml\n", "", 1), `ks.yaml:1:1: "policy" is missing`},
		"null":              {strings.Replace(leastConfig, "policy.yaml", "", 1), `ks.yaml:5:1: "policy" has no value`},
		"unknown":           {leastConfig + "polcy: x\n", `ks.yaml:6:1: unknown field "polcy"`},
		"unknown deeper":    {leastConfig + "audit:\n  path: x\n", `ks.yaml:7:3: unknown field "path"`},
		"duplicate":         {leastConfig + "key: x\n", "ks.yaml:6:1: "},
		"not YAML":          {leastConfig + "log: {\n", "ks.yaml:6:"},
		"listen":            {leastConfig + "listen: localhost\n", `ks.yaml:6:9: "localhost" is not HOST:PORT`},
		"port":              {leastConfig + "listen: localhost:coaps\n", "ks.yaml:6:9: "},
		"https":             {leastConfig + "https: ks.example\n", `ks.yaml:6:8: "ks.example" is not HOST:PORT`},
		"path":              {leastConfig + "path: ski\n", `ks.yaml:6:7: "ski" does not begin with a slash`},
		"audit":             {leastConfig + "audit:\n  file: ''\n", "ks.yaml:7:9: the file is empty"},
		"metrics":           {leastConfig + "metrics: 9684\n", `ks.yaml:6:10: "9684" is not HOST:PORT`},
		"metrics public":    {leastConfig + "metrics: 0.0.0.0:9684\n", `ks.yaml:6:10: "0.0.0.0:9684" is not a loopback address`},
		"metrics by name":   {leastConfig + "metrics: localhost:9684\n", "is not a loopback address"},
		"no checkpoints":    {leastConfig + "audit:\n  checkpoint_records: 0\n", "ks.yaml:7:23: 0 records never come"},
		"witness, no key":   {leastConfig + "state: s\naudit: {file: log, witness: w}\n", `a witness needs "audit.key"`},
		"witness, no state": {leastConfig + "audit: {file: log, key: k, witness: w}\n", `a witness needs "audit.key"`},
		"witness of stdout": {leastConfig + "state: s\naudit: {key: k, witness: w}\n", `a witness needs "audit.key"`},
		"size of stdout":    {leastConfig + "audit:\n  max_size_mib: 1\n", "ks.yaml:7:17: standard output has no size"},
		"sandbox":           {leastConfig + "sandbox: on\n", `ks.yaml:6:10: "on" is neither auto nor off`},
		"rsa_failure":       {leastConfig + "rsa_failure: maybe\n", `ks.yaml:6:14: "maybe" is neither random nor error`},
		"rsa_workers":       {leastConfig + "rsa_workers: -1\n", "ks.yaml:6:14: "},
		"rsa_workers 2":     {leastConfig + "rsa_workers: many\n", "ks.yaml:6:14: found a text where a whole number belongs"},
		"rsa_workers 3":     {leastConfig + "rsa_workers: 1.5\n", "ks.yaml:6:14: it is not a whole number"},
		"fraction":          {leastConfig + "max_in_flight: 1.0\n", "ks.yaml:6:16: it is not a whole number"},
		"audit without":     {leastConfig + "audit:\n  # file: audit.log\n", `ks.yaml:6:1: "audit" has no value`},
		"text for a map":    {leastConfig + "audit: audit.log\n", "ks.yaml:6:8: string was used where mapping is expected"},
		"mtu":               {leastConfig + "mtu: 399\n", "ks.yaml:6:6: 399 is not 0 or 400 to 65535 bytes"},
		"mtu, too large":    {leastConfig + "mtu: 65536\n", "ks.yaml:6:6: 65536 is not 0 or 400 to 65535 bytes"},
		"max_in_flight":     {leastConfig + "max_in_flight: 0\n", "ks.yaml:6:16: "},
		"duration":          {leastConfig + "shutdown_timeout: 10\n", "ks.yaml:6:19: it is not a duration"},
		"duration 0":        {leastConfig + "shutdown_timeout: 0s\n", "ks.yaml:6:19: it is not a duration"},
		"level":             {leastConfig + "log: {level: loud}\n", `ks.yaml:6:14: "loud" is not one of`},
		"format":            {leastConfig + "log: {format: xml}\n", `ks.yaml:6:15: "xml" is neither text nor json`},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := loadConfig(t, c.text)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
		})
	}
	_, err := LoadConfig("missing.yaml")
	require.ErrorContains(t, err, "missing.yaml")
}

func TestIdentity(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	key := newECDSA(t, elliptic.P256())
	certificate := func(key *ecdsa.PrivateKey, change func(*x509.Certificate)) []byte {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), BasicConstraintsValid: true,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		if change != nil {
			change(template)
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		require.NoError(t, err)
		return pemBlock("CERTIFICATE", der)
	}
	ca := func(c *x509.Certificate) { c.IsCA = true }
	oldCA := func(c *x509.Certificate) { c.IsCA, c.NotAfter = true, now.Add(-time.Minute) }
	good := map[string][]byte{"c.pem": certificate(key, nil), "c.key": pkcs8(t, key), "ca.pem": certificate(key, ca)}
	identity := func(file string, data []byte) error {
		dir := folder(t, good)
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), data, 0o600))
		c := &Config{Certificate: dir + "/c.pem", Key: dir + "/c.key", ClientCA: dir + "/ca.pem"}
		own, pool, err := c.Identity(now)
		if err == nil {
			require.NotNil(t, own.PrivateKey)
			require.NotNil(t, pool)
		}
		return err
	}
	require.NoError(t, identity("c.key", good["c.key"]))
	require.NoError(t, identity("ca.pem", append(certificate(key, oldCA), good["ca.pem"]...)))

	for name, c := range map[string]struct {
		file, want string
		data       []byte
	}{
		"expired":         {"c.pem", "expired at 2026-05-31", certificate(key, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })},
		"not yet valid":   {"c.pem", "not valid before", certificate(key, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) })},
		"for nothing":     {"c.pem", "serverAuth", certificate(key, func(c *x509.Certificate) { c.ExtKeyUsage = nil })},
		"for clients":     {"c.pem", "serverAuth", certificate(key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })},
		"of another key":  {"c.key", "c.pem with ", pkcs8(t, newECDSA(t, elliptic.P256()))},
		"no CA":           {"ca.pem", "no certificate", nil},
		"CA is no CA":     {"ca.pem", "not an authority's", certificate(key, nil)},
		"CA expired":      {"ca.pem", "expired", certificate(key, oldCA)},
		"CA not readable": {"ca.pem", "x509", pemBlock("CERTIFICATE", []byte{1})},
	} {
		t.Run(name, func(t *testing.T) {
			err := identity(c.file, c.data)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, c.file[:2])
		})
	}
	t.Run("mode", func(t *testing.T) {
		dir := folder(t, good)
		require.NoError(t, os.Chmod(dir+"/c.key", 0o644))
		_, _, err := (&Config{Certificate: dir + "/c.pem", Key: dir + "/c.key", ClientCA: dir + "/ca.pem"}).Identity(now)
		require.ErrorContains(t, err, "c.key: group or others")
	})
}
