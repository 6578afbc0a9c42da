"""How values become bytes: MessagePack in state and views, with a CRC-32 of our own in front.

LMDB's pages carry no checksum, so each stored value brings one: a flipped bit is an error with a name instead of a
wrong count. No pickle: a stored value can hold data, never code. Encodings are deterministic, so that equal values
have equal bytes (T1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

import msgspec

from .errors import Damaged

encode_value: Callable[[Any], bytes] = msgspec.msgpack.Encoder(order="deterministic").encode
decode_value: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode

CHECKSUM_BYTES = 4


def seal(payload: bytes, more: bytes = b"") -> bytes:
    """Return *payload*, and *more* right behind it, behind their checksum. Cost: one pass, and one copy."""
    return b"".join([crc32(more, crc32(payload)).to_bytes(CHECKSUM_BYTES, "big"), payload, more])


def unseal(sealed: bytes, what: str) -> bytes:
    """Return the payload of *sealed*, or say that *what* is damaged."""
    payload = sealed[CHECKSUM_BYTES:]
    if crc32(payload).to_bytes(CHECKSUM_BYTES, "big") != sealed[:CHECKSUM_BYTES]:
        raise Damaged(
            f"{what}: the stored checksum does not match its {len(payload)} bytes. The disk returned other bytes than "
            "were written; restore the folder from a copy, or start again from the log."
        )
    return payload


def bytes_head(size: int) -> bytes:
    """Return what stands in front of *size* bytes in MessagePack: so that large ones need not go through an encoder."""
    if size < 1 << 8:
        return b"\xc4" + size.to_bytes(1, "big")
    return b"\xc5" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xc6" + size.to_bytes(4, "big")
