package ski_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// ticketVector is one message with ticket keys, in a file of its own.
type ticketVector struct {
	Name string `json:"name"`
	// Class is "ok" or "malformed".
	Class     string            `json:"class"`
	Attribute string            `json:"attribute,omitempty"`
	Hex       string            `json:"hex"`
	Site      string            `json:"site,omitempty"`
	Keys      []ticketVectorKey `json:"keys,omitempty"`
}

type ticketVectorKey struct {
	ID    string `json:"id"`
	Key   string `json:"key"`
	From  int64  `json:"from"`
	To    int64  `json:"to"`
	Until int64  `json:"until"`
}

func testTicketKeys(n int) *ski.TicketKeys {
	t := &ski.TicketKeys{Site: "www.example.com"}
	for i := range n {
		from := time.Unix(1_800_000_000+int64(i)*28800, 0)
		k := ski.TicketKey{ID: ski.TicketKeyID{1, byte(i)}, From: from, To: from.Add(8 * time.Hour), Until: from.Add(32 * time.Hour)}
		for j := range k.Secret {
			k.Secret[j] = byte(32*i + j)
		}
		t.Keys = append(t.Keys, k)
	}
	return t
}

// ticketVectors makes the cases: what is encoded here, and that with a fault.
func ticketVectors(t testing.TB) (all []ticketVector) {
	ok := func(name string, keys *ski.TicketKeys) {
		data, err := ski.EncodeTicketKeys(keys)
		require.NoError(t, err)
		v := ticketVector{Name: name, Class: "ok", Hex: hex.EncodeToString(data), Site: keys.Site}
		for _, k := range keys.Keys {
			v.Keys = append(v.Keys, ticketVectorKey{k.ID.String(), hex.EncodeToString(k.Secret[:]), k.From.Unix(), k.To.Unix(), k.Until.Unix()})
		}
		all = append(all, v)
	}
	ok("one", testTicketKeys(1))
	ok("five", testTicketKeys(5))
	ok("most", testTicketKeys(ski.MaxTicketKeys))
	bad := func(name, attribute string, data []byte) {
		all = append(all, ticketVector{Name: name, Class: "malformed", Attribute: attribute, Hex: hex.EncodeToString(data)})
	}
	// A map of the message is what maps in Go are: its order does not count here.
	encode := func(v any) []byte {
		mode, err := cbor.CoreDetEncOptions().EncMode()
		require.NoError(t, err)
		data, err := mode.Marshal(v)
		require.NoError(t, err)
		return data
	}
	key := func(change func(map[string]any)) map[string]any {
		k := map[string]any{"id": bytes.Repeat([]byte{1}, 8), "key": bytes.Repeat([]byte{2}, 32), "from": 1000, "to": 2000, "until": 3000}
		change(k)
		return k
	}
	message := func(keys ...any) []byte { return encode(map[string]any{"site": "www.example.com", "keys": keys}) }
	set := func(name string, v any) func(map[string]any) { return func(k map[string]any) { k[name] = v } }
	without := func(name string) func(map[string]any) { return func(k map[string]any) { delete(k, name) } }
	same := func(map[string]any) {}

	good := message(key(same))
	bad("empty", "", nil)
	bad("cut-short", "", good[:len(good)-1])
	bad("trailing-byte", "", append(bytes.Clone(good), 0))
	bad("too-long", "", encode(map[string]any{"site": "www.example.com", "keys": []any{key(same)}, "padding": make([]byte, ski.MaxTicketsLen)}))
	bad("array", "", encode([]any{1}))
	bad("no-site", "site", encode(map[string]any{"keys": []any{key(same)}}))
	bad("site-of-bytes", "site", encode(map[string]any{"site": []byte("a"), "keys": []any{key(same)}}))
	bad("site-with-space", "site", encode(map[string]any{"site": "a b", "keys": []any{key(same)}}))
	bad("no-keys", "keys", encode(map[string]any{"site": "a"}))
	bad("keys-empty", "keys", message())
	bad("keys-of-a-map", "keys", encode(map[string]any{"site": "a", "keys": key(same)}))
	nine := []any{}
	for i := range ski.MaxTicketKeys + 1 {
		nine = append(nine, key(set("id", bytes.Repeat([]byte{byte(i)}, 8))))
	}
	bad("keys-too-many", "keys", message(nine...))
	bad("key-not-a-map", "", message(1))
	bad("id-missing", "id", message(key(without("id"))))
	bad("id-short", "id", message(key(set("id", []byte{1}))))
	bad("id-twice", "keys", message(key(same), key(same)))
	bad("key-missing", "key", message(key(without("key"))))
	bad("key-long", "key", message(key(set("key", make([]byte, 33)))))
	bad("from-missing", "from", message(key(without("from"))))
	bad("to-negative", "to", message(key(set("to", -1))))
	bad("to-too-late", "keys", message(key(func(k map[string]any) { k["to"], k["until"] = 1001+7*86400, 1001+7*86400 })))
	bad("until-too-late", "keys", message(key(set("until", 2001+7*86400))))
	bad("until-out-of-range", "until", message(key(set("until", uint64(1)<<41))))
	bad("until-64-bits", "until", message(key(set("until", uint64(1)<<63))))
	bad("to-before-from", "keys", message(key(set("to", 999))))
	bad("until-before-to", "keys", message(key(set("until", 1999))))
	bad("wrong-order", "keys", message(key(set("from", 1001)), key(set("id", bytes.Repeat([]byte{3}, 8)))))
	all = append(all, ticketVector{Name: "unknown-keys", Class: "ok", Site: "www.example.com",
		Hex:  hex.EncodeToString(encode(map[string]any{"site": "www.example.com", "keys": []any{key(set("more", 1))}, "more": []any{1}})),
		Keys: []ticketVectorKey{{strings.Repeat("01", 8), strings.Repeat("02", 32), 1000, 2000, 3000}}})
	return all
}

