//go:build !embedded

package main

import (
	"errors"
	"log/slog"

	"github.com/tlsski/tlsski/edgeserver"
)

// openEmbedded returns an error: there is no key server in this program.
func openEmbedded(cfg edgeserver.Config, _ bool, _ *slog.Logger) (ownKeyServer, error) {
	return nil, cfg.ErrorAt("keyserver", errors.New("this ski-edgeserver was built without an embedded key server: "+
		"use ski-edgeserver-embedded, or build it with go build -tags embedded ./cmd/ski-edgeserver"))
}
