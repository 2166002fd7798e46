package split

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"

	"github.com/tlsski/tlsski/ski"
)

// Handshake does the handshake if it has not been done.
func (c *Conn) Handshake() error { return c.HandshakeContext(context.Background()) }

// HandshakeContext does the handshake if it has not been done. The end of ctx,
// which the questions to the key server also get, closes the connection.
func (c *Conn) HandshakeContext(ctx context.Context) error {
	if c.connected.Load() {
		return nil
	}
	c.handshakeMu.Lock()
	defer c.handshakeMu.Unlock()
	if c.connected.Load() || c.handshakeErr != nil {
		return c.handshakeErr
	}
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	defer stop()

	c.readMu.Lock()
	defer c.readMu.Unlock()
	for !c.connected.Load() {
		if err := c.readRecord(ctx); err != nil {
			if ctx.Err() != nil && !errors.As(err, new(*Error)) {
				err = ctx.Err()
			}
			c.machine.Fail()
			c.handshakeErr = err
			break
		}
	}
	c.key, c.ephemeral, c.keyServers = nil, nil, nil
	return c.handshakeErr
}

// carryOut does what the machine wants, until there is nothing left to do but
// to wait for the client, and sends what is to be sent.
func (c *Conn) carryOut(ctx context.Context, events []Event, err error) error {
	for err == nil && len(events) > 0 {
		event := events[0]
		events = events[1:]
		var more []Event
		if more, err = c.do(ctx, event); len(more) > 0 {
			events = append(events, more...)
		}
	}
	if err != nil {
		return err
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.out.flush()
}

// do carries out one event. Answers to questions bring new ones.
func (c *Conn) do(ctx context.Context, event Event) ([]Event, error) {
	switch e := event.(type) {
	case SiteWanted:
		c.in.negotiated = true
		cfg, err := c.getConfig(ctx, e.Hello)
		if err != nil {
			return nil, &Error{InternalError, "no configuration for the connection", err}
		}
		if cfg == nil {
			return nil, fail(UnrecognizedName, "no site has the server name")
		}
		return c.machine.Site(cfg)
	case EphemeralWanted:
		return c.makeEphemeral(ctx, e)
	case SignatureWanted:
		signature, err := c.privateKey(ctx, e.Chain).SignMessage(rand.Reader, e.Message, signerOpts(e.Scheme))
		if err != nil {
			return nil, keyFailed(err)
		}
		return c.machine.Signature(signature)
	case PreMasterWanted:
		secret, err := c.preMaster(ctx, e)
		if err != nil {
			return nil, err
		}
		return c.machine.PreMaster(secret)
	case Expect:
		c.in.protect(e.Read)
		return nil, nil
	case Connected:
		c.useless = 0
		c.connected.Store(true)
		return nil, nil
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	switch e := event.(type) {
	case Send:
		return nil, c.out.add(recordHandshake, e.Message)
	case SendChangeCipherSpec:
		err := c.out.add(recordChangeCipherSpec, []byte{1})
		c.out.protect(e.Write)
		return nil, err
	case SendWarning:
		if err := c.countUseless(); err != nil {
			return nil, err
		}
		return nil, c.out.add(recordAlert, []byte{alertWarning, byte(e.Alert)})
	case Limit:
		c.in.limit, c.out.limit = e.In, e.Out
		return nil, nil
	}
	return nil, fail(InternalError, "unknown event %T", event)
}

// keyFailed is the end of a handshake that the key server has not helped.
func keyFailed(err error) *Error {
	return &Error{InternalError, "no answer of the key server to go on with", err}
}

// privateKey returns the chain's, which is the same for the whole handshake.
func (c *Conn) privateKey(ctx context.Context, chain *Chain) crypto.MessageSigner {
	if c.key == nil {
		c.key = chain.Key(ctx, c.forKey())
	}
	return c.key
}

// forKey is what the key may know of the connection.
func (c *Conn) forKey() ski.Connection {
	hello := c.machine.hello
	return ski.Connection{Protocol: ski.TLS12, ClientVersion: hello.Version, ServerName: hello.ServerName}
}

// makeEphemeral makes the ephemeral key, here or at the key server.
func (c *Conn) makeEphemeral(ctx context.Context, e EphemeralWanted) ([]Event, error) {
	if !e.Signed {
		if err := c.generateEphemeral(e); err != nil {
			return nil, err
		}
		return c.machine.Ephemeral(c.ephemeral.PublicKey().Bytes())
	}
	if e.Chain.Ephemeral == nil {
		return nil, fail(InternalError, "the private key has no ephemeral keys")
	}
	randoms := slices.Concat(e.ClientRandom, e.ServerRandom)
	made, err := e.Chain.Ephemeral(ctx, c.forKey(), e.Group, randoms, signerOpts(e.Scheme))
	if err != nil {
		return nil, keyFailed(err)
	}
	c.keyServers = made
	return c.machine.SignedEphemeral(made.Params, made.Signature)
}

// maxEphemeralKeys is how many are generated. With randoms that are fit, less than
// a third of them is not.
const maxEphemeralKeys = 16

// generateEphemeral generates an ephemeral key whose public value does not make
// what is signed look like something else that is signed (ski.CheckForm).
func (c *Conn) generateEphemeral(e EphemeralWanted) error {
	var form error
	for range maxEphemeralKeys {
		key, err := curveOf(e.Group).GenerateKey(rand.Reader)
		if err != nil {
			return &Error{InternalError, "ephemeral key", err}
		}
		params := serverECDHParams(e.Group, key.PublicKey().Bytes())
		if form = ski.CheckForm(slices.Concat(e.ClientRandom, e.ServerRandom, params)); form == nil {
			c.ephemeral = key
			return nil
		}
	}
	return &Error{InternalError, "ephemeral key", form}
}

// preMaster gets the PreMasterSecret: of the edge's own ephemeral key, of the
// key server's, or decrypted.
func (c *Conn) preMaster(ctx context.Context, e PreMasterWanted) ([]byte, error) {
	switch {
	case e.Encrypted != nil:
		key, ok := c.privateKey(ctx, e.Chain).(crypto.Decrypter)
		if !ok {
			return nil, fail(InternalError, "the private key does not decrypt")
		}
		// What is not decrypted to a PreMasterSecret comes back as a random one.
		//lint:ignore SA1019 it is what static RSA is made of
		secret, err := key.Decrypt(rand.Reader, e.Encrypted, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: ski.PreMasterSecretLen})
		if err != nil {
			return nil, keyFailed(err)
		}
		return secret, nil
	case c.keyServers != nil:
		secret, err := c.keyServers.PreMasterSecret(ctx, e.ClientPublic)
		if err != nil {
			return nil, keyFailed(err)
		}
		return secret, nil
	}
	public, err := c.ephemeral.Curve().NewPublicKey(e.ClientPublic)
	if err != nil {
		return nil, &Error{IllegalParameter, "the client's ECDHE public value", err}
	}
	secret, err := c.ephemeral.ECDH(public)
	if err != nil {
		return nil, &Error{IllegalParameter, "the client's ECDHE public value", err}
	}
	return secret, nil
}
