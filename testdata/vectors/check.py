#!/usr/bin/python3
"""Checks the vectors of this folder with an implementation that shares nothing
with the one that made them: Debian's python3-cbor2 and python3-cryptography.

  check.py FOLDER PROTOCOL.md

codec-*.json: the message decodes to what the file says, or is malformed. What
it decodes to is also held against the CDDL in PROTOCOL.md.
tickets-*.json: likewise, for ticket keys.
input-*.json: both encodings of request and response say the same, and the
response is right: the signature verifies, the PreMasterSecret decrypts, and that
of the second exchange of ECDHE-PMS is what the client gets with the params of the
first.
"""

import base64
import binascii
import glob
import hashlib
import json
import os
import re
import sys

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519

LIMIT, PAIRS, DEPTH = 4096, 32, 2


class Malformed(Exception):
    pass


# CBOR, as RFC 8949, Appendix C has it: cbor2 takes duplicate keys and does not
# say what followed. It decodes what this has found to be well-formed.

def item(data, pos, depth, pairs=None):
    """Returns the position after the item at pos. The raw pairs of a map at
    depth 1 are appended to pairs."""
    if depth > DEPTH:
        probe = data[pos] >> 5 if pos < len(data) else 0
        if probe in (4, 5, 6):
            raise Malformed("nesting")
    if pos >= len(data):
        raise Malformed("too short")
    major, info = data[pos] >> 5, data[pos] & 31
    pos += 1
    value = info
    if 24 <= info <= 27:
        size = 1 << (info - 24)
        if pos + size > len(data):
            raise Malformed("too short")
        value = int.from_bytes(data[pos:pos + size], "big")
        pos += size
    elif 28 <= info <= 30 or (info == 31 and major in (0, 1, 6)):
        raise Malformed("reserved")
    indefinite = info == 31
    if major in (0, 1):
        return pos
    if major in (2, 3):
        if not indefinite:
            if value > len(data) - pos:
                raise Malformed("too short")
            if major == 3:
                text(data[pos:pos + value])
            return pos + value
        while pos < len(data) and data[pos] != 0xFF:
            if data[pos] >> 5 != major or data[pos] & 31 == 31:
                raise Malformed("chunk")
            pos = item(data, pos, depth)
        return end(data, pos)
    if major in (4, 5):
        count = 0
        while (indefinite and pos < len(data) and data[pos] != 0xFF) or (not indefinite and count < value):
            start = pos
            pos = item(data, pos, depth + 1)
            if major == 5:
                between = pos
                pos = item(data, pos, depth + 1)
                if pairs is not None and depth == 1:
                    pairs.append((data[start:between], data[between:pos]))
            count += 1
            if major == 5 and count > PAIRS:
                raise Malformed("pairs")
        return end(data, pos) if indefinite else pos
    if major == 6:
        return item(data, pos, depth + 1)
    if indefinite or (info == 24 and value < 32):
        raise Malformed("break or simple value")
    return pos


def end(data, pos):
    if pos >= len(data):
        raise Malformed("no break")
    return pos + 1


def text(data):
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Malformed("not UTF-8") from None


def from_cbor(data):
    if not data or data[0] >> 5 != 5:
        raise Malformed("no map")
    pairs = []
    if item(data, 0, 1, pairs) != len(data):
        raise Malformed("trailing bytes")
    message = {}
    for raw_key, raw_value in pairs:
        if raw_key[0] >> 5 != 3:
            raise Malformed("key")
        key, value = cbor2.loads(raw_key), Tagged
        if raw_value[0] >> 5 != 6:
            value = cbor2.loads(raw_value)
        if key in message:
            raise Malformed("duplicate")
        message[key] = value
    if Tagged not in message.values() and cbor2.loads(data) != message:
        raise AssertionError("cbor2 decodes the whole in another way")
    return message


class Tagged:
    """Stands for a value with a tag: it has the type of no attribute."""


# JSON.

BYTES = ("spki", "input", "output", "params", "state")


