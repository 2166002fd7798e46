package keyserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Options is what a Server is made of. Keys, Policy and Audit are required.
type Options struct {
	// Keys holds the private keys; see Server.SetKeys for others.
	Keys KeyStore
	// Policy says who may use them.
	Policy *Policy
	// Audit gets the Records of requests; see Auditor.
	Audit Auditor
	// AuditRequired makes the answer 'unspecified error' where Audit fails.
	// Otherwise the failure is logged and the answer goes out.
	AuditRequired bool
	// RSAFailure is the answer to a wrong PreMasterSecret. The zero value means
	// RSAFailureRandom.
	RSAFailure RSAFailure
	// RSAFailureSecret is what the answers of RSAFailureRandom are derived
	// from: at least MinRSAFailureSecret bytes, the same on all key servers
	// that an edge may ask for the same key, and after a restart. Two answers
	// that differ tell that both are failures. nil means what Keys has of the
	// key, if it is a FailureKeyStore, and otherwise a random one of this
	// Server's own.
	RSAFailureSecret []byte
	// StateKey is what the key is derived from that seals the states of
	// ECDHE-PMS: at least MinStateKey bytes, the same on all key servers of
	// which one may be asked for the second exchange after another was for the
	// first. nil means a random one of this Server's own.
	StateKey []byte
	// TicketRatchet is what the keys of session tickets are derived from that edges
	// of one site share: with the same secret on all key servers that they may ask.
	// Watch keeps it in its file. nil means a random one of this Server's own.
	TicketRatchet *TicketRatchet
	// RSAWorkers is how many operations with RSA, P-384 and P-521 run at once. 0 means GOMAXPROCS-1,
	// and at least 1.
	RSAWorkers int
	// MaxInFlight is how many requests are worked on at once, those not counted that
	// wait for their turn; an edge gets no more than are free. More are answered
	// with 'unspecified error' (ski.Response.Overloaded). 0 means DefaultMaxInFlight.
	MaxInFlight int
	// MaxWait is how long an operation waits for its turn at most: one that would
	// wait longer is refused at once, as with MaxInFlight. It is to be less than half
	// of the time that edges give a request, or than all of it where they have one
	// key server. 0 means DefaultMaxWait.
	MaxWait time.Duration
	// Suspensions are the edges that are cut off. nil means none, and those to
	// come end with the process.
	Suspensions *Suspensions
	// Revocations are the certificates that are revoked. nil means none.
	Revocations *Revocations
	// PSKs are the pre-shared keys that edges have. nil means that there are
	// none.
	PSKs *PSKs
	// Metrics counts what the Server does. nil means that nothing does.
	Metrics *Metrics
	// Logger gets what is of interest to the operator and is not a request's
	// outcome: failures of keys and of the audit log. nil means slog.Default.
	Logger *slog.Logger
}

// Server is a key server. It is a ski.Handler and a ski.MalformedHandler.
type Server struct {
	keys             atomic.Pointer[KeyStore]
	failureKeys      bool // whether a store that has FailureKeys is asked for them
	policy           atomic.Pointer[Policy]
	changing         sync.Mutex // held while keys or policy are changed
	audit            Auditor
	auditRequired    bool
	auditFailing     atomic.Bool
	auditReserve     atomic.Bool // whether the log's disk has no more than its reserve
	refusals         refusals
	rsaFailure       RSAFailure
	rsaFailureSecret []byte
	sealer           *sealer
	usedStates       usedStates
	tickets          *ticketMaker
	schedule         *scheduler
	suspensions      *Suspensions
	suspending       sync.Mutex   // held while they are changed
	revocations      *Revocations // nil for none
	psks             *PSKs        // nil for none
	sessions         []Sessions   // of each binding
	states           edgeStates
	keyBuckets       sync.Map // of *bucket, by ski.KeyID
	keyFailures      sync.Map // of *keyFailures, by ski.KeyID
	metrics          *Metrics // nil for none
	memory           *memory
	found            [detectors]atomic.Uint64
	sweeping         atomic.Bool    // a sweepRSA is to come
	background       sync.WaitGroup // of alarms and sweeps
	log              *slog.Logger
}

var (
	_ ski.Handler          = (*Server)(nil)
	_ ski.MalformedHandler = (*Server)(nil)
)

