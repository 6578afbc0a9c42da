"""In the stage: which partition a row goes to, and JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from zlib import crc32

import msgspec

from streamactors.core.batch import Batch
from streamactors.core.connectors import Payload
from streamactors.core.errors import PipelineError
from streamactors.core.fields import bad_row
from streamactors.core.keys import encode_key

PART_BYTES_MAX = 8 * 1024 * 1024
"""Bytes of records in one part: one payload, which is copied and summed in one go between batches (3 ms)."""

_encode = msgspec.json.Encoder(order="deterministic").encode


def rows_by_partition(batch: Batch, partitions: int) -> dict[int, Sequence[int]]:
    """Return the rows of each partition: by key, or without keys by offset; a restart changes neither (T1, T2)."""
    if partitions == 1:
        return {0: range(len(batch))} if len(batch) else {}
    if batch.keys is not None:
        numbers = [crc32(encode_key(key)) % partitions for key in batch.keys]
    elif len(batch.offsets) == len(batch):
        numbers = [offset % partitions for offset in batch.offsets]
    else:
        raise PipelineError("rows without key and offset belong to no partition. Call key_by, or use one partition.")
    rows: dict[int, Sequence[int]] = {}
    for row, number in enumerate(numbers):
        rows.setdefault(number, []).append(row)  # type: ignore[attr-defined]  # the lists of this loop
    return rows


class JsonLinesWriter:
    """A line for each value."""

    def __init__(self, sink: str, partitions: int) -> None:
        self._sink = sink
        self._lines: list[list[bytes]] = [[] for _ in range(partitions)]
        self._bytes = 0

    def write(self, batch: Batch) -> int:
        """Take all lines of the batch, or none and say which value has none."""
        lines = [self._line(batch, row) for row in range(len(batch))]
        for partition, rows in rows_by_partition(batch, len(self._lines)).items():
            self._lines[partition] += [lines[row] for row in rows]
        self._bytes += sum(map(len, lines)) + len(lines)
        return self._bytes

    def take(self) -> list[Payload]:
        """Return a payload for each part."""
        taken, self._lines, self._bytes = self._lines, [[] for _ in self._lines], 0
        return [
            Payload(partition, b"\n".join([*part, b""]))
            for partition, lines in enumerate(taken)
            for part in _parts(lines)
        ]

    def _line(self, batch: Batch, row: int) -> bytes:
        value = batch.values[row]
        try:
            line = value if type(value) is bytes else _encode(value)
            # Bytes and msgspec.Raw come as their maker wrote them: maybe over several lines, maybe no JSON at all.
            return msgspec.json.format(line, indent=-1) if type(value) in {bytes, msgspec.Raw} else line
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise bad_row(self._sink, batch, row, f"it is no JSON ({error}). Map it to plain values first.") from error


def _parts(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    first = size = 0
    for number, line in enumerate(lines):
        if size + len(line) > PART_BYTES_MAX and number > first:
            yield lines[first:number]
            first, size = number, 0
        size += len(line)
    if first < len(lines):
        yield lines[first:]
