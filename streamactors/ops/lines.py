"""Lines of JSON: cutting input into them, and saying which are not. Pure; bytes in, lines and reasons out.

A line is what stands before a newline, without a carriage return at its end, and the text behind the last newline if
there is any. The first line may begin with a byte order mark, which is no part of it. Everything else of a line is
kept as it came.

Each line has to be one JSON value. Decoding line by line costs a call for each; ``decode_lines`` is several times as
fast, but it skips blanks and line ends like any other white space. It takes ``[1`` and ``]`` for one value, and finds
two in ``{}{}``. So both are asked: the decoder for values as they stand (``msgspec.Raw``), and the newlines for lines.

    If there are as many values as lines, and each is as long as its line, each value is its line.

For a value that began behind the first byte of its line and yet is as long as it would end at least one byte into the
next line. So would the value of that line, which begins behind it, and the next; but behind the last line there is
nothing. (And a value never ends with a newline.)

Raw values are scanned by msgspec's whole grammar, except that nobody looks whether a text is UTF-8; we do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from streamactors.core.limits import APPEND_RECORDS_MAX, RECORD_BYTES_MAX

_BOM = b"\xef\xbb\xbf"
_LINE_BYTES_KEPT = RECORD_BYTES_MAX + 2  # of one that is too long: enough to see that it is, and a carriage return

_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_raw_lines = msgspec.json.Decoder(msgspec.Raw).decode_lines
_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that can't be appended."""

    number: int
    """From 1, over the whole input."""

    reason: str

    def __str__(self) -> str:
        return f"line {self.number:,}: {self.reason}"


@dataclass(slots=True)
class Lines:
    """Some whole lines."""

    blob: bytes
    """All of them, with a newline behind each."""

    count: int
    keys: list[bytes] | None = None

    def values(self) -> list[bytes]:
        """Return each alone."""
        values = self.blob.split(b"\n")
        values.pop()
        return values

    def pieces(self) -> Iterator[Lines]:
        """Yield them in pieces that one append takes."""
        if self.count <= APPEND_RECORDS_MAX:
            if self.count:
                yield self
            return
        values = self.values()
        for start in range(0, self.count, APPEND_RECORDS_MAX):
            rows = slice(start, start + APPEND_RECORDS_MAX)
            piece = values[rows]
            yield Lines(joined(piece), len(piece), None if self.keys is None else self.keys[rows])


class Cutter:
    """Turns blocks of input into whole lines. Holds at most one unfinished line, and of that a bounded part."""

    def __init__(self) -> None:
        self._whole: list[bytes] = []
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._begun = False
        self.bytes = 0
        """Of the whole lines that ``take`` would return."""

    def feed(self, block: bytes) -> None:
        """Take the next block of the input."""
        if not self._begun:
            # A pipe may bring the three bytes of a mark one by one; so wait for them.
            block = b"".join(self._tail) + block
            self._tail, self._tail_bytes = [], 0
            if len(block) < len(_BOM) and _BOM.startswith(block):
                self._keep_tail(block)
                return
            self._begun = True
            block = block.removeprefix(_BOM)
        end = block.rfind(b"\n") + 1
        if not end:
            self._keep_tail(block)
            return
        self._whole += [*self._tail, block[:end]]
        self.bytes += self._tail_bytes + end
        self._tail, self._tail_bytes = [], 0
        self._keep_tail(block[end:])

    def end(self) -> None:
        """The input has ended: what stands behind the last newline is a line."""
        if self._tail:
            self.feed(b"\n")

    def take(self) -> bytes:
        """Return the whole lines since the last call, as they came."""
        whole, self._whole, self.bytes = b"".join(self._whole), [], 0
        return whole

    def _keep_tail(self, text: bytes) -> None:
        # The rest of a line that is too long is dropped: its beginning is enough to refuse it.
        room = _LINE_BYTES_KEPT - self._tail_bytes
        if text and room > 0:
            self._tail.append(text[:room])
            self._tail_bytes += len(self._tail[-1])


