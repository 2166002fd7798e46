package main

import (
	"errors"
	"log/slog"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tlsski/tlsski/cmd/internal/keyparts"
	"github.com/tlsski/tlsski/cmd/internal/memory"
	"github.com/tlsski/tlsski/keyserver"
)

// sandbox is what the process takes away from itself, since it has the keys
// and its peers are on a network: the ways to read its memory from outside, and
// the rights that it does not need once it runs. What the system does not have
// is left out and said.
type sandbox struct {
	cfg     *keyserver.Config
	inForce []string
	missing []error
}

// enterSandbox closes the process's memory. It comes before the first key is
// read.
func enterSandbox(cfg *keyserver.Config) *sandbox {
	s := &sandbox{cfg: cfg}
	if cfg.Sandbox != keyserver.SandboxOff {
		s.note(memory.Close())
	}
	return s
}

// confine restricts the process to what it needs from now on. It comes when
// all files and sockets of the start are open.
func (s *sandbox) confine() {
	if s.cfg.Sandbox == keyserver.SandboxOff {
		return
	}
	// Both are read from files once: the time zone, for the log's times, and the
	// user's name, for who has used the admin socket.
	_, _ = time.Now().Zone()
	_, _ = user.Current()
	read, write := folders(s.cfg)
	s.note(confine(read, write, s.cfg.HSM.Folders, s.cfg.HSM.Network))
}

func (s *sandbox) note(inForce string, err error) {
	if err != nil {
		s.missing = append(s.missing, err)
		return
	}
	s.inForce = append(s.inForce, inForce)
}

// report logs what is in force and what is not. That the sandbox is off stands
// among the configuration's warnings.
func (s *sandbox) report(log *slog.Logger) {
	if s.cfg.Sandbox == keyserver.SandboxOff {
		return
	}
	log.Info("sandbox", "in_force", strings.Join(s.inForce, "; "))
	if err := errors.Join(s.missing...); err != nil {
		log.Warn("sandbox is not complete", "error", err)
	}
}

// folders returns those in which the key server reads files after its start,
// and those in which it writes too. They are folders because what replaces a
// file, be it a new policy or the next audit log, is another file. Where a file
// is a link, the folder of what it points at is one of them.
func folders(cfg *keyserver.Config) (read, write []string) {
	of := func(files ...string) (dirs []string) {
		for _, file := range files {
			if file == "" || file == "-" {
				continue
			}
			dirs = append(dirs, filepath.Dir(file))
			if target, err := filepath.EvalSymlinks(file); err == nil {
				dirs = append(dirs, filepath.Dir(target))
			}
		}
		slices.Sort(dirs)
		return slices.Compact(dirs)
	}
	tokens := keyparts.HSMConfig(cfg, nil)
	read = of(append(tokens.PINFiles(), cfg.Policy, cfg.PSK, cfg.CRL, cfg.Certificate, cfg.Key, cfg.ClientCA)...)
	if cfg.Keys != "" {
		// Of the keys, the directory itself: another one in its place can be read
		// where it is a link, or beside the policy.
		keys := []string{cfg.Keys + "/*"}
		if target, err := filepath.EvalSymlinks(cfg.Keys); err == nil && target != filepath.Clean(cfg.Keys) {
			keys = append(keys, target)
		}
		links, _ := filepath.Glob(cfg.Keys + "/*.pem") // not what else may be there
		more, _ := filepath.Glob(cfg.Keys + "/*.key")
		links = append(links, more...)
		read = append(read, slices.DeleteFunc(of(append(keys, links...)...), func(dir string) bool { return dir == "/" })...)
		slices.Sort(read)
		read = slices.Compact(read)
	}
	return read, of(cfg.Audit.File, cfg.Audit.Witness, cfg.State, cfg.Admin)
}
