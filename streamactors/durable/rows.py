"""How keys and values of operators and views become rows of LMDB, and back.

    state    key = key group (2 bytes) + namespace + encoded key        value = checksum + MessagePack
    view     key = encoded key                                          value = the same

A namespace is one tag byte, then nothing (None) or 8 bytes (an int, biased so that bytes order as numbers do). No
namespace is the prefix of another, so that dropping one by prefix meets no row of another.

LMDB takes keys of 1 to 511 bytes. A longer one is stored as LONG + its digest, and the encoded key stands in front of
the value. LONG is 0xc1, the one byte with which no MessagePack value begins, so the two forms can't be confused.

Rows of one group and namespace stand in the order of their encoded keys, long ones last.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any
from zlib import crc32

from streamactors.core.codec import decode_value, encode_value, seal, unseal
from streamactors.core.errors import Damaged
from streamactors.core.keys import CanonicalKey, Key, encode_key
from streamactors.core.limits import KEY_GROUPS, LMDB_KEY_BYTES_MAX

Namespace = int | None
Row = tuple[bytes, bytes]

LONG = b"\xc1"
_LONG_BYTE = LONG[0]
_DIGEST_BYTES = 32
_HEAD_BYTES_MAX = 11
_BIAS = 1 << 63
GROUP_BYTES: tuple[bytes, ...] = tuple(group.to_bytes(2, "big") for group in range(KEY_GROUPS))


def namespace_bytes(namespace: Namespace) -> bytes:
    """Return the part of a state row's key that tells its namespace."""
    return b"\x00" if namespace is None else b"\x01" + (namespace + _BIAS).to_bytes(8, "big")


def row_key(head: bytes, encoded: bytes) -> bytes:
    """Return the key under which LMDB keeps the encoded key *encoded*; *head* is what stands in front of it."""
    if len(head) + len(encoded) <= LMDB_KEY_BYTES_MAX:
        return head + encoded
    return head + LONG + blake2b(encoded, digest_size=_DIGEST_BYTES).digest()


def encode_keys(keys: list[CanonicalKey]) -> list[bytes]:
    """Return a column of canonical keys, encoded. Cost: one pass in C unless there are Keys among them."""
    if Key in set(map(type, keys)):
        return list(map(encode_key, keys))
    return list(map(encode_value, keys))


def encode_rows(heads: Iterable[bytes], keys: list[bytes], values: list[Any]) -> list[Row]:
    """Return the rows that hold *values* under the encoded keys *keys*, each behind its head."""
    if max(map(len, keys), default=0) + _HEAD_BYTES_MAX > LMDB_KEY_BYTES_MAX:
        return list(map(_row, heads, keys, values))
    # As below, without a call of ours for each row: at a checkpoint this is the event loop's time.
    return [
        (head + key, crc32(payload).to_bytes(4, "big") + payload)
        for head, key, payload in zip(heads, keys, map(encode_value, values), strict=False)
    ]


def read_rows(database: str, head: int, rows: list[Row]) -> list[tuple[bytes, Any]]:
    """Return encoded key and value of each row; *head* is the length of what stands in front of the keys."""
    found = [
        (key[head:], decode_value(sealed[4:]))
        for key, sealed in rows
        if key[head] != _LONG_BYTE and crc32(sealed[4:]) == int.from_bytes(sealed[:4], "big")
    ]
    if len(found) < len(rows):  # long keys among them, or damage
        return [read_row(database, head, key, sealed) for key, sealed in rows]
    return found


def read_row(database: str, head: int, key: bytes, sealed: bytes) -> tuple[bytes, Any]:
    """Return the encoded key and the value of a row; *head* is the length of what stands in front of the key."""
    payload = unseal(sealed, f"database {database}, key {key.hex()}")
    encoded = key[head:]
    if encoded[:1] == LONG:
        end = 4 + int.from_bytes(payload[:4], "big")
        encoded, payload = payload[4:end], payload[end:]
        if row_key(key[:head], encoded) != key:
            raise Damaged(
                f"database {database}, key {key.hex()}: the row holds the value of another key. The folder was written "
                "by something else; restore it from a copy, or start again from the log."
            )
    return encoded, decode_value(payload)


def _row(head: bytes, encoded: bytes, value: Any) -> Row:
    """Return key and value of the row that holds *value*."""
    key, payload = row_key(head, encoded), encode_value(value)
    if key[len(head) : len(head) + 1] == LONG:
        payload = len(encoded).to_bytes(4, "big") + encoded + payload
    return key, seal(payload)
