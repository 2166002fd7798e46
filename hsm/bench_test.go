//go:build cgo

package hsm

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// BenchmarkPool compares what a Store makes of a token with what the token can
// do: the bare C_SignInit and C_Sign, or C_DecryptInit and C_Decrypt, in as many
// sessions. The two take turns of a tenth of a second, so that what drifts on the
// machine drifts for both. The Store has twice as many callers as sessions.
//
//	go test ./hsm -run '^$' -bench Pool -benchtime 20x
//
// One iteration is one turn of each. "kept-%" is the median over the pairs of
// turns of the rate through the Store in hundredths of the bare one.
func BenchmarkPool(b *testing.B) {
	token := newSoftHSM(b, "bench")[0]
	token.generate(b, "ec", "ec-p256", Template{Sign: true})
	token.generate(b, "rsa", "rsa-2048", Template{Sign: true, Decrypt: true})
	for _, sessions := range []int{1, 4, 16} {
		store := openStore(b, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: sessions})
		for _, k := range []*privateKey{store.now.Load().all[0], store.now.Load().all[1]} {
			b.Run(fmt.Sprintf("sign/%s/%d", k.info.Type, sessions), func(b *testing.B) {
				digest := random(32)
				sig, err := k.newSignature(digest, crypto.SHA256)
				require.NoError(b, err)
				compare(b, store, k, sessions, func(s *session, f *foundKey) error {
					if err := s.SignInit(s.handle, []*pkcs11.Mechanism{sig.mech}, f.handle); err != nil {
						return err
					}
					_, err := s.Sign(s.handle, sig.data)
					return err
				}, func() error {
					_, err := store.Sign(b.Context(), k.info.ID, digest, crypto.SHA256)
					return err
				})
			})
			pub, ok := k.public.(*rsa.PublicKey)
			if !ok {
				continue
			}
			b.Run(fmt.Sprintf("decrypt/%s/%d", k.info.Type, sessions), func(b *testing.B) {
				//lint:ignore SA1019 It is what TLS clients do.
				ciphertext, err := rsa.EncryptPKCS1v15(rand.Reader, pub, random(ski.PreMasterSecretLen))
				require.NoError(b, err)
				mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_X_509, nil)}
				compare(b, store, k, sessions, func(s *session, f *foundKey) error {
					if err := s.DecryptInit(s.handle, mech, f.handle); err != nil {
						return err
					}
					_, err := s.Decrypt(s.handle, ciphertext)
					return err
				}, func() error {
					return store.DecryptPreMasterSecret(b.Context(), k.info.ID, ciphertext, make([]byte, ski.PreMasterSecretLen))
				})
			})
		}
	}
}

// turn is how long one side works before the other does.
const turn = 100 * time.Millisecond

func compare(b *testing.B, store *Store, k *privateKey, sessions int, bare func(*session, *foundKey) error, through func() error) {
	t := k.token
	own := make([]*session, sessions)
	for i := range own {
		handle, err := t.mod.OpenSession(t.slotNow(), pkcs11.CKF_SERIAL_SESSION)
		require.NoError(b, err)
		defer t.mod.CloseSession(handle)
		own[i] = &session{module: t.mod.module, handle: handle, found: make(map[*privateKey]*foundKey)}
		_, err = own[i].find(k)
		require.NoError(b, err)
	}
	var kept, keptCPU, bareRates, storeRates []float64
	for b.Loop() {
		a, aCPU := rate(b, sessions, func(i int) error { return bare(own[i], own[i].found[k]) })
		c, cCPU := rate(b, 2*sessions, func(int) error { return through() })
		bareRates, storeRates = append(bareRates, a), append(storeRates, c)
		kept, keptCPU = append(kept, 100*c/a), append(keptCPU, 100*cCPU/aCPU)
	}
	b.ReportMetric(median(keptCPU), "kept-cpu-%")
	b.ReportMetric(median(bareRates), "bare/s")
	b.ReportMetric(median(storeRates), "store/s")
	b.ReportMetric(median(kept), "kept-%")
	b.ReportMetric(0, "ns/op")
}

// rate returns how often a second n goroutines together do f, and how often a
// second of processor time.
func rate(b *testing.B, n int, f func(i int) error) (perSecond, perCPUSecond float64) {
	var all sync.WaitGroup
	counts := make([]int, n)
	start, cpu := time.Now(), processorTime(b)
	for i := range n {
		all.Go(func() {
			for time.Since(start) < turn {
				if err := f(i); err != nil {
					b.Error(err)
					return
				}
				counts[i]++
			}
		})
	}
	all.Wait()
	total := 0
	for _, c := range counts {
		total += c
	}
	return float64(total) / time.Since(start).Seconds(), float64(total) / (processorTime(b) - cpu).Seconds()
}

// processorTime is what this process has used of it.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// BenchmarkVerify is the processor time that verifying a token's signature takes
// here.
//
//	go test ./hsm -run '^$' -bench Verify
func BenchmarkVerify(b *testing.B) {
	token := newSoftHSM(b, "bench")[0]
	for _, kind := range []string{"ec-p256", "ec-p384", "ec-p521", "ed25519", "rsa-2048"} {
		token.generate(b, kind, kind, Template{Sign: true})
	}
	store := openStore(b, Config{Keys: []Key{{URI: token.uri("")}}, MaxSessions: 1})
	for _, k := range store.now.Load().all {
		b.Run(k.info.Type, func(b *testing.B) {
			opts := crypto.SignerOpts(crypto.SHA256)
			if k.info.Type == "ed25519" {
				opts = crypto.Hash(0)
			}
			digest := random(32)
			sig, err := k.newSignature(digest, opts)
			require.NoError(b, err)
			out, err := store.Sign(b.Context(), k.info.ID, digest, opts)
			require.NoError(b, err)
			before := processorTime(b)
			for b.Loop() {
				require.True(b, sig.verify(out))
			}
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}
