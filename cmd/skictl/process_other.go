//go:build !linux

package main

import "syscall"

type unprivileged struct{ uid, gid int }

func unprivilegedUser(...string) (*unprivileged, string) {
	return nil, "it is done on Linux only"
}

func childAttributes(*unprivileged) *syscall.SysProcAttr { return nil }
