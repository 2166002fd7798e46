package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/internal/logqueue"
	"github.com/tlsski/tlsski/keyserver"
)

func newAuditWitnessCommand() *cobra.Command {
	var o auditWitness
	cmd := &cobra.Command{
		Use:   "witness --key FILE --to FILE [-- COMMAND ARG...]",
		Short: "Keep what proves how far an audit log went",
		Long: `Asks a key server from time to time how far its audit log goes, and appends its
signed answer to a file, which 'audit verify --witness' compares with the log. It
tells the key server what the file has, which is how that finds out that its log,
its tip and its state were all replaced by older ones. The file belongs where
whoever can change those cannot change it: on another machine.

Without COMMAND it asks the admin socket of a key server on this machine, so that
FILE is on a disk of another. With it, it runs on the other machine, and asks by
running COMMAND each time, say ssh, which runs 'skictl audit witness --relay' on the
key server's. With --relay it answers one question, on standard input and output:

  # authorized_keys of a user on the key server's machine that may run this by sudo
  restrict,command="sudo -u ski-keyserver skictl audit witness --relay" ssh-ed25519 AAAA...

It goes on when the key server is started again, and ends with status 1 and a line
on standard error where FILE cannot be written, where the key server has not
answered for --patience, and where its log is not what FILE has.`,
		Example: `  skictl audit witness --key audit.pub --to /mnt/witness/ks-1.witness
  skictl audit witness --key audit.pub --to ks-1.witness -- ssh -T -o BatchMode=yes ski-witness@ks-1.example.net`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			stderr := logqueue.New(cmd.ErrOrStderr(), func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) })
			defer stderr.Close()
			// Neither a question nor the end waits for who reads standard error, and one
			// that has gone ends nothing.
			signal.Ignore(syscall.SIGPIPE)
			o.command, o.stderr = args, stderr
			if err := o.run(cmd); err != nil {
				fmt.Fprintf(stderr, "skictl: %v\n", err)
				return exitStatus(1)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.keyFiles, "key", nil, "`FILE` with the public key of the log, PEM; repeat it for a log that has had several")
	f.StringVar(&o.to, "to", "", "`FILE` that is appended to")
	f.StringVar(&o.socket, "socket", defaultAdminSocket, "the key server's admin socket (`PATH`)")
	f.DurationVar(&o.interval, "interval", time.Minute, "how often to ask: what is removed from the log within this `TIME` may go unseen")
	f.DurationVar(&o.patience, "patience", 15*time.Minute, "for how much `TIME` to do without an answer")
	f.BoolVar(&o.once, "once", false, "ask once")
	f.BoolVar(&o.relay, "relay", false, "answer for a witness on another machine")
	return cmd
}

type auditWitness struct {
	keyFiles           []string
	to, socket         string
	interval, patience time.Duration
	once, relay        bool
	command            []string
	stderr             io.Writer

	keys []ed25519.PublicKey
}

// witnessTimeout bounds one question: longer than an ssh connection takes.
const witnessTimeout = 30 * time.Second

// witnessRefusal is an error that asking again does not change.
type witnessRefusal struct{ text string }

func (r *witnessRefusal) Error() string { return r.text }

