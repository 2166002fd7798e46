package hsm

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"github.com/tlsski/tlsski/internal/guarded"
)

// tokenPIN is the PIN of a token. The source is read for each login, since the
// PIN may have been changed; a PIN that the token has refused is not tried
// again, since tokens lock themselves after a few wrong ones and some erase their
// keys.
type tokenPIN struct {
	read func() (string, error) // out of the source

	mu      sync.Mutex
	last    string // the last that was tried
	refusal error  // why the token did not take it; nil if it did
}

// next returns the PIN to log in with, which from now on counts as tried; or the
// error of current.
func (p *tokenPIN) next() (string, error) {
	pin, err := p.current()
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.refusal = pin, nil
	return pin, nil
}

// current returns what the source has; or, once the token has refused a PIN, why
// it did, as long as the source has no other.
func (p *tokenPIN) current() (string, error) {
	pin, err := p.read()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.refusal == nil && err != nil:
		return p.last, nil // The token took it, whatever has become of the source.
	case err != nil:
		return "", fmt.Errorf("%w; %w", p.refusal, err)
	case p.refusal != nil && p.isLast(pin):
		return "", p.refusal
	}
	return pin, nil
}

// refuse notes that the token did not take the last PIN.
func (p *tokenPIN) refuse(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusal = err
}

// is reports whether a PIN is the one in use.
func (p *tokenPIN) is(pin string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.isLast(pin)
}

func (p *tokenPIN) isLast(pin string) bool {
	return subtle.ConstantTimeCompare([]byte(pin), []byte(p.last)) == 1
}

// pin returns the PIN that the URI points at. ok is false where it has none.
func (c *Config) pin(u *URI) (pin string, ok bool, err error) {
	if u.pinValue != nil {
		return *u.pinValue, true, nil
	}
	if u.PINSource == "" {
		return "", false, nil
	}
	pin, err = c.pinFrom(u.PINSource)
	if err == nil && pin == "" {
		err = errors.New("the PIN is empty")
	}
	if err != nil {
		return "", false, fmt.Errorf("pin-source: %w", err)
	}
	return pin, true, nil
}

func (c *Config) pinFrom(source string) (string, error) {
	file, forbidden, err := c.pinFile(source)
	switch {
	case err != nil:
		return "", err
	case file != "":
		return readPIN(file, forbidden)
	}
	_, name, _ := strings.Cut(source, ":")
	value := c.getenv(name)
	if value == "" {
		return "", fmt.Errorf("the environment variable %s is not set", name)
	}
	return value, nil
}

// pinFile returns the file of a pin-source, and the rights that others must not
// have to it; "" for an environment variable.
func (c *Config) pinFile(source string) (file string, forbidden fs.FileMode, err error) {
	kind, rest, ok := strings.Cut(source, ":")
	if !ok && strings.HasPrefix(source, "/") { // RFC 7512, Section 2.4, lets a bare path be one
		kind, rest = "file", source
	}
	switch kind {
	case "file":
		return c.path(strings.TrimPrefix(rest, "//")), guarded.Secret, nil // file:///etc/pin too
	case "env":
		return "", 0, nil
	case "credential":
		// systemd.exec(5): names have no slash, and the directory is the unit's own.
		dir := c.getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return "", 0, fmt.Errorf("there are no credentials: the unit needs LoadCredential=%s:FILE", rest)
		}
		if rest == "" || rest == "." || rest == ".." || strings.Contains(rest, "/") {
			return "", 0, errors.New("the name of a credential has no slash")
		}
		return filepath.Join(dir, rest), guarded.Credential, nil
	}
	return "", 0, errors.New(`it is none of "file:PATH", "credential:NAME" and "env:NAME"`)
}

// PINFiles returns the files that a Store reads PINs from, at its start and for
// each login after that.
func (c *Config) PINFiles() (files []string) {
	for _, key := range c.Keys {
		u, err := ParseURI(key.URI)
		if err != nil || u.PINSource == "" {
			continue
		}
		if file, _, err := c.pinFile(u.PINSource); err == nil && file != "" {
			files = append(files, file)
		}
	}
	return files
}

func (c *Config) getenv(name string) string {
	if c.Getenv == nil || name == "" {
		return ""
	}
	return c.Getenv(name)
}

// maxPIN bounds a PIN in bytes. Tokens have limits of their own below it.
const maxPIN = 255

// readPIN reads a PIN from a file that group and others do not have the
// forbidden rights to.
func readPIN(file string, forbidden fs.FileMode) (string, error) {
	data, err := guarded.Read(file, forbidden, maxPIN+2)
	if err != nil {
		return "", err
	}
	defer clear(data)
	pin := strings.TrimSuffix(string(data), "\n")
	pin = strings.TrimSuffix(pin, "\r")
	switch {
	case len(pin) > maxPIN:
		return "", fmt.Errorf("%s: a PIN has at most %d bytes", file, maxPIN)
	case strings.ContainsAny(pin, "\n\x00"):
		return "", fmt.Errorf("%s: it has more than one line", file)
	}
	return pin, nil
}
