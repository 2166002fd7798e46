package keyserver

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// losses are what can be done to the file of a log while it is written.
var losses = map[string]struct {
	do   func(t *testing.T, file string)
	what string
}{
	"removed":       {func(t *testing.T, file string) { require.NoError(t, os.Remove(file)) }, "was removed while"},
	"emptied":       {func(t *testing.T, file string) { require.NoError(t, os.Truncate(file, 0)) }, "was truncated from"},
	"cut in a line": {func(t *testing.T, file string) { require.NoError(t, os.Truncate(file, 900)) }, "was truncated from"},
	"replaced":      {func(t *testing.T, file string) { replace(t, file, nil) }, "was removed while"},
	"written to": {func(t *testing.T, file string) {
		f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteString("a stranger's line\n")
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}, "somebody else has written 18 bytes"},
}

// Within a second and without a request, the log says that its file is lost.
// Where it is required, nothing is recorded until SIGHUP begins a new file with
// a signed discontinuity; otherwise the log does so itself.
func TestALogFileThatIsLostWhileItIsWrittenIsNoticed(t *testing.T) {
	for name, loss := range losses {
		for _, required := range []bool{true, false} {
			t.Run(name+map[bool]string{true: " and required"}[required], func(t *testing.T) {
				a, _ := newAttacked(t)
				var logged bytes.Buffer
				a.options.Required = required
				o := a.options
				o.Logger = slog.New(slog.NewTextHandler(&logged, nil))
				log, err := OpenAuditLog(o)
				require.NoError(t, err)
				write(t, log, "before")
				loss.do(t, o.File)
				if required {
					require.Eventually(t, func() bool { return log.Fault() != nil }, time.Minute, time.Millisecond)
					require.ErrorContains(t, log.Fault(), loss.what)
					require.ErrorContains(t, log.Audit(t.Context(), &Record{Time: time.Now()}), loss.what)
					for range 3 {
						log.look()
					}
					require.NoError(t, log.Reopen())
					require.NoError(t, log.Fault())
				} else {
					require.Eventually(t, func() bool { return log.Discontinuities() == 1 }, time.Minute, time.Millisecond)
				}
				write(t, log, "after")
				require.NoError(t, log.Close())
				require.Equal(t, 1, strings.Count(logged.String(), "level=ERROR"), logged.String())
				require.Contains(t, logged.String(), loss.what)

				v := a.verify()
				var said int
				for _, f := range v.Faults {
					if strings.Contains(f.What, loss.what) {
						said++
					}
				}
				require.Equal(t, 1, said, "%v", v.Faults)
				require.NoError(t, a.run("later", 3), "it is recorded, and no reason not to start")
				_, err = AcceptAudit(a.options, "root", "a mistake of mine")
				require.NoError(t, err)
				require.NoError(t, a.run("later", 3))
				v = a.verify()
				if name != "written to" { // The stranger's line stays what it is.
					require.Empty(t, v.Faults)
				}
			})
		}
	}
}

// logrotate renames the file and sends SIGHUP. If that does not come, somebody
// has taken the file away.
func TestALogFileThatWasRenamedIsNoFaultForAMinute(t *testing.T) {
	for _, required := range []bool{true, false} {
		a, _ := newAttacked(t)
		a.options.Required = required
		log := openAudit(t, a.options)
		ahead := time.Duration(0)
		log.mu.Lock()
		log.chain.now = func() time.Time { return time.Now().Add(ahead) }
		log.mu.Unlock()
		later := func(d time.Duration) {
			log.mu.Lock()
			ahead += d
			log.mu.Unlock()
			log.look()
		}
		require.NoError(t, os.Rename(a.options.File, a.options.File+".1"))
		later(0)
		write(t, log, "to the old one")
		later(50 * time.Second)
		require.NoError(t, log.Fault())
		later(20 * time.Second)
		if required {
			require.ErrorContains(t, log.Fault(), "it was moved away 1m0s ago, and no SIGHUP has come")
			require.Error(t, log.Audit(t.Context(), &Record{Time: time.Now()}))
			require.NoError(t, log.Reopen())
		}
		require.NoError(t, log.Fault())
		require.FileExists(t, a.options.File)
		write(t, log, "to the new one")
		require.NoError(t, log.Close())
		v := a.verify()
		require.Empty(t, v.Faults)
		require.Equal(t, 102, v.Requests)
		require.Zero(t, log.Discontinuities())
	}
}
