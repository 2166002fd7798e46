package keyserver

import (
	"os"

	"golang.org/x/sys/unix"
)

// fdatasync waits until what was written to the file is on the disk, and how
// long the file is.
func fdatasync(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := raw.Control(func(fd uintptr) {
		for {
			if result = unix.Fdatasync(int(fd)); result != unix.EINTR {
				return
			}
		}
	}); err != nil {
		return err
	}
	return os.NewSyscallError("fdatasync", result)
}
