package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
)

// daemon is a key server that runs as a process.
type daemon struct {
	t      *testing.T
	cmd    *exec.Cmd
	client *skicoap.Client
	coaps  string // where it answers
	req    *ski.Request
	log    chan string // lines of standard error, closed at its end
}

// startDaemon starts a key server whose configuration has this line for the
// audit log.
func startDaemon(t *testing.T, dir, audit string, stdout *os.File) *daemon {
	t.Helper()
	require.NoError(t, writeFiles(dir))
	return startConfigured(t, dir, strings.Replace(configYAML, "audit: {file: audit.log}", audit, 1), stdout)
}

// startConfigured starts a key server in a directory that has its files.
func startConfigured(t *testing.T, dir, config string, stdout *os.File) *daemon {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(config), 0o600))
	command, err := exec.LookPath("ski-keyserver")
	require.NoError(t, err)
	d := &daemon{t: t, cmd: exec.Command(command, "-config", filepath.Join(dir, "config.yaml")), log: make(chan string, 1000)}
	if stdout != nil {
		d.cmd.Stdout = stdout
	}
	stderr, err := d.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, d.cmd.Start())
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	go func() {
		defer close(d.log)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			d.log <- lines.Text()
		}
	}()
	addr := regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(d.logged("msg=listening"))[1]
	d.coaps = "coaps://" + addr + "/ski"
	d.client = newClient(t, dir, addr)
	id, err := ski.PublicKeyID(sitePublicKey(t, dir))
	require.NoError(t, err)
	input := append(make([]byte, 64), 3, 0, 29, 32, 9)
	d.req = &ski.Request{Protocol: ski.TLS12, SPKI: id, Hash: ski.SHA256, Input: append(input, make([]byte, 31)...)}
	return d
}

// logged waits for a line of the log and returns it.
func (d *daemon) logged(part string) string {
	d.t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case line, ok := <-d.log:
			require.True(d.t, ok, "the log has ended without %q", part)
			if strings.Contains(line, part) {
				return line
			}
		case <-timeout:
			require.Fail(d.t, "timeout", "the log has no %q", part)
		}
	}
}

// ask returns the answer, and fails without one.
func (d *daemon) ask() *ski.Response {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	resp, err := d.client.RoundTrip(ctx, d.req)
	require.NoError(d.t, err)
	return resp
}

func (d *daemon) signal(s os.Signal) {
	d.t.Helper()
	require.NoError(d.t, d.cmd.Process.Signal(s))
}

// end returns the exit status.
func (d *daemon) end() int {
	for range d.log {
	}
	_ = d.cmd.Wait()
	return d.cmd.ProcessState.ExitCode()
}

func TestMetricsListener(t *testing.T) {
	d := startDaemon(t, t.TempDir(), "metrics: 127.0.0.1:0\naudit: {file: /dev/full, required: true}", nil)
	addr := regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(d.logged("msg=metrics"))[1]
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + addr + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	status, body := get("/healthz")
	require.Equal(t, 200, status)
	require.Equal(t, "ok\n", body)
	require.Equal(t, ski.UnspecifiedError, d.ask().Error)
	status, body = get("/healthz")
	require.Equal(t, 503, status)
	require.Equal(t, "the audit log cannot be written\n", body)
	_, body = get("/metrics")
	require.Contains(t, body, `ski_keyserver_requests_total{edge="edge-1",key="ecdsa.test",method="ECDHE",outcome="unspecified error"} 1`)
	require.Contains(t, body, "ski_keyserver_sessions 1\n")
	require.Contains(t, body, "ski_keyserver_audit_failures_total 1\n")
	require.Contains(t, body, `ski_keyserver_build_info{goversion="`)
	require.Contains(t, body, "go_goroutines ")
	require.Regexp(t, `ski_keyserver_certificate_expiry_timestamp_seconds [1-9]`, body)
	status, _ = get("/")
	require.Equal(t, 404, status)
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// The reader of standard output goes away, as `| head -n1` does.
func TestAuditReaderGoes(t *testing.T) {
	for required, want := range map[string]ski.Error{"false": "", "true": ski.UnspecifiedError} {
		t.Run("required "+required, func(t *testing.T) {
			out, in, err := os.Pipe()
			require.NoError(t, err)
			d := startDaemon(t, t.TempDir(), `audit: {file: "-", required: `+required+`}`, in)
			require.NoError(t, in.Close())
			require.Empty(t, d.ask().Error)
			require.NoError(t, out.Close())
			for range 3 {
				require.Equal(t, want, d.ask().Error)
			}
			require.Contains(t, d.logged("audit log fails"), "broken pipe")
			d.signal(syscall.SIGTERM)
			require.Zero(t, d.end())
		})
	}
}

// logrotate moves the log away and sends SIGHUP.
func TestAuditRotatedByHand(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "audit.log")
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	require.Empty(t, d.ask().Error)
	d.signal(syscall.SIGHUP) // It means nothing to the log yet.
	require.NoError(t, os.Rename(file, file+".1"))
	d.signal(syscall.SIGHUP)
	d.logged("audit log reopened")
	require.Empty(t, d.ask().Error)
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())

	var v keyserver.AuditVerifier
	for _, name := range []string{file + ".1", file} {
		f, err := os.Open(name)
		require.NoError(t, err)
		require.NoError(t, v.File(name, f))
		require.Equal(t, map[string]int{file + ".1": 1, file: 2}[name], v.Requests)
		require.NoError(t, f.Close())
	}
	v.End(false)
	require.Empty(t, v.Faults)
}