def from_json(data):
    def unique(pairs):
        if len(pairs) > PAIRS:
            raise Malformed("pairs")
        if len({k for k, _ in pairs}) != len(pairs):
            raise Malformed("duplicate")
        return dict(pairs)

    def constant(_):
        raise Malformed("constant")

    try:
        message = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError):
        raise Malformed("JSON") from None
    if not isinstance(message, dict):
        raise Malformed("no object")
    if any(nesting(v) > DEPTH - 1 for v in message.values()):
        raise Malformed("nesting")
    for key in BYTES:
        if isinstance(message.get(key), str):
            message[key] = from_base64(message[key])
        elif key in message:
            message[key] = Tagged
    return message


def nesting(v):
    if isinstance(v, dict):
        return 1 + max([nesting(x) for x in v.values()], default=0)
    if isinstance(v, list):
        return 1 + max([nesting(x) for x in v], default=0)
    return 0


def from_base64(s):
    s = s.strip(" \t\r\n")
    if "=" not in s:
        s += "=" * (-len(s) % 4)
    try:
        return base64.b64decode(s, validate=True) if len(s) % 4 == 0 and s == base64.b64encode(
            base64.b64decode(s, validate=True)).decode() else Tagged
    except (binascii.Error, ValueError):
        return Tagged


# As much of CDDL (RFC 8610) as PROTOCOL.md uses.

class CDDL:
    TOKEN = re.compile(r'"[^"]*"|=>|\.\.|\.[a-z]+|[A-Za-z_][\w-]*|\d+|[={}()\[\]/,:?*]')

    def __init__(self, source):
        self.rules = {}
        tokens = self.TOKEN.findall(re.sub(r";.*", "", source))
        while tokens:
            name, equals = tokens[0], tokens[1]
            assert equals == "=", (name, equals)
            del tokens[:2]
            self.rules[name] = self.type(tokens)

    def type(self, t):
        choices = [self.type1(t)]
        while t and t[0] == "/":
            t.pop(0)
            choices.append(self.type1(t))
        return lambda v: any(c(v) for c in choices)

    def type1(self, t):
        first = t.pop(0)
        if first == "{":
            return self.map(t)
        if first == "[":  # of one type only: [1*8 type]
            low, star, high = int(t.pop(0)), t.pop(0), int(t.pop(0))
            assert star == "*", star
            element = self.type(t)
            assert t.pop(0) == "]"
            return lambda v: isinstance(v, list) and low <= len(v) <= high and all(element(x) for x in v)
        if first == "(":
            inner = self.type(t)
            assert t.pop(0) == ")"
            return inner
        if first[0] == '"':
            return lambda v: isinstance(v, str) and v == first[1:-1]
        if first.isdigit():
            if t and t[0] == "..":
                t.pop(0)
                low, high = int(first), int(t.pop(0))
                return lambda v: integer(v) and low <= v <= high
            return lambda v: integer(v) and v == int(first)
        base = self.named(first)
        if not (t and t[0][0] == "." and t[0] != ".."):
            return base
        control = t.pop(0)
        if control == ".regexp":
            pattern = re.compile(t.pop(0)[1:-1])
            return lambda v: base(v) and pattern.fullmatch(v) is not None
        if control == ".lt":
            bound = int(t.pop(0))
            return lambda v: base(v) and v < bound
        assert control == ".size", control
        size = self.type1(t)
        return lambda v: base(v) and size(len(v))

    def named(self, name):
        prelude = {
            "any": lambda v: True,
            "tstr": lambda v: isinstance(v, str),
            "bytes": lambda v: isinstance(v, bytes),
            "uint": lambda v: integer(v) and v >= 0,
        }
        return prelude.get(name) or (lambda v: self.rules[name](v))

    def map(self, t):
        entries, other = {}, None
        while t[0] != "}":
            optional = t[0] == "?"
            if optional:
                t.pop(0)
            if t[0] == "*":
                assert t[:4] == ["*", "tstr", "=>", "any"]
                del t[:4]
                other = True
            else:
                key, colon = t.pop(0), t.pop(0)
                assert colon == ":", (key, colon)
                entries[key] = (optional, self.type(t))
            if t[0] == ",":
                t.pop(0)
        t.pop(0)

        def matches(v):
            # A key with a colon is cut (Section 3.5.4): if it is there, its
            # value has to have its type.
            return (isinstance(v, dict)
                    and all(k in v or optional for k, (optional, _) in entries.items())
                    and all(entries[k][1](x) if k in entries else other and isinstance(k, str) for k, x in v.items()))
        return matches


def integer(v):
    return isinstance(v, int) and not isinstance(v, bool)


