package skicoap

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// No request waits for another, and what has ended its work ends with the
// server.
func TestRequestsDoNotWaitForAWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails if a goroutine is left
		done := make(chan struct{})
		w := newWorkers(done)
		release, begun := make(chan struct{}), make(chan int, 3*maxWaiting)
		for round := range 2 {
			for i := range maxWaiting + 1 {
				w.run(func() { begun <- i; <-release })
			}
			synctest.Wait()
			assert.Len(t, begun, maxWaiting+1, "all at once, round %d", round)
			for len(begun) > 0 {
				<-begun
			}
			for range maxWaiting + 1 {
				release <- struct{}{}
			}
			synctest.Wait()
			assert.EqualValues(t, maxWaiting, w.waiting.Load())
		}
		time.Sleep(2 * linger)
		assert.Zero(t, w.waiting.Load(), "none is kept that has nothing to do")
		w.run(func() {})
		synctest.Wait()
		close(done)
	})
}
