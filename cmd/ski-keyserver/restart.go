package main

import (
	"crypto/sha256"
	"log/slog"
	"maps"
	"os"
	"slices"
)

// startFiles are the files that are read at the start alone, with a digest of what
// was in each.
type startFiles map[string][sha256.Size]byte

// readOnce returns those of a key server.
func readOnce(p *parts) startFiles {
	files := startFiles{}
	for _, name := range []string{p.file, p.cfg.ClientCA, p.cfg.RSAFailureSecretFile, p.cfg.StateKeyFile, p.cfg.Audit.Key} {
		if digest, ok := digestOf(name); ok {
			files[name] = digest
		}
	}
	return files
}

func digestOf(name string) (digest [sha256.Size]byte, ok bool) {
	data, err := os.ReadFile(name)
	if err != nil {
		return digest, false
	}
	defer clear(data)
	return sha256.Sum256(data), true
}

// warn says which of the files have changed since the start. Those that the
// sandbox keeps from the process are not looked at.
func (f startFiles) warn(log *slog.Logger) {
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if digest, ok := digestOf(name); ok && digest != f[name] {
			log.Warn("the file has changed and is read at the start alone: it takes a restart", "file", name)
		}
	}
}
