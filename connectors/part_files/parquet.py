"""Parquet: columns of one schema. pyarrow is imported when a sink of it is made, not before.

In the stage each batch becomes Arrow columns, so a value that does not fit is refused there, with its place, before a
checkpoint holds it. A payload is an Arrow stream, which brings its schema; the Parquet file is made of it in the lane.

pyarrow makes some values fit in silence: 1.5 becomes the integer 1, a field that a struct does not have is dropped, a
time without a zone is taken for UTC. ``require_fits`` refuses those first.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import msgspec
import msgspec.inspect

from streamactors.core.batch import Batch
from streamactors.core.connectors import Payload
from streamactors.core.errors import BadRecord, UsageError
from streamactors.core.fields import VALUE, bad_row, field_names, fields_of

from .writers import PART_BYTES_MAX, rows_by_partition

_AS_THEY_ARE = (type(None), bool, int, float, str, bytes, datetime, date, time, Decimal)
_encode = msgspec.msgpack.Encoder(enc_hook=str).encode  # to know the size, and that text is Unicode


def arrow() -> Any:
    """Return pyarrow, or say how to get it."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"Parquet files need pyarrow, which can't be imported ({error}). Install it: "
            "pip install 'streamactors[parquet]'"
        ) from error
    return pa


class ParquetWriter:
    """Arrow columns of an epoch. *schema* None: it is told by the values of the first epoch that has any."""

    def __init__(self, sink: str, partitions: int, schema: Any) -> None:
        self._sink = sink
        self._schema = schema
        self._early: list[tuple[Batch, list[dict[str, Any]]]] = []  # before there is a schema
        self._columns: list[list[Any]] = [[] for _ in range(partitions)]  # record batches
        self._bytes = 0

    def write(self, batch: Batch) -> int:
        """Take all rows of the batch, or none and say which one does not fit."""
        rows = [self._row(batch, number) for number in range(len(batch))]
        if self._schema is None:
            self._early.append((batch, rows))
            self._bytes += len(_encode(rows))
        else:
            self._add(batch, rows)
        return self._bytes

    def take(self) -> list[Payload]:
        """Return a payload for each part."""
        early, self._early = self._early, []
        if early:
            self._schema = self._schema_of([row for _, rows in early for row in rows])
            for batch, rows in early:
                self._add(batch, rows)
        taken, self._columns, self._bytes = self._columns, [[] for _ in self._columns], 0
        return [
            Payload(partition, _stream(self._schema, part))
            for partition, columns in enumerate(taken)
            for part in _parts(columns)
        ]

    def _row(self, batch: Batch, number: int) -> dict[str, Any]:
        try:
            row = {name: plain(value) for name, value in fields_of(batch.values[number]).items()}
            if not row or not all(isinstance(name, str) for name in row):
                raise TypeError("it has no fields with names")
            return row
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise bad_row(self._sink, batch, number, f"{error}. Map it to plain values first.") from error

    def _add(self, batch: Batch, rows: list[dict[str, Any]]) -> None:
        converted = []
        for partition, numbers in rows_by_partition(batch, len(self._columns)).items():
            try:
                converted.append((partition, columns_of([rows[number] for number in numbers], self._schema)))
            except (ValueError, TypeError, OverflowError):
                for number in numbers:
                    self._require_fits(batch, number, rows[number])
                raise
        for partition, columns in converted:
            self._columns[partition].append(columns)
            self._bytes += columns.nbytes

    def _require_fits(self, batch: Batch, number: int, row: dict[str, Any]) -> None:
        try:
            columns_of([row], self._schema)
        except (ValueError, TypeError, OverflowError) as error:
            why = f"it does not fit the schema of the parts ({error}). Map it, or write to another folder."
            raise bad_row(self._sink, batch, number, why) from error

    def _schema_of(self, rows: Sequence[dict[str, Any]]) -> Any:
        """Return the schema that *rows* have; refuse a field whose values don't tell its type."""
        pa = arrow()
        fields = []
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            try:
                found = pa.array(values).type
            except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
                raise BadRecord(self._sink, None, values, f"field {name!r} has no single type ({error}).") from error
            if _is_untold(pa, found):
                why = f"the first epoch does not tell the type of field {name!r}. Give the sink a schema=..."
                raise BadRecord(self._sink, None, values, why)
            fields.append(pa.field(name, found))
        return pa.schema(fields)