func TestTicketVectors(t *testing.T) {
	seen := 0
	for _, v := range ticketVectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			file := filepath.Join(vectorDir, "tickets-"+v.Name+".json")
			want, err := json.MarshalIndent(v, "", "  ")
			require.NoError(t, err)
			want = append(want, '\n')
			if *update {
				require.NoError(t, os.WriteFile(file, want, 0o644))
			}
			have, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), string(have), "go test ./ski -run TestTicketVectors -update writes it anew")

			got, err := ski.DecodeTicketKeys(unhex(t, v.Hex))
			if v.Class == "malformed" {
				var m *ski.MalformedError
				require.ErrorAs(t, err, &m)
				assert.Equal(t, v.Attribute, m.Attribute, m.Reason)
				assert.Nil(t, got)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, v.Site, got.Site)
			require.Len(t, got.Keys, len(v.Keys))
			for i, k := range got.Keys {
				assert.Equal(t, v.Keys[i], ticketVectorKey{k.ID.String(), hex.EncodeToString(k.Secret[:]), k.From.Unix(), k.To.Unix(), k.Until.Unix()})
			}
		})
		seen++
	}
	files, err := filepath.Glob(filepath.Join(vectorDir, "tickets-*.json"))
	require.NoError(t, err)
	assert.Len(t, files, seen, "a file that no case makes")
}

// What can be decoded is encoded to the same again; what cannot is malformed.
func FuzzDecodeTicketKeys(f *testing.F) {
	for _, v := range ticketVectors(f) {
		f.Add(unhex(f, v.Hex))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := ski.DecodeTicketKeys(data)
		if err != nil {
			requireMalformed(t, err)
			require.Nil(t, keys)
			return
		}
		require.NoError(t, keys.Validate())
		encoded, err := ski.EncodeTicketKeys(keys)
		require.NoError(t, err)
		again, err := ski.DecodeTicketKeys(encoded)
		require.NoError(t, err)
		require.Equal(t, keys, again)
		require.Equal(t, keys.Tag(), again.Tag())
	})
}

