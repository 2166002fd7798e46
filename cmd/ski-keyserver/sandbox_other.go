//go:build !linux

package main

import "errors"

func closeMemory() (inForce string, err error) {
	return "", errors.New("keeping other processes out of the memory is implemented for Linux only")
}

func confine(_, _, _ []string, _ bool) (inForce string, err error) {
	return "", errors.New("no Landlock: it is Linux only")
}
