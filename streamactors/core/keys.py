"""Keys: which records belong together, and where a key lives.

A key is None, a bool, an int, a float, a str, bytes, or a tuple or list of those. Keys are told apart by their
*encoding* (MessagePack, deterministic), not by Python's ``==``: 1, 1.0 and True are three keys. A dict would take
them for one, therefore a ``keys`` column holds *canonical* keys:

    str and int        as they are (they never collide with each other)
    anything else      a Key: the encoding is the identity, the value comes back decoded from it

so that hot dicts stay at the speed of plain str and int, and a key looks the same to the user before and after it has
been in a store (a list key is a tuple both times).

The key group (0 to KEY_GROUPS - 1, CRC-32 of the encoding) decides the part that owns a key. Python's own ``hash()``
is salted per process and decides nothing that lasts.
"""

from __future__ import annotations

from operator import countOf
from typing import Any
from zlib import crc32

import msgspec

from .errors import PipelineError
from .limits import KEY_GROUPS

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = msgspec.msgpack.Decoder().decode
_SCALARS = (type(None), bool, int, float, str, bytes)
_PLAIN = (str, int)
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1  # what MessagePack holds


class Key:
    """A canonical key that is neither str nor int; equal when its encoding is equal."""

    __slots__ = ("_hash", "encoded")

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded
        self._hash = hash(encoded)

    @property
    def value(self) -> Any:
        """The user's key, decoded; arrays come back as tuples."""
        return _tuples(_decode(self.encoded))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return type(other) is Key and other.encoded == self.encoded

    def __repr__(self) -> str:
        return f"Key({self.value!r})"


CanonicalKey = str | int | Key


def canonical_keys(keys: list[Any]) -> list[CanonicalKey]:
    """Return a column of canonical keys. Cost: one pass in C when all are str, or all are int."""
    kind = type(keys[0]) if keys else str
    same = kind in _PLAIN and countOf(map(type, keys), kind) == len(keys)
    if same and (_is_unicode("".join(keys)) if kind is str else min(keys) >= _INT_MIN and max(keys) <= _INT_MAX):
        return keys
    return list(map(canonical_key, keys))


def canonical_key(key: Any) -> CanonicalKey:
    """Return the canonical form of one key, or refuse it."""
    kind = type(key)
    if kind is Key or (_is_unicode(key) if kind is str else kind is int and _INT_MIN <= key <= _INT_MAX):
        return key  # type: ignore[no-any-return]  # narrowed by the line above, which mypy can't see
    try:
        _check_key(key)
        return Key(_encode(key))
    except RecursionError:
        raise PipelineError("a key nests too many tuples. Return a flat one from key_by().") from None


def encode_key(key: CanonicalKey) -> bytes:
    """Return the canonical encoding of a canonical key."""
    return key.encoded if type(key) is Key else _encode(key)


def decode_key(encoded: bytes) -> CanonicalKey:
    """Return the canonical key that *encoded* stands for."""
    value = _decode(encoded)
    kind = type(value)
    return value if kind is str or kind is int else Key(encoded)


def plain_key(key: CanonicalKey) -> Any:
    """Return the key as the user wrote it."""
    return key.value if type(key) is Key else key


def plain_keys(keys: list[CanonicalKey]) -> list[Any]:
    """Return a column of keys as the user wrote them."""
    return [key.value if type(key) is Key else key for key in keys]


def key_group(encoded: bytes) -> int:
    """Return the key group of an encoded key: stable over processes, machines and releases."""
    return crc32(encoded) % KEY_GROUPS


def _is_unicode(text: str) -> bool:
    """Return whether *text* can be encoded: Python's ``json`` lets a lone surrogate in. Cost: 4 ns a key of ASCII."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_key(key: Any) -> None:
    if isinstance(key, tuple | list):
        for item in key:
            _check_key(item)
    elif type(key) is int and not _INT_MIN <= key <= _INT_MAX:
        raise PipelineError(f"the key {key} does not fit into 64 bits. Return it as text from key_by().")
    elif type(key) is str and not _is_unicode(key):
        raise PipelineError(f"the key {key!r} is no Unicode text: it has half a surrogate pair. Return other text.")
    elif type(key) not in _SCALARS:
        raise PipelineError(
            f"{key!r} of type {type(key).__name__} can't be a key: keys are None, bool, int, float, str, bytes, "
            "or tuples of those. Return one of them from key_by()."
        )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
