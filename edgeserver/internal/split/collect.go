package split

// collector makes handshake messages of what comes in records (RFC 5246, Section
// 7.4): a message may be spread over several, and a record may have several.
type collector struct{ buf []byte }

// add takes the payload of a record of type handshake.
func (c *collector) add(payload []byte) { c.buf = append(c.buf, payload...) }

// empty reports whether there is nothing of a message left.
func (c *collector) empty() bool { return len(c.buf) == 0 }

// next returns the next message, with its header, or nil if it is not all there
// yet. admit sees type and length as soon as they are there, and so bounds what
// is collected: a message, and the record that it ends in.
func (c *collector) next(admit func(MessageType, int) error) (MessageType, []byte, error) {
	if len(c.buf) < messageHeaderLen {
		return 0, nil, nil
	}
	t := MessageType(c.buf[0])
	length := int(c.buf[1])<<16 | int(c.buf[2])<<8 | int(c.buf[3])
	if err := admit(t, length); err != nil {
		return 0, nil, err
	}
	if len(c.buf) < messageHeaderLen+length {
		return 0, nil, nil
	}
	whole := c.buf[: messageHeaderLen+length : messageHeaderLen+length]
	c.buf = c.buf[messageHeaderLen+length:]
	if len(c.buf) == 0 {
		c.buf = nil // The message is kept by others.
	}
	return t, whole, nil
}
