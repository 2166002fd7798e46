package keyserver

import (
	"slices"
	"strings"
	"time"
)

// detectorsEntry is the section 'detectors' of a policy file, by the names of
// the detectors. These are the defaults:
//
//	detectors:
//	  replay: {action: deny, threshold: 1, window: 1m}            # asked what another edge has asked
//	  repeat: {action: alarm, threshold: 100, window: 1m}         # asked the same again; retries do
//	  premaster-replay: {action: deny, threshold: 1, window: 1m}  # of an EncryptedPreMasterSecret
//	  premaster-repeat: {action: alarm, threshold: 100, window: 1m}
//	  weak-randoms: {action: alarm, threshold: 3, window: 1m}     # few different bytes, or used before
//	  rsa-failures: {action: alarm, threshold: 20, share: 0.1, window: 1m}
//	  addresses: {action: alarm, threshold: 3, window: 1m}        # one certificate at two at once
//
// An action is off, alarm, deny (not for rsa-failures, which looks when the
// answers are gone) or suspend.
type detectorsEntry map[string]detectorEntry

type detectorEntry struct {
	Action    detectorAction `yaml:"action"`
	Threshold *int           `yaml:"threshold"`
	Window    *Duration      `yaml:"window"`
	Share     *float64       `yaml:"share"`
}

// addDetectors reads the section.
func (b *policyBuilder) addDetectors(entry detectorsEntry) error {
	b.policy.detectors = defaultDetectors
	for name, e := range entry {
		path := "$.detectors.'" + name + "'"
		d := detector(slices.Index(detectorNames[:], name))
		if d < 0 {
			return b.errorAt(path, "%q is not one of the detectors %s", name, strings.Join(detectorNames[:], ", "))
		}
		if err := b.detector(path, d, e, &b.policy.detectors[d]); err != nil {
			return err
		}
	}
	return nil
}

func (b *policyBuilder) detector(path string, d detector, e detectorEntry, rule *detectorRule) error {
	switch e.Action {
	case "":
	case actionOff, actionAlarm, actionSuspend:
		rule.action = e.Action
	case actionDeny:
		if d == detectRSAFailures {
			return b.errorAt(path+".action", "the answers are gone when this detector looks: use alarm or suspend")
		}
		rule.action = e.Action
	default:
		return b.errorAt(path+".action", "%q is not one of off, alarm, deny and suspend", e.Action)
	}
	if e.Threshold != nil {
		if rule.threshold = *e.Threshold; rule.threshold < 1 {
			return b.errorAt(path+".threshold", "a threshold is at least 1")
		}
	}
	if e.Window != nil {
		rule.window = time.Duration(*e.Window)
	}
	if e.Share != nil {
		switch {
		case d != detectRSAFailures:
			return b.errorAt(path+".share", "'share' is for rsa-failures")
		case !(*e.Share >= 0 && *e.Share <= 1):
			return b.errorAt(path+".share", "a share is between 0 and 1")
		}
		rule.share = *e.Share
	}
	return nil
}