func (o *auditWitness) run(cmd *cobra.Command) error {
	if o.relay {
		if o.to != "" || len(o.keyFiles) > 0 || len(o.command) > 0 {
			return errors.New("--relay takes no file, no key and no command")
		}
		return o.answer(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
	}
	switch {
	case o.to == "" || len(o.keyFiles) == 0:
		return errors.New("--to and --key are required")
	case o.interval <= 0 || o.patience <= 0:
		return errors.New("--interval and --patience are above zero")
	}
	for _, file := range o.keyFiles {
		key, err := readAuditPublicKey(file)
		if err != nil {
			return err
		}
		o.keys = append(o.keys, key)
	}
	w, err := keyserver.OpenWitness(o.to, o.keys)
	if err != nil {
		return err
	}
	return o.keep(cmd.Context(), w)
}

// keep asks until ctx ends.
func (o *auditWitness) keep(ctx context.Context, w *keyserver.Witness) error {
	heard, silent := time.Now(), false
	for {
		wait := o.interval
		err := o.ask(ctx, w)
		var unheard *unheardError
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			if silent {
				fmt.Fprintln(o.stderr, "skictl: the key server answers again")
			}
			heard, silent = time.Now(), false
		case o.once || !errors.As(err, &unheard):
			return err
		case time.Since(heard) >= o.patience:
			return fmt.Errorf("the key server has not answered for %v: %w", o.patience, err)
		default:
			if !silent {
				fmt.Fprintf(o.stderr, "skictl: the key server does not answer: %v\n", err)
			}
			silent = true
			wait = min(wait, 5*time.Second, o.patience)
		}
		if o.once {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// unheardError says that there was no answer.
type unheardError struct{ error }

func (e *unheardError) Unwrap() error { return e.error }

// ask asks once and keeps the answer.
func (o *auditWitness) ask(ctx context.Context, w *keyserver.Witness) error {
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	var line []byte
	last := w.Last()
	if last != nil {
		line = last.Line()
	}
	exchange := o.askSocket
	if len(o.command) > 0 {
		exchange = o.askCommand
	}
	answer, err := exchange(ctx, line)
	if refusal := (*witnessRefusal)(nil); errors.As(err, &refusal) {
		return fmt.Errorf("the key server refuses what %s has: %w", o.to, err)
	}
	if err != nil {
		return &unheardError{err}
	}
	if len(answer) == 0 {
		return w.Check()
	}
	e, err := keyserver.ParseWitnessEntry(answer, o.keys)
	if err != nil {
		return fmt.Errorf("the key server's answer: %w", err)
	}
	if !e.Follows(last) {
		return fmt.Errorf("the key server's log has gone back: it ends with %v, and %s has %v", e, o.to, last)
	}
	return w.Append(e)
}

// askSocket asks the admin socket.
func (o *auditWitness) askSocket(ctx context.Context, line []byte) ([]byte, error) {
	c := newAdminClient(o.socket)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://keyserver"+keyserver.AdminWitness, bytes.NewReader(line))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", errors.Unwrap(err)) // without the URL, which is of no use
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	switch {
	case err != nil:
		return nil, fmt.Errorf("admin socket: %w", err)
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusNoContent:
		return answer, nil
	}
	var refusal keyserver.AdminError
	if json.Unmarshal(answer, &refusal) != nil || refusal.Error == "" {
		return nil, &witnessRefusal{"admin socket: " + resp.Status}
	}
	if resp.StatusCode == http.StatusServiceUnavailable {
		return nil, errors.New(refusal.Error)
	}
	return nil, &witnessRefusal{refusal.Error}
}

// askCommand runs the command, which is a relay somewhere else.
func (o *auditWitness) askCommand(ctx context.Context, line []byte) ([]byte, error) {
	if len(line) == 0 {
		line = []byte{'\n'}
	}
	c := exec.CommandContext(ctx, o.command[0], o.command[1:]...)
	c.WaitDelay = time.Second
	c.Stdin = bytes.NewReader(line)
	var out, failure limitedBuffer
	c.Stdout, c.Stderr = &out, &failure
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", o.command[0], err, strings.TrimSpace(failure.String()))
	}
	answer, ok := bytes.CutSuffix(out.Bytes(), []byte{'\n'})
	var refusal keyserver.AdminError
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: its answer is cut off", o.command[0])
	case len(answer) == 0:
		return nil, nil
	case json.Unmarshal(answer, &refusal) == nil && refusal.Error != "":
		return nil, &witnessRefusal{refusal.Error}
	}
	return out.Bytes(), nil
}

// limitedBuffer keeps the beginning of what is written to it.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	const most = 1 << 16
	_, _ = b.Buffer.Write(p[:min(len(p), max(0, most-b.Len()))])
	return len(p), nil
}

// answer is what the command of askCommand comes to.
func (o *auditWitness) answer(ctx context.Context, in io.Reader, out io.Writer) error {
	line, err := bufio.NewReaderSize(in, keyserver.MaxWitnessEntry).ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("the question: %w", err)
	}
	if len(line) == 1 {
		line = nil
	}
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	answer, err := o.askSocket(ctx, line)
	if refusal := (*witnessRefusal)(nil); errors.As(err, &refusal) {
		return json.NewEncoder(out).Encode(keyserver.AdminError{Error: refusal.text})
	}
	if err != nil {
		return err
	}
	if len(answer) == 0 {
		answer = []byte{'\n'}
	}
	_, err = out.Write(answer)
	return err
}
