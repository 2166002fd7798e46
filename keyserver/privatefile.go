package keyserver

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// maxFile bounds what is read of one file, in bytes. A key of 8192 bits with a
// chain of certificates stays far below it, and so does a policy for a thousand
// edges.
const maxFile = 1 << 20

// Rights to a file that group and others must not have.
const (
	anyRight   fs.FileMode = 0o077 // for what is secret
	writeRight fs.FileMode = 0o022 // for what decides over secrets
)

// readPrivateFile reads a file that holds a secret. It refuses one that group
// or others have any right to, and all that readTrustedFile refuses.
func readPrivateFile(file string) ([]byte, error) { return readChecked(file, anyRight, maxFile) }

// readTrustedFile reads a file that says who may do what. It refuses one that
// another user than root or the process's own can change: by its owner, its
// mode, or the folder it is in. Of a symbolic link, the folder of the link and
// that of its target count. Folders further up are not looked at.
func readTrustedFile(file string) ([]byte, error) { return readChecked(file, writeRight, maxFile) }

func readChecked(file string, forbidden fs.FileMode, most int64) ([]byte, error) {
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
	if err := checkRights(file, info, forbidden); err != nil {
		return nil, err
	}
	if info.Size() > most {
		return nil, fmt.Errorf("%s: it has more than %d bytes", file, most)
	}
	// Of the right size at once: a buffer that grows leaves copies of a secret
	// behind, which nobody clears.
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		clear(data)
		return nil, fmt.Errorf("%s: it changes while it is read: %w", file, err)
	}
	return data, nil
}

// checkRights refuses a file that belongs to another user, or that group or
// others have a forbidden right to.
func checkRights(file string, info fs.FileInfo, forbidden fs.FileMode) error {
	if err := checkOwner(file, info); err != nil {
		return err
	}
	mode := info.Mode().Perm()
	switch {
	case mode&forbidden == 0:
		return nil
	case forbidden == anyRight:
		return fmt.Errorf("%s: group or others have rights to it (mode %04o): chmod 600", file, mode)
	}
	return fmt.Errorf("%s: group or others can write it (mode %04o): chmod go-w", file, mode)
}

// checkFolder refuses a folder in which another user can put files. The sticky
// bit, as on /tmp, does not keep them from that.
func checkFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := checkOwner(dir, info); err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&writeRight != 0 {
		return fmt.Errorf("%s: group or others can write the folder (mode %04o): chmod go-w", dir, mode)
	}
	return nil
}

// checkOwner refuses what belongs neither to root nor to the user that the
// process runs as: its owner can change it whatever its mode is.
func checkOwner(name string, info fs.FileInfo) error {
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if owner != 0 && owner != os.Geteuid() {
		return fmt.Errorf("%s: it belongs to another user (uid %d): chown it to root or to the user the key server runs as", name, owner)
	}
	return nil
}
