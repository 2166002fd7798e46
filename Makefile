# make build   the three commands, in bin/, and ski-edgeserver-embedded
# make demo    real TLS handshakes through a key server, in one minute
# make test    every test; installs what the tests need on Debian, as root
# make check   gofmt, go vet, staticcheck
# make race    the tests under the race detector
# make bench   loads the built system for two minutes and writes the table in docs/performance.md
# make cross   ski-edgeserver for ARM, MIPS and RISC-V, without C, and each tried in an emulator
# make footprint   measures its binary and memory, for docs/performance.md
# make fairness    measures an edge beside another that is over its limit, for docs/performance.md
# make latency     measures handshakes over simulated distances, for docs/performance.md; as root
# make loss        measures requests over a path that loses a fifth each way, for docs/performance.md; as root
# make flood       measures floods of ClientHellos and half-open handshakes, for docs/performance.md; as root
# make soak        faults one after the other under load, for SOAK (30m), for docs/operations.md; as root
# make fuzz    each fuzz target, FUZZTIME inputs or seconds (20000x, 30s)

GO       ?= go
FUZZTIME ?= 20000x
SOAK     ?= 30m

.PHONY: all build demo test test-tools check race bench cross footprint fairness latency loss flood soak fuzz clean

all: build

build:
	$(GO) build -trimpath -o bin/ ./cmd/...
	$(GO) build -trimpath -tags embedded -o bin/ski-edgeserver-embedded ./cmd/ski-edgeserver

demo: build
	bin/skictl demo

test: test-tools
	$(GO) test -timeout 10m ./...

bench: build
	$(GO) run ./testdata/bench

cross: build test-tools
	$(GO) run ./testdata/cross

footprint: build
	$(GO) run ./testdata/footprint

fairness: build test-tools
	$(GO) run ./testdata/fairness

latency: build test-tools
	PATH="$$PATH:/usr/sbin" $(GO) run ./testdata/latency

loss: build test-tools
	PATH="$$PATH:/usr/sbin" $(GO) run ./testdata/loss

flood: build test-tools
	PATH="$$PATH:/usr/sbin" $(GO) run ./testdata/flood

soak: build test-tools
	PATH="$$PATH:/usr/sbin" $(GO) run ./testdata/soak -duration $(SOAK)

# Without package cmd, whose tests run programs that are built without the detector.
race: test-tools
	$(GO) test -race -timeout 15m $$($(GO) list ./... | grep -v '/cmd$$')

# The programs that the tests run against: nothing here stands in for them.
TOOLS    := openssl gpgv curl script chrt gnutls-cli coap-client-openssl coap-client-gnutls systemd-analyze gcc softhsm2-util pkcs11-tool pkcsslotd unshare haproxy mosquitto mosquitto_pub ip qemu-arm
PACKAGES := openssl gpgv curl bsdutils ca-certificates gnutls-bin libmbedtls-dev libwolfssl-dev libcoap3-bin systemd python3-cbor2 python3-cryptography gcc libc6-dev softhsm2 opensc opencryptoki util-linux haproxy mosquitto mosquitto-clients python3-websockets iproute2 qemu-user
FILES    := /usr/include/mbedtls/ssl.h /usr/include/wolfssl/ssl.h /usr/lib/python3/dist-packages/cbor2 /usr/lib/python3/dist-packages/cryptography /usr/lib/python3/dist-packages/websockets

test-tools:
	@missing=; for t in $(TOOLS); do PATH="$$PATH:/usr/sbin" command -v $$t >/dev/null || missing="$$missing $$t"; done; \
	for h in $(FILES); do [ -e $$h ] || missing="$$missing $$h"; done; \
	if [ -n "$$missing" ]; then \
		echo "the tests need:$$missing"; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(PACKAGES); \
		else \
			echo "install them, on Debian: apt-get install $(PACKAGES)"; exit 1; \
		fi; \
	fi

check:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt-ed: $$unformatted"; exit 1; fi
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) vet -tags embedded ./cmd/ski-edgeserver
	$(GO) tool staticcheck ./...
	$(GO) tool staticcheck -tags embedded ./cmd/ski-edgeserver

fuzz:
	@set -e; dir=$$(mktemp -d); trap 'rm -rf '$$dir EXIT; \
	for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		$(GO) test -c -fuzz . -o $$dir/fuzz.test $$pkg; \
		for target in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$pkg/*_test.go | cut -c6- | sort -u); do \
			echo "$$pkg $$target"; \
			(cd $$pkg && $$dir/fuzz.test -test.run '^$$' -test.fuzz "^$$target$$" -test.fuzztime $(FUZZTIME) -test.fuzzcachedir $$dir/cache/$$target); \
		done; \
	done

clean:
	rm -rf bin
