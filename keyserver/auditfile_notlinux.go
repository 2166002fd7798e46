//go:build !linux

package keyserver

import "os"

func fdatasync(f *os.File) error { return f.Sync() }
