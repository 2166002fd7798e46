package keyserver

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// ECDHE-PMS is ECDHE with the key server's ephemeral key, in two exchanges: it
// signs its public half, and later computes the PreMasterSecret with the
// client's. Between the two, the edge keeps the private half, sealed.

const (
	// stateLifetime is how long after the first exchange the second may come:
	// TLS clients have given up by then.
	stateLifetime = 30 * time.Second
	// stateClockSkew is by how much the clock of the key server that made a
	// state may be ahead of one that opens it.
	stateClockSkew = 5 * time.Second
	// maxUsedStates bounds what a Server remembers of the states that it has
	// opened: twice this, some 40 MB, and 15,000 handshakes a second. No edge has
	// more of them than are free: alone it has half, and whoever comes later finds
	// room.
	maxUsedStates = 1 << 19
	// maxEphemeralKeys is how many are made, one after the other, where public keys
	// give the input a form that is signed elsewhere. With randoms that do not
	// force it, less than a third of them do.
	maxEphemeralKeys = 16
)

// ephemeralGroups are those that a key server makes ephemeral keys of.
var ephemeralGroups = map[tls.CurveID]ecdh.Curve{
	tls.CurveP256: ecdh.P256(),
	tls.CurveP384: ecdh.P384(),
	tls.CurveP521: ecdh.P521(),
	tls.X25519:    ecdh.X25519(),
}

// pmsExchange is what a request with ECDHE-PMS is in besides its own content:
// who may bring the state back, and in the second exchange what the first was.
type pmsExchange struct {
	owner []byte
	first *firstExchange // nil in the first
}

// resume opens the state of a second exchange. The request it returns asks for
// what the first has asked for, so that the same policy is asked the same. That
// of another method is returned as it is.
func (s *Server) resume(peer ski.Peer, edges []*edge, req *ski.Request) (*ski.Request, pmsExchange, error) {
	if req.Method != ski.MethodECDHEPMS {
		return req, pmsExchange{}, nil
	}
	x := pmsExchange{owner: stateOwner(peer, edges, req)}
	if !isSecondExchange(req) {
		return req, x, nil
	}
	var err error
	if x.first, err = s.sealer.open(req.State, x.owner); err != nil {
		return req, x, err
	}
	asked := *req
	asked.Hash, asked.Scheme, asked.Group, asked.ServerName = x.first.hash, x.first.scheme, x.first.group, x.first.serverName
	return &asked, x, nil
}

func isSecondExchange(req *ski.Request) bool {
	return req.Method == ski.MethodECDHEPMS && len(req.State) > 0
}

// parseEphemeral parses the input of MethodECDHEPMS: of the first exchange the
// randoms, of the second the client's point.
func parseEphemeral(req *ski.Request, k key, alg algorithm, algErr error, x pmsExchange) (operation, error) {
	switch {
	case req.Protocol.Is13():
		return nil, errors.New("this protocol has no ECDHE-PMS key exchange")
	case algErr != nil:
		return nil, algErr
	case x.first != nil:
		return parseAgreement(req.Input, x.first)
	}
	curve, ok := ephemeralGroups[req.Group]
	switch {
	case !ok:
		return nil, errors.New("the group is not one of those served")
	case len(req.Input) != 2*ski.RandomLen:
		return nil, errors.New("the input is not two randoms")
	}
	if err := checkForm(ski.CheckRandoms(req.Input, req.Group)); err != nil {
		return nil, err
	}
	return &ephemeralSigning{key: k, alg: alg, curve: curve, req: req, owner: x.owner}, nil
}

// ephemeralSigning is the first exchange. It signs nothing of the edge's making
// but the randoms, which do not force a form that is signed elsewhere.
type ephemeralSigning struct {
	key   key
	alg   algorithm
	curve ecdh.Curve
	req   *ski.Request
	owner []byte
}

