package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
)

func init() { commands["try-sandbox"] = trySandbox }

// nobody is a user without rights, so that root need not run the test as one.
const nobody = 65534

// asNobody makes a command run as nobody if we are root, and otherwise as we
// are.
func asNobody(cmd *exec.Cmd) *exec.Cmd {
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

// forNobody returns a folder with what a key server needs and the program
// itself, all of it nobody's.
func forNobody(t *testing.T) (dir, program string) {
	dir, err := os.MkdirTemp("", "ski-keyserver-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, writeFiles(dir))
	self, err := os.Executable()
	require.NoError(t, err)
	data, err := os.ReadFile(self)
	require.NoError(t, err)
	program = filepath.Join(dir, "ski-keyserver") // what it is called is what it does
	require.NoError(t, os.WriteFile(program, data, 0o755))
	if os.Geteuid() == 0 {
		require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Chown(path, nobody, nobody))
		}))
	}
	return dir, program
}

// Another process of the key server's user cannot read its memory, and the
// kernel writes it nowhere. With the sandbox off it can, so that it is the
// sandbox that keeps it out.
func TestSandboxClosesTheMemory(t *testing.T) {
	for mode, open := range map[string]bool{"off": true, "auto": false} {
		t.Run(mode, func(t *testing.T) {
			dir, program := forNobody(t)
			config := filepath.Join(dir, "config.yaml")
			require.NoError(t, os.WriteFile(config, []byte(configYAML+"sandbox: "+mode+"\n"), 0o644))
			var stderr bytes.Buffer
			cmd := asNobody(exec.Command(program, "-config", config))
			log, err := cmd.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			// With auto it is the line after "listening" that says what is in force.
			last := map[string]string{"off": "msg=listening", "auto": "msg=sandbox "}[mode]
			for !bytes.Contains(stderr.Bytes(), []byte(last)) {
				line := make([]byte, 4096)
				n, err := log.Read(line)
				stderr.Write(line[:n])
				require.NoError(t, err, stderr.String())
			}

			proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
			for _, file := range []string{"mem", "environ"} {
				// Reading nothing of it is enough: who may open it may read.
				out, err := asNobody(exec.Command("sh", "-c", ": < "+proc+file)).CombinedOutput()
				if open {
					require.NoError(t, err, "%s: %s", file, out)
				} else {
					require.Error(t, err, file)
					require.Contains(t, strings.ToLower(string(out)), "permission denied")
				}
			}
			limits, err := os.ReadFile(proc + "limits")
			require.NoError(t, err)
			if open {
				require.Contains(t, stderr.String(), "level=WARN msg=\"unsafe choice\" what=\"sandbox: off")
			} else {
				require.Contains(t, stderr.String(), "memory closed to other processes, no core dumps")
				require.Regexp(t, `Max core file size +0 +0 `, string(limits))
			}
		})
	}
}

// attempts are what trySandbox tries in the folders "read" and "write" of dir.
// What Landlock does not forbid before a certain ABI has a number.
func attempts(dir string, thread int, listener net.Addr) []attempt {
	at := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	own := at("write", fmt.Sprint(thread))
	read := func(file string) func() error {
		return func() error { _, err := os.ReadFile(file); return err }
	}
	return []attempt{
		{"reads a file", 0, read(at("read", "file"))},
		{"reads a file that is new", 0, read(at("write", "log.1"))},
		{"writes a file", 0, func() error { return os.WriteFile(own, nil, 0o600) }},
		{"renames a file", 0, func() error { return os.Rename(own, own+".old") }},
		{"removes a file", 0, func() error { return os.Remove(own + ".old") }},
		{"reads elsewhere", 1, read(at("elsewhere"))},
		{"reads the users", 1, read("/etc/passwd")},
		{"writes where it reads", 1, func() error { return os.WriteFile(at("read", "file"), nil, 0o600) }},
		{"runs a program", 1, func() error {
			return (&exec.Cmd{Path: "/bin/true", Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}).Run()
		}},
		{"connects", 4, func() error { _, err := net.Dial("tcp", listener.String()); return err }},
		{"signals", 6, func() error { return syscall.Kill(os.Getppid(), 0) }},
	}
}

type attempt struct {
	name      string
	forbidden int // from this ABI on; 0 for never
	do        func() error
}

const threads = 4

// trySandbox is a process that confines itself and prints what it can do then:
// a line of JSON for each of several threads that were there before, with the
// errors of its attempts.
func trySandbox() {
	dir := os.Args[1]
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	ready, start, results := make(chan bool), make(chan bool), make(chan []string)
	for n := range threads {
		go func() {
			runtime.LockOSThread() // each has a thread of its own
			ready <- true
			<-start
			var errs []string
			for _, a := range attempts(dir, n, listener.Addr()) {
				errs = append(errs, fmt.Sprint(a.do()))
			}
			results <- errs
		}()
		<-ready
	}
	if _, err := confine([]string{filepath.Join(dir, "read")}, []string{filepath.Join(dir, "write")}, nil, false); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := os.WriteFile(filepath.Join(dir, "write", "log.1"), nil, 0o600); err != nil {
		panic(err)
	}
	close(start)
	for range threads {
		_ = json.NewEncoder(os.Stdout).Encode(<-results)
	}
}