// The disk is full, then it is not.
func TestAuditDiskFull(t *testing.T) {
	dir := t.TempDir()
	full := filepath.Join(dir, "disk")
	require.NoError(t, os.Mkdir(full, 0o700))
	const size = 64 << 10
	mounted := exec.Command("mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", full).Run() == nil
	file := filepath.Join(full, "audit.log")
	if mounted {
		t.Cleanup(func() { _ = exec.Command("umount", "-l", full).Run() })
	} else { // A device that is always full shows the first half of this.
		file = "/dev/full"
	}
	for required, want := range map[string]ski.Error{"true": ski.UnspecifiedError, "false": ""} {
		_ = os.Remove(filepath.Join(full, "audit.log"))
		d := startDaemon(t, filepath.Join(t.TempDir()), "audit: {file: "+file+", required: "+required+"}", nil)
		if mounted {
			require.Empty(t, d.ask().Error)
			fill, err := os.Create(filepath.Join(full, "fill"))
			require.NoError(t, err)
			_, err = fill.Write(make([]byte, 2*size))
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.NoError(t, fill.Close())
			// What is left of the page that the log is in.
			for range 20 {
				d.ask()
			}
		}
		require.Equal(t, want, d.ask().Error, "required: %s", required)
		require.Contains(t, d.logged("audit log fails"), "no space left on device")
		if mounted {
			require.NoError(t, os.Remove(filepath.Join(full, "fill")))
			require.Empty(t, d.ask().Error, "there is room again")
		}
		d.signal(syscall.SIGTERM)
		require.Zero(t, d.end())
		if mounted {
			var v keyserver.AuditVerifier
			f, err := os.Open(file)
			require.NoError(t, err)
			require.NoError(t, v.File(file, f))
			require.NoError(t, f.Close())
			v.End(false)
			require.Empty(t, v.Faults)
		}
	}
}

