"""What can go wrong, in two trees.

`ChatError` answers a command: its sender is told, the connection stays, nobody else hears of it.
`Disconnect` ends a connection with a WebSocket close code.

Error numbers: 100 to 399 have the meaning they have in the Centrifuge protocol, 400 to 499 are ours.
Close codes: 1000 to 1015 as in RFC 6455 section 7.4.1, 3000 to 3999 as in the Centrifuge protocol.
The rule for clients: after 1001, 1006, 1011, 1012, 1013 and 3000 to 3499 connect again, with a growing pause; after
any other code change something first, for the same thing would only happen again.
"""

import math
from typing import ClassVar, Final

REASON_BYTES: Final = 123
"""The longest reason that a close frame has room for (RFC 6455 section 5.5)."""


class ChatError(Exception):
    """Refuses one command. Plugins raise it with their own text: `raise ChatError("no links, please")`."""

    code: ClassVar[int] = 400
    text: ClassVar[str] = "refused"

    def __init__(self, text: str | None = None) -> None:
        super().__init__(text or self.text)


class InternalError(ChatError):
    """A fault of the server or of a plugin; the same command may succeed later."""

    code = 100
    text = "internal error"


class Unauthorized(ChatError):
    """A token is needed, and this is none that counts."""

    code = 101
    text = "unauthorized"


class UnknownChannel(ChatError):
    """The channel's namespace isn't configured."""

    code = 102
    text = "unknown channel"


class PermissionDenied(ChatError):
    """Not allowed, whoever asks."""

    code = 103
    text = "permission denied"


class MethodNotFound(ChatError):
    """There is no such procedure."""

    code = 104
    text = "method not found"


class AlreadySubscribed(ChatError):
    """The connection is a member already."""

    code = 105
    text = "already subscribed"


class LimitExceeded(ChatError):
    """More subscriptions than a connection may have."""

    code = 106
    text = "limit exceeded"


class BadRequest(ChatError):
    """What was asked for makes no sense; the text says what is wrong."""

    code = 107
    text = "bad request"


class NotAvailable(ChatError):
    """The channel doesn't have that."""

    code = 108
    text = "not available"


class TokenExpired(ChatError):
    """A newer token is needed."""

    code = 109
    text = "token expired"


class Expired(ChatError):
    """A subscription's newer token is too old itself."""

    code = 110
    text = "expired"


class TooManyMessages(ChatError):
    """The rate limit, with the time to wait."""

    code = 111
    text = "too many messages"

    def __init__(self, retry_seconds: float) -> None:
        super().__init__(f"{self.text}, retry in {math.ceil(retry_seconds * 10) / 10:.1f} s")


class Unrecoverable(ChatError):
    """What followed a position isn't kept any more, or the position is none of this log."""

    code = 112
    text = "unrecoverable position"


class NotJSON(ChatError):
    """The frame is not one JSON text."""

    code = 410
    text = "not valid JSON"


class WrongShape(ChatError):
    """JSON, but not an object with exactly the fields that the protocol knows, each of its type."""

    code = 411
    text = "not a message"


class UnknownType(ChatError):
    """A `type` that the protocol doesn't have."""

    code = 412
    text = "unknown type"


class ServerOnly(ChatError):
    """A `type` that only the server sends."""

    code = 413
    text = "type 1 is for the server"


class BodyTooLong(ChatError):
    """The body has more bytes than allowed."""

    code = 414
    text = "body too long"


class BodyInvalid(ChatError):
    """The body holds U+0000, which not every store can keep."""

    code = 415
    text = "body must not contain U+0000"


class StorageUnavailable(ChatError):
    """Nothing was stored: the storage can't be reached, or is locked, or refuses."""

    code = 420
    text = "not stored: storage unavailable"


class StorageFull(StorageUnavailable):
    """Nothing was stored: there is no space left."""

    code = 421
    text = "not stored: storage full"


class StorageUnsure(StorageUnavailable):
    """The storage didn't say in time whether it stored something; if it did, it will be seen, once."""

    code = 422
    text = "not known to be stored: no answer from storage"


class Disconnect(Exception):
    """Ends a connection with close `code` and `reason` (cut to what a close frame has room for)."""

    code: int = 1008
    reason: ClassVar[str] = "policy violation"

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason or self.reason)


class PeerClosed(Disconnect):
    """The peer closed as it should; it is answered with its own code (RFC 6455 section 5.5.1)."""

    code = 1000
    reason = "closed"

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code or self.code


class GoingAway(Disconnect):
    """The server stops."""

    code = 1001
    reason = "server shutdown"


class ProtocolError(Disconnect):
    """Not WebSocket as RFC 6455 has it."""

    code = 1002
    reason = "protocol error"


class UnsupportedData(Disconnect):
    """A binary frame where text is spoken."""

    code = 1003
    reason = "binary frames are not supported"


class InvalidText(Disconnect):
    """A text frame that is not UTF-8."""

    code = 1007
    reason = "invalid UTF-8"


class ConnectionLost(Disconnect):
    """The connection broke. Nobody is left to be told; this is for logs (RFC 6455 section 7.1.5)."""

    code = 1006
    reason = "connection lost"


class PolicyViolation(Disconnect):
    """Too many bad frames in a row, floods."""


class MessageTooBig(Disconnect):
    """A message over the size limit."""

    code = 1009
    reason = "message too big"


class ServerFault(Disconnect):
    """A bug of ours; the log has one line about it."""

    code = 1011
    reason = "internal server error"


class ServiceRestart(Disconnect):
    """The server restarts and will be back."""

    code = 1012
    reason = "server restart"


class ConnectionExpired(Disconnect):
    """The connection's token ran out, and no newer one came."""

    code = 3005
    reason = "connection expired"


class SubscriptionExpired(Disconnect):
    """The token of a subscription that the server made ran out."""

    code = 3006
    reason = "subscription expired"


class Slow(Disconnect):
    """The client doesn't read as fast as its rooms speak."""

    code = 3008
    reason = "slow"


class InsufficientState(Disconnect):
    """The client missed something that the server can't tell it any more."""

    code = 3010
    reason = "insufficient state"


class NoPong(Disconnect):
    """The client answered no ping."""

    code = 3012
    reason = "no pong"


class TooManyRequests(Disconnect):
    """Far more than the rate limit allows."""

    code = 3013
    reason = "too many requests"


class InvalidToken(Disconnect):
    """A token that doesn't count, whatever is wrong with it."""

    code = 3500
    reason = "invalid token"


class Malformed(Disconnect):
    """Not the Centrifuge protocol, or not in its order."""

    code = 3501
    reason = "bad request"


class Stale(Disconnect):
    """The client didn't say in time who it is."""

    code = 3502
    reason = "stale"


class ForceDisconnect(Disconnect):
    """An operator's program said so."""

    code = 3503
    reason = "force disconnect"

    def __init__(self, reason: str | None = None, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code or self.code


class NotPermitted(Disconnect):
    """Nobody without a token is let in."""

    code = 3507
    reason = "permission denied"
