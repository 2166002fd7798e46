package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/tlsski/tlsski/keyserver"
)

// adminClient asks the admin API of a key server on this machine.
type adminClient struct{ http http.Client }

func newAdminClient(socket string) *adminClient {
	return &adminClient{http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		},
	}}
}

func (c *adminClient) get(ctx context.Context, path string, result any) error {
	return c.do(ctx, http.MethodGet, path, nil, result)
}

func (c *adminClient) post(ctx context.Context, path string, order, result any) error {
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPost, path, bytes.NewReader(body), result)
}

func (c *adminClient) do(ctx context.Context, method, path string, body io.Reader, result any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://keyserver"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("admin socket: %w", errors.Unwrap(err)) // without the URL, which is of no use
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	if resp.StatusCode == http.StatusOK {
		return d.Decode(result)
	}
	var refusal keyserver.AdminError
	if err := d.Decode(&refusal); err != nil || refusal.Error == "" {
		return fmt.Errorf("admin socket: %s", resp.Status)
	}
	return errors.New(refusal.Error)
}
