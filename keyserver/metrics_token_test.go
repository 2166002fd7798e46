package keyserver

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

func TestMetricsOfTokens(t *testing.T) {
	m := TokenMetrics(func() []TokenState {
		return []TokenState{
			{Module: "/lib/hsm.so", Token: "sites", Serial: "1", Sessions: 16, Open: 5, Busy: 2, Stuck: 1, Waiting: 3},
			{Module: "/lib/hsm.so", Token: "old", Serial: "2", Sessions: 4, WrongSignatures: 3, Err: errors.New("pulled out")},
		}
	})
	require.NoError(t, testutil.CollectAndCompare(m, strings.NewReader(`
# HELP ski_keyserver_token_sessions Sessions with the token: idle, busy in a call that somebody waits for, or stuck in one that nobody does.
# TYPE ski_keyserver_token_sessions gauge
ski_keyserver_token_sessions{module="/lib/hsm.so",serial="1",state="busy",token="sites"} 1
ski_keyserver_token_sessions{module="/lib/hsm.so",serial="1",state="idle",token="sites"} 3
ski_keyserver_token_sessions{module="/lib/hsm.so",serial="1",state="stuck",token="sites"} 1
ski_keyserver_token_sessions{module="/lib/hsm.so",serial="2",state="busy",token="old"} 0
ski_keyserver_token_sessions{module="/lib/hsm.so",serial="2",state="idle",token="old"} 0
ski_keyserver_token_sessions{module="/lib/hsm.so",serial="2",state="stuck",token="old"} 0
# HELP ski_keyserver_token_sessions_limit Sessions that there can be with the token.
# TYPE ski_keyserver_token_sessions_limit gauge
ski_keyserver_token_sessions_limit{module="/lib/hsm.so",serial="1",token="sites"} 16
ski_keyserver_token_sessions_limit{module="/lib/hsm.so",serial="2",token="old"} 4
# HELP ski_keyserver_token_up 1 if the token can be used, 0 if not.
# TYPE ski_keyserver_token_up gauge
ski_keyserver_token_up{module="/lib/hsm.so",serial="1",token="sites"} 1
ski_keyserver_token_up{module="/lib/hsm.so",serial="2",token="old"} 0
# HELP ski_keyserver_token_waiting Operations that wait for a session with the token.
# TYPE ski_keyserver_token_waiting gauge
ski_keyserver_token_waiting{module="/lib/hsm.so",serial="1",token="sites"} 3
ski_keyserver_token_waiting{module="/lib/hsm.so",serial="2",token="old"} 0
# HELP ski_keyserver_token_wrong_signatures_total Signatures of the token that did not fit the public half of their key, and were kept back.
# TYPE ski_keyserver_token_wrong_signatures_total counter
ski_keyserver_token_wrong_signatures_total{module="/lib/hsm.so",serial="1",token="sites"} 0
ski_keyserver_token_wrong_signatures_total{module="/lib/hsm.so",serial="2",token="old"} 3
`)))
}

// A label is 32 bytes of whatever the token was initialized with.
func TestMetricsOfATokenWithAnUnreadableLabel(t *testing.T) {
	m := TokenMetrics(func() []TokenState { return []TokenState{{Module: "m", Token: "K\xf6ln", Serial: "\xff"}} })
	require.NoError(t, testutil.CollectAndCompare(m, strings.NewReader(`
# HELP ski_keyserver_token_up 1 if the token can be used, 0 if not.
# TYPE ski_keyserver_token_up gauge
ski_keyserver_token_up{module="m",serial="�",token="K�ln"} 1
`), "ski_keyserver_token_up"))
}
