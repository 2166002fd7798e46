package keyserver

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxPrivateFile bounds what is read of one file, in bytes. A key of 8192 bits
// with a chain of certificates stays far below it.
const maxPrivateFile = 1 << 20

// readPrivateFile reads a file that holds a secret. It refuses one that group
// or others have any right to, and one in a folder where they could put
// another in its place.
func readPrivateFile(file string) ([]byte, error) {
	// A link is followed here, so that the folder that is checked is the one
	// the file is in.
	target, err := filepath.EvalSymlinks(file)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{filepath.Dir(file), filepath.Dir(target)} {
		if err := checkFolder(dir); err != nil {
			return nil, err
		}
	}
	if info, err := os.Lstat(target); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() { // Opening a pipe would wait for its other end.
		return nil, fmt.Errorf("%s: it is not a regular file", file)
	}
	f, err := os.Open(target)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// What is checked is the open file: no other can take its place any more.
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode(); {
	case mode.Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s: group or others have rights to it (mode %04o): chmod 600", file, mode.Perm())
	case info.Size() > maxPrivateFile:
		return nil, fmt.Errorf("%s: it has more than %d bytes", file, maxPrivateFile)
	}
	return io.ReadAll(io.LimitReader(f, maxPrivateFile))
}

// checkFolder refuses a folder in which group or others can replace files. With
// the sticky bit set, as on /tmp, they can only add some.
func checkFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if mode := info.Mode(); mode.Perm()&0o022 != 0 && mode&fs.ModeSticky == 0 {
		return fmt.Errorf("%s: group or others can write the folder (mode %04o): chmod go-w", dir, mode.Perm())
	}
	return nil
}
