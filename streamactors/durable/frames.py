"""Frames: how an append becomes bytes, and how bytes are known to be one. Pure; offsets and bytes in, records out.

A frame is the unit of writing, of checking and of recovery: what one write call carried, whole or not there.

    header, 52 bytes     magic, version, flags, lengths, first offset, append time, count, both checksums
    extras               MessagePack: what the frame changes in the tables (tables.py); empty for most frames
    key lengths, keys    only if a record has a key
    value lengths        only if a value contains a newline
    values               each followed by a newline

Values are stored with a newline behind each, so that a frame of JSON is a JSON-lines text: it is written without work
for each record, and read by one call of a line decoder. Where no value contains a newline, boundaries need no column:
they are found by splitting. Only a frame in which some value has a newline stores lengths. Keys do the same; a record
without a key among others with one has length -1 and no bytes.

All records of a frame have one append time, that of the write: they became durable together.

A record that was erased (erasure.py) leaves a tombstone: its offset counts, it has length -1, no value and no key. A
frame with tombstones has format version 2, so that a release which knows nothing of them refuses it.

  (F1) Both checksums are seeded with the segment's random id and the frame's position. So a frame that is copied into
       a user's payload, or bytes that a disk returns from another place, do not check out.
  (F2) The header is checked before its lengths are believed, and the body's checksum stands in the header. So no
       length that a flipped bit has changed is ever used, and a body is never taken for another header's.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from zlib import crc32

from streamactors.core.connectors import Stamp
from streamactors.core.errors import StorageError, UsageError
from streamactors.core.formats import newer
from streamactors.core.limits import APPEND_RECORDS_MAX, FRAME_BYTES_MAX, RECORD_BYTES_MAX

FORMAT_VERSION = 1
ERASED_VERSION = 2  # of a frame with tombstones
MAGIC = b"\xf5SAf"  # no UTF-8 text contains its first byte
HEADER = struct.Struct("<4sBBHqqIIIIIII")
HEADER_BYTES = HEADER.size
CHECKSUM_BYTES = 4

__all__ = ["Column", "FrameHeader", "Records", "Stamp"]  # Stamp: what a sink's commit leaves in a frame (E2)

VALUE_LENGTHS = 1  # some value contains a newline
KEYS = 2  # some record has a key
KEY_LENGTHS = 4  # some key contains a newline, or is missing
NO_EMPTY_LINE = 8  # no value is empty: a line decoder, which skips empty lines, meets each value
ERASED = 16  # some record is a tombstone


def line_count(blob: bytes) -> int:
    """Return how many newlines *blob* has. Cost: 25 ns for a line of 200 bytes, a sixth of ``blob.count``.

    Searching and copying run at the speed of memory; counting a single byte goes byte by byte.
    """
    return len(blob) - len(blob.replace(b"\n", b""))


@dataclass(slots=True)
class Column:
    """
    One column of bytes: each value followed by a newline.

    Not changed once made, like all in this file. (A frozen dataclass takes four times as long to make, and reading a
    frame of one record makes three.)
    """

    count: int
    blob: bytes
    lengths: array[int] | None
    """Bytes of each value, -1 for None. None for all: no value contains a newline and none is missing."""
    nonempty: bool
    """Every value is there and has bytes."""

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> Column:
        """Build a column; boundaries are stored only if they can't be found by splitting."""
        nonempty = all(values)
        present: list[bytes] = [value for value in values if value is not None] if not nonempty else list(values)  # type: ignore[arg-type]
        blob = b"\n".join([*present, b""])
        lengths = None
        if len(present) < len(values) or line_count(blob) != len(values):
            lengths = array("i", [-1 if value is None else len(value) for value in values])
        return cls(len(values), blob, lengths, nonempty)

    def values(self) -> list[bytes | None]:
        """Return the values. Cost: one pass in C without lengths, a slice for each value with them."""
        if self.lengths is None:
            values = self.blob.split(b"\n")
            values.pop()
            return values  # type: ignore[return-value]  # a list of bytes is read as a list of bytes | None
        blob = self.blob
        starts = accumulate((length + 1 for length in self.lengths), initial=0)
        return [None if end == start else blob[start : end - 1] for start, end in pairwise(starts)]

    @classmethod
    def join(cls, columns: Sequence[Column]) -> Column:
        """Return one column with the values of all, in order."""
        if len(columns) == 1:
            return columns[0]
        lengths = None
        if any(column.lengths is not None for column in columns):
            lengths = array("i")
            for column in columns:
                lengths.extend(column.lengths if column.lengths is not None else map(len, column.values()))  # type: ignore[arg-type]
        return cls(
            sum(column.count for column in columns),
            b"".join([column.blob for column in columns]),
            lengths,
            all(column.nonempty for column in columns),
        )


