package keyparts

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

// LoadAudit returns what the configuration says of the audit log.
func LoadAudit(cfg *keyserver.Config, keys keyserver.KeyStore) (keyserver.AuditOptions, error) {
	o, err := cfg.AuditOptions()
	if err != nil || o.Key == nil {
		return o, err
	}
	id, err := ski.PublicKeyID(o.Key.Public())
	if err != nil {
		return o, err
	}
	if name, _, ok := keys.Lookup(id); ok {
		return o, fmt.Errorf("%s is the private key %q of a site too: give the audit log a key of its own, "+
			"skictl audit keygen makes one", cfg.Audit.Key, name)
	}
	return o, nil
}

// CloseAudit writes the end of the audit log, with the last alarms of the
// server. Where a reader of standard output or a disk keeps it waiting, it does
// not keep the process.
func CloseAudit(server *keyserver.Server, audit *keyserver.AuditLog, log *slog.Logger) {
	closed := make(chan error, 1)
	go func() {
		server.Close()
		closed <- audit.Close()
	}()
	select {
	case err := <-closed:
		if err != nil {
			log.Error("audit log: its end could not be written", "error", err)
		}
	case <-time.After(time.Second):
		log.Error("audit log: its end could not be written", "error", "the write takes too long")
	}
}

// Wait waits for those who read files again, but not for the audit log, where they wait for
// it to take what they have read.
func Wait(readers *sync.WaitGroup) {
	ended := make(chan struct{})
	go func() { readers.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(time.Second):
	}
}
