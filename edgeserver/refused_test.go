package edgeserver

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What net/http refuses before it is a request is written down and counted all the
// same, once, and so is what was a request on the same connection.
func TestWhatIsNoRequestIsWrittenDown(t *testing.T) {
	const honest = "GET / HTTP/1.1\r\nHost: a.test\r\n"
	log := filepath.Join(t.TempDir(), "access.log")
	withEachEngine(t, Site{Static: htdocs(t, "this is a"), AccessLog: &AccessLog{File: log}}, func(t *testing.T, p *testPKI, e *edge) {
		t.Cleanup(func() { os.Remove(log) })
		var want []int
		for _, tt := range []struct {
			request string
			status  []int
		}{
			{honest + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", []int{400}},
			{honest + "\r\n" + honest + "Transfer-Encoding : chunked\r\n\r\n", []int{200, 400}},
			{honest + "\r\n" + honest + "\r\n" + honest + "Transfer-Encoding: gzip, chunked\r\n\r\n", []int{200, 200, 501}},
			{honest + "X-A: " + strings.Repeat("a", 100_000) + "\r\n\r\n", []int{431}},
			{honest + "Expect: miracles\r\n\r\n", []int{417}},
		} {
			c, err := e.dial(p, &tls.Config{ServerName: "a.test", NextProtos: []string{"http/1.1"}})
			require.NoError(t, err)
			io.WriteString(c, tt.request) // The answer may come, and the end, before all of it is there.
			answers := bufio.NewReader(c)
			for _, status := range tt.status {
				resp, err := http.ReadResponse(answers, nil)
				require.NoError(t, err)
				assert.Equal(t, status, resp.StatusCode)
				io.Copy(io.Discard, resp.Body)
			}
			want = append(want, tt.status...)
			c.Close()
		}
		var got []int
		records := recordsOf(t, log, len(want))
		for _, r := range records {
			got = append(got, r.Status)
			assert.Equal(t, "a.test", r.Site)
			assert.NotEmpty(t, r.Remote)
			assert.Equal(t, r.Status == 200, r.Method == "GET" && r.RequestID != "")
		}
		assert.ElementsMatch(t, want, got)
		assert.EqualValues(t, 3, e.requestsCounted("a.test", "GET", "2xx"))
		assert.EqualValues(t, 4, e.requestsCounted("a.test", "(other)", "4xx"))
		assert.EqualValues(t, 1, e.requestsCounted("a.test", "(other)", "5xx"))
	})
}