@dataclass(slots=True)
class Records:
    """The columns of an append, and of what is read."""

    column: Column
    key_column: Column | None = None

    @classmethod
    def of(cls, values: Sequence[bytes], keys: Sequence[bytes | None] | None = None) -> Records:
        """
        Build the columns of 1 to ``limits.APPEND_RECORDS_MAX`` records.

        Raises:
            UsageError: too many records, one that is too large, or another number of keys than of values.
        """
        return cls(_checked(Column.of(values)), _key_column(keys, len(values)))

    @classmethod
    def from_lines(cls, blob: bytes, count: int, keys: Sequence[bytes | None] | None = None) -> Records:
        """
        Take *count* values that are already in the log's form: each without a newline, and followed by one.

        Cost: two passes in C over *blob*, nothing in Python for each record.
        """
        lines = blob.split(b"\n")
        unfinished = lines.pop()
        if unfinished or len(lines) != count:
            raise UsageError(
                f"{len(blob):,} bytes were said to be {count:,} lines; they are {len(lines):,}, and {len(unfinished)} "
                "bytes behind the last newline. End each value with a newline; Records.of() takes any values."
            )
        return cls(_checked(Column(count, blob, None, all(lines))), _key_column(keys, count))

    @classmethod
    def from_json_lines(cls, blob: bytes, count: int, keys: Sequence[bytes | None] | None = None) -> Records:
        """
        Take what ``msgspec.json.Encoder().encode_lines`` made of *count* values, without looking through it.

        JSON of that encoder contains no newline and is never empty. Of anything else that is not so, the records would
        have the wrong boundaries: use ``from_lines``. Cost: nothing for each record.
        """
        if not blob.endswith(b"\n"):
            raise UsageError(f"{len(blob):,} bytes of JSON lines don't end with a newline; encode_lines() ends so.")
        return cls(_checked(Column(count, blob, None, nonempty=True)), _key_column(keys, count))

    @property
    def count(self) -> int:
        """How many records."""
        return self.column.count

    @property
    def size(self) -> int:
        """Bytes in a frame, about."""
        lengths = 4 * self.count if self.column.lengths is not None else 0
        keys = len(self.key_column.blob) + 4 * self.count if self.key_column is not None else 0
        return len(self.column.blob) + lengths + keys

    def without(self, rows: Collection[int]) -> Records:
        """Return the same records with tombstones for those at *rows*."""
        values, keys = self.column.values(), None if self.key_column is None else self.key_column.values()
        for row in rows:
            values[row] = None
            if keys is not None:
                keys[row] = None
        return Records(Column.of(values), Column.of(keys) if keys is not None and any_there(keys) else None)

    @classmethod
    def join(cls, parts: Sequence[Records]) -> Records:
        """Return the records of all *parts*, in order."""
        if len(parts) == 1:
            return parts[0]
        keys = None
        if any(part.key_column is not None for part in parts):
            keys = Column.join([part.key_column or _no_keys(part.count) for part in parts])
        return cls(Column.join([part.column for part in parts]), keys)


NOTHING = Records(Column(0, b"", None, True))
"""The records of a frame that only changes tables."""


def _no_keys(count: int) -> Column:
    return Column(count, b"", array("i", [-1]) * count, False)


def _key_column(keys: Sequence[bytes | None] | None, count: int) -> Column | None:
    if keys is None:
        return None
    if len(keys) != count:
        raise UsageError(f"{len(keys)} keys for {count} values. Give each value a key (None for none), or no keys.")
    return _checked(Column.of(keys)) if any_there(keys) else None


def any_there(values: Iterable[bytes | None]) -> bool:
    """Return whether some value is not None."""
    return any(value is not None for value in values)


def _checked(column: Column) -> Column:
    if not 1 <= column.count <= APPEND_RECORDS_MAX:
        raise UsageError(
            f"an append of {column.count:,} records, nothing was written. Give it 1 to {APPEND_RECORDS_MAX:,} "
            "(limits.APPEND_RECORDS_MAX), and split what is more."
        )
    if len(column.blob) > RECORD_BYTES_MAX:
        largest = max(column.lengths if column.lengths is not None else map(len, column.blob.split(b"\n")))
        if largest > RECORD_BYTES_MAX:
            raise UsageError(
                f"a record of {largest:,} bytes exceeds the limit of {RECORD_BYTES_MAX:,} (limits.RECORD_BYTES_MAX), "
                "nothing was written. Store it elsewhere and put its name into the log."
            )
    if len(column.blob) + 4 * column.count > FRAME_BYTES_MAX // 2:
        raise UsageError(
            f"an append of {len(column.blob):,} bytes, nothing was written. Split it so that its values, and its keys, "
            f"have at most {FRAME_BYTES_MAX // 2:,} (half of limits.FRAME_BYTES_MAX)."
        )
    return column


@dataclass(slots=True)
class FrameHeader:
    """A frame's header, checked."""

    first: int  # offset of its first record
    time: int  # append time of its records, ms
    count: int  # records; 0 in a frame that only changes tables
    flags: int
    extras: int  # bytes of each section
    keys: int
    values: int
    body_checksum: int
    seed: int  # of both checksums (F1)
    length: int  # bytes of the whole frame
    end: int  # offset behind its last record


