package keyserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The paths of the admin API, in JSON over HTTP/1.1 on a unix socket. An error
// is an AdminError with a status of 400 or above.
const (
	AdminEdges   = "/edges"   // GET: []EdgeStatus
	AdminSuspend = "/suspend" // POST an AdminOrder: AdminResult
	AdminResume  = "/resume"  // POST an AdminOrder: AdminResult
	// AdminWitness is for a witness of the audit log: POST the last line that it
	// has, or nothing: the next one, or 204 (No Content) where there is nothing new.
	// The status of an error is 409 where the log is not what the witness has, 503
	// where asking again may help.
	AdminWitness = "/audit/witness"
)

// AdminOrder says what to suspend or to resume.
type AdminOrder struct {
	// Edge is the name of an edge or a ski.PeerID.
	Edge string `json:"edge"`
	// Reason is for the logs. It does not count for a resumption.
	Reason string `json:"reason,omitempty"`
}

// AdminResult is what came of an AdminOrder.
type AdminResult struct {
	// Closed is how many live sessions were closed.
	Closed int `json:"closed"`
	// Warning says that the order is carried out but will not outlast a
	// restart.
	Warning string `json:"warning,omitempty"`
}

// AdminError is the body of an answer that is an error.
type AdminError struct {
	Error string `json:"error"`
}

// maxAdminBody bounds the body of an order, in bytes.
const maxAdminBody = 1 << 16

// ServeAdmin answers the admin API on a listener of ListenAdmin until that is
// closed. Whoever can connect may suspend and resume: it is the listener that
// lets in only its owner.
func (s *Server) ServeAdmin(l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+AdminEdges, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, http.StatusOK, s.Edges()) })
	mux.HandleFunc("POST "+AdminSuspend, s.orderHandler(s.orderSuspend))
	mux.HandleFunc("POST "+AdminResume, s.orderHandler(s.orderResume))
	mux.HandleFunc("POST "+AdminWitness, s.serveWitness)
	server := &http.Server{
		Handler:     mux,
		ReadTimeout: 10 * time.Second,
		IdleTimeout: 10 * time.Second,
		ConnContext: withCaller,
	}
	defer server.Close()
	if err := server.Serve(l); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *Server) orderHandler(do func(by string, o AdminOrder) (AdminResult, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var o AdminOrder
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody))
		d.DisallowUnknownFields()
		if err := d.Decode(&o); err != nil {
			answerJSON(w, http.StatusBadRequest, AdminError{err.Error()})
			return
		}
		result, err := do(callerOf(r.Context()), o)
		switch {
		case errors.Is(err, ErrUnknownEdge), errors.Is(err, ErrNotSuspended):
			answerJSON(w, http.StatusNotFound, AdminError{err.Error()})
		case err != nil:
			answerJSON(w, http.StatusInternalServerError, AdminError{err.Error()})
		default:
			answerJSON(w, http.StatusOK, result)
		}
	}
}

func (s *Server) orderSuspend(by string, o AdminOrder) (AdminResult, error) {
	closed, err := s.Suspend(Suspension{Edge: o.Edge, Reason: o.Reason, By: by})
	switch {
	case errors.Is(err, ErrUnknownEdge):
		return AdminResult{}, err
	case err != nil:
		return AdminResult{Closed: closed, Warning: err.Error()}, nil
	case !s.suspensions.Lasting():
		return AdminResult{Closed: closed, Warning: "no state file is configured: a restart ends the suspension"}, nil
	}
	return AdminResult{Closed: closed}, nil
}

func (s *Server) orderResume(by string, o AdminOrder) (AdminResult, error) {
	return AdminResult{}, s.Resume(o.Edge, by)
}

// WitnessedAuditor is an Auditor whose log can have a witness; see
// AuditLog.Witness.
type WitnessedAuditor interface {
	Auditor
	Witness(line []byte) (next []byte, err error)
	Witnessed() time.Time
}

func (s *Server) serveWitness(w http.ResponseWriter, r *http.Request) {
	audit, ok := s.audit.(WitnessedAuditor)
	if !ok {
		answerJSON(w, http.StatusNotFound, AdminError{ErrWitness.Error()})
		return
	}
	line, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxWitnessEntry))
	if err != nil {
		answerJSON(w, http.StatusBadRequest, AdminError{err.Error()})
		return
	}
	next, err := audit.Witness(line)
	switch {
	case errors.As(err, new(*DiscontinuityError)):
		answerJSON(w, http.StatusConflict, AdminError{err.Error()})
	case errors.Is(err, ErrWitness):
		answerJSON(w, http.StatusBadRequest, AdminError{err.Error()})
	case err != nil:
		answerJSON(w, http.StatusServiceUnavailable, AdminError{err.Error()})
	case next == nil:
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(next) // The connection is all that can fail.
	}
}

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // The connection is all that can fail.
}

// ListenAdmin listens on a unix socket that its owner alone can connect to. It
// takes the place of a socket that a former process has left behind, but not of
// one that is in use. Close removes it.
func ListenAdmin(file string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", file, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s: another process listens there", file)
	}
	if info, err := os.Lstat(file); err == nil && info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s: it is there and not a socket", file)
	}
	// The socket is made where nobody else can come, so that it never has other
	// permissions at the place where it is looked for.
	private, err := os.MkdirTemp(filepath.Dir(file), ".") // mode 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(private, "s"), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // It would be by the former name.
	name := l.Addr().String()
	if err := errors.Join(os.Chmod(name, 0o600), os.Rename(name, file)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &adminListener{UnixListener: l, file: file}, nil
}

// adminListener removes its socket when it is closed.
type adminListener struct {
	*net.UnixListener
	file  string
	close sync.Once // or it might remove that of its successor
}

func (l *adminListener) Close() (err error) {
	l.close.Do(func() { err = errors.Join(os.Remove(l.file), l.UnixListener.Close()) })
	return err
}
