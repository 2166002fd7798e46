package main

import (
	"os"
	"path/filepath"
	"syscall"
)

// nobody is the user without rights on every Linux (65534, the kernel's
// overflow user).
const nobody = 65534

// unprivileged is a user that a child runs as.
type unprivileged struct{ uid, gid int }

// unprivilegedUser returns a user who can read nothing of ours that is not
// given to it, or nil and the reason if the system does not let us: only root
// can change user, and the paths must be within reach of others.
func unprivilegedUser(paths ...string) (*unprivileged, string) {
	if os.Geteuid() != 0 {
		return nil, "only root can start a process as another user"
	}
	for _, path := range paths {
		for ; ; path = filepath.Dir(path) {
			info, err := os.Stat(path)
			if err != nil || info.Mode()&0o001 == 0 {
				return nil, path + " is not accessible to other users"
			}
			if path == filepath.Dir(path) {
				break
			}
		}
	}
	return &unprivileged{nobody, nobody}, ""
}

// childAttributes make a child end with its parent, even one that is killed,
// and keep the terminal's interrupt from reaching it before us.
func childAttributes(user *unprivileged) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if user != nil {
		a.Credential = &syscall.Credential{Uid: uint32(user.uid), Gid: uint32(user.gid)}
	}
	return a
}