// New returns a Server. The error says which of the options is at fault.
func New(o Options) (*Server, error) {
	s := &Server{
		audit:            o.Audit,
		auditRequired:    o.AuditRequired,
		rsaFailure:       o.RSAFailure,
		rsaFailureSecret: o.RSAFailureSecret,
		suspensions:      o.Suspensions,
		revocations:      o.Revocations,
		psks:             o.PSKs,
		metrics:          o.Metrics,
		log:              o.Logger,
	}
	switch {
	case o.Keys == nil || o.Policy == nil || o.Audit == nil:
		return nil, errors.New("keyserver: Options needs Keys, Policy and Audit")
	case o.RSAWorkers < 0 || o.MaxInFlight < 0 || o.MaxWait < 0:
		return nil, errors.New("keyserver: Options has a negative limit")
	}
	switch o.RSAFailure {
	case "":
		s.rsaFailure = RSAFailureRandom
	case RSAFailureRandom, RSAFailureError:
	default:
		return nil, fmt.Errorf("keyserver: unknown RSAFailure %q", o.RSAFailure)
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.keys.Store(&o.Keys)
	switch {
	case o.RSAFailureSecret == nil:
		s.chooseFailureSecret()
	case len(o.RSAFailureSecret) < MinRSAFailureSecret:
		return nil, fmt.Errorf("keyserver: RSAFailureSecret has less than %d bytes", MinRSAFailureSecret)
	}
	if err := s.chooseStateKey(o.StateKey, o.Policy); err != nil {
		return nil, err
	}
	s.tickets = newTicketMaker(o.TicketRatchet)
	if s.suspensions == nil {
		s.suspensions, _ = OpenSuspensions("")
	}
	s.memory = newMemory()
	s.schedule = newScheduler(o.MaxInFlight, o.RSAWorkers, o.MaxWait)
	if s.metrics != nil {
		s.metrics.server = s
	}
	s.SetPolicy(o.Policy)
	return s, nil
}

// Close returns when what the requests have left behind is done: alarms and
// counts of refusals are in the audit log, which can be closed then. It is
// called when no more requests come.
func (s *Server) Close() {
	s.background.Wait()
	s.closeRefusals()
}

// SetPolicy puts another policy, made with the Server's key store, in the place
// of the one in effect. Each request is answered by one of the two. Sessions of
// peers that the new one does not know are closed.
func (s *Server) SetPolicy(p *Policy) {
	s.changing.Lock()
	if before := s.policy.Load(); before != nil { // There may be other keys by now.
		p = p.withKeys(before.keys)
	}
	s.policy.Store(p)
	s.changing.Unlock()
	s.metrics.SetPolicyExpiry(p.NextExpiry(time.Now()))
	s.noteTickets(p)
	s.Enforce()
	for _, one := range s.suspensions.All() {
		if !s.names(one.Edge) { // It may have another name now, and be let in by it.
			s.log.Warn("the policy has no edge of the name that is suspended", "edge", one.Edge, "why", one)
		}
	}
}

// outcome is how a request ends: what the peer is told, output or wire, and
// what only the audit log is.
type outcome struct {
	output          []byte
	params, state   []byte // of the first exchange of ECDHE-PMS
	wire            ski.Error
	preMasterSecret string
	reason          string
	longest         answerLen     // what the answer is padded to; 0 for one that needs none
	limit           string        // the name of the limit that refused; "" for none
	retryAfter      time.Duration // where a limit refused; 0 for no such advice
	slow            time.Duration // where it was the peer's own: when it may ask again
	overloaded      bool          // nothing was done: it would have had to wait too long
}

func refused(wire ski.Error, reason string) outcome { return outcome{wire: wire, reason: reason} }

// ServeSKI answers one request. See docs/protocol.md, section 3, for the order
// of what it does.
func (s *Server) ServeSKI(ctx context.Context, peer ski.Peer, req *ski.Request) *ski.Response {
	policy, edges, rec := s.begin(peer)
	out, ok := s.enter(rec.Time, peer, policy, edges)
	if ok {
		out = s.answer(ctx, peer, policy, edges, req, rec)
		s.leave(edges)
	}
	return s.finish(ctx, policy, edges, rec, out)
}

// ServeMalformed answers a message that could not be parsed.
func (s *Server) ServeMalformed(ctx context.Context, peer ski.Peer, err error) *ski.Response {
	policy, edges, rec := s.begin(peer)
	out, ok := s.enter(rec.Time, peer, policy, edges)
	if ok {
		out = refused(ski.MalformedRequest, malformedReason(err))
		s.leave(edges)
	}
	return s.finish(ctx, policy, edges, rec, out)
}

// answer takes a request through the steps of docs/protocol.md, section 3. The
// first, that the peer is authenticated, is the binding's: it has no Peer to
// hand over otherwise.
func (s *Server) answer(ctx context.Context, peer ski.Peer, policy *Policy, edges []*edge, req *ski.Request, rec *Record) (out outcome) {
	var longest answerLen
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic while answering a request", "panic", p, "stack", string(debug.Stack()))
			out = refused(ski.UnspecifiedError, "panic, see the log")
		}
		out.longest = longest
	}()

	// 2. Parse. The binding has done so, but an embedding program need not have.
	if err := req.Validate(); err != nil {
		return refused(ski.MalformedRequest, malformedReason(err))
	}
	rec.describe(req)

	// 3. The key by its fingerprint.
	k, ok := lookup(s.keyStore(), req.SPKI)
	if !ok {
		return refused(ski.SPKINotFound, noSuchKey)
	}
	rec.KeyName = k.name

	// What the second exchange of ECDHE-PMS asks for stands in its state, so
	// that the policy is asked the same twice. It opens only for the edge that
	// was granted the first.
	req, exchange, err := s.resume(peer, edges, req)
	switch {
	case err != nil && len(edges) == 0: // who learns nothing of states either
		return refused(ski.RequestDenied, denialUnknownPeer)
	case err != nil:
		longest = longestAnswer(req, k.public)
		return refused(ski.MalformedRequest, err.Error())
	}
	rec.describe(req)

	// 4. Policy. The algorithm is part of it; that there is none that fits is
	// only told to a peer that may use the key.
	alg, algErr := k.algorithm(req)
	rec.describeAlgorithm(req, alg)
	if reason, ok := decide(edges, newAccess(rec, req, k, alg)); !ok {
		return refused(ski.RequestDenied, reason)
	}

	// From here on the length of the answer, too, is the same whatever it is
	// (10.).
	longest = longestAnswer(req, k.public)

	// 5. The structure of the input.
	op, err := parseOperation(req, k, alg, algErr, exchange)
	if err != nil {
		return refused(ski.MalformedRequest, err.Error())
	}
	if out, ok := s.takeKey(rec.Time, policy.limits.ofKey(k), k.id); !ok {
		return out
	}
	if out, ok := s.inspect(policy, edges, peer, req, rec); !ok {
		return out
	}

	// 6. and 7. The operation.
	start := time.Now()
	out, err = op.do(s.withEdge(ctx, edges[0].name), s)
	s.metrics.operated(rec.Method, time.Since(start))
	s.countRSA(s.states.of(edges[0].name), out.preMasterSecret)

	// 8. Anything else that goes wrong.
	switch {
	case errors.Is(err, errOverloaded):
		return overloaded()
	case err != nil && errors.Is(err, ctx.Err()):
		return refused(ski.UnspecifiedError, "the caller has gone")
	case err != nil && !s.HasKey(k.id):
		return refused(ski.SPKINotFound, "the key has gone")
	case err != nil:
		s.operationFailed(k, req, err)
		return refused(ski.UnspecifiedError, "operation failed, see the log")
	}
	return out
}

