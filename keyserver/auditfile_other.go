//go:build !unix

package keyserver

import (
	"io/fs"
	"os"
)

// lockFile does nothing where there is no flock.
func lockFile(*os.File) error { return nil }

// mayCreateIn only finds out whether the folder is there.
func mayCreateIn(dir string) error {
	_, err := os.Stat(dir)
	return err
}

// links cannot tell how many names a file has.
func links(fs.FileInfo) uint64 { return 1 }
