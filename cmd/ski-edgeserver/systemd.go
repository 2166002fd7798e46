package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/tlsski/tlsski/edgeserver"
)

// sockets are those that systemd has opened for this process
// (sd_listen_fds(3)), by the FileDescriptorName of their unit.
type sockets struct {
	files map[string][]*os.File
	mu    sync.Mutex
	used  map[string]bool
}

// inherit takes the sockets over. It is called once.
func inherit() *sockets {
	s := &sockets{files: map[string][]*os.File{}, used: map[string]bool{}}
	for _, file := range activation.Files(true) {
		s.files[file.Name()] = append(s.files[file.Name()], file)
	}
	return s
}

// give lets cfg use them. They stay open here, so that a reload can come back to
// one.
func (s *sockets) give(cfg *edgeserver.Config) {
	cfg.Sockets = func(name string) (all []net.Listener, err error) {
		if names := slices.Sorted(maps.Keys(s.files)); len(names) == 0 {
			return nil, errors.New("systemd has passed no sockets")
		} else if len(s.files[name]) == 0 {
			return nil, fmt.Errorf("systemd has passed no socket named '%s', but %s", name, strings.Join(names, ", "))
		}
		defer func() {
			if err != nil {
				for _, l := range all {
					l.Close()
				}
				all = nil
			}
		}()
		for _, file := range s.files[name] {
			l, err := net.FileListener(file)
			if err != nil {
				return all, fmt.Errorf("systemd's socket '%s': %w", name, err)
			}
			all = append(all, l)
			if _, ok := l.(*net.TCPListener); !ok {
				return all, fmt.Errorf("systemd's socket '%s': %w", name, errors.New("it is not one for TCP (ListenStream=)"))
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.used[name] = true
		return all, nil
	}
}

// warn names the sockets whose clients would wait for ever.
func (s *sockets) warn(log *slog.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if !s.used[name] {
			log.Warn("systemd has passed a socket that is not in listen", "name", name, "listen", "systemd:"+name)
		}
	}
}

// notify tells systemd, where that has started the process with Type=notify
// (sd_notify(3)).
func notify(state string, log *slog.Logger) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn("systemd cannot be told", "state", state, "error", err)
	}
}

func notifyReady(log *slog.Logger)    { notify(sd.SdNotifyReady, log) }
func notifyStopping(log *slog.Logger) { notify(sd.SdNotifyStopping, log) }

// notifyReloading returns what tells that the reload is over.
func notifyReloading(log *slog.Logger) (done func()) {
	notify(sd.SdNotifyReloading+"\n"+sd.SdNotifyMonotonicUsec(), log)
	return func() { notifyReady(log) }
}

// keepAlive tells systemd twice in each WatchdogSec= that the process is alive,
// if it wants to know, until ctx ends. alive does not return where it is stuck.
func keepAlive(ctx context.Context, alive func(), log *slog.Logger) {
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog", "error", err)
	}
	if err != nil || interval == 0 {
		return
	}
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for {
		alive()
		notify(sd.SdNotifyWatchdog, log)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}
