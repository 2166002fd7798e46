//go:build !linux

// Package memory closes the memory of a process that has private keys, or that
// may use them.
package memory

import "errors"

// Close is implemented for Linux only.
func Close() (inForce string, err error) {
	return "", errors.New("keeping other processes out of the memory is implemented for Linux only")
}
