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
		assert.True(t, g.Slow(time.Now()))
		time.Sleep(memory)
		began = time.Now()
		for range 1000 {
			g.Wait()
		}
		assert.Zero(t, time.Since(began))
		assert.False(t, g.Slow(time.Now()))
		assert.Len(t, g.Cut(make([]byte, 1<<14)), 1<<14)
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
