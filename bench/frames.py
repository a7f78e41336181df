"""WebSocket as a client speaks it, on bytes: the handshake, frames out and frames in (RFC 6455, section 5.2)."""

import base64
from collections.abc import Iterator

TEXT = 1
BINARY = 2
CLOSE = 8
PING = 9
PONG = 10

_KEY = base64.b64encode(b"0123456789abcdef").decode()

_BROWSER = """\
Host: 127.0.0.1:{port}
Connection: Upgrade
Pragma: no-cache
Cache-Control: no-cache
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36
Upgrade: websocket
Origin: http://127.0.0.1:{port}
Sec-WebSocket-Version: 13
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-US,en;q=0.9
Cookie: session=8f14e45fceea167a5a36dedd4bea2543; theme=dark
Sec-WebSocket-Key: {key}
"""
"""What a browser says. It would also offer permessage-deflate: then some servers would compress, each for each client,
and that is what would be measured."""


def request(path: str, port: int) -> bytes:
    """The handshake of a browser on a page of the same host."""
    lines = f"GET {path} HTTP/1.1\n" + _BROWSER.format(port=port, key=_KEY) + "\n"
    return lines.replace("\n", "\r\n").encode()


def masked(opcode: int, payload: bytes) -> bytes:
    """A whole frame of at most 65,535 bytes, masked with zeros, which leaves the payload readable."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + length + b"\0\0\0\0" + payload


def frames(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The whole frames of a server at the beginning of `data`: opcode, and where the payload begins and ends."""
    at = 0
    size = len(data)
    while at + 2 <= size:
        length = data[at + 1]
        begin = at + 2
        if length > 125:
            begin += 2 if length == 126 else 8
            if begin > size:
                return
            length = int.from_bytes(data[at + 2 : begin], "big")
        end = begin + length
        if end > size:
            return
        yield data[at] & 15, begin, end
        at = end
