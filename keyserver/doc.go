// Package keyserver is a TLS Session Key Interface key server: it holds the
// private keys of web sites and does with them, for edge servers that have
// none, the one operation a TLS handshake needs.
//
// A Server is a ski.Handler, a function from an authenticated peer and a
// request to a response. It needs a KeyStore, a Policy and an Auditor:
//
//	keys, err := keyserver.LoadFolder("/etc/ski/keys")
//	policy, err := keyserver.LoadPolicy("/etc/ski/policy.yaml", keys)
//	audit, err := keyserver.OpenAuditLog("/var/log/ski/audit.log")
//	server, err := keyserver.New(keyserver.Options{Keys: keys, Policy: policy, Audit: audit})
//
// How requests get to it is the business of a binding such as package skicoap,
// or of ski.Direct where edge server and key server are one process.
//
// The Server is a private key oracle behind a guard. It does an operation only
// for a peer that the policy names, and only on an input that it has parsed
// and found to be what TLS signs or encrypts: no bare digest is ever signed,
// and nothing but a PreMasterSecret is ever decrypted. What a peer is told of a
// refusal is one of the draft's four errors; the real reason is in the audit
// log alone.
package keyserver
