package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tlsski/tlsski/internal/netlab"
)

// daemon is a server that runs on a host. What it logs is read and kept in a
// file, unless the reader is told to stop.
type daemon struct {
	name    string
	host    *netlab.Host
	program string
	args    []string
	log     string // the file

	cmd      *exec.Cmd
	stderr   *os.File
	reading  sync.Mutex // held by whoever keeps the reader from going on
	ended    chan struct{}
	expected bool // its end
}

// start starts it, or starts it again. Its standard error is a pipe of one page,
// which a reader that stops leaves full soon.
func (d *daemon) start() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil {
		return err
	}
	file, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	d.cmd = d.host.Command(d.program, d.args...)
	d.cmd.Stderr = w
	// It is not to outlive this program, whatever ends that. The thread that
	// starts it must not end before.
	runtime.LockOSThread()
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.stderr = r
	go d.read(r, file)
	cmd, ended := d.cmd, make(chan struct{})
	d.ended, d.expected = ended, false
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	return nil
}

func (d *daemon) read(from, to *os.File) {
	defer from.Close()
	defer to.Close()
	buffer := make([]byte, 4096)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		d.reading.Lock()
		_, err = to.Write(buffer[:n])
		d.reading.Unlock()
		if err != nil {
			return
		}
	}
}

// deaf stops the reader until the returned function is called.
func (d *daemon) deaf() (again func()) {
	d.reading.Lock()
	return d.reading.Unlock
}

// stuck returns an error unless the pipe is so full that who writes a line waits.
func (d *daemon) stuck() error {
	raw, err := d.stderr.SyscallConn()
	if err != nil {
		return err
	}
	var length int
	var failed error
	err = raw.Control(func(fd uintptr) { length, failed = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if length < os.Getpagesize()-1024 {
		failed = errors.Join(failed, fmt.Errorf("%s has logged too little to be held up: %d bytes", d.name, length))
	}
	return errors.Join(err, failed)
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

func (d *daemon) signal(s syscall.Signal) error { return d.cmd.Process.Signal(s) }

// kill ends it without a goodbye.
func (d *daemon) kill() error {
	d.expected = true
	if err := d.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-d.ended
	return nil
}

// stop ends it as an operator does.
func (d *daemon) stop() error {
	if d.ended == nil {
		return nil
	}
	d.expected = true
	_ = d.signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(30 * time.Second):
		_ = d.signal(syscall.SIGKILL)
		<-d.ended
		return fmt.Errorf("%s did not end within 30 s of SIGTERM", d.name)
	}
	return nil
}

// alive returns an error if it has ended by itself.
func (d *daemon) alive() error {
	select {
	case <-d.ended:
		if !d.expected {
			return fmt.Errorf("%s has ended: %v: see %s", d.name, d.cmd.ProcessState, d.log)
		}
	default:
	}
	return nil
}
