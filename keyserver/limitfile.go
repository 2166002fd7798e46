package keyserver

import (
	"math"

	"golang.org/x/time/rate"

	"github.com/tlsski/tlsski/ski"
)

// limitsEntry is the section 'limits' of a policy file:
//
//	limits:
//	  edge: {rate: 500, burst: 1000, in_flight: 256, audit: 1}  # of each edge; default: in_flight 1024, audit 1
//	  key: {rate: 2000}                               # for each key, of all edges; default: none
//	  edges:
//	    edge-1: {rate: 50}                            # what is not said is as above
//	  keys:
//	    www.example.com: {rate: 100, burst: 10}
//
// where the rate is in requests a second, and the burst, how many may come at
// once, is by default one second's worth. 'audit' is how many refused requests
// a second have a line each in the audit log.
type limitsEntry struct {
	Edge  limitEntry            `yaml:"edge"`
	Key   limitEntry            `yaml:"key"`
	Edges map[string]limitEntry `yaml:"edges"`
	Keys  map[string]limitEntry `yaml:"keys"`
}

type limitEntry struct {
	Rate     *float64 `yaml:"rate"`
	Burst    *int     `yaml:"burst"`
	InFlight *int     `yaml:"in_flight"`
	Audit    *float64 `yaml:"audit"`
}

// addLimits reads the section, after the edges.
func (b *policyBuilder) addLimits(entry limitsEntry) error {
	l := &b.policy.limits
	l.edges, l.keys, l.keysByID = make(map[string]limit), make(map[string]limit), make(map[ski.KeyID]limit)
	var err error
	if l.edge, err = b.limit("$.limits.edge", entry.Edge, limit{inFlight: defaultEdgeInFlight, audit: defaultAuditRate}); err != nil {
		return err
	}
	if l.key, err = b.keyLimit("$.limits.key", entry.Key, limit{}); err != nil {
		return err
	}
	for name, e := range entry.Edges {
		path := "$.limits.edges.'" + name + "'"
		if b.edges[name] == nil {
			return b.errorAt(path, "there is no edge called %q", name)
		}
		if l.edges[name], err = b.limit(path, e, l.edge); err != nil {
			return err
		}
	}
	for name, e := range entry.Keys {
		path := "$.limits.keys.'" + name + "'"
		own, err := b.keyLimit(path, e, l.key)
		if err != nil {
			return err
		}
		if id, err := ski.ParseKeyID(name); err == nil {
			l.keysByID[id] = own
		} else if err := checkKeyName(name); err != nil {
			return b.errorAt(path, "%v", err)
		} else {
			l.keys[name] = own
		}
	}
	return nil
}

func (b *policyBuilder) keyLimit(path string, e limitEntry, l limit) (limit, error) {
	if e.InFlight != nil {
		return l, b.errorAt(path+".in_flight", "'in_flight' is for edges")
	}
	if e.Audit != nil {
		return l, b.errorAt(path+".audit", "'audit' is for edges")
	}
	return b.limit(path, e, l)
}

// limit returns l with what the entry says instead.
func (b *policyBuilder) limit(path string, e limitEntry, l limit) (limit, error) {
	if e.Rate != nil {
		if r := *e.Rate; !(r > 0) || math.IsInf(r, 0) {
			return l, b.errorAt(path+".rate", "a rate is a number of requests a second, above 0")
		}
		l.rate = rate.Limit(*e.Rate)
		l.burst = int(min(math.Ceil(*e.Rate), math.MaxInt32))
	}
	if e.Burst != nil {
		switch {
		case *e.Burst < 1:
			return l, b.errorAt(path+".burst", "with a burst below 1, no request is ever answered")
		case l.rate == 0:
			return l, b.errorAt(path+".burst", "a burst needs a rate")
		}
		l.burst = *e.Burst
	}
	if e.InFlight != nil {
		if *e.InFlight < 1 {
			return l, b.errorAt(path+".in_flight", "with 0, no request is ever answered")
		}
		l.inFlight = *e.InFlight
	}
	if e.Audit != nil {
		if r := *e.Audit; !(r > 0) || math.IsInf(r, 0) {
			return l, b.errorAt(path+".audit", "'audit' is a number of lines a second, above 0")
		}
		l.audit = rate.Limit(*e.Audit)
	}
	return l, nil
}
