package main

import (
	"io"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tlsski/tlsski/edgeserver"
	"github.com/tlsski/tlsski/ski"
)

// ownKeyServer is a key server in this process. Only a program built with the
// tag 'embedded' can have one: nothing else of this package may import what a
// key server needs.
type ownKeyServer interface {
	ski.Transport
	// summary prints what -check has found of it.
	summary(w io.Writer, sites []edgeserver.SiteInfo)
	// metrics are its own.
	metrics() []prometheus.Collector
	// Health returns why it can answer no request at the moment, or nil.
	Health() error
	// close ends it, when the handshakes have ended.
	close()
}