def plain(value: Any) -> Any:
    """Return *value* made of what Arrow takes: builtins, times, decimals, dicts and lists."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    fields = fields_of(value)
    if fields.get(VALUE) is not value:
        return {name: plain(item) for name, item in fields.items()}
    return msgspec.to_builtins(value)


def columns_of(rows: Sequence[dict[str, Any]], schema: Any) -> Any:
    """Return *rows* as a record batch, or raise what does not fit. A field that is left out is null."""
    pa = arrow()
    names = set(schema.names)
    if strange := set().union(*rows) - names:
        raise ValueError(f"it has a field {min(strange)!r}, but the columns are {schema.names}")
    arrays = []
    for column in schema:
        values = [row.get(column.name) for row in rows]
        ints_alone = pa.types.is_integer(column.type) and set(map(type, values)) <= {int, type(None)}
        for value in values if _may_change(pa, column.type) and not ints_alone else ():
            require_fits(pa, value, column.type, f"field {column.name!r}")
        arrays.append(pa.array(values, column.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _may_change(pa: Any, kind: Any) -> bool:
    """Whether pyarrow makes values fit this type in silence; see require_fits."""
    return bool(pa.types.is_nested(kind) or pa.types.is_integer(kind) or pa.types.is_timestamp(kind))


def require_fits(pa: Any, value: Any, kind: Any, what: str) -> None:
    """Refuse what pyarrow would make fit by changing it."""
    types = pa.types
    if value is None:
        return
    if types.is_struct(kind) and isinstance(value, dict):
        if strange := value.keys() - {field.name for field in kind}:
            raise ValueError(f"{what} has a field {min(strange)!r}, but its columns are {[f.name for f in kind]}")
        for field in kind:
            require_fits(pa, value.get(field.name), field.type, f"field {field.name!r}")
    elif (types.is_list(kind) or types.is_large_list(kind)) and isinstance(value, list):
        for item in value:
            require_fits(pa, item, kind.value_type, what)
    elif types.is_integer(kind) and type(value) is not int:
        raise TypeError(f"{what} is {value!r} and not an int")
    elif types.is_timestamp(kind) and isinstance(value, datetime) and (value.tzinfo is None) != (kind.tz is None):
        raise ValueError(f"{what} is {value!r}, and {kind} has {'no' if kind.tz is None else 'a'} time zone")


def schema_of_type(kind: Any) -> Any:
    """Return the schema of values of type *kind*, or None where the type does not tell it."""
    pa = arrow()
    if field_names(kind) is None:
        return None
    found = _arrow_type(pa, msgspec.inspect.type_info(kind))
    if found is None:
        return None
    return pa.schema(list(found)) if pa.types.is_struct(found) else pa.schema([pa.field(VALUE, found)])


def _arrow_type(pa: Any, info: Any) -> Any:
    """Return the type of a column, or None: a dict's is left to its values, a decimal's scale too."""
    about = msgspec.inspect
    scalars: dict[Any, Any] = {
        about.BoolType: pa.bool_(),
        about.IntType: pa.int64(),
        about.FloatType: pa.float64(),
        about.StrType: pa.string(),
        about.BytesType: pa.binary(),
        about.UUIDType: pa.string(),
        about.DateType: pa.date32(),
        about.TimeType: pa.time64("us"),
    }
    match info:
        case about.UnionType(types=types):
            others = [one for one in types if not isinstance(one, about.NoneType)]
            return _arrow_type(pa, others[0]) if len(others) == 1 else None
        case about.DateTimeType(tz=bool(zoned)):
            return pa.timestamp("us", "UTC" if zoned else None)
        case about.ListType(item_type=item) | about.VarTupleType(item_type=item) | about.SetType(item_type=item):
            inner = _arrow_type(pa, item)
            return None if inner is None else pa.list_(inner)
        case about.StructType(fields=fields) | about.DataclassType(fields=fields):
            inner = [(field.encode_name, _arrow_type(pa, field.type)) for field in fields]
            return None if any(found is None for _, found in inner) else pa.struct(inner)
    return scalars.get(type(info))


def _is_untold(pa: Any, kind: Any) -> bool:
    """Whether only None, or nothing at all, stood where a type should be told."""
    return pa.types.is_null(kind) or any(_is_untold(pa, kind.field(place).type) for place in range(kind.num_fields))


def _parts(columns: Sequence[Any]) -> list[list[Any]]:
    """Group record batches into parts of a good size; one that is larger is a part of its own."""
    parts: list[list[Any]] = []
    size = 0
    for piece in columns:
        size += piece.nbytes
        if not parts or size > PART_BYTES_MAX:
            parts.append([])
            size = piece.nbytes
        parts[-1].append(piece)
    return parts


def _stream(schema: Any, columns: Sequence[Any]) -> bytes:
    pa = arrow()
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, schema) as stream:
        for piece in columns:
            stream.write_batch(piece)
    return bytes(buffer.getvalue())


def parquet_of(data: bytes) -> tuple[bytes, Any]:
    """Return a payload as a Parquet file, and its schema."""
    pa = arrow()
    table = pa.ipc.open_stream(data).read_all().combine_chunks()
    buffer = pa.BufferOutputStream()
    pa.parquet.write_table(table, buffer, compression="zstd")
    return bytes(buffer.getvalue()), table.schema


def encode_schema(schema: Any) -> bytes:
    """Return a schema as bytes."""
    return bytes(schema.serialize())


def decode_schema(data: bytes) -> Any:
    """Return the schema that *data* stands for."""
    pa = arrow()
    return pa.ipc.read_schema(pa.py_buffer(data))
