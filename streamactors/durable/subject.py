"""Whose data it is: one key, in the forms in which topics, state and views hold it. Pure.

The key is given as text, and what people write is not what programs keep: ``1234`` stands in a topic as the bytes 1234,
and in state as the number or as the text. A person is the same in all of them, so all forms are looked for:

    the text; a whole number, if the text is one; a list, if the text is one in JSON

A record is the key's when its own key is one of the forms, or when a named field of its value is. A row of state or of
a view is the key's when it stands under one of the forms, or under a list that begins with one, such as
``[key, window start]``. A list that has it further behind (``[quiz, person]``) may be somebody else's as well; it is
taken only on demand (``anywhere``).

What only *mentions* the key is not deleted, but told: text of at least MENTION_BYTES_MIN, since less is in everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from streamactors.core.codec import encode_value
from streamactors.core.errors import UsageError
from streamactors.core.keys import CanonicalKey, plain_key

MENTION_BYTES_MIN = 4
"""Bytes of a key that are looked for in what nobody decodes: three letters would be found in anything."""

_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_KINDS = (str, int, list, tuple)

_decode_json = msgspec.json.Decoder().decode
_decode_msgpack = msgspec.msgpack.Decoder(strict=True).decode


@dataclass(frozen=True, slots=True)
class Subject:
    """One key. Made by ``subject``."""

    forms: frozenset[bytes]
    """MessagePack of each."""

    record_keys: frozenset[bytes]
    fields: tuple[str, ...]
    """Fields of a record's value that may hold it."""

    anywhere: bool
    needle: bytes | None
    """What mentions of it contain; None: too short to be told from anything else."""

    def is_form(self, value: Any) -> bool:
        """Return whether *value* is the key."""
        return type(value) in _KINDS and encode_value(value) in self.forms

    def has_key(self, key: Any) -> bool:
        """Return whether what is stored under the plain key *key* is the key's."""
        if self.is_form(key):
            return True
        if not isinstance(key, list | tuple) or not key:
            return False
        return any(map(self.has_key, key)) if self.anywhere else self.has_key(key[0])

    def has_canonical(self, key: CanonicalKey) -> bool:
        """Return whether what is stored under the canonical key *key* is the key's."""
        return self.has_key(plain_key(key))

    def has_record(self, key: bytes | None, value: bytes) -> bool:
        """Return whether a record is the key's."""
        if key is not None and (key in self.record_keys or (key[:1] == b"[" and self.has_key(_decoded(key)))):
            return True
        return bool(self.fields) and self.has_value(_decoded(value))

    def has_value(self, value: Any) -> bool:
        """Return whether a decoded value is the key's, by its fields."""
        return isinstance(value, dict) and any(self.is_form(value.get(field)) for field in self.fields)

    def is_mentioned(self, data: bytes) -> bool:
        """Return whether *data* contains the key's text."""
        return self.needle is not None and self.needle in data


def subject(text: str, *, fields: Sequence[str] = (), anywhere: bool = False) -> Subject:
    """Return the subject that *text* names; see the module's header."""
    if not text:
        raise UsageError("an empty text is nobody's key. Give the key whose data is to go.")
    values: list[Any] = [text]
    record_keys = {text.encode()}
    if _NUMBER.fullmatch(text) and -(2**63) <= int(text) < 2**64:
        values.append(int(text))
    elif text.startswith("[") and isinstance(parsed := _decoded(text.encode()), list):
        values.append(parsed)
        record_keys.add(msgspec.json.encode(parsed))
    needle = text.encode()
    return Subject(
        forms=frozenset(map(encode_value, values)),
        record_keys=frozenset(record_keys),
        fields=tuple(fields),
        anywhere=anywhere,
        needle=needle if len(needle) >= MENTION_BYTES_MIN and len(values) == 1 else None,
    )


def _decoded(data: bytes) -> Any:
    """Return a value as it stands in a topic: JSON, else MessagePack; None when it is neither."""
    for decode in (_decode_json, _decode_msgpack):
        try:
            return decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return None
