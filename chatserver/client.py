"""One connection, as the engine sees it: who it is, what still has to be sent to it, how it ends."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from chatserver import frames
from chatserver.errors import ConnectionLost, Disconnect, Slow
from chatserver.message import Event, Info
from chatserver.protocol import Codec

WRITE_BYTES: Final = 128 * 1024
"""About how much one write hands to a transport: what a stalled client can hold beyond its queue is bounded by it."""

CLOSE_SECONDS: Final = 1.0
"""How long a peer may take to answer a close frame. Its place is free within a second, whatever it does."""

_CONTROL_BYTES: Final = 512


class Transport(Protocol):
    """What a client writes to: whole frames, in order."""

    def write(self, data: bytes) -> None:
        """Takes `data` at once; once the connection is lost, throws it away. Never waits, never raises."""

    @property
    def descriptor(self) -> int:
        """Of a socket that doesn't block, to which may be written beside `write`, as nothing waits for it; otherwise
        -1. Whatever it doesn't take goes to `write`. Each change is counted in `fanout.CHANGES`, before anything else
        happens."""

    @property
    def paused(self) -> bool:
        """The peer reads too slowly: nothing more should be written."""

    @property
    def lost(self) -> bool:
        """The connection is gone, or going."""

    @property
    def buffered(self) -> int:
        """Bytes taken by `write` that the kernel hasn't taken yet."""

    def heard(self) -> bool:
        """A frame came since the last call, or nobody was there to take one."""

    async def drained(self) -> None:
        """Returns when `paused` is over or the connection is lost. For one caller at a time."""

    def close(self) -> None:
        """Ends the connection when all that was written is sent."""

    def abort(self) -> None:
        """Drops the connection now, with all that is not sent."""


class Source(Protocol):
    """Something that a client follows beside its own queue: the feed of a room."""

    pending_bytes: int
    """Of the pieces that wait for a flush; it will come."""

    def join(self, client: "Client") -> None:
        """`client` follows from here on, in a place of its own."""

    def leave(self, client: "Client") -> None:
        """Forgets `client`."""

    def part(self, client: "Client") -> Sequence[bytes]:
        """Gives `client`, so far level, a place of its own. Returns what is meant for it alone, and comes behind all
        that is to be pulled."""

    def pull(self, client: "Client") -> list[bytes]:
        """The pieces that `client`, in a place of its own, hasn't had; they count as had from now on."""

    def catch_up(self, client: "Client") -> list[bytes]:
        """`pull` for those of the pieces that all who are level have had."""

    def even(self, client: "Client") -> bool:
        """`client`, in a place of its own, has had just what those who are level have."""

    def rejoin(self, client: "Client") -> None:
        """Takes `client`, which is even, back among those who are level."""


