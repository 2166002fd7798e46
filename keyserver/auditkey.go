package keyserver

import (
	"crypto/ed25519"
	"fmt"
)

// LoadAuditKey reads the key that signs an audit log's checkpoints: an Ed25519
// private key in PEM form (PKCS #8), readable by its owner alone.
func LoadAuditKey(file string) (ed25519.PrivateKey, error) {
	private, _, err := loadKey(file)
	if err != nil {
		return nil, err
	}
	key, ok := private.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: an audit log is signed with an Ed25519 key (skictl audit keygen), not %T", file, private)
	}
	return key, nil
}
