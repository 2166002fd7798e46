package split

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// markdown returns the table of transitions as it stands in docs/design.
func markdown() string {
	var b strings.Builder
	b.WriteString("| state | input | if | next state |\n|---|---|---|---|\n")
	for _, t := range transitions {
		for _, way := range t.to {
			when := way.when.name
			if when == "" && len(t.to) > 1 {
				when = "otherwise"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", t.from, t.on, when, way.state)
		}
	}
	return b.String()
}

func TestTheTableInTheDesignIsTheOneInTheCode(t *testing.T) {
	design, err := os.ReadFile("../../../docs/design/0008-the-split-engine.md")
	require.NoError(t, err)
	assert.Contains(t, string(design), markdown())
}

// TestNoPathReachesConnectedWithoutAVerifiedFinished walks every path through
// the table.
func TestNoPathReachesConnectedWithoutAVerifiedFinished(t *testing.T) {
	reached := map[State]bool{}
	paths := 0
	var walk func(s State, path []Input, verified bool)
	walk = func(s State, path []Input, verified bool) {
		reached[s] = true
		if s == StateConnected {
			paths++
			assert.True(t, verified, "%v", path)
			assert.Equal(t, InFinished, path[len(path)-1])
			assert.Equal(t, InChangeCipherSpec, path[len(path)-2], "the Finished is protected")
			return
		}
		require.Less(t, len(path), 20, "the handshake goes in circles: %v", path)
		for _, row := range transitions {
			if row.from != s {
				continue
			}
			for _, way := range row.to {
				verifies := funcName(row.do) == funcName((*Machine).verifyFinished)
				assert.Equal(t, row.on == InFinished, verifies, "each Finished is verified, in %s", s)
				walk(way.state, append(slices.Clone(path), row.on), verified || verifies)
			}
		}
	}
	walk(StateClientHello, nil, false)
	// Resumption; RSA, ECDHE, ECDHE-PMS, each without and with a
	// CertificateRequest, of which the latter with or without a certificate,
	// and what the table does not know to be impossible.
	assert.Equal(t, 1+3*2*2, paths)
	for s := range stateNames {
		assert.True(t, reached[s] || s == StateFailed, "%s cannot be reached", s)
	}
}

func funcName(f func(*Machine, *input) *Error) string { return fmt.Sprintf("%p", f) }

func TestEveryRowHasAWayOnInAnyCase(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range transitions {
		assert.Equal(t, "", row.to[len(row.to)-1].when.name, "%s, %s", row.from, row.on)
		key := row.from.String() + row.on.String()
		assert.False(t, seen[key], "two rows for %s, %s", row.from, row.on)
		seen[key] = true
		assert.NotEqual(t, StateFailed, row.from, "nothing leads on from a failure")
	}
}

// answer gives the machine what it wants, as the edge does. It returns the
// other events.
func answer(t testing.TB, m *Machine, cfg *Config, events []Event) (others []Event) {
	for len(events) > 0 {
		event := events[0]
		events = events[1:]
		var more []Event
		var err error
		switch e := event.(type) {
		case SiteWanted:
			more, err = m.Site(cfg)
		case EphemeralWanted:
			key := must(curveOf(e.Group).GenerateKey(nil))
			more, err = m.Ephemeral(key.PublicKey().Bytes())
		case SignatureWanted:
			more, err = m.Signature(make([]byte, 70))
		case PreMasterWanted:
			more, err = m.PreMaster(make([]byte, 48))
		default:
			others = append(others, event)
		}
		require.NoError(t, err)
		events = append(events, more...)
	}
	return others
}

// TestEveryOtherInputEndsTheConnection puts a machine into each state that waits
// for the client, and feeds it everything that the table does not have there.
func TestEveryOtherInputEndsTheConnection(t *testing.T) {
	cfg := hostileConfig()
	steps := []struct {
		state State
		feed  func(m *Machine) ([]Event, error)
	}{
		{StateClientHello, func(m *Machine) ([]Event, error) {
			body := goodHello(staticGCM(), tls.X25519).body()
			return m.Message(TypeClientHello, body, frame(TypeClientHello, body))
		}},
		{StateCertificate, func(m *Machine) ([]Event, error) {
			body := certificateBody(theWorld().client.chain.Certificates)
			return m.Message(TypeCertificate, body, frame(TypeCertificate, body))
		}},
		{StateClientKeyExchange, func(m *Machine) ([]Event, error) {
			body := append([]byte{1, 0}, make([]byte, 256)...)
			return m.Message(TypeClientKeyExchange, body, frame(TypeClientKeyExchange, body))
		}},
		{StateCertificateVerify, func(m *Machine) ([]Event, error) {
			signature := must(theWorld().client.key.SignMessage(nil, m.messages, signerOpts(tls.ECDSAWithP256AndSHA256)))
			body := serverKeyExchangeBody(nil, tls.ECDSAWithP256AndSHA256, signature)
			return m.Message(TypeCertificateVerify, body, frame(TypeCertificateVerify, body))
		}},
		{StateChangeCipherSpec, func(m *Machine) ([]Event, error) { return m.ChangeCipherSpec() }},
		{StateFinished, func(m *Machine) ([]Event, error) {
			body := must(m.schedule.ClientFinished(m.masterSecret, m.transcript.Sum(nil)))
			return m.Message(TypeFinished, body, frame(TypeFinished, body))
		}},
		{StateConnected, nil},
	}
	inputs := map[Input]func(m *Machine) ([]Event, error){
		InChangeCipherSpec: func(m *Machine) ([]Event, error) { return m.ChangeCipherSpec() },
		InSite:             func(m *Machine) ([]Event, error) { return m.Site(cfg) },
		InEphemeral:        func(m *Machine) ([]Event, error) { return m.Ephemeral(make([]byte, 32)) },
		InSignedEphemeral:  func(m *Machine) ([]Event, error) { return m.SignedEphemeral(nil, nil) },
		InSignature:        func(m *Machine) ([]Event, error) { return m.Signature(make([]byte, 64)) },
		InPreMaster:        func(m *Machine) ([]Event, error) { return m.PreMaster(make([]byte, 48)) },
	}
	for i, step := range steps {
		reach := func() *Machine {
			m := NewMachine()
			for _, before := range steps[:i] {
				require.Equal(t, before.state, m.State())
				events, err := before.feed(m)
				require.NoError(t, err)
				answer(t, m, cfg, events)
			}
			require.Equal(t, step.state, m.State())
			return m
		}
		refused := func(m *Machine, err error, what any) {
			t.Helper()
			var e *Error
			require.ErrorAs(t, err, &e, "%v in %s", what, step.state)
			assert.Equal(t, UnexpectedMessage, e.Alert, "%v in %s", what, step.state)
			assert.Equal(t, StateFailed, m.State())
		}
		for typ := range 256 {
			on, known := inputOf[MessageType(typ)]
			if known && find(step.state, on) != nil {
				continue
			}
			m := reach()
			_, err := m.Message(MessageType(typ), make([]byte, 12), make([]byte, 16))
			refused(m, err, MessageType(typ))
		}
		for on, feed := range inputs {
			if find(step.state, on) != nil {
				continue
			}
			m := reach()
			_, err := feed(m)
			refused(m, err, on)
			_, err = m.ChangeCipherSpec()
			assert.Error(t, err, "a machine that has failed stays so")
		}
	}
}

// A key that is not ski.Key, and decrypts to something else than a PreMasterSecret
// of the client, makes no difference that a client sees.
func TestWhatIsDecryptedToNoPreMasterSecretIsReplaced(t *testing.T) {
	secret := append([]byte{3, 3}, bytes.Repeat([]byte{7}, 46)...)
	random := bytes.Repeat([]byte{9}, 48)
	for name, decrypted := range map[string][]byte{
		"nothing": nil, "1 byte": secret[:1], "47 bytes": secret[:47], "49 bytes": append(bytes.Clone(secret), 0),
		"another version": append([]byte{3, 2}, secret[2:]...), "no version": make([]byte, 48),
	} {
		got := bytes.Clone(random)
		takePreMasterSecret(got, decrypted, tls.VersionTLS12)
		assert.Equal(t, random, got, name)
	}
	takePreMasterSecret(random, secret, tls.VersionTLS12)
	assert.Equal(t, secret, random)
}
