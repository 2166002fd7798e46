package keyserver

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// adminCall asks the admin API and decodes its answer into result.
func adminCall(t *testing.T, socket, method, path string, order any, result any) (status int) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	body, err := json.Marshal(order)
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), method, "http://keyserver"+path, bytes.NewReader(body))
	require.NoError(t, err)
	resp, err := c.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.NoError(t, json.NewDecoder(resp.Body).Decode(result))
	return resp.StatusCode
}

func TestAdmin(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	peer := edgePeer
	peer.SPKI = ski.KeyID{0xaa}
	live := &liveSessions{peers: []ski.Peer{peer, peer, legacyPeer}}
	s.SetSessions(live)
	s.ask(peer, grantedRequest(keys))
	wrong := grantedRequest(keys)
	wrong.Input = []byte{0}
	s.ask(peer, wrong)

	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := ListenAdmin(socket)
	require.NoError(t, err)
	info, err := os.Lstat(socket)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode())
	ended := make(chan error, 1)
	go func() { ended <- s.ServeAdmin(l) }()

	var edges []EdgeStatus
	require.Equal(t, http.StatusOK, adminCall(t, socket, "GET", AdminEdges, nil, &edges))
	require.Len(t, edges, 2)
	require.Equal(t, "edge", edges[0].Name)
	require.Nil(t, edges[0].Suspended)
	require.Equal(t, 2, edges[0].Sessions)
	require.Equal(t, "192.0.2.7", edges[0].Addresses[0].String())
	require.Equal(t, []ski.KeyID{{0xaa}}, edges[0].SPKI)
	require.Equal(t, uint64(2), edges[0].Requests)
	require.Equal(t, uint64(1), edges[0].Refused)
	require.False(t, edges[0].LastRequest.IsZero())
	require.Equal(t, "legacy", edges[1].Name)
	require.True(t, edges[1].LastRequest.IsZero())

	var result AdminResult
	order := AdminOrder{Edge: "edge", Reason: "because"}
	require.Equal(t, http.StatusOK, adminCall(t, socket, "POST", AdminSuspend, order, &result))
	require.Equal(t, 2, result.Closed)
	require.Contains(t, result.Warning, "no state file")
	resp, rec := s.ask(peer, grantedRequest(keys))
	require.Equal(t, ski.RequestDenied, resp.Error)
	require.Contains(t, rec.Reason, "because")
	require.Equal(t, http.StatusOK, adminCall(t, socket, "GET", AdminEdges, nil, &edges))
	require.Equal(t, "because", edges[0].Suspended.Reason)
	require.Contains(t, edges[0].Suspended.By, "uid ", "the kernel knows who it was")

	require.Equal(t, http.StatusOK, adminCall(t, socket, "POST", AdminResume, order, &result))
	resp, _ = s.ask(peer, grantedRequest(keys))
	require.NoError(t, resp.Err())

	// By the key of a certificate that no policy knows.
	id := ski.KeyID{0xbb}.String()
	require.Equal(t, http.StatusOK, adminCall(t, socket, "POST", AdminSuspend, AdminOrder{Edge: id}, &result))
	require.Equal(t, http.StatusOK, adminCall(t, socket, "GET", AdminEdges, nil, &edges))
	require.Len(t, edges, 3)
	require.Equal(t, id, edges[2].Name)

	var problem AdminError
	require.Equal(t, http.StatusNotFound, adminCall(t, socket, "POST", AdminSuspend, AdminOrder{Edge: "nobody"}, &problem))
	require.Contains(t, problem.Error, `"nobody"`)
	require.Equal(t, http.StatusNotFound, adminCall(t, socket, "POST", AdminResume, order, &problem))
	require.Equal(t, http.StatusBadRequest, adminCall(t, socket, "POST", AdminSuspend, map[string]string{"edges": "edge"}, &problem))
	require.NoError(t, s.Admit(peer))

	require.NoError(t, l.Close())
	require.NoError(t, <-ended)
	require.NoFileExists(t, socket)
}

func TestListenAdminTakesOnlyADeadSocketsPlace(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "admin.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	_, err = ListenAdmin(socket)
	require.ErrorContains(t, err, "another process listens there")
	require.NoError(t, dead.Close())
	l, err := ListenAdmin(socket)
	require.NoError(t, err)
	require.NoError(t, l.Close())

	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("text"), 0o600))
	_, err = ListenAdmin(file)
	require.ErrorContains(t, err, "not a socket")
	require.FileExists(t, file)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
}
