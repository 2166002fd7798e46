// Package guarded reads the files that hold secrets or decide over them, and
// refuses those that somebody else could read or change: [Read] for a file that
// this process reads, [CheckPath] for one that something else opens by its
// name, such as a shared library.
//
// Root and the user that the process runs as are trusted, nobody else is. ACLs
// are not looked at.
package guarded

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Rights to a file that Read refuses.
const (
	// Secret is for what nobody else may know: group and others have no right.
	Secret fs.FileMode = 0o077
	// Trusted is for what nobody else may change: group and others cannot write.
	Trusted fs.FileMode = 0o022
	// Credential is for secrets that systemd hands over (systemd.exec(5),
	// CREDENTIALS): an ACL lets the unit's user read, which shows as a right of
	// the group.
	Credential fs.FileMode = 0o037
)

// Read reads a regular file of at most so many bytes. It refuses a file that
// belongs to another user than root or the process's own, that group or others
// have a forbidden right to, or that is in a directory that another user can
// write. Of a symbolic link, the directory of the link and that of its target
// count. Directories further up are not looked at.
func Read(file string, forbidden fs.FileMode, most int64) ([]byte, error) {
	// A link is followed here, so that the directory that is checked is the one
	// the file is in.
	target, err := filepath.EvalSymlinks(file)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{filepath.Dir(file), filepath.Dir(target)} {
		if err := CheckDir(dir); err != nil {
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
	case forbidden == Trusted:
		return fmt.Errorf("%s: group or others can write it (mode %04o): chmod go-w", file, mode)
	}
	return fmt.Errorf("%s: group or others have rights to it (mode %04o): chmod 600", file, mode)
}

// CheckDir refuses a directory in which another user can put files. The sticky
// bit, as on /tmp, does not keep them from that.
func CheckDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return checkDirInfo(dir, info)
}

func checkDirInfo(dir string, info fs.FileInfo) error {
	if err := checkOwner(dir, info); err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&Trusted != 0 {
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
