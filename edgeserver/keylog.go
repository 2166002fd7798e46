package edgeserver

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// keyLog writes the secrets of connections in the format of NSS, which
// Wireshark reads. A nil keyLog writes nothing.
type keyLog struct {
	file  *logFile
	files *logFiles
}

// openKeyLog opens the file of this name, which its owner alone can read.
func (files *logFiles) openKeyLog(name string) (*keyLog, error) {
	file, err := files.use(name)
	if err != nil {
		return nil, err
	}
	return &keyLog{file, files}, nil
}

// openKeyLogFile opens the file to append to.
func openKeyLogFile(name string, create bool) (*os.File, error) {
	if err := checkKind(name); err != nil {
		return nil, err
	}
	file, err := openToAppend(name, create, 0o600)
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
	return file, nil
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

// Write writes one line, or several. No handshake waits for the disk.
func (k *keyLog) Write(b []byte) (int, error) {
	k.file.write(b)
	return len(b), nil
}

// Close lets the file go.
func (k *keyLog) Close() {
	if k != nil {
		k.files.release(k.file)
	}
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
