//go:build !linux

package keyserver

import "errors"

// freeSpace is only known on Linux.
func freeSpace(string) (int64, error) { return 0, errors.ErrUnsupported }
