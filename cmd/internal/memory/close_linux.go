// Package memory closes the memory of a process that has private keys, or that
// may use them.
package memory

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Close keeps the process's memory from other processes, those of the same user
// included, and from the disk. It comes before the first key is read. Both
// settings are the process's, not a thread's. Root is not kept out.
func Close() (inForce string, err error) {
	// /proc/PID/mem and ptrace are closed, and nothing is dumped, not even to
	// a program that collects core dumps, for which the limit does not count.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return "", fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	// The limit stays if something makes the process dumpable again.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return "", fmt.Errorf("RLIMIT_CORE: %w", err)
	}
	return "memory closed to other processes, no core dumps", nil
}