class Client:
    """One connection. What the rest of the server may rely on:

    1. `enqueue` never waits and never raises because of the peer.
    2. Only the drain writes, from one place, so wire order is queue order: the pool's drain task serves every client
       whose transport takes data, the client's own task takes over while the transport is paused; never both.
       Nothing cancels or times out a write: to give up on a peer, its transport is aborted.
    3. The queue is bounded in bytes; over it the client is disconnected with `Slow` and can resume.
    4. A write that makes no progress for the write deadline aborts the transport, also when the peer keeps sending.
    5. Whatever ends a connection, its place in pool, rooms and presence is free within a second.

    The queue is what is meant for this client alone plus its place in the sources it follows. As long as it has
    nothing of its own and its transport takes data it is *level*: each source writes to all such clients together, to
    some of them with an answer behind it. Otherwise it stands *apart* and is served by itself.
    """

    __slots__ = (
        "__weakref__",
        "_apart",
        "_control",
        "_emptied",
        "_queue",
        "_queued",
        "_timer",
        "_wake",
        "aborted",
        "address",
        "close_sent",
        "codec",
        "connected_at",
        "delivered",
        "ending",
        "id",
        "info",
        "leaving",
        "parked",
        "pinged",
        "queue_bytes",
        "received",
        "sources",
        "transport",
        "user",
    )

    def __init__(
        self,
        transport: Transport,
        codec: Codec,
        *,
        id: str,
        user: str,
        address: str,
        queue_bytes: int,
        wake: Callable[["Client"], None],
    ) -> None:
        """`queue_bytes`: bound of the queue. `wake(client)` is called, and must not wait, when there is work to do."""
        self.transport = transport
        self.codec = codec
        self.id = id
        self.user = user
        """What others, logs and plugins call it; somebody else may have the same name unless `info` has it, too."""
        self.info = Info("", id)
        """Who it is, as members of its rooms are told."""
        self.address = address
        self.queue_bytes = queue_bytes
        self.connected_at = time.monotonic()
        self.received = 0
        """Commands that came from this client."""
        self.delivered = 0
        """Events handed to it; those of its sources are counted when it stops being level."""
        self.ending: Disconnect | None = None
        """Why the connection ends, once it does."""
        self.leaving = False
        """Nothing that it says counts any more: it is told that it ends, or will be in a moment."""
        self.aborted = False
        """It didn't end by itself."""
        self.close_sent = False
        self.parked = False
        """The transport is paused, and the client's own task drains it."""
        self.pinged = False
        """A ping was sent, and a heartbeat later something should have been heard."""
        self.sources: tuple[Source, ...] = ()
        self._wake = wake
        self._apart = False
        self._control = b""
        self._queue: deque[bytes] | tuple[()] = ()  # a deque, also an empty one, takes 760 bytes
        self._queued = 0
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None

    @property
    def guest(self) -> str:
        """A name for who has none."""
        return f"guest-{self.id[:6]}"

    def __repr__(self) -> str:
        return f"<Client {self.id} {self.user}>"

    def follow(self, source: Source) -> None:
        """From now on the client receives what `source` is told."""
        if self.ending:
            return
        self._step_apart()
        self.sources += (source,)
        source.join(self)
        waits = self._queue or self._control or self.parked or self.transport.paused
        if waits or not self._step_level():
            self._wake(self)

    def unfollow(self, source: Source) -> None:
        """The client has what `source` was told so far, and receives no more of it."""
        if source in self.sources:
            self._step_apart()
            self.sources = tuple(followed for followed in self.sources if followed is not source)
            source.leave(self)
            self._wake(self)

    def enqueue(self, event: Event) -> None:
        """Tells `event` to this client alone, after all that was told to it before."""
        if not self.ending:
            self.push(self.codec.encode(event))

    def push(self, piece: bytes) -> None:
        """`enqueue` for what is encoded already, in this client's codec."""
        if self.ending or not piece:
            return
        self._step_apart()
        self._put(piece)
        self.delivered += 1
        if self.parked and self._queued > self.queue_bytes:
            self.disconnect(Slow())
        else:
            self._wake(self)

    async def emptied(self) -> None:
        """Returns when not much waits for this client alone, or its connection ends: who tells it a lot awaits this
        now and then.
        """
        # What a parked client may have waiting may be less than a write: it is told one thing at a time.
        while self._queued > (0 if self.parked else WRITE_BYTES) and not self.ending:
            if self._emptied is None or self._emptied.is_set():
                self._emptied = asyncio.Event()
            await self._emptied.wait()

    def control(self, frame: bytes) -> None:
        """Sends a ping or pong when the transport takes data. Of many that wait the last ones are kept."""
        if self.ending:
            return
        self._control = self._control + frame if len(self._control) < _CONTROL_BYTES else frame
        self._wake(self)

    def disconnect(self, end: Disconnect, seconds: float = CLOSE_SECONDS) -> None:
        """Ends the connection: first what is queued, then a close frame; after `seconds` the transport is aborted.

        Of several calls the first counts. The queue of a slow client is dropped.
        """
        if self.ending:
            return
        if not isinstance(end, Slow):
            self._step_apart()
        else:
            self._queue = ()
            self._queued = 0
        self.ending = end
        self.leaving = True
        self._stir()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)
        for source in self.sources:
            source.leave(self)
        self.sources = ()
        if self.parked and not self._queue:
            self._send_close()  # straight behind what the transport holds: its drain may never come
        self._wake(self)

    def abort(self) -> None:
        """Drops a connection that doesn't end by itself."""
        if not self.transport.lost:
            self.aborted = True
            self.transport.abort()

    def gone(self) -> None:
        """The connection is over: nothing has to be aborted any more."""
        if self._timer:
            self._timer.cancel()

    def serve(self) -> bool:
        """Writes what waits; for the pool's drain. False: something is left to do."""
        if self.transport.lost:
            return True
        return self._write() and (self.ending is not None or self._step_level())

    def park(self) -> None:
        """The transport is paused: from now on the client is the business of its own `drain`, which is to be run."""
        self.parked = True
        self._step_apart()
        if self._queued > self.queue_bytes:
            self.disconnect(Slow())

    async def drain(self) -> None:
        """Serves a parked client until its transport takes data again, and hands it back to the pool."""
        try:
            while not self.transport.lost:
                await self.transport.drained()
                if self._write():
                    break
        finally:
            self.parked = False
            self.pinged = False  # a ping may have waited all the while
            self._wake(self)

    def _write(self) -> bool:
        for source in self.sources if self._apart else ():
            self._put(*source.catch_up(self))  # no more, or it would never be even with several that are busy
        while (self._queue or self._control) and not self.transport.paused:
            self.transport.write(self._take())
        if self.transport.paused:
            return False
        if self.ending and not self.close_sent:
            self._send_close()
        return True

    def _step_apart(self) -> None:
        alone: list[bytes] = []
        if not self._apart:
            for source in self.sources:
                alone += source.part(self)
            self._apart = True
        for source in self.sources:
            self._put(*source.pull(self))
        self._put(*alone)

    def _step_level(self) -> bool:
        if not self._apart:
            return True
        if not all(source.even(self) for source in self.sources):
            return False
        for source in self.sources:
            source.rejoin(self)
        self._apart = False
        return True

    def _put(self, *pieces: bytes) -> None:
        if pieces:
            if not isinstance(self._queue, deque):
                self._queue = deque()
            self._queue.extend(pieces)
            self._queued += sum(map(len, pieces))

    def _take(self) -> bytes:
        control, self._control = self._control, b""
        pieces = self._next()
        self._stir()
        return self.codec.join(pieces) + control if pieces else control

    def _next(self) -> Sequence[bytes]:
        """Takes about `WRITE_BYTES` off the queue."""
        if self._queued <= WRITE_BYTES:
            pieces, self._queue, self._queued = self._queue, (), 0
            return pieces
        taken: list[bytes] = []
        size = 0
        while self._queue and size < WRITE_BYTES:
            taken.append(self._queue.popleft())
            size += len(taken[-1])
        if not self._queue:
            self._queue = ()
        self._queued -= size
        return taken

    def _stir(self) -> None:
        if self._emptied:
            self._emptied.set()

    def _send_close(self) -> None:
        self._control = b""
        self.close_sent = True
        if self.ending and not isinstance(self.ending, ConnectionLost):
            self.transport.write(frames.close(self.ending))