func TestSandboxConfinesEveryThread(t *testing.T) {
	dir := t.TempDir()
	for _, folder := range []string{"read", "write"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, folder), 0o700))
	}
	for _, file := range []string{"read/file", "elsewhere"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte("content"), 0o600))
	}
	var stderr bytes.Buffer
	cmd := exec.Command("try-sandbox", dir)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	abi, unsupported := llsys.LandlockGetABIVersion()
	if unsupported != nil { // by this kernel: then it is said
		require.Error(t, err)
		require.Contains(t, stderr.String(), "no Landlock: ")
		return
	}
	require.NoError(t, err, stderr.String())
	require.Equal(t, threads, bytes.Count(out, []byte{'\n'}))
	for line := range bytes.Lines(out) {
		var results []string
		require.NoError(t, json.Unmarshal(line, &results))
		for i, a := range attempts(dir, 0, nil) {
			if a.forbidden > 0 && abi >= a.forbidden {
				require.Regexp(t, "permission denied|operation not permitted", results[i], a.name)
			} else {
				require.Equal(t, "<nil>", results[i], a.name)
			}
		}
	}
}

// Everything that a key server opens after its start, in folders of its own.
func TestSandboxLetsTheKeyServerWork(t *testing.T) {
	dir := t.TempDir()
	for _, folder := range []string{"log", "state", "run"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, folder), 0o700))
	}
	at := func(file string) string { return filepath.Join(dir, file) }
	d := startDaemon(t, dir, "audit: {file: log/audit.log}\nstate: state/suspended\ncrl: crl.pem\nadmin: run/admin", nil)
	require.Contains(t, d.logged("msg=sandbox"), "memory closed")
	require.Empty(t, d.ask().Error)

	// The admin socket, the state file, and who it was.
	order := func(path string) {
		client := http.Client{Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", at("run/admin")) },
		}}
		resp, err := client.Post("http://keyserver"+path, "application/json", strings.NewReader(`{"edge": "edge-1"}`))
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s", body)
		require.NotContains(t, string(body), "warning")
	}
	order(keyserver.AdminSuspend)
	state, err := os.ReadFile(at("state/suspended"))
	require.NoError(t, err)
	self, err := user.Current()
	require.NoError(t, err)
	require.Contains(t, string(state), "edge-1")
	require.Contains(t, string(state), "user "+self.Username)
	order(keyserver.AdminResume)
	require.Empty(t, d.ask().Error)

	// The audit log, moved away.
	require.NoError(t, os.Rename(at("log/audit.log"), at("log/audit.old")))
	d.signal(syscall.SIGHUP)
	require.Eventually(t, func() bool { _, err := os.Stat(at("log/audit.log")); return err == nil },
		time.Minute, 10*time.Millisecond)

	// A CRL that takes the place of the old one.
	ca, err := tls.LoadX509KeyPair(at("ca.pem"), at("ca.key"))
	require.NoError(t, err)
	authority := &identity{ca.Leaf, ca.PrivateKey.(*ecdsa.PrivateKey)}
	require.NoError(t, writeCRL(at("new"), authority, 2, big.NewInt(1), big.NewInt(2)))
	require.NoError(t, os.Rename(at("new"), at("crl.pem")))
	require.Contains(t, d.logged("CRLs read"), "revoked=2")

	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
	require.NoFileExists(t, at("run/admin"), "it is removed at the end")
}

// The key server that runs is in it: a policy in a folder that it was not given
// is out of its reach, as its keys would be to who takes it over.
func TestTheKeyServerThatRunsIsConfined(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	d := startDaemon(t, dir, "", nil)
	require.NoError(t, os.WriteFile(filepath.Join(elsewhere, "policy.yaml"), []byte(policyYAML), 0o600))
	require.NoError(t, os.Symlink(filepath.Join(elsewhere, "policy.yaml"), filepath.Join(dir, "link")))
	require.NoError(t, os.Rename(filepath.Join(dir, "link"), filepath.Join(dir, "policy.yaml")))
	if _, unsupported := llsys.LandlockGetABIVersion(); unsupported != nil {
		d.logged("sandbox is not complete")
		return
	}
	require.Contains(t, d.logged("policy refused"), "permission denied")
}

func TestSandboxFolders(t *testing.T) {
	dir := t.TempDir()
	dir, err := filepath.EvalSymlinks(dir)
	require.NoError(t, err)
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.Mkdir(at("versions"), 0o700))
	require.NoError(t, os.WriteFile(at("versions/2"), nil, 0o600))
	require.NoError(t, os.Symlink("versions/2", at("policy.yaml")))
	cfg := &keyserver.Config{
		Key: "/key/k", Keys: "/keys", Policy: at("policy.yaml"), CRL: "/crl/c",
		Audit: keyserver.AuditConfig{File: "/log/a", Witness: "/mnt/w"}, State: "/state/s", Admin: "/run/admin",
	}
	cfg.HSM.Keys = []keyserver.HSMKey{{URI: "pkcs11:token=a?pin-source=file:/pins/a"}, {URI: "pkcs11:token=b?pin-source=env:PIN"}}
	read, write := folders(cfg)
	require.Equal(t, []string{"/crl", "/key", "/keys", "/pins", dir, at("versions")}, read)
	require.Equal(t, []string{"/log", "/mnt", "/run", "/state"}, write)

	cfg.CRL, cfg.Audit.File, cfg.Audit.Witness, cfg.State, cfg.Admin = "", "-", "", "", ""
	_, write = folders(cfg)
	require.Empty(t, write)
}
