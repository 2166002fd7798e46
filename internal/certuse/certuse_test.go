package certuse

import (
	"crypto/x509"
	"encoding/asn1"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestWhatIsForTLSAlone(t *testing.T) {
	for _, c := range []struct {
		cert x509.Certificate
		want string
	}{
		{x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ""},
		{x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}, ""},
		{x509.Certificate{}, "has no extended key usage, which stands for every use"},
		{x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true, IsCA: true}, "is a certificate authority's"},
		{x509.Certificate{BasicConstraintsValid: true, IsCA: true}, "is a certificate authority's, has no extended key usage, which stands for every use"},
		{x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageEmailProtection, x509.ExtKeyUsageCodeSigning}},
			"has the extended key usage emailProtection, codeSigning"},
		{x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}, "has the extended key usage anyExtendedKeyUsage"},
		{x509.Certificate{UnknownExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 99999, 1}}}, "has the extended key usage 1.3.6.1.4.1.99999.1"},
	} {
		assert.Equal(t, c.want, Beyond(&c.cert))
	}
}
