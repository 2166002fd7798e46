//go:build !linux

package main

import "errors"

func closeMemory() (inForce string, err error) {
	return "", errors.New("keeping other processes out of the memory is implemented for Linux only")
}

func confine([]string, []string) (inForce string, err error) {
	return "", errors.New("no Landlock: it is Linux only")
}
