package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/tlsski/tlsski/internal/netlab"
)

// fault is something that happens to the system, and what has come of it.
type fault struct {
	name   string
	within time.Duration // how soon after its end everything is well again
	happen func() error  // returns at its end

	times, made, failed, late int
	slowest, success, whole   time.Duration
}

// The time that a fault lasts which does not happen in a moment.
const lasting = 10 * time.Second

// faults returns all of them, in the order in which they happen.
func (s *system) faults() []*fault {
	one, two := s.edges[0], s.edges[1]
	soon := 15 * time.Second // a key server that has not answered is tried again after 10 s at most
	return []*fault{
		{name: "an edge's address changes", within: soon, happen: func() error {
			return each(s.edges, func(e *edge) error {
				return errors.Join(e.host.Renumber(s.network.NewAddr()), e.host.Renumber(s.network.NewAddr6()))
			})
		}},
		{name: "an edge's device is down", within: soon, happen: func() error {
			return s.lasts(func() error { return each(s.edges, func(e *edge) error { return e.host.Down() }) },
				func() error { return each(s.edges, func(e *edge) error { return e.host.Up() }) })
		}},
		{name: "an edge's routes are withdrawn", within: soon, happen: func() error {
			return s.lasts(func() error { return each(s.edges, func(e *edge) error { return e.host.WithdrawRoutes() }) },
				func() error { return each(s.edges, func(e *edge) error { return e.host.RestoreRoutes() }) })
		}},
		{name: "an edge's IPv6 address is deprecated and then goes", within: soon, happen: func() error { return s.deprecate(one) }},
		{name: "an edge's NAT gives its flows other ports", within: soon, happen: func() error { s.nat.Rebind(); return nil }},
		{name: "an edge's NAT gets another address", within: soon, happen: func() error { s.nat.Renumber(s.network.NewAddr()); return nil }},
		{name: "the key servers' names move to other addresses", within: 75 * time.Second, happen: s.moveNames},
		{name: "nobody reads what the servers log", within: soon, happen: s.stopReading},
		{name: "500 handshakes with RSA come at once", within: soon, happen: func() error { s.burst(two, 500); return nil }},
		{name: "a new certificate is there before its key is", within: soon, happen: s.renew},
		{name: "a key is taken away and comes back", within: soon, happen: s.takeKeyAway},
		{name: "the key servers' channel certificates are renewed", within: soon, happen: s.renewChannel},
		{name: "the edges' channel certificates are renewed", within: soon, happen: func() error { return each(s.edges, s.identifyEdge) }},
		{name: "packets above 576 bytes vanish, and sessions are new", within: soon, happen: s.smallPath},
		{name: "20 % of the packets are lost, each way", within: soon, happen: func() error {
			return s.conditions(netlab.Conditions{Loss: 0.2, Seed: 1}, func() error { return s.pause(2 * lasting) })
		}},
		{name: "no packet arrives", within: soon, happen: func() error {
			return s.conditions(netlab.Conditions{Cut: true}, func() error { return s.pause(lasting) })
		}},
		{name: "the way to one key server is cut", within: soon, happen: func() error {
			for _, e := range s.edges {
				s.network.Between(e.host, s.keys[0].host).Set(netlab.Conditions{Cut: true})
				defer s.network.Between(e.host, s.keys[0].host).Set(usual)
			}
			return s.pause(lasting)
		}},
		{name: "an edge is suspended and resumed", within: 75 * time.Second, happen: func() error {
			return s.lasts(func() error { return s.operate("suspend", one) }, func() error { return s.operate("resume", one) })
		}},
		{name: "a key server hangs", within: soon, happen: func() error {
			return s.lasts(func() error { return s.keys[0].signal(syscall.SIGSTOP) }, func() error { return s.keys[0].signal(syscall.SIGCONT) })
		}},
		{name: "a key server is killed and started again", within: soon, happen: func() error {
			return s.lasts(s.keys[0].kill, s.keys[0].start)
		}},
		{name: "the other key server is stopped and started again", within: soon, happen: func() error {
			return s.lasts(s.keys[1].stop, s.keys[1].start)
		}},
		{name: "both key servers are killed and started again", within: soon, happen: func() error { return each(s.keys, s.restart) }},
	}
}

// usual are the conditions of the paths while nothing is wrong with them.
var usual = netlab.Conditions{Delay: 5 * time.Millisecond}

func each[T any](all []T, do func(T) error) error {
	var failed []error
	for _, one := range all {
		failed = append(failed, do(one))
	}
	return errors.Join(failed...)
}

// lasts is a fault with a beginning and an end.
func (s *system) lasts(begin, end func() error) error {
	if err := begin(); err != nil {
		return err
	}
	return errors.Join(s.pause(lasting), end())
}

// conditions is one of the paths between edges and key servers.
func (s *system) conditions(c netlab.Conditions, meanwhile func() error) error {
	c.Delay = usual.Delay
	set := func(c netlab.Conditions) {
		for _, e := range s.edges {
			for _, k := range s.keys {
				s.network.Between(e.host, k.host).Set(c)
				c.Seed += 2
			}
		}
	}
	set(c)
	defer set(usual)
	return meanwhile()
}

// smallPath has the key servers start on paths that swallow long packets. For TCP
// docs/operations.md says what the machines need there.
func (s *system) smallPath() error {
	routes := func(options ...string) error {
		return each(s.daemons(), func(d *daemon) error {
			_, err := d.host.IP(append([]string{"route", "replace", "default", "dev", "tun0"}, options...)...)
			return err
		})
	}
	err := s.conditions(netlab.Conditions{MaxPacket: 576}, func() error {
		if err := errors.Join(routes("advmss", "536"), each(s.keys, s.restart)); err != nil {
			return err
		}
		return s.untilWhole(time.Minute)
	})
	return errors.Join(err, routes())
}

