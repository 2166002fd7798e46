package keyserver

import (
	"os"
	"path/filepath"
	"strings"
)

// maxLinks bounds the symbolic links that are followed, as Linux does
// (path_resolution(7)).
const maxLinks = 40

// linksTo returns the symbolic links on the way to a file, of folders too, and
// the file that is there in the end, each in the real path of its folder: who
// changes any of them changes what the name stands for. What does not exist
// counts as no link.
func linksTo(file string) (names []string, err error) {
	if !filepath.IsAbs(file) {
		here, err := os.Getwd()
		if err != nil {
			return nil, err
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
		if err != nil || links == maxLinks {
			dir = name
			continue
		}
		links++
		names = append(names, name)
		if filepath.IsAbs(target) {
			dir = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return append(names, dir), nil
}
