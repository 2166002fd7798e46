// Package keyparts opens what a configuration of the key server names, for the
// commands that have a key server in them.
package keyparts

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/tlsski/tlsski/hsm"
	"github.com/tlsski/tlsski/keyserver"
)

// openTimeout bounds what tokens may take for the start.
const openTimeout = 30 * time.Second

// What a token knows of its keys reaches the policy.
var (
	_ keyserver.DeviceKeyStore      = (*hsm.Store)(nil)
	_ keyserver.CertificateKeyStore = (*hsm.Store)(nil)
)

// Keys are the private keys that a configuration names: those of a folder and
// those on tokens.
type Keys struct {
	// Store is all of them together, at the start.
	Store  keyserver.KeyStore
	folder *keyserver.KeyFolder // nil for none
	tokens *hsm.Store           // nil for none
	// changed has something in it when tokens may have other keys.
	changed chan struct{}
}

// OpenKeys loads the folder and logs in to the tokens. The error is one line.
// On success, Close must be called.
func OpenKeys(cfg *keyserver.Config, log *slog.Logger) (*Keys, error) {
	k := &Keys{changed: make(chan struct{}, 1)}
	if cfg.Keys != "" {
		var err error
		if k.folder, err = keyserver.OpenKeyFolder(cfg.Keys); err != nil {
			return nil, err
		}
	}
	for _, folder := range cfg.HSM.Folders { // which the sandbox, later, could only do without
		if _, err := os.Stat(folder); err != nil {
			return nil, fmt.Errorf("hsm: folders: %w", err)
		}
	}
	if len(cfg.HSM.Keys) > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
		defer cancel()
		var err error
		c := HSMConfig(cfg, log)
		c.Changed = func() { ask(k.changed) }
		if k.tokens, err = hsm.Open(ctx, c); err != nil {
			return nil, fmt.Errorf("hsm: %w", err)
		}
	}
	var err error
	if k.Store, err = keyserver.JoinKeyStores(k.stores()...); err != nil {
		_ = k.Close()
		return nil, err
	}
	return k, nil
}

// stores returns those of the folder and of the tokens, as they are now.
func (k *Keys) stores() (all []keyserver.KeyStore) {
	if k.folder != nil {
		all = append(all, k.folder.Store())
	}
	if k.tokens != nil {
		all = append(all, k.tokens)
	}
	return all
}

// HSMConfig returns what the configuration says of tokens.
func HSMConfig(cfg *keyserver.Config, log *slog.Logger) hsm.Config {
	c := hsm.Config{
		MaxSessions:           int(cfg.HSM.MaxSessions),
		RequireNonExtractable: cfg.HSM.RequireNonExtractable,
		RequireGenerated:      cfg.HSM.RequireGenerated,
		Dir:                   cfg.HSM.Dir,
		Getenv:                os.Getenv,
		Logger:                log,
	}
	for _, key := range cfg.HSM.Keys {
		c.Keys = append(c.Keys, hsm.Key{URI: key.URI, Name: key.Name, PublicKey: key.Public})
	}
	return c
}

// Warnings returns a line for each thing that the operator should know of.
func (k *Keys) Warnings() []string {
	if k.tokens == nil {
		return nil
	}
	return k.tokens.Warnings()
}

// OnTokens returns what there is to know of the keys on tokens.
func (k *Keys) OnTokens() []hsm.KeyInfo {
	if k.tokens == nil {
		return nil
	}
	return k.tokens.Keys()
}

// Tokens returns the state of each token.
func (k *Keys) Tokens() []keyserver.TokenState {
	if k.tokens == nil {
		return nil
	}
	var states []keyserver.TokenState
	for _, s := range k.tokens.Stats() {
		states = append(states, keyserver.TokenState(s))
	}
	return states
}

// Close logs out of the tokens.
func (k *Keys) Close() error {
	if k.tokens == nil {
		return nil
	}
	return k.tokens.Close()
}
