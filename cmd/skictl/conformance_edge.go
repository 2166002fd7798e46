package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/ski/skitest"
)

// testEdge is a key server until enough requests have come or the context ends.
func (o *conformanceOptions) testEdge(cmd *cobra.Command, id party) (exitStatus, error) {
	url := o.listen
	if !strings.Contains(url, "://") {
		url = "coaps://" + url
	}
	t, err := parseTarget(url)
	if err != nil {
		return 0, err
	}
	faults, err := skitest.FindEdgeFaults(o.faults)
	if err != nil {
		return 0, fmt.Errorf("--fault: %w", err)
	}
	edge := &skitest.Edge{
		KeyServer: skitest.NewKeyServer(), Path: t.path, Binding: t.family, DraftOnly: o.draftOnly, Faults: faults, Delay: o.delay,
	}
	for _, file := range o.keys {
		key, err := privateKey(file)
		if err != nil {
			return 0, fmt.Errorf("--keys: %w", err)
		}
		edge.KeyServer.Add(key)
		edge.Keys = append(edge.Keys, key.Public())
	}
	if len(edge.Keys) == 0 {
		return 0, errors.New("--keys is missing: without private keys nothing can be answered")
	}

	ctx, enough := context.WithCancel(cmd.Context())
	defer enough()
	r := &edgeReporter{cmd: cmd, json: o.json, count: o.count, enough: enough}
	edge.Report = r.report
	var answering sync.WaitGroup
	addr, stop, err := t.listen(t, id, func(ctx context.Context, peer string, q *skitest.Question) *skitest.EdgeAnswer {
		answering.Add(1)
		defer answering.Done()
		return edge.Serve(ctx, peer, q)
	})
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "listening %s\n", addr)
	<-ctx.Done()
	err = stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !o.json {
		fmt.Fprintf(cmd.OutOrStdout(), "%d requests, %d with violations\n", r.requests, r.failed)
	}
	return exitStatus(min(r.failed, maxFailures)), err
}

type edgeReporter struct {
	cmd    *cobra.Command
	json   bool
	count  int
	enough context.CancelFunc

	mu               sync.Mutex
	requests, failed int
}

func (r *edgeReporter) report(e skitest.EdgeReport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests++
	if len(e.Violations) > 0 {
		r.failed++
	}
	w := r.cmd.OutOrStdout()
	if r.json {
		line, err := json.Marshal(e)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(w, "%s\n", line)
	} else {
		verdict, fault, what := "pass", "", "not parsed"
		if len(e.Violations) > 0 {
			verdict = "fail"
		}
		if e.Fault != "" {
			fault = "  fault: " + e.Fault
		}
		if q := e.Request; q != nil {
			what = strings.Join(strings.Fields(fmt.Sprint(q.Protocol, " ", q.Method, " ", q.Hash, " ", q.Scheme)), " ")
			if q.Exchange > 0 {
				what += fmt.Sprintf(", exchange %d", q.Exchange)
			}
		}
		fmt.Fprintf(w, "%-4s  request %d from %s  %s, %s -> %s%s\n", verdict, e.Number, e.Peer, e.Format, what, e.Answer, fault)
		if e.Probe {
			fmt.Fprintln(w, "      a probe: an input of one byte, to learn whether the key is there")
		}
		for _, v := range e.Violations {
			fmt.Fprintf(w, "      %s: %s (%s)\n", v.Rule, v.Found, v.Section)
		}
	}
	if r.requests == r.count {
		r.enough()
	}
}

// privateKey reads the first private key of a PEM file.
func privateKey(file string) (crypto.Signer, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		var key any
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	return nil, fmt.Errorf("%s has no private key in PEM form", file)
}
