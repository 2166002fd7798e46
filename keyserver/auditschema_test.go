package keyserver

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// The lines that a log really has are those that docs/audit.schema.json says,
// and every field of it is in one of them.
func TestAuditSchema(t *testing.T) {
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schema, err := compiler.Compile("../docs/audit.schema.json")
	require.NoError(t, err)

	w := &fullWriter{room: 1 << 20}
	log := newAuditLog(AuditOptions{File: "-", Key: auditKey, CheckpointRecords: 3}, w)
	keys := testKeys()
	s := newTestServer(t, keys, func(o *Options) { o.Audit = log })
	s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys))
	s.ServeSKI(t.Context(), ski.Peer{SPKI: ski.KeyID{1}}, &ski.Request{
		Protocol: ski.TLS13, SPKI: keys.id(p256), Scheme: 0x0403, ServerName: "www.example.com", Input: certificateVerify(32),
	})
	s.ServeSKI(t.Context(), edgePeer, &ski.Request{
		Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: make([]byte, 256),
	})
	s.ServeSKI(t.Context(), edgePeer, &ski.Request{
		Protocol: ski.TLS12, SPKI: keys.id(p256), Method: ski.MethodECDHEPMS, Hash: ski.SHA256, Group: x25519, Input: randoms(),
	})
	s.ServeSKI(t.Context(), ski.Peer{PSK: "edge-1"}, grantedRequest(keys))
	s.ServeMalformed(t.Context(), edgePeer, &ski.MalformedError{})
	for _, event := range []Event{EventAlarm, EventSuspend, EventResume} {
		require.NoError(t, log.Audit(t.Context(), &Record{Time: time.Now(), Event: event, Edge: "edge", Detector: "replay", Reason: "seen"}))
	}
	s.SetPolicy(parsePolicy(t, ticketPolicyText()))
	require.Empty(t, s.ServeTickets(t.Context(), edgePeer, "www.example.com", ski.TicketTag{}).Error)
	require.NotEmpty(t, s.ServeTickets(t.Context(), edgePeer, "other", ski.TicketTag{}).Error)
	s.SetPolicy(parsePolicy(t, testPolicy+"limits:\n  edge: {rate: 0.001, burst: 1}\n"))
	s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys))
	s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys))
	s.Close()
	refused := map[string]uint64{
		string(ski.RequestDenied): 1, string(ski.SPKINotFound): 1, string(ski.MalformedRequest): 1, string(ski.UnspecifiedError): 1,
	}
	for _, limit := range limitNames {
		refused[limit] = 1
	}
	require.NoError(t, log.Audit(t.Context(), &Record{Time: time.Now(), Event: EventRefusals, Refused: refused}))
	w.room = 30
	require.Error(t, log.Audit(t.Context(), &Record{Time: time.Now()}))
	w.room = 1 << 20
	require.NoError(t, log.Close())

	seen := make(map[string]bool)
	var lines int
	for line := range strings.Lines(w.String()) {
		if strings.HasSuffix(line, cutOff) {
			continue
		}
		one, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		require.NoError(t, err, line)
		require.NoError(t, schema.Validate(one), line)
		for field := range one.(map[string]any) {
			seen[field] = true
		}
		lines++

		// The schema does say something.
		more := bytes.Replace([]byte(line), []byte(`{"seq"`), []byte(`{"secret":"x","seq"`), 1)
		one, err = jsonschema.UnmarshalJSON(bytes.NewReader(more))
		require.NoError(t, err)
		require.Error(t, schema.Validate(one), "a field that there is not")
	}
	require.Greater(t, lines, 9)
	for line := range strings.Lines(acceptedLog(t)) {
		one, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		require.NoError(t, err, line)
		require.NoError(t, schema.Validate(one), line)
		for field := range one.(map[string]any) {
			seen[field] = true
		}
	}
	fields := reflect.TypeFor[auditLine]()
	for i := range fields.NumField() {
		name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
		require.True(t, seen[name], "no line with %q", name)
	}
}

// acceptedLog returns a log with a discontinuity that was accepted, and many
// suspended edges.
func acceptedLog(t *testing.T) string {
	a, monday := newAttacked(t)
	a.options.Suspensions = openSuspensions(t, "")
	for i := range maxSuspendedNames + 1 {
		require.NoError(t, a.options.Suspensions.Suspend(Suspension{Edge: fmt.Sprint("edge-", i), By: "a test"}))
	}
	a.put(a.options.File, monday[a.options.File])
	a.forge("1")
	log := openAudit(t, a.options)
	require.NoError(t, log.Close())
	_, err := AcceptAudit(a.options, "root", "a disk was replaced")
	require.NoError(t, err)
	log = openAudit(t, a.options)
	require.NoError(t, log.Close())
	data, err := os.ReadFile(a.options.File)
	require.NoError(t, err)
	a.options.Witness = filepath.Join(t.TempDir(), "witness")
	require.NoError(t, a.run("witnessed", 1))
	require.NoError(t, os.Remove(a.options.File))
	require.NoError(t, a.run("in a new file", 1))
	more, err := os.ReadFile(a.options.File)
	require.NoError(t, err)
	return string(append(data, more...))
}