func TestWhatIsDerivedFromATicketKeyIsOfOneUse(t *testing.T) {
	k := testTicketKeys(2).Keys
	assert.Len(t, k[0].Derive("s", "a", 48), 48)
	assert.Equal(t, k[0].Derive("s", "a", 32), k[0].Derive("s", "a", 32))
	assert.NotEqual(t, k[0].Derive("s", "a", 32), k[0].Derive("s", "b", 32))
	assert.NotEqual(t, k[0].Derive("s", "a", 32), k[1].Derive("s", "a", 32))
	assert.NotEqual(t, k[0].Derive("s", "a", 32), k[0].Derive("t", "a", 32))
}

func TestATicketKeyIsNotPrinted(t *testing.T) {
	keys := testTicketKeys(1)
	for i := range keys.Keys[0].Secret {
		keys.Keys[0].Secret[i] = 0xd7 // 215
	}
	inJSON, err := json.Marshal(keys)
	require.NoError(t, err)
	for _, text := range []string{
		fmt.Sprint(keys), fmt.Sprintf("%+v", *keys), fmt.Sprintf("%#v", keys), fmt.Sprintf("%v", keys.Keys[0]), fmt.Sprintf("%x", keys), string(inJSON),
	} {
		assert.NotRegexp(t, "215|(?i)d7d7", text)
	}
}

func TestTheTagStandsForIDsAndTimes(t *testing.T) {
	one := testTicketKeys(2)
	assert.Equal(t, one.Tag(), testTicketKeys(2).Tag())
	for _, change := range []func(*ski.TicketKeys){
		func(k *ski.TicketKeys) { k.Site += "x" },
		func(k *ski.TicketKeys) { k.Keys[1].ID[7]++ },
		func(k *ski.TicketKeys) { k.Keys[1].Until = k.Keys[1].Until.Add(time.Second) },
		func(k *ski.TicketKeys) { k.Keys = k.Keys[:1] },
	} {
		other := testTicketKeys(2)
		change(other)
		assert.NotEqual(t, one.Tag(), other.Tag())
	}
}

// ticketTransport is a key server that hands out ticket keys, or fails.
type ticketTransport struct {
	ski.Transport
	asked *[]string
	name  string
	err   error
}

func (s *ticketTransport) WatchTickets(_ context.Context, site string, update func(*ski.TicketKeys)) error {
	*s.asked = append(*s.asked, s.name)
	return s.err
}

func TestAClientWatchesOneKeyServerAfterTheOther(t *testing.T) {
	lost := errors.New("lost")
	tests := []struct {
		name  string
		errs  []error // of each key server
		asked string
		want  error
	}{
		{"all are lost", []error{lost, lost}, "a b", lost},
		{"one denies", []error{ski.RequestDenied, lost}, "a", ski.RequestDenied},
		{"one has none", []error{ski.ErrNoTickets, lost}, "a b", lost},
		{"there is none", nil, "", ski.ErrNoTickets},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var asked []string
			c := &ski.Client{Transports: []ski.Transport{&ticketless{}}} // which has no ticket keys
			for i, err := range tt.errs {
				c.Transports = append(c.Transports, &ticketTransport{asked: &asked, name: string(rune('a' + i)), err: err})
			}
			assert.ErrorIs(t, c.WatchTickets(t.Context(), "www.example.com", func(*ski.TicketKeys) {}), tt.want)
			assert.Equal(t, tt.asked, strings.Join(asked, " "))
		})
	}
}

type ticketless struct{ ski.Transport }

func TestDirectWithoutTicketKeys(t *testing.T) {
	source := ski.Direct(ski.HandlerFunc(nil), ski.Peer{}).(ski.TicketSource)
	assert.ErrorIs(t, source.WatchTickets(t.Context(), "a", nil), ski.ErrNoTickets)
}
