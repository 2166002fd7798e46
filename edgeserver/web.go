package edgeserver

import (
	"context"
	"errors"
	"net/http"
	"sync"
)

// web is the http.Server of one site. It has one of its own so that what net/http
// logs of a connection says of which site it is.
type web struct {
	*http.Server
	ready    *httpListener
	starting sync.Once
}

// deliver hands a connection, whose handshake is done, to the http.Server. It
// returns false where that has been closed, or ctx ends.
func (w *web) deliver(ctx context.Context, c secureConn) bool {
	w.starting.Do(func() {
		go w.Serve(w.ready) // until close; there is no other error
	})
	return w.ready.deliver(ctx, c)
}

// Close ends the connections at once.
func (w *web) Close() error {
	err := w.Server.Close()
	w.ready.Close() // also where nothing was served
	return err
}

// shutdown ends the connections of all sites once they have no requests, until
// ctx ends.
func (t *sites) shutdown(ctx context.Context) error {
	errs := make(chan error, len(t.all))
	for _, s := range t.all {
		go func() { errs <- s.web.Shutdown(ctx) }()
	}
	var err error
	for range t.all {
		if one := <-errs; err == nil {
			err = one // most often that of ctx, as all the others
		}
	}
	return err
}

// disconnect ends the connections of all sites at once.
func (t *sites) disconnect() error {
	var err error
	for _, s := range t.all {
		err = errors.Join(err, s.web.Close())
	}
	return err
}
