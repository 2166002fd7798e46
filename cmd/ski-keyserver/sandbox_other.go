//go:build !linux

package main

import "errors"

func confine(_, _, _ []string, _ bool) (inForce string, err error) {
	return "", errors.New("no Landlock: it is Linux only")
}
