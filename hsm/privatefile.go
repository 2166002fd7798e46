package hsm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// checkPrivate refuses an open file that another user than root or the
// process's own owns, or that group or others have a forbidden right to.
func checkPrivate(name string, f *os.File, forbidden fs.FileMode) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != 0 && owner != os.Geteuid() {
		return fmt.Errorf("%s: it belongs to another user (uid %d): chown it to root or to the user the key server runs as", name, owner)
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return fmt.Errorf("%s: group or others have rights to it (mode %04o): chmod 600", name, mode)
	}
	return nil
}

// readFull reads until buf is full or the file ends.
func readFull(r io.Reader, buf []byte) (int, error) {
	n, err := io.ReadFull(r, buf)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}
