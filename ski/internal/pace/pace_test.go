package pace

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// read reads a peer for a time, over some connections that always have something
// to read, and returns how often each was read. refuse says of each read how many
// requests in it are refused, and when one will not be.
func read(t *testing.T, connections int, d time.Duration, refuse func() (requests int, after time.Duration)) []int {
	counts := make([]int, connections)
	synctest.Test(t, func(t *testing.T) {
		var p Pace
		end := time.Now().Add(d)
		done := make(chan struct{})
		for i := range connections {
			go func() {
				var g Gate
				g.Follow(&p)
				for {
					time.Sleep(time.Microsecond)
					g.Wait()
					if time.Now().After(end) {
						done <- struct{}{}
						return
					}
					counts[i]++
					requests, after := refuse()
					for range requests {
						p.Refused(time.Now(), after)
					}
				}
			}()
		}
		for range connections {
			<-done
		}
	})
	return counts
}

func sum(counts []int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

func TestAPeerIsRefusedAHundredTimesASecond(t *testing.T) {
	for _, after := range []time.Duration{PerRefusal, time.Second, time.Hour} {
		n := sum(read(t, 1, 10*time.Second, func() (int, time.Duration) { return 1, after }))
		assert.InDelta(t, 1000, n, 30, "%v", after)
	}
	// Over several connections no more than over one, as long as each is heard.
	assert.InDelta(t, 1000, sum(read(t, 8, 10*time.Second, func() (int, time.Duration) { return 1, time.Hour })), 30)
	// A read with many requests costs as many.
	assert.InDelta(t, 100, sum(read(t, 1, 10*time.Second, func() (int, time.Duration) { return 10, time.Hour })), 5)
}

// A limit that is higher is not made lower: the peer waits until it may ask again.
func TestAPeerIsReadAsFastAsItMayAsk(t *testing.T) {
	n := sum(read(t, 1, 10*time.Second, func() (int, time.Duration) { return 1, time.Second / 2000 }))
	assert.InDelta(t, 20_000, n, 200)
}

func TestAPeerThatIsNotRefusedAnythingIsReadAsFastAsItSends(t *testing.T) {
	n := sum(read(t, 2, 100*time.Millisecond, func() (int, time.Duration) { return 0, 0 }))
	assert.Greater(t, n, 190_000)
}

// Of a peer with many connections none is so long without a sign of life that its
// other end takes it for dead.
func TestEachConnectionOfAPeerIsReadWithinASecond(t *testing.T) {
	for i, n := range read(t, 64, 10*time.Second, func() (int, time.Duration) { return 16, time.Hour }) {
		assert.GreaterOrEqual(t, n, 10, "connection %d", i)
	}
}

func TestAPeerThatKeepsItsLimitAgainIsReadAsBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pace
		var g Gate
		g.Follow(&p)
		for range 1000 {
			p.Refused(time.Now(), time.Hour)
		}
		began := time.Now()
		g.Wait()
		assert.Equal(t, longest, time.Since(began))
		assert.Len(t, g.Cut(make([]byte, 1<<14)), piece)
		time.Sleep(memory)
		began = time.Now()
		for range 1000 {
			g.Wait()
		}
		assert.Zero(t, time.Since(began))
		assert.False(t, g.Shut(time.Now()))
		assert.Len(t, g.Cut(make([]byte, 1<<14)), 1<<14)
	})
}

// What is not refused in between makes a refusal no cheaper.
func TestARefusalCostsTheSameBesideWhatIsNotRefused(t *testing.T) {
	reads := 0
	n := sum(read(t, 1, 10*time.Second, func() (int, time.Duration) {
		if reads++; reads%10 == 0 {
			return 1, time.Hour
		}
		return 0, 0
	}))
	assert.LessOrEqual(t, n/10, 1010)
}

// An edge that was over its limit in flight for a moment, and has more than a
// request in each of the times that a refusal costs, is not kept there: what waits
// meanwhile is read as soon as it may be.
func TestAPeerThatExceedsItsLimitForAMomentIsReadInTime(t *testing.T) {
	const limit, slow, each = 64, 500 * time.Microsecond, 400 * time.Microsecond
	synctest.Test(t, func(t *testing.T) {
		var p Pace
		var g Gate
		g.Follow(&p)
		requests := make(chan time.Time, 1<<16)
		go func() {
			defer close(requests)
			for i := range 10_000 { // of 4 s
				time.Sleep(each)
				requests <- time.Now()
				for range 200 * (1 - min(1, max(i-2000, 2000-i))) { // and of one moment
					requests <- time.Now()
				}
			}
		}()
		var inFlight, refused int
		var late time.Duration
		done := make(chan struct{}, 1<<16)
		for at := range requests {
			g.Wait()
			for len(done) > 0 {
				<-done
				inFlight--
			}
			if late = time.Since(at); inFlight == limit {
				refused++
				p.Refused(time.Now(), slow)
				continue
			}
			inFlight++
			time.AfterFunc(10*time.Millisecond, func() { done <- struct{}{} })
		}
		assert.Less(t, late, time.Millisecond)
		assert.Less(t, refused, 300)
		time.Sleep(time.Second) // those still in flight
	})
}

// Whoever waits leaves when the connection is closed, and the bytes with it.
func TestAConnectionThatIsClosedIsNotHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		var p Pace
		c := &Conn{Conn: here}
		c.Gate.Follow(&p)
		p.Refused(time.Now(), time.Hour)
		began := time.Now()
		go func() { _, _ = there.Write(make([]byte, 3*piece)) }()
		read := make(chan int)
		go func() {
			n, err := c.Read(make([]byte, 1<<14))
			assert.NoError(t, err)
			read <- n
		}()
		synctest.Wait()
		select {
		case <-read:
			assert.Fail(t, "it is not held up")
		default:
		}
		require.NoError(t, c.Close())
		require.NoError(t, c.Close())
		assert.Equal(t, piece, <-read, "in small pieces")
		assert.Zero(t, time.Since(began))
		_, err := c.Read(make([]byte, 1))
		assert.ErrorIs(t, err, io.ErrClosedPipe)
		_ = there.Close()
	})
}
