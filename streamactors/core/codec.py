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


def seal(payload: bytes) -> bytes:
    """Return *payload* behind its checksum."""
    return crc32(payload).to_bytes(4, "big") + payload


def unseal(sealed: bytes, what: str) -> bytes:
    """Return the payload of *sealed*, or say that *what* is damaged."""
    payload = sealed[4:]
    if crc32(payload).to_bytes(4, "big") != sealed[:4]:
        raise Damaged(
            f"{what}: the stored checksum does not match its {len(payload)} bytes. The disk returned other bytes than "
            "were written; restore the folder from a copy, or start again from the log."
        )
    return payload
