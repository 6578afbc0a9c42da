"""Savepoints as bytes: one epoch of a job in a form that depends on no page layout and on no machine. Pure.

    head          8 bytes    MAGIC
                  4 bytes    format version
                  4 bytes    CRC-32 of the 12 bytes before
    blocks        1 byte     kind
                  4 bytes    length of the payload
                  4 bytes    CRC-32 of position, kind, length and payload
                  payload    MessagePack
    end           a block of its own kind: what there was, by database
                  32 bytes   BLAKE2b-256 of all bytes before
                  nothing

Numbers are big-endian. The kinds of blocks, in the order in which they stand:

    HEAD       one: whose it is, and where its regions stand
    ROWS       [database, [key, value, key, value, ...]], keys ascending in each database. Keys and values are those of
               durable/rows.py, values with their checksums
    JOURNAL    [region, epoch, entries], in order
    END        {database: [rows, bytes]}

  (F1) A reader that came to the end has seen the very bytes that were written: each block is checked where it stands
       (its checksum is seeded with its position, so that a block which moved is damage too), all of them together by
       the digest. Whoever makes something of a savepoint keeps it to himself until he came to the end.
  (F2) Damage has a place: the error names the file, and the position of the block that does not check out.
  (F3) The number of blocks, not the size of what they hold, decides how much is in memory.

The format version is raised when an older reader would misread a file; one that is newer than this release is refused.
The files in tests/golden/ were written by each release, and every later one reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from struct import Struct as Packed
from typing import Any
from zlib import crc32

import msgspec

from streamactors.core.codec import encode_value
from streamactors.core.errors import Damaged, UsageError
from streamactors.core.formats import newer

from .rows import Row

MAGIC = b"SAVEPNT\n"
FORMAT = 1
BLOCK_BYTES_MAX = 1 << 30
"""Bytes of a block. A length beyond it is damage, so that a flipped bit never asks for the memory of a length."""

HEAD, ROWS, JOURNAL, END = 1, 2, 3, 4

_FILE = Packed(">8sII")
_BLOCK = Packed(">BII")
_CHECKED = Packed(">QBI")
_DIGEST_BYTES = 32

Counts = dict[str, list[int]]
"""[rows, bytes of keys and values] by database."""


class RegionHead(msgspec.Struct):
    """Where one region stands."""

    epoch: int
    attempt: int
    created_ms: int
    position: Any
    """As the checkpoint has it."""


class SavepointHead(msgspec.Struct):
    """Whose savepoint it is."""

    job: str
    version: str
    incarnation: str
    created_ms: int
    release: str
    guarantee: str | None
    plan: Any
    """What the operators kept: as ``Store.plan``."""

    regions: dict[str, RegionHead]


class JournalBlock(msgspec.Struct, array_like=True):
    """Entries of a region's journal, up to those of *epoch*."""

    region: str
    epoch: int
    entries: list[Any]


class RowsBlock(msgspec.Struct, array_like=True):
    """Rows of one database."""

    database: str
    flat: list[bytes]

    @property
    def rows(self) -> list[Row]:
        """Return (key, value) of each row."""
        return list(zip(self.flat[::2], self.flat[1::2], strict=True))


Block = RowsBlock | JournalBlock

_TYPES: dict[int, Any] = {HEAD: SavepointHead, ROWS: RowsBlock, JOURNAL: JournalBlock, END: Counts}
_DECODE = {kind: msgspec.msgpack.Decoder(found).decode for kind, found in _TYPES.items()}


class SavepointEncoder:
    """Hand the bytes of a savepoint to *write*, in order: ``head``, then ``rows`` and ``journal``, then ``end``."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._digest = blake2b(digest_size=_DIGEST_BYTES)
        self.position = 0
        self.counts: Counts = {}

    def head(self, head: SavepointHead) -> None:
        """Say whose it is."""
        checked = _FILE.pack(MAGIC, FORMAT, 0)[:-4]
        self._put(checked + crc32(checked).to_bytes(4, "big"))
        self._block(HEAD, encode_value(head))

    def rows(self, database: str, rows: Sequence[Row]) -> None:
        """Add rows of a database."""
        flat = list(chain.from_iterable(rows))
        self._count(database, len(rows), sum(map(len, flat)))
        self._block(ROWS, encode_value([database, flat]))

    def journal(self, region: str, epoch: int, entries: list[Any]) -> None:
        """Add entries of a region's journal."""
        payload = encode_value([region, epoch, entries])
        self._count(f"journal:{region}", len(entries), len(payload))
        self._block(JOURNAL, payload)

    def end(self) -> None:
        """Complete it."""
        self._block(END, encode_value(self.counts))
        self._put(self._digest.digest())

    def _count(self, database: str, rows: int, size: int) -> None:
        counts = self.counts.setdefault(database, [0, 0])
        counts[0] += rows
        counts[1] += size

    def _block(self, kind: int, payload: bytes) -> None:
        assert len(payload) <= BLOCK_BYTES_MAX, f"a block of {len(payload):,} bytes"
        checked = crc32(payload, crc32(_CHECKED.pack(self.position, kind, len(payload))))
        self._put(_BLOCK.pack(kind, len(payload), checked) + payload)

    def _put(self, data: bytes) -> None:
        self._write(data)
        self._digest.update(data)
        self.position += len(data)


