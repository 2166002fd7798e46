package skicoap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

var errBlocks = fmt.Errorf("%w: its blocks do not fit together", errUnusable)

// exchange sends a request, in blocks if it is too long for a datagram, and
// returns the answer, put together if it comes in blocks.
func (s *clientSession) exchange(ctx context.Context, path string, f ski.Format, body []byte) (*answer, error) {
	s.mu.Lock()
	s.nextTag++
	tag := uintValue(s.nextTag & 0xffffff)
	s.mu.Unlock()
	options := make(message.Options, 0, 8)
	for segment := range strings.SplitSeq(path[1:], "/") {
		options = append(options, message.Option{ID: message.URIPath, Value: []byte(segment)})
	}
	options = append(options, contentFormat(f.ContentFormat())...)
	// The answer can come in blocks whatever the request was, and there may be
	// many of them at once.
	options = append(options, message.Option{ID: optionRequestTag, Value: tag})

	asking := inOrder(append(s.path.early(), options...))
	for {
		room, err := roomFor(asking, s.path.limit())
		if err != nil {
			return nil, err
		}
		var a *answer
		if len(body) <= room {
			a, err = s.ask(ctx, asking, body)
		} else {
			if s.path.due(time.Now()) {
				s.probe()
			}
			a, err = s.send(ctx, asking, body, room)
		}
		switch {
		case errors.Is(err, errNarrow):
			continue // the limit is another now
		case err != nil:
			return nil, err
		}
		return s.collect(ctx, codes.POST, options, a)
	}
}

// roomFor returns how long the payload of a request with these options can be.
func roomFor(options message.Options, limit mtu) (int, error) {
	const tokenAndMarker = 4 + 1
	empty, err := encode(message.Message{Code: codes.POST, Options: options})
	return limit.message() - len(empty) - tokenAndMarker, err
}

// send sends a request in blocks (RFC 7959, Section 2.5) and returns the answer
// to the last, or that which ends the transfer before.
func (s *clientSession) send(ctx context.Context, options message.Options, body []byte, room int) (*answer, error) {
	const blockOptions = 4 + 4 // Block1 and Size1
	b := block{szx: largestSZX}
	for b.szx > 0 && b.size() > room-blockOptions {
		b.szx-- // the path is long
	}
	for offset := 0; ; {
		end := min(len(body), offset+b.size())
		b.num, b.more = uint32(offset/b.size()), end < len(body)
		with := message.Options{b.option(message.Block1)}
		if offset == 0 {
			with = append(with, message.Option{ID: message.Size1, Value: uintValue(uint32(len(body)))})
		}
		a, err := s.ask(ctx, inOrder(append(with, options...)), body[offset:end])
		switch {
		case err != nil:
			return nil, err
		case !b.more, a.code >= codes.BadRequest:
			return a, nil
		case a.code != codes.Continue, a.one == nil, a.one.num != b.num, a.one.szx > b.szx:
			return nil, fmt.Errorf("%w: %s to block %d of the request", errBlocks, codeText(a.code), b.num)
		}
		offset = end
		b.szx = a.one.szx // it may want smaller ones from now on
	}
}

// collect fetches what follows an answer's first block (RFC 7959, Section 2.4).
// The options are those of the request but for Block2.
func (s *clientSession) collect(ctx context.Context, method codes.Code, options message.Options, a *answer) (*answer, error) {
	if a.two == nil {
		return a, nil
	}
	first, b := a, *a.two
	body := make([]byte, 0, ski.MaxMessageSize) // so that append leaves no copy
	for {
		err := joins(first, a, b, len(body))
		if err == nil {
			body = append(body, a.payload...)
		}
		clear(a.payload)
		switch {
		case err != nil:
			clear(body)
			return nil, err
		case !a.two.more:
			first.payload = body
			return first, nil
		}
		b.num++
		asked := block{num: b.num, szx: b.szx}
		with := append(message.Options{asked.option(message.Block2)}, options...)
		if a, err = s.askAs(ctx, method, nil, inOrder(with), nil); err != nil {
			clear(body)
			return nil, err
		}
		if a.code != first.code {
			clear(body)
			return a, nil // the key server has no more of it
		}
	}
}

// joins reports what is wrong if a is not the block b of the answer that began
// with first, of which n bytes are there.
func joins(first, a *answer, b block, n int) error {
	switch {
	case a.two == nil, a.two.szx > largestSZX, a.two.szx != b.szx, a.two.num != b.num, b.offset() != n:
		return fmt.Errorf("%w: block %d of the answer is not the one that was asked for", errBlocks, b.num)
	case !a.two.fits(len(a.payload)):
		return fmt.Errorf("%w: block %d of the answer has %d bytes", errBlocks, b.num, len(a.payload))
	case !bytes.Equal(a.etag, first.etag):
		return fmt.Errorf("%w: block %d is of another answer", errBlocks, b.num)
	case n+len(a.payload) > ski.MaxMessageSize:
		return fmt.Errorf("%w: it has more than %d bytes", errUnusable, ski.MaxMessageSize)
	}
	return nil
}