class LineChecker:
    """Says which lines are one JSON value each, and which key each has. Counts lines over the whole input."""

    def __init__(self, key_field: str | None = None) -> None:
        self._keyed: Any = None
        if key_field is not None:
            keyed = msgspec.defstruct("Keyed", [("key", Any, msgspec.field(name=key_field))])
            self._keyed = msgspec.json.Decoder(keyed)
        self.lines = 0
        """Seen so far."""

    def check(self, text: bytes) -> tuple[Lines, list[BadLine]]:
        """Return the good ones of the whole lines in *text*, and the bad ones."""
        text = _bare(text)
        first = self.lines + 1
        values = json_lines(text)
        if values is not None:
            keys = self._keys(text)
            if keys is not None or self._keyed is None:
                self.lines += len(values)
                return Lines(text, len(values), keys), []
        return self._check_each(text, first)

    def trust(self, text: bytes) -> Lines:
        """Return whole lines that were checked before."""
        text = _bare(text)
        count = text.count(b"\n")
        self.lines += count
        return Lines(text, count, self._keys(text))

    def _keys(self, text: bytes) -> list[bytes] | None:
        """Return the key of each line; None when there are no keys, or a line without one."""
        if self._keyed is None:
            return None
        try:
            return [_key_bytes(found.key) for found in self._keyed.decode_lines(text)]
        except (msgspec.MsgspecError, RecursionError):
            return None

    def _check_each(self, text: bytes, first: int) -> tuple[Lines, list[BadLine]]:
        values = text.split(b"\n")
        values.pop()
        self.lines += len(values)
        good: list[bytes] = []
        keys: list[bytes] = []
        bad: list[BadLine] = []
        for number, value in enumerate(values, first):
            reason = refused(value)
            if reason is None and self._keyed is not None:
                try:
                    keys.append(_key_bytes(self._keyed.decode(value).key))
                except (msgspec.MsgspecError, RecursionError) as error:
                    reason = f"no key: {error}"
            if reason is None:
                good.append(value)
            else:
                bad.append(BadLine(number, reason))
        return Lines(joined(good), len(good), None if self._keyed is None else keys), bad


def json_lines(text: bytes) -> list[bytes] | None:
    """Return the lines of *text* if each is one JSON value with nothing around it; see the module's header."""
    values = text.split(b"\n")
    values.pop()
    try:
        raw = _decode_raw_lines(text)
        if not text.isascii():
            text.decode()
    except (ValueError, RecursionError):  # of msgspec, and of UTF-8
        return None
    lengths = list(map(len, values))
    if list(map(len, raw)) != lengths or max(lengths, default=0) > RECORD_BYTES_MAX:
        return None
    return values


def refused(value: bytes) -> str | None:
    """Return why *value* is not one JSON value of a record's size; None when it is."""
    if len(value) > RECORD_BYTES_MAX:
        return f"more than {RECORD_BYTES_MAX:,} bytes, the most that a record may have (limits.RECORD_BYTES_MAX)"
    if not value.strip():
        return "it is blank"
    try:
        _decode_raw(value)
        value.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} (byte {error.start})"
    except RecursionError:
        return "nested too deeply to be decoded"
    except msgspec.MsgspecError as error:
        return f"not one JSON value: {error}"
    return None


def joined(values: list[bytes]) -> bytes:
    """Return *values* with a newline behind each."""
    return b"\n".join([*values, b""])


def _bare(text: bytes) -> bytes:
    # Looking for one byte is a hundred times as fast as for two, and hardly any input has it.
    return text.replace(b"\r\n", b"\n") if b"\r" in text else text


def _key_bytes(key: Any) -> bytes:
    """Return a record's key as the pipeline's topic sink writes it: text as it is, anything else as JSON."""
    return key.encode() if isinstance(key, str) else _encode(key)
