package keyserver

import (
	"context"
	"crypto/rand"
	"flag"
	"io"
	"math"
	mathrand "math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

var timingSamples = flag.Int("timing", 0, "how many RSA operations TestTiming measures for each rsa_failure")

// threshold is the |t| above which two distributions count as different, as in
// dudect ("dude, is my code constant time?", Reparaz, Balasch and Verbauwhede,
// 2017). If they are the same, t is that of the normal distribution, and one
// comparison exceeds 4.5 by chance in 150,000 times: with the some hundred
// comparisons made here, one run in a thousand has a false alarm. If they
// differ, t grows with the square root of the number of samples without end:
// whoever doubts a result below the threshold measures four times as long, and
// a leak doubles it.
const threshold = 4.5

// TestTiming asks whether the time of an answer tells what was wrong with a
// PreMasterSecret. By default it only proves that the statistic would find it
// out; to measure, on a machine that has nothing else to do:
//
//	go test ./keyserver -run TestTiming -v -timeout 0 -timing 200000
//
// The classes are interleaved at random, so that what drifts (clock rate, other
// processes, the size of the heap) drifts in all of them. Every question is a
// new one, encrypted with new random padding, and made in the same way for all
// classes before the clock starts.
func TestTiming(t *testing.T) {
	t.Run("statistic", testStatistic)
	if *timingSamples == 0 {
		return
	}
	for _, mode := range []RSAFailure{RSAFailureRandom, RSAFailureError} {
		t.Run(string(mode), func(t *testing.T) {
			times := measureRSA(t, mode, *timingSamples)
			for i, a := range timedPlaintexts {
				for j, b := range timedPlaintexts[:i] {
					w := compare(times[j], times[i])
					t.Logf("%-8s against %-8s  |t| = %.2f at its largest (first order %.2f, second %.2f); "+
						"means differ by %.0f ns, found would be %.0f ns",
						b.name, a.name, w.max(), w.first, w.second, w.difference, w.resolution)
					assert.Less(t, w.max(), threshold, "the time tells %s from %s", b.name, a.name)
				}
			}
		})
	}
}

// timedPlaintexts are the classes: how each changes a valid EM (RFC 8017,
// Section 7.2.1), given where its PreMasterSecret begins.
var timedPlaintexts = []struct {
	name  string
	spoil func(em []byte, secret int)
}{
	{"valid", func([]byte, int) {}},
	{"padding", func(em []byte, _ int) { em[1] = 1 }},
	{"version", func(em []byte, secret int) { em[secret+1] = 2 }},
	{"length", func(em []byte, secret int) { em[secret-1], em[secret] = 0xA5, 0 }},
}

// timedQuestion is a request of a class.
type timedQuestion struct {
	class int
	req   *ski.Request
}

// newQuestions returns n questions, their classes in random order.
func newQuestions(keys testStore, n int) []timedQuestion {
	pub := rsaPublic(keys)
	questions := make([]timedQuestion, n)
	for i := range questions {
		em := encodedMessage(pub, preMasterSecret(0x0303))
		secret := len(em) - ski.PreMasterSecretLen
		rand.Read(em[2 : secret-1])
		for k := 2; k < secret-1; k++ {
			em[k] |= 1 // Padding has no zero.
		}
		rand.Read(em[secret+2:])
		class := mathrand.IntN(len(timedPlaintexts))
		timedPlaintexts[class].spoil(em, secret)
		questions[i] = timedQuestion{class, &ski.Request{
			Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: rawEncrypt(pub, em),
		}}
	}
	return questions
}

// stopwatch is an Auditor that notes when it was called, which is when the
// answer is formed and before it is given.
type stopwatch struct {
	Auditor
	at time.Time
}

func (w *stopwatch) Audit(ctx context.Context, r *Record) error {
	w.at = time.Now()
	return w.Auditor.Audit(ctx, r)
}

// measureRSA returns the times of n answers in nanoseconds, by class. With
// RSAFailureRandom that is the time until ServeSKI has returned, the audit log
// included. With RSAFailureError the answer tells that something was wrong, so
// that it counts until the answer is formed.
func measureRSA(t *testing.T, mode RSAFailure, n int) [][]float64 {
	keys := testKeys()
	watch := &stopwatch{Auditor: NewAuditLog(io.Discard)}
	s := newTestServer(t, keys, func(o *Options) { o.RSAFailure, o.Audit = mode, watch })
	times := make([][]float64, len(timedPlaintexts))

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // collected between the batches
	const batch = 1000
	for done := -batch; done < n; done += batch { // The first batch warms up.
		questions := newQuestions(keys, batch)
		runtime.GC()
		for _, q := range questions {
			start := time.Now()
			resp := s.ServeSKI(t.Context(), edgePeer, q.req)
			end := time.Now()
			valid := q.class == 0
			if mode == RSAFailureError {
				end = watch.at
				require.Equal(t, valid, resp.Error == "")
			} else {
				require.Empty(t, resp.Error)
			}
			if done >= 0 {
				times[q.class] = append(times[q.class], float64(end.Sub(start)))
			}
		}
	}
	return times
}

// welch is what comparing two classes has found.
type welch struct {
	first, second float64 // the largest |t| of the times and of their variances
	// Of the cropping with the best resolution: how far the means are apart,
	// and how far they must be to reach the threshold.
	difference, resolution float64
}

func (w welch) max() float64 { return max(w.first, w.second) }

// compare does Welch's t-test of a and b for several croppings: of all times
// and of only those up to a percentile of both, since interrupts and other
// processes make the slowest ones say little. The second order compares how far
// the times spread instead of how long they are.
func compare(a, b []float64) welch {
	both := slices.Concat(a, b)
	slices.Sort(both)
	w := welch{resolution: math.Inf(1)}
	for _, share := range []float64{1, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25} {
		limit := both[int(share*float64(len(both)-1))]
		a, b := upTo(a, limit), upTo(b, limit)
		t, difference, stdErr := welchT(a, b)
		w.first = max(w.first, math.Abs(t))
		if threshold*stdErr < w.resolution {
			w.difference, w.resolution = math.Abs(difference), threshold*stdErr
		}
		t, _, _ = welchT(spread(a), spread(b))
		w.second = max(w.second, math.Abs(t))
	}
	return w
}

func upTo(x []float64, limit float64) []float64 {
	var kept []float64
	for _, v := range x {
		if v <= limit {
			kept = append(kept, v)
		}
	}
	return kept
}

// spread returns the squared distances from the mean.
func spread(x []float64) []float64 {
	mean, _ := meanAndVariance(x)
	squares := make([]float64, len(x))
	for i, v := range x {
		squares[i] = (v - mean) * (v - mean)
	}
	return squares
}

// welchT returns Welch's t, and the difference of the means and its standard
// error, whose quotient it is.
func welchT(a, b []float64) (t, difference, stdErr float64) {
	meanA, varianceA := meanAndVariance(a)
	meanB, varianceB := meanAndVariance(b)
	difference = meanA - meanB
	stdErr = math.Sqrt(varianceA/float64(len(a)) + varianceB/float64(len(b)))
	return difference / stdErr, difference, stdErr
}

func meanAndVariance(x []float64) (mean, variance float64) {
	for _, v := range x {
		mean += v
	}
	mean /= float64(len(x))
	for _, v := range x {
		variance += (v - mean) * (v - mean)
	}
	return mean, variance / float64(len(x)-1)
}

// testStatistic counts steps instead of measuring time, and adds the noise of a
// machine from a generator with a fixed seed: it has one result everywhere.
func testStatistic(t *testing.T) {
	random := mathrand.New(mathrand.NewPCG(1, 2))
	noise := func(steps float64) float64 {
		n := steps + 20*random.NormFloat64()
		if random.IntN(50) == 0 { // an interrupt
			n += 100_000 * random.Float64()
		}
		return n
	}
	// The steps of a comparison that ends with the first byte that differs, and
	// of one that does not.
	early := func(differsAt int) float64 { return float64(differsAt + 1) }
	constant := func(int) float64 { return 48 }
	sample := func(f func() float64) []float64 {
		x := make([]float64, 50_000)
		for i := range x {
			x[i] = noise(f())
		}
		return x
	}
	of := func(steps func(int) float64, differsAt int) []float64 {
		return sample(func() float64 { return steps(differsAt) })
	}

	require.Less(t, compare(of(constant, 0), of(constant, 47)).max(), threshold)
	require.Greater(t, compare(of(early, 0), of(early, 1)).first, threshold, "one step in the noise of twenty")
	t1, _, _ := welchT(of(early, 0), of(early, 1))
	require.Less(t, math.Abs(t1), threshold, "what cropping is for")

	// Two ways of the same length on average, one of which varies.
	level := sample(func() float64 { return 48 })
	uneven := sample(func() float64 { return 48 + 10*float64(1-2*random.IntN(2)) })
	w := compare(level, uneven)
	require.Greater(t, w.second, threshold)
}

// The classes are what they are called.
func TestTimedPlaintexts(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	found := map[string]string{"valid": "correct", "padding": "padding", "version": "version", "length": "padding"}
	for _, q := range newQuestions(keys, 40) {
		_, rec := s.ask(edgePeer, q.req)
		require.Equal(t, found[timedPlaintexts[q.class].name], rec.PreMasterSecret)
	}
}