// begin opens the record of a request and finds the policy that it is answered
// by, and which of its edges the peer is.
func (s *Server) begin(peer ski.Peer) (*Policy, []*edge, *Record) {
	policy := s.policy.Load()
	edges := policy.match(peer)
	return policy, edges, &Record{
		Time:    time.Now(),
		Edge:    edgeNames(edges),
		Peer:    peer.ID(),
		Address: peer.Addr,
	}
}

// finish writes the audit record and only then (9.) hands out the answer.
func (s *Server) finish(ctx context.Context, policy *Policy, edges []*edge, rec *Record, out outcome) *ski.Response {
	s.states.each(edges, func(e *edgeState) { e.count(rec.Time, out.wire != "") })
	rec.PreMasterSecret = out.preMasterSecret
	rec.Reason = out.reason
	rec.Outcome = outcomeOutput
	if out.wire != "" {
		rec.Outcome = string(out.wire)
	}
	rec.Duration = time.Since(rec.Time)

	if err := s.account(ctx, policy, edges, rec, out); err != nil && s.auditRequired {
		clear(out.output)
		out.output, out.params, out.state = nil, nil, nil
		out.wire, out.retryAfter, out.overloaded = ski.UnspecifiedError, 0, false
		rec.Outcome = string(out.wire) // for the metrics: there is no record
	}
	s.metrics.answered(rec)
	if out.limit != "" {
		s.metrics.Limited(out.limit)
	}
	return &ski.Response{
		Output: out.output, Error: out.wire, Params: out.params, State: out.state, RetryAfter: out.retryAfter, Slow: out.slow, Overloaded: out.overloaded,
		OutputLen: out.longest.output, ParamsLen: out.longest.params, StateLen: out.longest.state,
	}
}

