package skitest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"

	"github.com/tlsski/tlsski/ski"
)

// JavaKeyServer behaves like the open source key server in Java
// (github.com/mami-project/KeyServer, version 0.4): POST / alone, RSA keys by any
// text, errors in answers of status 200, and Jetty's page for what it throws an
// exception at. It is for tests alone, as KeyServer is.
type JavaKeyServer struct {
	mu   sync.Mutex
	keys map[string]*rsa.PrivateKey
	last map[string]string
}

// NewJavaKeyServer returns one with keys by the names that its operator has
// given them.
func NewJavaKeyServer(keys map[string]*rsa.PrivateKey) *JavaKeyServer {
	return &JavaKeyServer{keys: maps.Clone(keys)}
}

// Remove takes a key away.
func (j *JavaKeyServer) Remove(name string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.keys, name)
}

// Last returns the last request, or nil.
func (j *JavaKeyServer) Last() map[string]string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

var javaHashes = map[string]crypto.Hash{
	"SHA1": crypto.SHA1, "SHA-224": crypto.SHA224, "SHA-256": crypto.SHA256, "SHA-384": crypto.SHA384, "SHA-512": crypto.SHA512,
}

// ServeHTTP answers a request.
func (j *JavaKeyServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" || r.Method != http.MethodPost {
		http.Error(w, "<h1>Not Found</h1>", http.StatusNotFound)
		return
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, ski.MaxMessageSize))
	if err != nil {
		return
	}
	var m map[string]string
	_ = json.Unmarshal(data, &m) // what is none has no attributes
	j.mu.Lock()
	j.last = m
	key := j.keys[m["spki"]]
	j.mu.Unlock()
	attribute, text := javaAnswer(m, key)
	if attribute == "" {
		w.Header().Set("Content-Type", "text/html;charset=iso-8859-1")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, "<html><h2>HTTP ERROR 500</h2></html>")
		return
	}
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	// Its library escapes the slash.
	fmt.Fprintf(w, "{\"%s\":\"%s\"}\n", attribute, strings.ReplaceAll(text, "/", `\/`))
}

// javaAnswer returns the attribute of the answer, in the order in which that key
// server looks at a request, or nothing for an exception.
func javaAnswer(m map[string]string, key *rsa.PrivateKey) (attribute, text string) {
	p := ski.Protocol(m["protocol"])
	if !p.Valid() || p.Is13() || m["spki"] == "" || m["method"] == "" || m["input"] == "" {
		return "error", "malformed request"
	}
	input, err := base64.StdEncoding.DecodeString(strings.TrimSpace(m["input"]))
	if err != nil {
		return "", ""
	}
	hash, known := javaHashes[m["hash"]]
	switch method := m["method"]; {
	case method != "ECDHE" && method != "RSA",
		method == "ECDHE" && (!known || len(input) != 133),
		method == "RSA" && len(input) < 10:
		return "error", "malformed request"
	case key == nil:
		return "error", "spki not found"
	}
	var output []byte
	if m["method"] == "RSA" {
		//lint:ignore SA1019 this is what that key server does
		output, err = rsa.DecryptPKCS1v15(nil, key, input)
	} else {
		digest := hash.New()
		digest.Write(input)
		output, err = rsa.SignPKCS1v15(rand.Reader, key, hash, digest.Sum(nil))
	}
	if err != nil {
		return "error", "unspecified error"
	}
	return "output", base64.StdEncoding.EncodeToString(output)
}
