package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/tlsski/tlsski/keyserver"
)

// addressInterval is how often the addresses of authenticated peers are written,
// if they have changed. What a crash loses of them is not missed.
const addressInterval = 10 * time.Minute

// knownAddresses keeps over a restart from where peers have been authenticated:
// their handshakes have places of their own. It is a hint. Nothing depends on it
// but that, and no fault of its file keeps the key server from its work.
type knownAddresses struct {
	file    string // empty: they are not kept
	log     *slog.Logger
	written []netip.Addr // sorted
}

// addressesOf returns those beside a state file, which may be none.
func addressesOf(state string, log *slog.Logger) *knownAddresses {
	if state == "" {
		return &knownAddresses{log: log}
	}
	return &knownAddresses{file: state + ".addresses", log: log}
}

// read returns those that the file has, the one seen longest ago first.
func (k *knownAddresses) read() []netip.Addr {
	if k.file == "" {
		return nil
	}
	all, err := keyserver.ReadAddresses(k.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("addresses of edges are not known from before", "error", err)
	}
	k.written = sorted(all)
	return all
}

// write puts them into the file, unless they are there.
func (k *knownAddresses) write(all []netip.Addr) {
	if k.file == "" || slices.Equal(sorted(all), k.written) {
		return
	}
	if err := keyserver.WriteAddresses(k.file, all); err != nil {
		k.log.Error("addresses of edges are not kept", "error", err)
		return
	}
	k.written = sorted(all)
}

func sorted(all []netip.Addr) []netip.Addr {
	all = slices.Clone(all)
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// keep writes the addresses now and then, and when ctx ends, and closes done.
func (k *knownAddresses) keep(ctx context.Context, now func() []netip.Addr, done chan<- struct{}) {
	defer close(done)
	t := time.NewTicker(addressInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			k.write(now())
		case <-ctx.Done():
			k.write(now())
			return
		}
	}
}