def load_cddl(file):
    with open(file, encoding="utf-8") as f:
        blocks = re.findall(r"```cddl\n(.*?)```", f.read(), re.S)
    return CDDL("\n".join(blocks))


# The vectors.

def decode(cddl, rule, form, data):
    if len(data) > LIMIT:
        raise Malformed("too large")
    message = from_cbor(data) if form == "CBOR" else from_json(data)
    if not cddl.rules[rule](message):
        raise Malformed("it does not match the CDDL")
    if message.get("method") == "ECDHE-PMS" and ("group" in message) == ("state" in message):
        raise Malformed("one of group and state")
    if rule == "response" and ("params" in message) != ("state" in message):
        raise Malformed("params and state go together")
    return message


def check_codec(cddl, v):
    data = v["text"].encode() if "text" in v else bytes.fromhex(v.get("hex", ""))
    try:
        message = decode(cddl, v["message"], v["format"], data)
    except Malformed as e:
        assert v["class"] == "malformed", "it is malformed here: %s" % e
        return
    assert v["class"] == "ok", "it is well-formed here: %r" % message
    same(message, v[v["message"]])
    if v.get("deterministic") and v["format"] == "CBOR":
        assert cbor2.dumps(message, canonical=True) == data, "cbor2's canonical encoding is another"


def check_tickets(cddl, v):
    global DEPTH
    DEPTH, before = 4, DEPTH
    try:
        message = decode_tickets(cddl, bytes.fromhex(v["hex"]))
    except Malformed as e:
        assert v["class"] == "malformed", "it is malformed here: %s" % e
        return
    finally:
        DEPTH = before
    assert v["class"] == "ok", "it is well-formed here: %r" % message
    assert message["site"] == v["site"] and len(message["keys"]) == len(v["keys"])
    for key, want in zip(message["keys"], v["keys"]):
        same(key, want)


def decode_tickets(cddl, data):
    if len(data) > 1024:
        raise Malformed("too large")
    message = from_cbor(data)
    if not cddl.rules["tickets"](message):
        raise Malformed("it does not match the CDDL")
    keys = message["keys"]
    if not all(k["from"] < k["to"] <= k["until"] < 2 ** 40 for k in keys):
        raise Malformed("times")
    if any(k["to"] - k["from"] > 7 * 86400 or k["until"] - k["to"] > 7 * 86400 for k in keys):
        raise Malformed("good for too long")
    if len({k["id"] for k in keys}) < len(keys) or keys != sorted(keys, key=lambda k: k["from"]):
        raise Malformed("an id twice, or the order")
    return message


def same(message, want):
    known = dict(want)
    if known.get("method") == "ECDHE" and "method" not in message:
        del known["method"]
    for key, value in known.items():
        got = message[key].hex() if isinstance(message[key], bytes) else message[key]
        assert got == value, "%s is %r, not %r" % (key, got, value)


HASHES = {
    "SHA-224": hashes.SHA224(), "SHA-256": hashes.SHA256(), "SHA-384": hashes.SHA384(), "SHA-512": hashes.SHA512(),
}
# RFC 8446, Section 4.2.3
SCHEMES = {
    0x0401: "SHA-256", 0x0501: "SHA-384", 0x0601: "SHA-512", 0x0403: "SHA-256", 0x0503: "SHA-384", 0x0603: "SHA-512",
    0x0804: "SHA-256", 0x0805: "SHA-384", 0x0806: "SHA-512",
}


def check_input(cddl, folder, v):
    keys = {}
    for file in glob.glob(os.path.join(folder, "input-keys", "*.pem")):
        with open(file, "rb") as f:
            key = serialization.load_pem_private_key(f.read(), None)
        spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        keys[hashlib.sha256(spki).hexdigest()] = (key, os.path.basename(file))
    encoded = v["encoded"]
    request = request_of(cddl, "CBOR", bytes.fromhex(encoded["cbor"]["request"]))
    assert request == request_of(cddl, "JSON", encoded["json"]["request"].encode()), "the requests differ"
    if request is None:
        assert v["class"] == "malformed-request", "the request is malformed here"
    else:
        same(request, v["request"])
    response = decode(cddl, "response", "CBOR", bytes.fromhex(encoded["cbor"]["response"]))
    assert response == decode(cddl, "response", "JSON", encoded["json"]["response"].encode()), "the responses differ"
    same(response, {k: x for k, x in v["want"].items() if k in ("output", "params", "state", "error")})
    if "error" in response:
        assert v["class"] == response["error"].replace(" ", "-")
        return
    assert v["class"] == "output"
    key, file = keys[request["spki"].hex()]
    assert v["key"] == "input-keys/" + file
    if "first" in v:
        agree(folder, v, request, response)
    else:
        operate(key, request, response)