// The disk has no more than the reserve, then it has.
func TestAuditReserve(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	require.NoError(t, os.Mkdir(disk, 0o700))
	mounted := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", disk).Run() == nil
	reserve := "1"
	if mounted {
		t.Cleanup(func() { _ = exec.Command("umount", "-l", disk).Run() })
	} else { // More than any disk has shows the first half of this.
		reserve = "4294967295"
	}
	file := filepath.Join(disk, "audit.log")
	d := startDaemon(t, dir, "metrics: 127.0.0.1:0\naudit: {file: "+file+", required: true, reserve_mib: "+reserve+"}", nil)
	metrics := regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(d.logged("msg=metrics"))[1]
	refused := *d.req
	refused.SPKI = ski.KeyID{1}
	ask := func(req *ski.Request) ski.Error {
		resp, err := d.client.RoundTrip(t.Context(), req)
		require.NoError(t, err)
		return resp.Error
	}
	count := func(part string) int {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		return strings.Count(string(data), part)
	}
	recorded := 0
	if mounted {
		require.Equal(t, ski.SPKINotFound, ask(&refused))
		recorded = 1
		require.NoError(t, os.WriteFile(filepath.Join(disk, "fill"), make([]byte, 3<<20+1<<19), 0o600))
		waitForMetric(t, metrics, "ski_keyserver_audit_reserve_in_use 1\n")
	}
	const asked = 20
	for range asked {
		require.Equal(t, ski.SPKINotFound, ask(&refused))
		require.Empty(t, ask(d.req))
	}
	d.logged("has no more than its reserve")
	require.Equal(t, recorded, count("spki not found"))
	require.Equal(t, asked, count(`"outcome":"output"`))
	if mounted {
		require.NoError(t, os.Remove(filepath.Join(disk, "fill")))
		waitForMetric(t, metrics, "ski_keyserver_audit_reserve_in_use 0\n")
		require.Eventually(t, func() bool { return count(`"event":"refusals"`) == 1 }, time.Minute, 10*time.Millisecond)
	}
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
	require.Equal(t, 1, count(`"count":20,"refused":{"spki not found":20}`))
}

// waitForMetric returns when the metrics have a part.
func waitForMetric(t *testing.T, addr, part string) {
	t.Helper()
	require.Eventually(t, func() bool {
		resp, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(body), part)
	}, time.Minute, 10*time.Millisecond)
}

// holdRequest starts a key server with a request in flight: its audit record
// waits for the reader of the pipe that is returned.
func holdRequest(t *testing.T) (d *daemon, audit *os.File, answer chan error) {
	t.Helper()
	out, in, err := os.Pipe()
	require.NoError(t, err)
	const setPipeSize, page = 1031, 4096 // F_SETPIPE_SZ
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, in.Fd(), setPipeSize, page); errno != 0 {
		require.NoError(t, errno)
	}
	d = startDaemon(t, t.TempDir(), "audit: {file: \"-\"}\nshutdown_timeout: 10m\nmetrics: 127.0.0.1:0", in)
	metrics := regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(d.logged("msg=metrics"))[1]
	require.NoError(t, in.Close())
	t.Cleanup(func() { _ = out.Close() })
	held := func() int { // bytes in the pipe
		n, err := unix.IoctlGetInt(int(out.Fd()), unix.TIOCINQ)
		require.NoError(t, err)
		return n
	}
	waiting := regexp.MustCompile(`(?m)^ski_keyserver_audit_waits_seconds .*[1-9]`)
	recorded := func() bool { // or its record waits
		resp, err := http.Get("http://" + metrics + "/metrics")
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return !waiting.Match(body)
	}
	answer = make(chan error, 1)
	const spread = 16 // bytes by which the lengths of records differ
	for before, record := held(), 0; ; record, before = held()-before, held() {
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := d.client.RoundTrip(ctx, d.req)
			answer <- err
		}()
		for waits := true; waits; {
			select {
			case err := <-answer:
				require.NoError(t, err)
				waits = false
			case <-time.After(100 * time.Millisecond):
				if page-held() < record+spread && !recorded() { // It finds no room.
					return d, out, answer
				}
			}
		}
	}
}

func TestStopAnswersWhatIsInFlight(t *testing.T) {
	d, audit, answer := holdRequest(t)
	d.signal(syscall.SIGTERM)
	d.logged("msg=stopping")
	select {
	case err := <-answer:
		require.Fail(t, "it was answered without its record", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}
	go func() { _, _ = io.Copy(io.Discard, audit) }()
	require.NoError(t, <-answer)
	d.logged("msg=stopped")
	require.Zero(t, d.end())
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	d, _, answer := holdRequest(t)
	d.signal(syscall.SIGTERM)
	d.logged("msg=stopping")
	d.signal(syscall.SIGTERM)
	d.logged("requests were cut short")
	require.Equal(t, 1, d.end())
	require.Error(t, <-answer)
}
