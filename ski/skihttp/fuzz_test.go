package skihttp

import (
	"testing"

	"github.com/tlsski/tlsski/ski"
)

// What two formats are welcome to does not depend on which one is asked in,
// unless both are equally welcome.
func FuzzNegotiate(f *testing.F) {
	for _, accept := range []string{
		"", "*/*", "application/*;q=0.5", "application/json, application/cbor;q=0.9", "text/html, */*;q=0.1", "application/cbor;q=0, */*",
		"application/json;q=2", `application/json;p="a,b";q=0.1`, ";q=", ",", "application/json;q=NaN",
	} {
		f.Add(accept)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		c, j := quality(accept, ski.CBOR), quality(accept, ski.JSON)
		if !(c >= 0 && c <= 1 && j >= 0 && j <= 1) {
			t.Fatalf("qualities %v and %v", c, j)
		}
		fromCBOR, ok := negotiate([]string{accept}, ski.CBOR)
		fromJSON, ok2 := negotiate([]string{accept}, ski.JSON)
		if ok != ok2 || ok && c != j && fromCBOR != fromJSON {
			t.Fatalf("%v %v, %v %v", fromCBOR, ok, fromJSON, ok2)
		}
	})
}
