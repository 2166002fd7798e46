// Package lab is what the programs below testdata have in common: they run the
// built commands, and write what they find into a document.
package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Median returns the median of all, which it sorts.
func Median(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// Machine says when and where something was measured.
func Machine() string {
	return fmt.Sprintf("%s: %s, %d processors, %s, %s", time.Now().UTC().Format("2006-01-02"), processor(), runtime.NumCPU(),
		runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH)
}

func processor() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return "unknown processor"
}

// Resident is a process's resident memory in MiB.
func Resident(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(kib), " kB"), 64)
			return n / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmRSS", pid)
}

// Write prints text and puts it between the marks of "make TARGET" in the file.
func Write(file, target, text string) error {
	fmt.Print(text)
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := "<!-- written by make "+target+": begin -->\n", "<!-- written by make "+target+": end -->"
	before, rest, ok := bytes.Cut(data, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks of make %s to write between", file, target)
	}
	return os.WriteFile(file, slices.Concat(before, []byte(begin+text+end), after), 0o644)
}

// Process is a daemon that runs.
type Process struct {
	cmd  *exec.Cmd
	log  *bufio.Reader
	read strings.Builder
	done sync.WaitGroup // of the reader, once Start has returned
}

// Start starts a daemon and waits until its log has a line that matches each of
// until. On success, Stop must be called.
func Start(until []string, program string, args ...string) (*Process, error) {
	return StartCommand(until, exec.Command(program, args...))
}

// StartCommand is Start for a command that is there already.
func StartCommand(until []string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd}
	// It is not to outlive this program, whatever ends that. The thread that
	// starts it must not end before.
	runtime.LockOSThread()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	hung := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer hung.Stop()
	p.log = bufio.NewReader(stderr)
	for _, pattern := range until {
		if err := p.until(regexp.MustCompile(pattern)); err != nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
			return nil, fmt.Errorf("%s: %w:\n%s", strings.Join(p.cmd.Args, " "), err, p.read.String())
		}
	}
	p.done.Go(func() { _, _ = io.Copy(io.Discard, p.log) })
	return p, nil
}

func (p *Process) until(expression *regexp.Regexp) error {
	for !expression.MatchString(p.read.String()) {
		line, err := p.log.ReadString('\n')
		p.read.WriteString(line)
		if err != nil {
			return errors.Join(fmt.Errorf("its log has no line that matches %s", expression), err)
		}
	}
	return nil
}

// PID is the process's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop ends the process.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	hung := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer hung.Stop()
	p.done.Wait()
	_ = p.cmd.Wait()
}

// Run runs a program to its end and returns what it has printed.
func Run(program string, args ...string) (string, error) {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w:\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
