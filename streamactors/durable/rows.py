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

from hashlib import blake2b
from typing import Any

from streamactors.core.codec import decode_value, encode_value, seal, unseal
from streamactors.core.errors import Damaged
from streamactors.core.limits import KEY_GROUPS, LMDB_KEY_BYTES_MAX

Namespace = int | None

LONG = b"\xc1"
_DIGEST_BYTES = 32
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


def row(head: bytes, encoded: bytes, value: Any) -> tuple[bytes, bytes]:
    """Return key and value of the row that holds *value*."""
    key, payload = row_key(head, encoded), encode_value(value)
    if key[len(head) : len(head) + 1] == LONG:
        payload = len(encoded).to_bytes(4, "big") + encoded + payload
    return key, seal(payload)


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
