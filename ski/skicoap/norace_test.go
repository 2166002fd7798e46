//go:build !race

package skicoap

// Message IDs come round three times.
const manyRequests, comeRoundAfter = 200_000, manyRequests
