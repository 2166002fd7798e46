package keyserver

import "fmt"

// HSMConfig says which keys of PKCS #11 tokens are served.
type HSMConfig struct {
	// Keys are the keys, and tokens all of whose keys are served. Default none.
	Keys []HSMKey `yaml:"keys"`
	// MaxSessions is how many operations a token does at once. Default 0: 16,
	// or the token's own limit if that is lower.
	MaxSessions uint16 `yaml:"max_sessions"`
	// RequireNonExtractable refuses, at the start, every key that can be copied
	// off its token, or could be at any time: those in files, and those of which a
	// token does not say CKA_SENSITIVE, CKA_ALWAYS_SENSITIVE, CKA_NEVER_EXTRACTABLE
	// and not CKA_EXTRACTABLE. Default false.
	RequireNonExtractable bool `yaml:"require_non_extractable"`
	// RequireGenerated refuses, at the start, every key that was not made on its
	// token, and of which copies may exist: those in files, and those of which a
	// token does not say CKA_LOCAL. Default false.
	RequireGenerated bool `yaml:"require_generated"`
	// Folders are what the modules read and write while the key server runs,
	// which the sandbox leaves to them: where a software token keeps its
	// objects, and the module's configuration. Default none.
	Folders []string `yaml:"folders"`
	// Network lets modules open TCP connections while the key server runs, as
	// those of network HSMs do. Default false: the sandbox does not.
	Network bool `yaml:"network"`
	// Dir is the folder of the configuration file, which relative paths in
	// URIs start from.
	Dir string `yaml:"-"`
}

// HSMKey names a key, or all keys of a token.
type HSMKey struct {
	// URI is a PKCS #11 URI (RFC 7512). Required.
	URI string `yaml:"uri"`
	// Name is what policies and audit logs call the key. Default: its label.
	Name string `yaml:"name"`
	// Public is a PEM file with the key's certificate or public key. Default:
	// what the token has.
	Public string `yaml:"public"`
}

func (c *HSMConfig) check(doc *document, keys string) error {
	switch {
	case len(c.Keys) == 0 && doc.find("$.hsm") != nil:
		return doc.errorAt("$.hsm", "'hsm' needs 'keys'")
	case c.RequireNonExtractable && keys != "":
		return doc.errorAt("$.hsm.require_non_extractable", "the keys of the folder %q can be copied: leave 'keys' out", keys)
	case c.RequireGenerated && keys != "":
		return doc.errorAt("$.hsm.require_generated", "the keys of the folder %q were not made on a token: leave 'keys' out", keys)
	}
	for i, k := range c.Keys {
		if k.URI == "" {
			return doc.errorAt(fmt.Sprintf("$.hsm.keys[%d]", i), "a key needs a 'uri'")
		}
	}
	return nil
}