class SavepointDecoder:
    """Read a savepoint from *read* (offset, size), which has *size* bytes; *where* names it in errors."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, where: str) -> None:
        self._read = read
        self._size = size
        self._where = where
        self._digest = blake2b(digest_size=_DIGEST_BYTES)
        self._position = 0
        self.counts: Counts = {}
        """What it holds, by database; known at the end, as the digest is."""

        self.digest = ""
        """Of all of it, in hex."""

        self._begin()
        kind, head = self._block()
        if kind != HEAD:
            raise self._damaged(_FILE.size, f"begins with a block of kind {kind}")
        self.head: SavepointHead = head

    def blocks(self) -> Iterator[Block]:
        """Yield the rest, each checked; what comes to the end has seen all that was written (F1)."""
        counts: Counts = {}
        while True:
            start = self._position
            kind, block = self._block()
            match kind, block:
                case 2, RowsBlock(database, flat) if len(flat) % 2 == 0:
                    _add(counts, database, len(flat) // 2, sum(map(len, flat)))
                    yield block
                case 3, JournalBlock():
                    size = self._position - start - _BLOCK.size
                    _add(counts, f"journal:{block.region}", len(block.entries), size)
                    yield block
                case 4, _:
                    self._end(start, counts, block)
                    return
                case _:
                    raise self._damaged(start, f"has a block of kind {kind} where none may be")

    def _begin(self) -> None:
        data = self._take(_FILE.size, "its head")
        magic, version, checked = _FILE.unpack(data)
        if magic != MAGIC:
            raise UsageError(f"{self._where} is no savepoint: it begins with {magic!r}, one begins with {MAGIC!r}.")
        if crc32(data[:-4]) != checked:
            raise self._damaged(0, "has a head that does not check out")
        if version > FORMAT:
            raise UsageError(newer(self._where, version, FORMAT))

    def _block(self) -> tuple[int, Any]:
        start = self._position
        kind, length, checked = _BLOCK.unpack(self._take(_BLOCK.size, "the head of a block"))
        if length > BLOCK_BYTES_MAX or kind not in _TYPES:
            raise self._damaged(start, f"has a block of kind {kind} and {length:,} bytes")
        payload = self._take(length, f"a block of {length:,} bytes")
        if crc32(payload, crc32(_CHECKED.pack(start, kind, length))) != checked:
            raise self._damaged(start, f"has a block of {length:,} bytes that does not check out")
        try:
            return kind, _DECODE[kind](payload)
        except msgspec.MsgspecError as error:
            raise self._damaged(start, f"has a block that means nothing ({error})") from error

    def _end(self, start: int, counts: Counts, stored: Counts) -> None:
        if counts != stored:
            raise self._damaged(start, f"holds {counts}, and says that it holds {stored}")
        self.counts = counts
        digest, at = self._digest.digest(), self._position
        if self._take(_DIGEST_BYTES, "its digest") != digest:
            raise self._damaged(at, "has another digest than what stands before it")
        if self._position != self._size:
            raise self._damaged(self._position, f"goes on behind its end, for {self._size - self._position:,} bytes")
        self.digest = digest.hex()

    def _take(self, size: int, what: str) -> bytes:
        data = self._read(self._position, size)
        if len(data) < size:
            raise self._damaged(self._position, f"was cut at {self._size:,} bytes, inside {what}")
        self._digest.update(data)
        self._position += size
        return data

    def _damaged(self, position: int, why: str) -> Damaged:
        return Damaged(
            f"{self._where}, position {position:,}: the savepoint {why}. Nothing was made of it. Take a copy."
        )


def _add(counts: Counts, database: str, rows: int, size: int) -> None:
    found = counts.setdefault(database, [0, 0])
    found[0] += rows
    found[1] += size