// record writes a record, of a request or of another event, even if the caller
// has gone meanwhile.
func (s *Server) record(ctx context.Context, rec *Record) error {
	err := s.audit.Audit(context.WithoutCancel(ctx), rec)
	s.noteAudit(err)
	if err != nil {
		s.metrics.auditFailed()
	}
	return err
}

// lastingAudit is an Auditor whose records outlast the process. *AuditLog is one.
type lastingAudit interface {
	Fault() error
	Discontinuities() int
	TipWaits() time.Duration
	Waits() time.Duration
}

// auditPatience is how long the audit log may take nothing until the key server is
// out of service: the edges' own time to wait.
const auditPatience = 5 * time.Second

// Health returns why no request can be answered at the moment, or nil.
func (s *Server) Health() error {
	if log, ok := s.audit.(lastingAudit); ok {
		if waits := log.Waits(); waits > auditPatience {
			return fmt.Errorf("the audit log has taken nothing for %v, and no answer goes out before its record", waits.Round(time.Second))
		}
	}
	if s.auditRequired {
		if err := s.auditHealth(); err != nil {
			return err
		}
	}
	if s.revocations != nil && (s.psks == nil || s.psks.Len() == 0) {
		if err := s.revocations.Health(); err != nil {
			return err
		}
	}
	return s.keysHealth()
}

func (s *Server) auditHealth() error {
	if log, ok := s.audit.(lastingAudit); ok {
		if err := log.Fault(); err != nil {
			return fmt.Errorf("the audit log: %w", err)
		}
	}
	if s.auditFailing.Load() {
		return errors.New("the audit log cannot be written")
	}
	return nil
}

// noteAudit logs when the audit log begins to fail and when it works again,
// rather than each of the many requests between.
func (s *Server) noteAudit(err error) {
	failing := err != nil
	if s.auditFailing.Load() == failing || !s.auditFailing.CompareAndSwap(!failing, failing) {
		return
	}
	if failing {
		s.log.Error("audit log fails", "error", err, "required", s.auditRequired)
	} else {
		s.log.Info("audit log works again")
	}
}

// describe records what a valid request asks for.
func (r *Record) describe(req *ski.Request) {
	r.Key = req.SPKI
	r.Protocol = req.Protocol
	r.Method = req.KeyExchange()
	r.Group = groupAsked(req)
	r.ClaimedServerName = req.ServerName
	switch {
	case isSecondExchange(req):
		r.Exchange = 2
	case req.Method == ski.MethodECDHEPMS:
		r.Exchange = 1
	}
}

func (r *Record) describeAlgorithm(req *ski.Request, alg algorithm) {
	switch {
	case req.KeyExchange() == ski.MethodRSA: // Nothing is signed.
	case req.Scheme != 0:
		r.Scheme = algorithmName(req, alg)
	default:
		r.Hash = algorithmName(req, alg)
	}
}

// malformedReason returns the text of a *ski.MalformedError, which holds
// nothing of the message; any other error might.
func malformedReason(err error) string {
	if m := (*ski.MalformedError)(nil); errors.As(err, &m) {
		return m.Error()
	}
	return "the message could not be parsed"
}
