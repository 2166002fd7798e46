package main

import (
	"errors"
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// What Landlock lets the process do in the folders it is given. Executing is
// not among it, anywhere.
const (
	reading = llsys.AccessFSReadFile | llsys.AccessFSReadDir
	// A module may talk to a daemon of its own, or to a device.
	moduleWork = writing | llsys.AccessFSResolveUnix | llsys.AccessFSIoctlDev
	writing    = reading | llsys.AccessFSWriteFile | llsys.AccessFSTruncate | llsys.AccessFSMakeReg | llsys.AccessFSRemoveFile
)

// confine takes from the process, with Landlock and for ever, all files but
// those in the folders, opening and accepting nothing on TCP that it does not
// listen on yet, and signals to other processes. It has all threads at once,
// which the library sees to. What the modules of HSMs need is left to them.
//
// It is Landlock's ABI 9 at most: from the next on it restricts the ports that
// UDP sends to, and edges ask from any.
func confine(read, write, modules []string, network bool) (inForce string, err error) {
	abi, err := llsys.LandlockGetABIVersion()
	if err != nil {
		return "", fmt.Errorf("no Landlock: %w", err)
	}
	tcp := "no new TCP"
	folders := []landlock.Rule{
		landlock.PathAccess(reading, read...), landlock.PathAccess(writing, write...), landlock.PathAccess(moduleWork, modules...),
	}
	if rules := landlock.V9.BestEffort(); network {
		tcp = "TCP for the HSM's module"
		err = errors.Join(rules.RestrictPaths(folders...), rules.RestrictScoped())
	} else {
		err = rules.Restrict(folders...)
	}
	if err != nil {
		return "", fmt.Errorf("no Landlock: %w", err)
	}
	return fmt.Sprintf("Landlock (ABI %d): reads %q, writes %q, no programs, %s", abi, read, append(write, modules...), tcp), nil
}
