//go:build unix

package keyserver

import (
	"io/fs"
	"os"
	"syscall"
)

// lockFile takes a lock that ends with the process. A character device can be
// shared.
func lockFile(f *os.File) error {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// mayCreateIn reports whether files can be created in a folder.
func mayCreateIn(dir string) error {
	const writeAndSearch = 2 | 1 // W_OK | X_OK
	if err := syscall.Access(dir, writeAndSearch); err != nil {
		return &fs.PathError{Op: "create in", Path: dir, Err: err}
	}
	return nil
}

// links returns how many names a file has.
func links(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(s.Nlink)
	}
	return 1
}
