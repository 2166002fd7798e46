package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/tlsski/tlsski/hsm"
)

// softHSMModules are where SoftHSM's module is on the systems that have it.
var softHSMModules = []string{
	"/usr/lib/softhsm/libsofthsm2.so", // Debian
	"/usr/lib64/pkcs11/libsofthsm2.so",
	"/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",
	"/opt/homebrew/lib/softhsm/libsofthsm2.so",
}

// devToken is a SoftHSM token for the sites' keys.
type devToken struct {
	dir    string
	module string
	infos  []hsm.KeyInfo
}

const devTokenLabel = "skictl-demo"

// newDevToken makes a token in a folder, with a PIN of its own. SoftHSM finds it
// by an environment variable, which this process has from now on and hands to
// those that it starts.
func newDevToken(ctx context.Context, dir string) (*devToken, error) {
	t := &devToken{dir: dir}
	for _, module := range softHSMModules {
		if _, err := os.Stat(module); err == nil {
			t.module = module
			break
		}
	}
	util, err := exec.LookPath("softhsm2-util")
	if err != nil || t.module == "" {
		return nil, errors.New("SoftHSM is not installed; on Debian: apt-get install softhsm2")
	}
	if err := os.MkdirAll(filepath.Join(dir, "tokens"), 0o700); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	pin, soPIN := newPIN(), newPIN()
	for file, text := range map[string]string{
		conf:                      "directories.tokendir = " + filepath.Join(dir, "tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n",
		filepath.Join(dir, "pin"): pin + "\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.Setenv("SOFTHSM2_CONF", conf); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, util, "--init-token", "--free", "--label", devTokenLabel, "--pin", pin, "--so-pin", soPIN).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("softhsm2-util: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return t, nil
}

// newPIN returns the digits of a PIN. That softhsm2-util gets it as an argument
// does no harm: it is for a token that lives as long as the demonstration.
func newPIN() string {
	b := make([]byte, 8)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// uri names the token, or one key of it.
func (t *devToken) uri(object string) string {
	if object != "" {
		object = ";object=" + object
	}
	return "pkcs11:token=" + devTokenLabel + object + "?module-path=" + t.module + "&pin-source=file:" + filepath.Join(t.dir, "pin")
}

// config is the section of the key server's configuration.
func (t *devToken) config() string {
	return fmt.Sprintf(`hsm:
  keys:
    - uri: %q
  require_non_extractable: true
  require_generated: true
  folders: [%q]
`, t.uri(""), t.dir)
}

// newKey makes a key on the token.
func (t *devToken) newKey(ctx context.Context, name, kind string) (crypto.Signer, error) {
	cfg := hsm.Config{Keys: []hsm.Key{{URI: t.uri(name)}}, MaxSessions: 1}
	info, err := hsm.Generate(ctx, cfg, hsm.Template{Type: kind, Sign: true, Decrypt: strings.HasPrefix(kind, "rsa")})
	if err != nil {
		return nil, err
	}
	t.infos = append(t.infos, info)
	return onToken{info.Public}, nil
}

// onToken is the private key of a site whose certificate is made here, which
// takes its public half only.
type onToken struct{ public crypto.PublicKey }

func (k onToken) Public() crypto.PublicKey { return k.public }

func (onToken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the key is on a token")
}

// show says how the token keeps the sites' keys, and reports whether it gives
// none of them away.
func (t *devToken) show(w io.Writer) bool {
	good := true
	fmt.Fprintf(w, "private keys of the sites, made on the token %s of %s\n", devTokenLabel, t.module)
	for _, k := range t.infos {
		state := "never was and cannot be taken off the token"
		if extractable(k) != "never" {
			good = false
			state = "CAN BE TAKEN OFF the token"
		}
		fmt.Fprintf(w, "%-42s %s\n", "  "+k.Name+", "+k.Type, state)
	}
	return good
}
