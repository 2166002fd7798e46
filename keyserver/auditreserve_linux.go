package keyserver

import (
	"math"
	"syscall"
)

// freeSpace returns how many bytes a process without privileges can write to the
// file system that a file is in. A device has no bound.
func freeSpace(file string) (int64, error) {
	var info syscall.Stat_t
	if err := syscall.Stat(file, &info); err != nil {
		return 0, err
	}
	if kind := info.Mode & syscall.S_IFMT; kind != syscall.S_IFREG && kind != syscall.S_IFDIR {
		return math.MaxInt64, nil
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(file, &fs); err != nil {
		return 0, err
	}
	size := uint64(fs.Frsize)
	if size == 0 {
		size = uint64(fs.Bsize)
	}
	if size == 0 || fs.Bavail > math.MaxInt64/size {
		return math.MaxInt64, nil
	}
	return int64(fs.Bavail * size), nil
}
