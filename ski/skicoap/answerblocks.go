package skicoap

import (
	"bytes"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

// limit returns the longest IP packet that the path to the peer is to be given.
func (s *dtlsSession) limit() mtu { return s.lossy.limit(s.server.mtu, time.Now()) }

// arrived notes that the peer has got in blocks what was lost whole.
func (s *dtlsSession) arrived() {
	if s.lossy.arrived(time.Now()) {
		s.server.log.Info("the path to a peer loses long datagrams: its answers go in smaller blocks",
			"peer", s.peer.Addr, "id", s.peer.ID(), "mtu", int(safeMTU))
	}
}

// firstBlock keeps an answer, whose blocks the peer will ask for, and returns the
// first. It returns nil where there is no place for it.
func (s *dtlsSession) firstBlock(key transferKey, szx uint8, code codes.Code, options message.Options, payload []byte) *refusal {
	once, always := ofFirstBlock(options)
	now := time.Now()
	if !s.transfers.keep(key, code, always, bytes.Clone(payload), now) {
		return nil
	}
	first := s.transfers.next(key, block{szx: szx}, now)
	first.options = append(first.options, once...)
	return first
}

// ofFirstBlock returns the options that the first block of an answer has alone
// (RFC 7959, Section 2.6 and 3.3), and those that all have.
func ofFirstBlock(options message.Options) (once, always message.Options) {
	for _, o := range options {
		if o.ID == message.Block1 || o.ID == message.Observe {
			once = append(once, o)
		} else {
			always = append(always, o)
		}
	}
	return once, always
}

// nextBlock answers with another block of what is kept.
func (s *dtlsSession) nextBlock(e *exchange, re reply, key transferKey, asked block) {
	if s.transfers.takeCut(key) {
		s.arrived()
	}
	r := s.transfers.next(key, asked, time.Now())
	if !r.options.HasOption(message.Block2) {
		s.refuse(e, re, blocks{}, r)
		return
	}
	s.answer(e, re, r.code, r.options, r.payload) // An answer with an error is no refusal of its blocks.
	clear(r.payload)
}

// answerAgain answers a request that has come again. A long answer goes in blocks
// then: the path may lose long datagrams. RFC 6347, Section 4.1.1.1, has a
// handshake do likewise.
func (s *dtlsSession) answerAgain(m *message.Message, answer []byte) {
	if isLong(answer) {
		if shorter := s.cut(m, answer); shorter != nil {
			clear(answer)
			s.exchanges.replace(newExchangeID(m.MessageID, m.Token), bytes.Clone(shorter))
			answer = shorter
		}
	}
	_ = s.link.write(answer)
	clear(answer)
}

// cut returns the first block of an encoded answer to m, or a smaller one, and
// keeps the others. It returns nil where that cannot be.
func (s *dtlsSession) cut(m *message.Message, answer []byte) []byte {
	a := message.Message{Options: make(message.Options, 0, maxOptions)}
	if decode(answer, &a) != nil {
		return nil
	}
	key := newTransferKey(m)
	if q, _ := s.server.links.ticketRequest(m); q != nil {
		key = ticketTransfer(q.site)
	}
	szx := min(s.server.mtu, safeMTU).szx()
	var first *refusal
	switch b, err := findBlock(a.Options, message.Block2); {
	case err != nil, b != nil && b.num > 0:
		return nil
	case b != nil:
		first = s.transfers.next(key, block{szx: szx}, time.Now())
		once, _ := ofFirstBlock(a.Options)
		first.options = append(first.options, once...)
	default:
		payload, options := withoutPadding(&a, len(answer))
		first = s.firstBlock(key, szx, a.Code, options, payload)
		clear(payload)
	}
	if first == nil || first.code != a.Code {
		return nil
	}
	s.transfers.markCut(key)
	a.Options, a.Payload = inOrder(first.options), first.payload
	shorter, err := encode(a)
	clear(first.payload)
	if err != nil {
		return nil
	}
	return shorter
}

// withoutPadding returns the payload and the options of an answer of n bytes,
// padded in the payload where it was padded by options: all answers of one kind
// have one length, and that is longer than their payload.
func withoutPadding(a *message.Message, n int) (payload []byte, options message.Options) {
	padded := false
	for _, o := range a.Options {
		if o.ID == optionPadding || o.ID == optionPaddingMore {
			padded = true
			continue
		}
		options = append(options, message.Option{ID: o.ID, Value: bytes.Clone(o.Value)})
	}
	payload = bytes.Clone(a.Payload)
	if f, ok := format(a.Options.ContentFormat()); ok && padded {
		payload = ski.PadResponse(f, payload, n)
	}
	return payload, options
}

// ticketTransfer is the key of a site's ticket keys. Whatever the other options
// of a request for them, the newest are kept.
func ticketTransfer(site string) transferKey {
	return newTransferKey(&message.Message{Code: codes.GET, Options: message.Options{{ID: message.URIQuery, Value: []byte(siteQuery + site)}}})
}
