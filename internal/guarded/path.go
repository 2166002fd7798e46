package guarded

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// maxLinks bounds the symbolic links that are followed, as Linux does
// (path_resolution(7)).
const maxLinks = 40

// Links returns the symbolic links on the way to a file, of directories too, and
// the file that is there in the end, each in the real path of its directory: who
// changes any of them changes what the name stands for. What does not exist
// counts as no link.
func Links(file string) (names []string, err error) {
	end, err := walk(file, func(name string, link bool) error {
		if link {
			names = append(names, name)
		}
		return nil
	})
	return append(names, end), err
}

// CheckPath refuses a file that another user than root or the process's own
// could change or put another in the place of: by the owner or the mode of the
// file, or of any directory on the way to it, symbolic links and their targets
// included. In a directory that all can write but that has the sticky bit, as
// /tmp, others cannot replace a directory that is not theirs; that is no place
// for the file itself or a link to it. It returns the path without links, which
// whoever opens the file uses.
func CheckPath(file string) (string, error) {
	target, err := walk(file, func(name string, link bool) error {
		info, err := os.Lstat(name)
		if err != nil {
			return err
		}
		if parent := filepath.Dir(name); parent != name {
			dir, err := os.Lstat(parent)
			if err != nil {
				return err
			}
			if !info.IsDir() || dir.Mode()&os.ModeSticky == 0 {
				if err := checkDirInfo(parent, dir); err != nil {
					return err
				}
			}
		}
		if link { // It cannot be changed, only replaced.
			return nil
		}
		return checkOwner(name, info)
	})
	if err != nil {
		return "", err
	}
	info, err := os.Lstat(target)
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s: it is not a regular file", file)
	}
	return target, checkRights(target, info, Trusted)
}

// walk calls visit for each step on the way to a file, whose names have no link
// before their last part, and returns the last, which is no link.
func walk(file string, visit func(name string, link bool) error) (string, error) {
	if !filepath.IsAbs(file) {
		here, err := os.Getwd()
		if err != nil {
			return "", err
		}
		file = here + "/" + file // not joined: what is before a ".." can be a link
	}
	dir, links := "/", 0
	for rest := strings.Split(file, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			dir = filepath.Dir(dir)
			continue
		}
		name := filepath.Join(dir, part)
		target, err := os.Readlink(name)
		link := err == nil && links < maxLinks
		if err := visit(name, link); err != nil {
			return "", err
		}
		if !link {
			dir = name
			continue
		}
		links++
		if filepath.IsAbs(target) {
			dir = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return dir, nil
}
