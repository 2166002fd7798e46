package ski

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"errors"
	"io"
)

// Decrypt has the key server decrypt an EncryptedPreMasterSecret. opts must be
// *rsa.PKCS1v15DecryptOptions with SessionKeyLen 48, which is what crypto/tls
// uses: a key server decrypts nothing else.
//
// Every answer of the key server that is not 48 bytes with the client's version
// at the front becomes a random secret, whatever it is: any of the four errors,
// another length, or a message that is not one of SKI. Key servers differ in
// what they say of a wrong padding, and a TLS client must learn only that its
// Finished does not fit (RFC 5246, Section 7.4.7.1). An error means that there
// is no answer: the key server was not asked, could not be reached, or was
// silent.
//
// The version is the Connection's ClientVersion. Where that is not known, it is
// any from the Connection's Protocol, by default TLS 1.2, up to TLS 1.2 or DTLS
// 1.2.
func (k rsaKey) Decrypt(_ io.Reader, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	//lint:ignore SA1019 it is what crypto/tls passes
	if o, ok := opts.(*rsa.PKCS1v15DecryptOptions); !ok || o.SessionKeyLen != PreMasterSecretLen {
		return nil, errors.New("ski: a key server decrypts only the PreMasterSecret of TLS: " +
			"the options must be *rsa.PKCS1v15DecryptOptions with SessionKeyLen 48")
	}
	req := k.request(MethodRSA, ciphertext)
	if req.Protocol == "" {
		req.Protocol = TLS12 // newer ones have no RSA key exchange
	}
	secret := make([]byte, PreMasterSecretLen)
	rand.Read(secret) // Before the answer is known, so that its time tells nothing.
	resp, err := k.transport.RoundTrip(k.context(), req)
	if err != nil && !Answered(err) && !isClientsFault(err) {
		return nil, err
	}
	var output []byte
	if err == nil {
		output = resp.Output
		if resp.Error != "" {
			clear(output)
			output = nil
		}
	}
	lowest, highest := k.clientVersions(req.Protocol)
	takePreMasterSecret(secret, output, lowest, highest)
	return secret, nil
}

// takePreMasterSecret copies output to secret if it is a PreMasterSecret that
// begins with a version from lowest to highest. Its time says neither whether
// nor why not. It clears output.
func takePreMasterSecret(secret, output []byte, lowest, highest uint16) {
	var taken [PreMasterSecretLen]byte
	copy(taken[:], output)
	version := int(taken[0])<<8 | int(taken[1])
	right := subtle.ConstantTimeEq(int32(len(output)), PreMasterSecretLen) &
		subtle.ConstantTimeLessOrEq(int(lowest), version) & subtle.ConstantTimeLessOrEq(version, int(highest))
	subtle.ConstantTimeCopy(right, secret, taken[:])
	clear(taken[:])
	clear(output)
}

// clientVersions returns the lowest and the highest number that a
// PreMasterSecret can begin with; those of DTLS count down.
func (k *Key) clientVersions(negotiated Protocol) (lowest, highest uint16) {
	switch {
	case k.conn.ClientVersion != 0:
		return k.conn.ClientVersion, k.conn.ClientVersion
	case negotiated == DTLS10 || negotiated == DTLS12:
		return DTLS12.Wire(), negotiated.Wire()
	}
	return negotiated.Wire(), TLS12.Wire()
}

// isClientsFault reports whether what the client encrypted could not even be
// sent: it is too long, or empty.
func isClientsFault(err error) bool {
	me, ok := err.(*MalformedError)
	return ok && (me.Attribute == "input" || me.Attribute == "")
}
