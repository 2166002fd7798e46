package keyserver

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// DefaultAuditReserveMiB is AuditConfig.ReserveMiB unless it is configured: room
// for the records of some 120,000 requests that are answered.
const DefaultAuditReserveMiB = 64

// reserveAge is how long what is known of the disk's free space is good for. The
// lines of a second are few to the reserve.
const reserveAge = time.Second

// auditReserve is what an AuditLog knows of the free space of its disk.
type auditReserve struct {
	mu    sync.Mutex
	asked time.Time
	in    bool
}

var _ ReserveAuditor = (*AuditLog)(nil)

// InReserve implements ReserveAuditor: it reports whether the file system of the
// log has less free space than AuditOptions.Reserve, and has not had an eighth more
// since. Where there is no telling, it is false.
func (l *AuditLog) InReserve() bool {
	if l.o.Reserve <= 0 || l.o.File == "-" {
		return false
	}
	r := &l.reserve
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.asked) >= reserveAge {
		free, err := freeSpace(l.o.File)
		enough := l.o.Reserve
		if r.in {
			enough += enough / 8 // Or it would be in and out again with each file that comes and goes.
		}
		r.in, r.asked = err == nil && free < enough, now
	}
	return r.in
}

// auditReserveWarning returns what the operator should know of the disk, or "".
func auditReserveWarning(c *AuditConfig) string {
	if c.File == "-" || c.ReserveMiB == 0 {
		return ""
	}
	free, err := freeSpace(c.File)
	if os.IsNotExist(err) {
		free, err = freeSpace(filepath.Dir(c.File))
	}
	if err != nil || free >= int64(c.ReserveMiB)<<20 {
		return ""
	}
	return fmt.Sprintf("audit log %s: its disk has %d MiB free, less than audit.reserve_mib, %d: refusals are only counted until it has more",
		c.File, free>>20, c.ReserveMiB)
}
