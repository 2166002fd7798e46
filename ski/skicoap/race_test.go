//go:build race

package skicoap

// Under the race detector a request takes ten times as long: there are fewer,
// and the client makes message IDs come round itself.
const manyRequests, comeRoundAfter = 40_000, 2000
