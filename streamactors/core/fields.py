"""What sinks of tables and files need to say about a value: its fields, its place, a name for its target.

A struct has the fields that its JSON has, a dict its keys. Anything else is one field, ``value``.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import msgspec

from .batch import Batch
from .errors import BadRecord, RecordPlace

VALUE = "value"
"""The field of a value that has none."""

_NAME_CHARACTERS_MAX = 60  # of one piece of a name that is made of several


def field_names(kind: Any) -> tuple[str, ...] | None:
    """Return the fields that each value of type *kind* has; None when the type does not say."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind.__struct_encode_fields__
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return (VALUE,) if kind in {int, float, str, bytes, bool} else None


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of *value*, in order; those with a default as well, which its JSON may leave out."""
    if isinstance(value, dict):
        return value
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return {name: getattr(value, attribute) for name, attribute in names}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {VALUE: value}


def bad_row(sink: str, batch: Batch, row: int, reason: str) -> BadRecord:
    """Return the error of a row that *sink* can't take, with the place that it came from."""
    place = None
    if batch.origin is not None and row < len(batch.offsets):
        place = RecordPlace(batch.origin.source, batch.origin.partition, batch.offsets[row])
    return BadRecord(sink, place, batch.values[row], reason)


def target_name(*pieces: str) -> str:
    """Return a sink's id made of what names its target: letters, digits, ``-``, ``_`` and ``.`` alone."""
    return ".".join(re.sub(r"[^A-Za-z0-9_-]", "-", piece)[:_NAME_CHARACTERS_MAX] or "-" for piece in pieces)