def request_of(cddl, form, data):
    try:
        return decode(cddl, "request", form, data)
    except Malformed:
        return None


def operate(key, request, response):
    data, output = request["input"], response["output"]
    method = request.get("method", "ECDHE")
    if method == "RSA":
        assert key.decrypt(data, padding.PKCS1v15()) == output, "the PreMasterSecret is another"
        return
    if method == "ECDHE-PMS":
        assert request["group"] == group_of(response["params"]), "params are of another group"
        data += response["params"]
    if method == "DHE":
        dh_params(data[64:])
    public, scheme = key.public_key(), request.get("scheme", 0)
    digest = HASHES[SCHEMES.get(scheme) or request.get("hash", "SHA-256")]
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(output, data)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(output, data, ec.ECDSA(digest))
        elif scheme >> 8 == 8:
            public.verify(output, data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        else:
            assert isinstance(public, rsa.RSAPublicKey)
            public.verify(output, data, padding.PKCS1v15(), digest)
    except InvalidSignature:
        raise AssertionError("the signature is wrong") from None


def group_of(params):
    """Returns the group of ServerECDHParams (RFC 8422, Section 5.4)."""
    assert params[0] == 3 and params[3] == len(params) - 4, "params are no ServerECDHParams"
    return int.from_bytes(params[1:3], "big")


def dh_params(data):
    """Checks ServerDHParams (RFC 5246, Section 7.4.3) as far as they go."""
    numbers = []
    for _ in range(3):
        size = int.from_bytes(data[:2], "big")
        assert len(data) >= 2 + size, "the input ends before dh_Ys does"
        numbers.append(int.from_bytes(data[2:2 + size], "big"))
        data = data[2 + size:]
    p, g, ys = numbers
    assert not data and g == 2 and 1 < ys < p - 1, "dh_Ys is no public key"
    assert p.bit_length() >= 2048 and pow(2, p - 1, p) == 1 and pow(2, (p - 1) // 2, p) == 1, "dh_p is no safe prime"


# RFC 8422, Section 5.1.1
CURVES = {23: ec.SECP256R1(), 24: ec.SECP384R1(), 25: ec.SECP521R1()}


def agree(folder, v, request, response):
    """Checks the second exchange of ECDHE-PMS from the client's side."""
    with open(os.path.join(folder, v["first"]), encoding="utf-8") as f:
        first = json.load(f)
    assert request["state"].hex() == first["want"]["state"], "the state is not that of the first exchange"
    params = bytes.fromhex(first["want"]["params"])
    group, scalar = group_of(params), bytes.fromhex(v["client"])
    if group == 29:
        client = x25519.X25519PrivateKey.from_private_bytes(scalar)
        public = client.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        secret = client.exchange(x25519.X25519PublicKey.from_public_bytes(params[4:]))
    else:
        client = ec.derive_private_key(int.from_bytes(scalar, "big"), CURVES[group])
        public = client.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        secret = client.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(CURVES[group], params[4:]))
    assert request["input"] == public, "the input is not the client's point"
    assert response["output"] == secret, "the PreMasterSecret is another"


def main():
    folder, protocol = sys.argv[1:]
    cddl = load_cddl(protocol)
    failed = checked = 0
    for file in sorted(glob.glob(os.path.join(folder, "*.json"))):
        name = os.path.basename(file)
        with open(file, encoding="utf-8") as f:
            v = json.load(f)
        try:
            if name.startswith("codec-"):
                check_codec(cddl, v)
            elif name.startswith("tickets-"):
                check_tickets(cddl, v)
            elif name.startswith("input-"):
                check_input(cddl, folder, v)
            else:
                raise AssertionError("this kind of vector is not known here")
            checked += 1
        except (AssertionError, KeyError) as e:
            failed += 1
            print("%s: %.200s" % (name, e))
    print("%d right, %d wrong" % (checked, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
