package edgeserver

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
)

// keyLog writes the secrets of connections in the format of NSS, which
// Wireshark reads. A nil keyLog writes nothing.
type keyLog struct {
	mu   sync.Mutex
	file io.WriteCloser
}

// openKeyLog opens the file, which its owner alone can read.
func openKeyLog(name string) (*keyLog, error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil {
		err = checkKeyLog(name, info)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &keyLog{file: file}, nil
}

// checkKeyLog refuses a file that someone else can read: by its mode, or since
// it is theirs and was there before.
func checkKeyLog(name string, info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s can be used by others than its owner (mode %04o)", name, mode)
	}
	if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != 0 && owner != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user (uid %d)", name, owner)
	}
	return nil
}

// Write writes one line, or several.
func (k *keyLog) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.file.Write(b)
}

// Close closes the file.
func (k *keyLog) Close() error {
	if k == nil {
		return nil
	}
	return k.file.Close()
}

// writer is for tls.Config.KeyLogWriter.
func (k *keyLog) writer() io.Writer {
	if k == nil {
		return nil
	}
	return k
}

// masterSecret is for split.Config.KeyLog.
func (k *keyLog) masterSecret() func(clientRandom, masterSecret []byte) {
	if k == nil {
		return nil
	}
	return func(clientRandom, masterSecret []byte) {
		fmt.Fprintf(k, "CLIENT_RANDOM %x %x\n", clientRandom, masterSecret)
	}
}
