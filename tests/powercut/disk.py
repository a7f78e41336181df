"""What a power cut leaves of a directory, from the log that `fsynced.c` keeps.

The rules are the strictest that POSIX allows, and those that SQLite is made for:

- What was written to a file is safe when the file was synchronised afterwards, and no sooner; its size likewise.
- That a name is there, or is no longer there, is safe when the directory was synchronised. To synchronise the file
  isn't enough: a file whose name isn't safe is gone, however safe its content.
- Of what isn't safe nothing is left; or, as disks do it, a part of it in no order: each sector of each write, each
  change of a size and each name by its own luck. A sector is never half written.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

SECTOR: Final = 512

_HEAD: Final = struct.Struct("=ciqq")


class Record(NamedTuple):
    """One thing that the process did; `kind` is explained in `fsynced.c`."""

    kind: bytes
    fd: int
    number: int
    data: bytes


class Write(NamedTuple):
    """A change of a file that isn't safe yet. Without data: the file was given the size `offset`."""

    offset: int
    data: bytes | None


class File:
    """The content of a file, whatever its name."""

    def __init__(self, safe: bytes = b"") -> None:
        self.safe = bytearray(safe)
        self.unsafe: list[Write] = []

    def synchronise(self) -> None:
        for write in self.unsafe:
            apply(self.safe, write)
        self.unsafe.clear()

    def left(self, survives: Callable[[], bool]) -> bytes:
        content = bytearray(self.safe)
        for write in self.unsafe:
            for part in _sectors(write):
                if survives():
                    apply(content, part)
        return bytes(content)


Files: TypeAlias = dict[str, bytes]


class Disk:
    """A directory, as it was at first, and then as a process changes it."""

    def __init__(self, files: Files) -> None:
        self.names = {name: File(content) for name, content in files.items()}
        self.synchronised: list[str] = []
        """The names of what was synchronised, in order; "" is the directory."""
        self._safe_names = dict(self.names)
        self._unsafe_names: list[tuple[str, File | None]] = []
        self._open: dict[int, str] = {}
        self._files: dict[int, File] = {}

    def replay(self, records: Iterable[Record]) -> None:
        for kind, fd, number, data in records:
            if kind == b"O":
                self._opened(fd, data.decode())
            elif kind == b"W":
                self._files[fd].unsafe.append(Write(number, data))
            elif kind == b"T":
                self._files[fd].unsafe.append(Write(number, None))
            elif kind == b"S":
                self._synchronise(fd)
            else:
                self._name(data.decode(), None)

    def name_of(self, fd: int) -> str:
        """Of what is, or was last, open as `fd`."""
        return self._open[fd]

    def left(self, survives: Callable[[], bool]) -> Files:
        """What a power cut leaves now; `survives` is asked about each thing that isn't safe."""
        names = dict(self._safe_names)
        for name, file in self._unsafe_names:
            if survives():
                _name(names, name, file)
        return {name: file.left(survives) for name, file in names.items()}

    def unsafe(self) -> set[str]:
        """The names of files with changes that aren't safe, and "" if names aren't."""
        return {name for name, file in self.names.items() if file.unsafe} | ({""} if self._unsafe_names else set())

    def _opened(self, fd: int, name: str) -> None:
        if name and name not in self.names:
            self._name(name, File())
        self._open[fd] = name
        if name:
            self._files[fd] = self.names[name]

    def _name(self, name: str, file: File | None) -> None:
        _name(self.names, name, file)
        self._unsafe_names.append((name, file))

    def _synchronise(self, fd: int) -> None:
        name = self._open[fd]
        self.synchronised.append(name)
        if name:
            self._files[fd].synchronise()
        else:
            self._safe_names = dict(self.names)
            self._unsafe_names.clear()


def read_log(log: bytes) -> Iterator[Record]:
    """The records of a log. The last may be cut short, when the process was killed; what it says wasn't done then."""
    place = 0
    while place + _HEAD.size <= len(log):
        kind, fd, number, length = _HEAD.unpack_from(log, place)
        place += _HEAD.size + length
        if place <= len(log):
            yield Record(kind, fd, number, log[place - length : place])


def read_files(folder: Path) -> Files:
    """The files in a directory, without those of SQLite's shared memory."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


def write_files(files: Files, folder: Path) -> None:
    """Makes the directory, with the files."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def check_log(disk: Disk, records: list[Record], found: Files) -> None:
    """Fails if the log doesn't tell all that happened to the files that were found after the end of the process."""
    found = dict(found)
    if records:
        _finish(disk, records[-1], found)
    logged = disk.left(lambda: True)
    for name in found.keys() - logged.keys():
        assert not found.pop(name), f"{name} isn't in the log"  # an empty file was just made, but not written down
    different = [name for name in logged if logged[name] != found.get(name)]
    assert not different, f"the log doesn't tell all about {different}"


def apply(content: bytearray, write: Write) -> None:
    """Does what `write` says."""
    missing = write.offset - len(content)
    content.extend(bytes(max(0, missing)))
    if write.data is None:
        del content[write.offset :]
    else:
        content[write.offset : write.offset + len(write.data)] = write.data


def _finish(disk: Disk, last: Record, found: Files) -> None:
    """Does what the process may have been killed before: the last record."""
    if last.kind == b"U":
        found.pop(last.data.decode(), None)
    elif last.kind in (b"W", b"T") and disk.name_of(last.fd) in found:
        content = bytearray(found[disk.name_of(last.fd)])
        apply(content, Write(last.number, last.data if last.kind == b"W" else None))
        found[disk.name_of(last.fd)] = bytes(content)


def _name(names: dict[str, File], name: str, file: File | None) -> None:
    if file:
        names[name] = file
    else:
        names.pop(name, None)


def _sectors(write: Write) -> Iterator[Write]:
    if write.data is None:
        yield write
        return
    end = write.offset + len(write.data)
    starts = [write.offset, *range(write.offset // SECTOR * SECTOR + SECTOR, end, SECTOR)]
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        yield Write(start, write.data[start - write.offset : stop - write.offset])
