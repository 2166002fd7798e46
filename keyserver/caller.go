package keyserver

import (
	"context"
	"fmt"
	"net"
	"os/user"
	"strconv"
)

// callerKey is where withCaller puts the name of who is at the other end.
type callerKey struct{}

// withCaller notes which user of the machine has made the connection.
func withCaller(ctx context.Context, conn net.Conn) context.Context {
	name := "an unknown user"
	if c, ok := conn.(*net.UnixConn); ok {
		if uid, ok := peerUID(c); ok {
			name = userName(uid)
		}
	}
	return context.WithValue(ctx, callerKey{}, name)
}

func callerOf(ctx context.Context) string {
	name, _ := ctx.Value(callerKey{}).(string)
	return name
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return fmt.Sprintf("user %s (uid %s)", u.Username, id)
	}
	return "uid " + id
}
