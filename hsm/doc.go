// Package hsm is a key store for the key server whose private keys are on
// PKCS #11 tokens: hardware security modules, smart cards, SoftHSM. The keys
// never leave their token; what leaves it are signatures and decrypted
// PreMasterSecrets.
//
// Keys are named by RFC 7512 URIs:
//
//	pkcs11:token=site-keys;object=www.example.com?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/ski/pin
//
// Without object and id, a URI names all key pairs of the token. The PIN comes
// from one of
//
//	pin-source=file:/etc/ski/pin   a file that its owner alone can read
//	pin-source=credential:NAME     a credential of systemd (LoadCredential=NAME:...)
//	pin-source=env:NAME            an environment variable
//	pin-value=1234                 the URI itself, with a warning
//
// A line feed at the end of a file or credential is not part of the PIN. It is
// read again for each login, and a PIN that a token has refused is not tried
// again before the source has another.
//
// Open logs in to every token, once, finds the keys, and has each of them prove
// that it belongs to its public half. From then on a [Store] does what the
// package keyserver asks of its KeyStore. Each token has a fixed number of
// sessions and a queue that is served in order. A call that hangs in a token
// costs that token a session until it returns, and the caller no longer than
// its context allows. Sessions that are lost, and tokens that fail or are
// pulled out and put back, are taken up again with a growing pause in between,
// whether or not anybody asks. [Store.Health] says which keys cannot be used
// meanwhile. A signature is verified before it is returned.
//
// PKCS #11 modules are code in this process. One that another user than root or
// the process's own could change, or put another in the place of, is not loaded.
// They are C libraries: the package needs cgo, and says so at run time where a
// program was built without it.
package hsm