// deprecate lets an IPv6 address go as a router that renumbers does.
func (s *system) deprecate(e *edge) error {
	old := e.host.Addrs()[1]
	if err := errors.Join(e.host.AddAddr(s.network.NewAddr6()), e.host.Deprecate(old), s.pause(lasting)); err != nil {
		return err
	}
	return e.host.RemoveAddr(old)
}

// moveNames gives the key servers other addresses, and a little later their names,
// too.
func (s *system) moveNames() error {
	err := each(s.keys, func(k *keyServer) error {
		return errors.Join(k.host.Renumber(s.network.NewAddr()), k.host.Renumber(s.network.NewAddr6()))
	})
	if err := errors.Join(err, s.pause(time.Second)); err != nil {
		return err
	}
	for _, k := range s.keys {
		s.setNames(k)
	}
	return nil
}

// burst has so many clients come to an edge at once.
func (s *system) burst(e *edge, clients int) {
	st := s.load.stream(e, s.sites[0])
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			config := kinds(st.site, false)[1].config
			begun := time.Now()
			s.load.record(context.Background(), st, "burst", begun, handshake(context.Background(), e.host, st.site, config))
		})
	}
	all.Wait()
}

// stopReading leaves the pipes of all servers full. Connections that show no
// certificate give the key servers something to log.
func (s *system) stopReading() error {
	for _, d := range s.daemons() {
		defer d.deaf()()
	}
	for range 100 {
		for _, k := range s.keys {
			if _, err := s.shown(k); err != nil {
				return err
			}
		}
	}
	return errors.Join(s.pause(lasting), each(s.daemons(), (*daemon).stuck))
}

// shown returns the certificate that a key server shows to those who have none.
func (s *system) shown(k *keyServer) ([]byte, error) {
	raw, err := s.edges[0].host.DialContext(context.Background(), "tcp", netip.AddrPortFrom(k.host.Addr(), 8443).String())
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	return c.ConnectionState().PeerCertificates[0].Raw, nil
}

// renew gives the edges a certificate for a site whose key comes to the key servers
// only later. In the end the edges have it, and the old key can go.
func (s *system) renew() error {
	site := s.sites[0]
	before := site.pairs[0]
	if err := site.renew(0); err != nil {
		return err
	}
	now := site.pairs[0]
	if err := each(s.edges, func(e *edge) error { return replace(e.at(now.name+".pem"), now.certificate) }); err != nil {
		return err
	}
	if err := s.pause(lasting); err != nil {
		return err
	}
	if err := each(s.keys, func(k *keyServer) error { return errors.Join(k.give(now), k.signal(syscall.SIGHUP)) }); err != nil {
		return err
	}
	for _, e := range s.edges {
		config := &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}, ServerName: site.name,
			InsecureSkipVerify: true, VerifyConnection: func(state tls.ConnectionState) error {
				if !bytes.Equal(state.PeerCertificates[0].Raw, now.der) {
					return errors.New("the certificate is the old one")
				}
				return nil
			}}
		if err := until(fmt.Sprintf("%s shows the new certificate", e.name), func() bool {
			return handshake(context.Background(), e.host, site, config) == nil
		}); err != nil {
			return err
		}
	}
	return each(s.keys, func(k *keyServer) error { return errors.Join(k.take(before), k.signal(syscall.SIGHUP)) })
}

// takeKeyAway takes a site's key from both key servers, which refuse it at once,
// and gives it back.
func (s *system) takeKeyAway() error {
	site := s.sites[3]
	p := site.pairs[0]
	return s.lasts(
		func() error {
			if err := each(s.keys, func(k *keyServer) error { return errors.Join(k.take(p), k.signal(syscall.SIGHUP)) }); err != nil {
				return err
			}
			return each(s.edges, func(e *edge) error {
				return until(fmt.Sprintf("handshakes at %s fail", e.name), func() bool {
					return handshake(context.Background(), e.host, site, kinds(site, true)[0].config) != nil
				})
			})
		}, func() error {
			return each(s.keys, func(k *keyServer) error { return errors.Join(k.give(p), k.signal(syscall.SIGHUP)) })
		})
}

// renewChannel gives the key servers other certificates for the channel, which
// they show without a restart.
func (s *system) renewChannel() error {
	return each(s.keys, func(k *keyServer) error {
		if err := errors.Join(s.identify(k), k.signal(syscall.SIGHUP)); err != nil {
			return err
		}
		pair, err := tls.LoadX509KeyPair(k.at("keyserver.pem"), k.at("keyserver.key"))
		if err != nil {
			return err
		}
		return until(fmt.Sprintf("%s shows its new certificate", k.name), func() bool {
			shown, err := s.shown(k)
			return err == nil && bytes.Equal(shown, pair.Certificate[0])
		})
	})
}

// until waits for something that has to happen by itself.
func until(what string, happened func() bool) error {
	for late := time.Now().Add(2 * time.Minute); !happened(); time.Sleep(time.Second / 10) {
		if time.Now().After(late) {
			return fmt.Errorf("it is not so within two minutes that %s", what)
		}
	}
	return nil
}

// restart kills a key server and starts it again.
func (s *system) restart(k *keyServer) error { return errors.Join(k.kill(), k.start()) }

// operate suspends or resumes an edge on both key servers.
func (s *system) operate(what string, e *edge) error {
	return each(s.keys, func(k *keyServer) error { return skictl("edge", what, e.name, "--socket", k.at("admin.sock")) })
}
