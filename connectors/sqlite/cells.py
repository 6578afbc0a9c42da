"""What SQLite stores without changing it: names, values, keys. Pure; what it would change is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from streamactors.core.keys import CanonicalKey, plain_key

_COLUMNS_MAX = 2_000  # SQLite's own default limit
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_json = msgspec.json.Encoder(order="deterministic").encode


def quoted(name: str) -> str:
    """Return *name* as an identifier of SQL, whatever is in it."""
    if not name or "\0" in name:
        raise ValueError(f"{name!r} can't be the name of a table or column")
    name.encode()  # a text that is no Unicode is a ValueError too
    return '"' + name.replace('"', '""') + '"'


def folded(name: str) -> str:
    """Return *name* as SQLite compares names: A to Z are a to z, anything else is itself."""
    return "".join(character.lower() if character.isascii() else character for character in name)


def require_distinct(names: Sequence[str]) -> None:
    """Refuse names that SQLite takes for one, or more columns than it takes."""
    if len(names) > _COLUMNS_MAX:
        raise ValueError(f"{len(names)} columns are more than the {_COLUMNS_MAX} of a table")
    seen: dict[str, str] = {}
    for name in names:
        if folded(name) in seen:
            raise ValueError(f"{seen[folded(name)]!r} and {name!r} are one column to SQLite; rename one of the fields")
        seen[folded(name)] = name


def cell(value: Any) -> Any:
    """Return *value* as what SQLite stores without changing it, or raise ValueError or TypeError."""
    kind = type(value)
    if value is None or kind is str or kind is bytes:
        return value
    if kind is bool:
        return int(value)
    if kind is int:
        if not _INT_MIN <= value <= _INT_MAX:
            raise ValueError(f"{value} does not fit into the 64 bits of an SQLite integer. Map it to text")
        return value
    if kind is float:
        if math.isnan(value):
            raise ValueError("SQLite stores NaN as NULL. Map it to None, if that is meant, or to text")
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    plain = msgspec.to_builtins(value, builtin_types=(bytes,), str_keys=True, order="deterministic")
    if isinstance(plain, dict | list | tuple):
        if not _finite(plain):
            raise ValueError("JSON text has no NaN and no infinity. Map them to None or to text")
        return _json(plain).decode()
    return cell(plain)


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def key_cells(key: CanonicalKey, columns: int) -> list[Any]:
    """Return a key as the cells of *columns* columns; two keys never become one. Else raise ValueError."""
    plain = plain_key(key)
    if columns > 1:
        if not isinstance(plain, tuple) or len(plain) != columns:
            raise ValueError(f"its key {plain!r} is no tuple of {columns}, one item for each key column")
        return [_key_cell(item) for item in plain]
    if not isinstance(plain, tuple):
        return [_key_cell(plain)]
    if any(isinstance(item, bytes) for item in plain) or not _finite(plain):
        raise ValueError(f"its key {plain!r} has no JSON that is only its own. Use text in key_by()")
    return [_json(plain).decode()]


def _key_cell(item: Any) -> Any:
    if type(item) is str:
        if item.startswith("["):
            with suppress(msgspec.DecodeError):
                if _json(msgspec.json.decode(item)).decode() == item:
                    raise ValueError(f"its key {item!r} can't be told from the tuple that it spells. Change the text")
        return item
    if type(item) is bytes or (type(item) is int and _INT_MIN <= item <= _INT_MAX):
        return item
    raise ValueError(
        f"its key {item!r} is no text, bytes or 64-bit integer: SQLite takes 1, 1.0 and true for one key, and NULLs "
        "for different ones. Return text from key_by()"
    )