def encode_frame(records: Records, *, first: int, time: int, extras: bytes, segment: bytes, position: int) -> bytes:
    """Return the bytes of a frame that will stand at *position* of the segment with id *segment*."""
    values, keys = records.column, records.key_column
    flags = NO_EMPTY_LINE if values.lengths is None and values.nonempty else 0
    sections = [extras]
    if keys is not None:
        flags |= KEYS
        if keys.lengths is not None:
            flags |= KEY_LENGTHS
            sections.append(_little_endian(keys.lengths).tobytes())
        sections.append(keys.blob)
    if values.lengths is not None:
        flags |= VALUE_LENGTHS
        sections.append(_little_endian(values.lengths).tobytes())
        if -1 in values.lengths:
            flags |= ERASED
    sections.append(values.blob)

    version = ERASED_VERSION if flags & ERASED else FORMAT_VERSION
    seed = _seed(segment, position)
    body_checksum = seed
    for section in sections:
        body_checksum = crc32(section, body_checksum)
    sizes = (len(extras), 0 if keys is None else len(keys.blob), len(values.blob))
    checked = HEADER.pack(MAGIC, version, flags, 0, first, time, records.count, *sizes, body_checksum, 0, 0)
    return b"".join([_sealed(checked, seed), *sections])


def move_frame(header: FrameHeader, data: bytes, at: int, *, segment: bytes, position: int) -> bytes:
    """Return the frame at ``data[at:]``, which checks out, as it stands at *position* of another segment (F1)."""
    seed = _seed(segment, position)
    body = data[at + HEADER_BYTES : at + header.length]
    *fields, _, _, _ = HEADER.unpack_from(data, at)
    return _sealed(HEADER.pack(*fields, crc32(body, seed), 0, 0), seed) + body


def _sealed(header: bytes, seed: int) -> bytes:
    header = header[:-CHECKSUM_BYTES]
    return header + crc32(header, seed).to_bytes(CHECKSUM_BYTES, "little")


def decode_header(data: bytes, at: int, segment: bytes, position: int) -> FrameHeader | None:
    """Return the header at ``data[at:]`` if it is that of a frame at *position* (F1), else None."""
    if len(data) - at < HEADER_BYTES or data[at : at + len(MAGIC)] != MAGIC:
        return None
    seed = _seed(segment, position)
    _, version, flags, _, first, time, count, extras, keys, values, body, _, checksum = HEADER.unpack_from(data, at)
    if crc32(data[at : at + HEADER_BYTES - CHECKSUM_BYTES], seed) != checksum:
        return None
    if version not in (FORMAT_VERSION, ERASED_VERSION):
        raise StorageError(newer(f"a frame at position {position}", version, ERASED_VERSION))
    length = HEADER_BYTES + extras + keys + values
    if flags & (VALUE_LENGTHS | KEY_LENGTHS):
        length += 4 * count * (bool(flags & VALUE_LENGTHS) + bool(flags & KEY_LENGTHS))
    return FrameHeader(first, time, count, flags, extras, keys, values, body, seed, length, first + count)


def body_checks_out(header: FrameHeader, data: bytes, at: int) -> bool:
    """Return whether the frame at ``data[at:]`` is there to its last byte, as it was written."""
    end = at + header.length
    if end > len(data):
        return False
    return crc32(memoryview(data)[at + HEADER_BYTES : end], header.seed) == header.body_checksum


def decode_records(header: FrameHeader, data: bytes, at: int) -> Records:
    """Return the records of a frame whose body checks out. Cost: one copy of its bytes."""
    at += HEADER_BYTES + header.extras
    nonempty = bool(header.flags & NO_EMPTY_LINE)
    if not header.flags & (KEYS | VALUE_LENGTHS):
        return Records(Column(header.count, data[at : at + header.values], None, nonempty))
    key_column = None
    if header.flags & KEYS:
        lengths, at = _lengths(header, KEY_LENGTHS, data, at)
        key_column = Column(header.count, data[at : at + header.keys], lengths, False)
        at += header.keys
    lengths, at = _lengths(header, VALUE_LENGTHS, data, at)
    return Records(Column(header.count, data[at : at + header.values], lengths, nonempty), key_column)


def decode_extras(header: FrameHeader, data: bytes, at: int) -> bytes:
    """Return what the frame changes in the tables, encoded."""
    return data[at + HEADER_BYTES : at + HEADER_BYTES + header.extras]


def _lengths(header: FrameHeader, flag: int, data: bytes, at: int) -> tuple[array[int] | None, int]:
    if not header.flags & flag:
        return None, at
    end = at + 4 * header.count
    return _little_endian(array("i", data[at:end])), end


def _seed(segment: bytes, position: int) -> int:
    return crc32(segment + position.to_bytes(8, "little"))


def _little_endian(lengths: array[int]) -> array[int]:
    if sys_is_little_endian:
        return lengths
    swapped = lengths[:]
    swapped.byteswap()
    return swapped


sys_is_little_endian = struct.pack("=I", 1) == struct.pack("<I", 1)
