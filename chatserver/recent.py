"""The end of a room's log, in memory."""

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from chatserver.store import Record

KEEP_EVENTS: Final = 500
KEEP_CHARACTERS: Final = 256 * 1024
"""What is kept of a room at most: thousands who come back at once find what they missed without asking the store."""


class Recent:
    """Events without holes up to `top`, the offset of the last event of the log as far as it was delivered."""

    __slots__ = ("_characters", "_forgotten", "_records", "complete", "top")

    def __init__(self, top: int) -> None:
        self.top = top
        self.complete = top == 0
        """Nothing more can be put before what is here: no space, or no such events."""
        self._records: deque[Record] = deque()
        self._characters = 0
        self._forgotten = 0

    @property
    def start(self) -> int:
        """What came after this offset is here."""
        return self.top - len(self._records)

    def extend(self, records: Sequence[Record]) -> None:
        """`records` are the next ones of the log."""
        kept = self._records
        kept.extend(records)
        self.top += len(records)
        characters = self._characters + sum([len(record.data) for record in records])
        spare = len(kept) - KEEP_EVENTS
        while spare > 0 or characters > KEEP_CHARACTERS:
            spare -= 1
            characters -= len(kept.popleft().data)
            self.complete = True
        self._characters = characters

    def prepend(self, records: Sequence[Record]) -> None:
        """`records` are the last ones before those here, as many as there are up to what is missing."""
        for record in reversed(records):
            if record.offset == self.start > self._forgotten and self._has_space:
                self._records.appendleft(record)
                self._characters += len(record.data)
        self.complete = True

    def forget(self, through: int) -> None:
        """Lets go of the events up to the offset `through`; also if they were read before and are still to come."""
        self._forgotten = max(self._forgotten, through)
        while self._records and self._records[0].offset <= through:
            self._characters -= len(self._records.popleft().data)
        self.complete = self.complete or self.start <= through

    def after(self, offset: int) -> list[Record] | None:
        """All events after `offset`; None if they aren't all here."""
        if offset < self.start:
            return None
        return list(islice(self._records, offset - self.start, None))

    @property
    def _has_space(self) -> bool:
        return len(self._records) < KEEP_EVENTS and self._characters < KEEP_CHARACTERS
