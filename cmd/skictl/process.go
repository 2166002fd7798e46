package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopTimeout is longer than the daemons' own shutdown_timeout.
const stopTimeout = 15 * time.Second

// process is a daemon that runs as a child.
type process struct {
	name    string
	cmd     *exec.Cmd
	logFile *os.File
	ready   chan string   // the address it listens on, once
	done    chan struct{} // closed when it has ended
	err     error         // how it ended; set before done is closed
}

// startProcess starts a daemon, its log going to logFile, and waits until it
// listens. It returns the process and the address.
func startProcess(ctx context.Context, program, config, logFile string, user *unprivileged) (*process, string, error) {
	path, err := sibling(program)
	if err != nil {
		return nil, "", err
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, "", err
	}
	p := &process{
		name:    program,
		cmd:     exec.Command(path, "-config", config),
		logFile: log,
		ready:   make(chan string, 1),
		done:    make(chan struct{}),
	}
	p.cmd.SysProcAttr = childAttributes(user)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		log.Close()
		return nil, "", err
	}
	if err := p.cmd.Start(); err != nil {
		log.Close()
		return nil, "", err
	}
	go p.follow(stderr)
	select {
	case addr := <-p.ready:
		return p, addr, nil
	case <-p.done:
		return nil, "", fmt.Errorf("%s did not start: %w; its log is %s", program, p.err, logFile)
	case <-ctx.Done():
		p.stop()
		return nil, "", ctx.Err()
	}
}

// follow copies the log, finds the address in it, and waits for the end.
func (p *process) follow(stderr io.Reader) {
	defer close(p.done)
	var found sync.Once
	lines := bufio.NewReader(stderr)
	for {
		line, err := lines.ReadString('\n')
		_, _ = p.logFile.WriteString(line)
		if addr, ok := listeningAddr(line); ok {
			found.Do(func() { p.ready <- addr })
		}
		if err != nil {
			break
		}
	}
	p.err = p.cmd.Wait()
	if p.err == nil {
		p.err = errors.New("it ended")
	}
	_ = p.logFile.Close()
}

// listeningAddr reads the line that both daemons log when they are ready.
func listeningAddr(line string) (string, bool) {
	if !strings.Contains(line, "msg=listening ") {
		return "", false
	}
	_, rest, ok := strings.Cut(line, " addr=")
	addr, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	return addr, ok
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the process, gracefully if it can.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// sibling finds a program beside this one, or in the PATH.
func sibling(program string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		path := filepath.Join(filepath.Dir(self), program)
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			return path, nil
		}
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside skictl nor in the PATH; make build puts all three into bin/", program)
	}
	return path, nil
}

func portOf(addr string) string {
	u, err := url.Parse("x://" + addr)
	if err != nil {
		return ""
	}
	return u.Port()
}
