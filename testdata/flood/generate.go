package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// hello is a ClientHello in its record, with a cookie and the message's number.
func hello(sequence byte, random, cookie []byte) []byte {
	extensions := []byte{
		0, 10, 0, 6, 0, 4, 0, 0x1d, 0, 0x17, // supported_groups: x25519, secp256r1
		0, 11, 0, 2, 1, 0, // ec_point_formats
		0, 13, 0, 6, 0, 4, 4, 3, 4, 1, // signature_algorithms
		0, 23, 0, 0, // extended_master_secret
		0xff, 1, 0, 1, 0, // renegotiation_info
	}
	body := slices.Concat([]byte{0xfe, 0xfd}, random, []byte{0, byte(len(cookie))}, cookie,
		[]byte{0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0, 0, byte(len(extensions))}, extensions)
	size := byte(len(body))
	return slices.Concat([]byte{22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, sequence, 0, size + 12},
		[]byte{1, 0, 0, size, 0, sequence, 0, 0, 0, 0, 0, size}, body)
}

// most is how long a generator runs if nobody stops it.
const most = 2 * time.Minute

// generate sends ClientHellos in the names of others to the key server, until it
// gets SIGTERM: "rate=N", all in a second; "times=N", how often each is sent;
// "from=ADDRESS", all in the name of that, with any port. It prints how many it has
// sent.
func generate(what string) error {
	rate, times, from := 0, 1, ""
	for word := range strings.FieldsSeq(what) {
		key, value, _ := strings.Cut(word, "=")
		var err error
		switch key {
		case "rate":
			_, err = fmt.Sscan(value, &rate)
		case "times":
			_, err = fmt.Sscan(value, &times)
		case "from":
			from = value
		}
		if err != nil {
			return err
		}
	}
	to := netip.MustParseAddrPort(keyServerAddr)
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_RAW)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	n, last, began := 0, time.Now(), time.Now()
	due := 0.
	var packet []byte
	for {
		select {
		case <-stop:
			fmt.Println(n)
			return nil
		default:
		}
		now := time.Now()
		if now.Sub(began) > most {
			return fmt.Errorf("nobody has stopped it in %v", most)
		}
		// After a pause it does not make up for what it has not sent.
		due += min(now.Sub(last), 20*time.Millisecond).Seconds() * float64(rate)
		for last = now; due >= 1; due-- {
			if n%times == 0 {
				packet = forged(from, to)
			}
			n++
			// The next sending of the same message has a record of its own.
			packet[28+10] = byte(n % times)
			if err := syscall.Sendto(fd, packet, 0, &syscall.SockaddrInet4{Addr: to.Addr().As4()}); err != nil {
				return err
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// forged returns an IPv4 packet (RFC 791, Section 3.1) with a ClientHello in a UDP
// datagram without a checksum.
func forged(from string, to netip.AddrPort) []byte {
	var random [40]byte
	rand.Read(random[:])
	h := hello(0, random[:32], nil)
	source := [4]byte{127, 10 + random[32]%100, random[33], 1 + random[34]%250}
	if from != "" {
		source = netip.MustParseAddr(from).As4()
	}
	target := to.Addr().As4()
	p := bytes.NewBuffer(nil)
	p.Write([]byte{0x45, 0})
	_ = binary.Write(p, binary.BigEndian, uint16(28+len(h)))
	p.Write([]byte{0, 0, 0, 0, 64, 17, 0, 0})
	p.Write(source[:])
	p.Write(target[:])
	_ = binary.Write(p, binary.BigEndian, []uint16{1024 + binary.BigEndian.Uint16(random[35:])%60000, to.Port(), uint16(8 + len(h)), 0})
	p.Write(h)
	return p.Bytes()
}

// generator is the command that generates, in a process of its own.
type generator struct {
	cmd   *exec.Cmd
	out   bytes.Buffer
	began time.Time
	time  time.Duration // that it has run; 0: since it began
	lost  uint64
}

func startGenerator(what string, idle bool) (*generator, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{self, "-forge", what}
	if idle {
		args = append([]string{"chrt", "--idle", "0"}, args...)
	}
	g := &generator{cmd: exec.Command(args[0], args[1:]...)}
	g.cmd.Stdout, g.cmd.Stderr = &g.out, os.Stderr
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if g.lost, err = dropped(); err != nil {
		return nil, err
	}
	g.began = time.Now()
	return g, g.cmd.Start()
}

// pause stops it for a while, or has it go on.
func (g *generator) pause(on bool) {
	s := syscall.SIGCONT
	if on {
		s = syscall.SIGSTOP
	}
	_ = g.cmd.Process.Signal(s)
}

// stop ends it, and returns how many datagrams it has sent in a second, and the
// part of them that the key server's socket took.
func (g *generator) stop() (rate, taken float64, err error) {
	if g.time == 0 {
		g.time = time.Since(g.began)
	}
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	if err := g.cmd.Wait(); err != nil {
		return 0, 0, err
	}
	n := 0.
	if _, err := fmt.Sscan(g.out.String(), &n); err != nil {
		return 0, 0, err
	}
	lost, err := dropped()
	return n / g.time.Seconds(), 1 - float64(lost-g.lost)/n, err
}

// dropped returns how many datagrams sockets of the namespace had no room for.
func dropped() (uint64, error) {
	data, err := os.ReadFile("/proc/self/net/snmp")
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		values, ok := strings.CutPrefix(line, "Udp:")
		switch {
		case !ok:
		case names == nil:
			names = strings.Fields(values)
		default:
			var n uint64
			_, err := fmt.Sscan(strings.Fields(values)[slices.Index(names, "RcvbufErrors")], &n)
			return n, err
		}
	}
	return 0, fmt.Errorf("/proc/self/net/snmp has no UDP counters")
}