func (o *ephemeralSigning) do(ctx context.Context, s *Server) (outcome, error) {
	var private *ecdh.PrivateKey
	var params []byte
	var tbs toBeSigned
	var form error
	err := inTurn(ctx, s.schedule.turnsOn(o.curve), func() (err error) {
		for range maxEphemeralKeys {
			if private, err = o.curve.GenerateKey(rand.Reader); err != nil {
				return err
			}
			params = serverECDHParams(o.req.Group, private.PublicKey().Bytes())
			if tbs, form = newToBeSigned(slices.Concat(o.req.Input, params)); form == nil {
				return nil
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return outcome{}, fmt.Errorf("making an ephemeral key: %w", err)
	case form != nil:
		return refused(ski.MalformedRequest, form.Error()), nil
	}
	out, err := (&signing{o.key, o.alg, tbs}).do(ctx, s)
	if err != nil {
		return outcome{}, err
	}
	out.params = params
	out.state = s.sealer.seal(&firstExchange{
		expires: time.Now().Add(stateLifetime), group: o.req.Group, private: private,
		hash: o.req.Hash, scheme: o.req.Scheme, serverName: o.req.ServerName,
	}, o.owner)
	return out, nil
}

// serverECDHParams returns ServerECDHParams with a named curve (RFC 8422,
// Section 5.4).
func serverECDHParams(group tls.CurveID, point []byte) []byte {
	return append([]byte{curveTypeNamedCurve, byte(group >> 8), byte(group), byte(len(point))}, point...)
}

// agreement is the second exchange.
type agreement struct {
	first *firstExchange
	point *ecdh.PublicKey
}

// parseAgreement refuses a point that is not on the curve, and one of low
// order, with which the secret would be one that anybody knows (RFC 8422,
// Section 5.11).
func parseAgreement(point []byte, first *firstExchange) (operation, error) {
	bad := errors.New("the input is not a public key of the state's group")
	if checkPoint(first.group, point) != nil {
		return nil, bad
	}
	public, err := ephemeralGroups[first.group].NewPublicKey(point)
	if err != nil {
		return nil, bad
	}
	return &agreement{first, public}, nil
}

// do lets a state be used once, and only when the operation has its turn. A
// request that comes again because its answer was lost is refused too: the edge
// has to begin anew.
func (o *agreement) do(ctx context.Context, s *Server) (out outcome, err error) {
	err = inTurn(ctx, s.schedule.turnsOn(o.first.private.Curve()), func() (err error) {
		out, err = o.agree(ctx, s)
		return err
	})
	return out, err
}

func (o *agreement) agree(ctx context.Context, s *Server) (outcome, error) {
	now := time.Now()
	switch {
	case now.After(o.first.expires):
		return refused(ski.RequestDenied, "the state has expired"), nil
	case o.first.expires.After(now.Add(stateLifetime + stateClockSkew)):
		return refused(ski.RequestDenied, "the state was made by a clock that is ahead of this one"), nil
	}
	switch first, room := s.usedStates.use(o.first.id, edgeOf(ctx), now); {
	case !room:
		return overloaded(), nil
	case !first:
		return refused(ski.RequestDenied, "the state has been used"), nil
	}
	secret, err := o.first.private.ECDH(o.point) // the whole x-coordinate (RFC 8422, Section 5.10)
	if err != nil {
		return outcome{}, fmt.Errorf("agreeing on a key: %w", err)
	}
	return outcome{output: secret}, nil
}

// usedStates are the states that a Server has opened, until they expire. The
// zero value is empty.
type usedStates struct {
	mu          sync.Mutex
	begin       time.Time // of young
	young, aged map[stateID]struct{}
	ofEdge      map[string]int // of young, by the edge's name
}

// use reports whether a state is used for the first time, and whether it could
// be remembered that it has been used: where there is no room, it has not.
func (u *usedStates) use(id stateID, edge string, now time.Time) (first, room bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	// What is in aged was put there this long ago at least, and has expired when
	// young takes its place.
	const generation = stateLifetime + stateClockSkew
	if age := now.Sub(u.begin); age >= generation {
		u.aged = u.young
		if age >= 2*generation {
			u.aged = nil
		}
		u.young, u.ofEdge, u.begin = make(map[stateID]struct{}), make(map[string]int), now
	}
	if _, used := u.young[id]; used {
		return false, true
	}
	if _, used := u.aged[id]; used {
		return false, true
	}
	if u.ofEdge[edge] >= maxUsedStates-len(u.young) {
		return false, false
	}
	u.young[id] = struct{}{}
	u.ofEdge[edge]++
	return true, true
}
