"""What operators keep, as data: the schema that a stored state is compared with before other code goes on with it.

A schema is made of builtins, so that a checkpoint and a savepoint can hold it:

    text                                                     what can only be equal or different: "count()", "int"
    {"struct": NAME, "fields": {FIELD: {"type", "required"}}, ...}      a struct, dataclass, TypedDict
    {"list": T}  {"dict": [K, V]}  {"union": [T, ...]} ...   containers
    {"fold": TEXT, "state": T}                               a user's own fold, and the type of what it keeps
    {"parts": {NAME: SCHEMA}}                                several aggregates, in their order

``differences`` says what stands between a value that was kept by one schema and code that expects another. The rule is
that of reading, because a stored value stays as it is and is decoded by the new code:

    a field more, with a default        reads                    a field less, that had one     reads
    a union that takes more             reads                    anything else                  needs a migration

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

ANY = "anything"
"""Builtins, as MessagePack gives them back."""


def schema_of(kind: Any) -> Any:
    """Return the schema of values of the type *kind*; None: builtins."""
    return ANY if kind is None else _of(inspect.type_info(kind), frozenset())


def _of(info: Any, outer: frozenset[Any]) -> Any:
    match info:
        case inspect.AnyType():
            return ANY
        case inspect.StructType() | inspect.DataclassType() | inspect.TypedDictType() | inspect.NamedTupleType():
            return _struct(info, outer)
        case inspect.UnionType():
            return {"union": sorted((_of(one, outer) for one in info.types), key=shown)}
        case inspect.DictType():
            return {"dict": [_of(info.key_type, outer), _of(info.value_type, outer)]}
        case inspect.TupleType():
            return {"tuple": [_of(one, outer) for one in info.item_types]}
        case inspect.ListType() | inspect.SetType() | inspect.FrozenSetType() | inspect.VarTupleType():
            return {_name(info): _of(info.item_type, outer)}
        case inspect.EnumType():
            return {"enum": sorted(str(member.value) for member in info.cls)}
        case inspect.LiteralType():
            return {"enum": sorted(map(str, info.values))}
        case inspect.CustomType():
            return str(info.cls.__qualname__)
    return _name(info)


def _struct(info: Any, outer: frozenset[Any]) -> Any:
    cls = info.cls
    name = cls.__name__
    if cls in outer:  # it holds itself
        return name
    outer |= {cls}
    fields = {field.encode_name: {"type": _of(field.type, outer), "required": field.required} for field in info.fields}
    found: dict[str, Any] = {"struct": name, "fields": fields}
    if getattr(info, "array_like", False) or isinstance(info, inspect.NamedTupleType):
        found["array"] = True
    if getattr(info, "forbid_unknown_fields", False):
        found["strict"] = True
    if getattr(info, "tag", None) is not None:
        found["tag"] = [info.tag_field, info.tag]
    return found


def _name(info: Any) -> str:
    return type(info).__name__.removesuffix("Type").lower()


def shown(schema: Any) -> str:
    """Return a schema in a few words."""
    match schema:
        case str():
            return schema
        case {"struct": name}:
            return str(name)
        case {"fold": fold, "state": state}:
            return str(fold) if state == ANY else f"{fold} of {shown(state)}"
        case {"parts": parts}:
            return f"aggregate({', '.join(f'{name}={shown(part)}' for name, part in parts.items())})"
        case {"union": kinds}:
            return " | ".join(map(shown, kinds))
        case {"dict": [key, value]}:
            return f"dict[{shown(key)}, {shown(value)}]"
        case {"tuple": kinds}:
            return f"tuple[{', '.join(map(shown, kinds))}]"
        case {"enum": values}:
            return f"one of {', '.join(values)}"
        case dict() if len(schema) == 1:
            ((name, of),) = schema.items()
            return f"{name}[{shown(of)}]"
    return str(schema)


class Difference(msgspec.Struct, frozen=True):
    """One place at which two schemas differ."""

    reads: bool
    """Whether a value that was kept by the old one can be read by the new one as it is."""

    what: str


def differences(was: Any, now: Any, place: str = "") -> Iterator[Difference]:
    """Yield where *now* expects something else than *was* has kept; nothing when they are equal."""
    if was == now:
        return
    match was, now:
        case {"struct": _}, {"struct": _}:
            yield from _fields(was, now, place)
        case {"fold": fold, "state": old}, {"fold": other, "state": new} if fold == other:
            yield from differences(old, new, place)
        case {"parts": old}, {"parts": new} if list(old) == list(new):
            for name in old:
                yield from differences(old[name], new[name], _within(place, name))
        case _, {"union": kinds} if _members(was) <= set(map(repr, kinds)):
            yield Difference(reads=True, what=f"{_at(place)}takes {shown(now)}, was {shown(was)}")
        case {"dict": [key, old]}, {"dict": [other, new]} if key == other:
            yield from differences(old, new, _within(place, "values"))
        case dict(), dict() if was.keys() == now.keys() and was.keys() <= {"list", "set", "frozenset", "vartuple"}:
            (name,) = was
            yield from differences(was[name], now[name], _within(place, "items"))
        case _:
            yield Difference(reads=False, what=f"{_at(place)}{shown(was)} became {shown(now)}")


def _members(schema: Any) -> set[str]:
    return set(map(repr, schema["union"] if isinstance(schema, dict) and "union" in schema else [schema]))


def _fields(was: Any, now: Any, place: str) -> Iterator[Difference]:
    old, new = was["fields"], now["fields"]
    if was.get("array") or now.get("array"):
        yield from _array(was, now, place)
        return
    if was.get("tag") != now.get("tag"):
        yield Difference(reads=False, what=f"{_at(place)}tag {was.get('tag')} became {now.get('tag')}")
    for name in old.keys() | new.keys():
        field = _within(place, name)
        if name not in old:
            needs = new[name]["required"]
            yield Difference(not needs, f"{field} is new and has {'no' if needs else 'a'} default")
        elif name not in new:
            reads = not old[name]["required"] and not now.get("strict")
            why = "was required" if old[name]["required"] else "is refused by the new type" if not reads else "optional"
            yield Difference(reads, f"{field} is gone ({why})")
        else:
            yield from differences(old[name]["type"], new[name]["type"], field)
            if new[name]["required"] and not old[name]["required"]:
                yield Difference(reads=False, what=f"{field} has no default any more")


def _array(was: Any, now: Any, place: str) -> Iterator[Difference]:
    """Fields that are known by their places: only what is added behind them reads."""
    old, new = list(was["fields"].items()), list(now["fields"].items())
    if was.get("array") != now.get("array") or len(new) < len(old) or was.get("tag") != now.get("tag"):
        yield Difference(reads=False, what=f"{_at(place)}{shown(was)} is laid out in another way")
        return
    for (_, before), (name, field) in zip(old, new, strict=False):
        yield from differences(before["type"], field["type"], _within(place, name))
    for name, field in new[len(old) :]:
        needs = field["required"]
        yield Difference(not needs, f"{_within(place, name)} is new and has {'no' if needs else 'a'} default")


def _within(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _at(place: str) -> str:
    return f"{place}: " if place else ""


def seen(schema: Any, held: Any) -> Any:
    """Return what a person sees of a value that is *held* in state: user values decoded, several by name."""
    match schema:
        case {"parts": parts}:
            return {name: seen(part, own) for (name, part), own in zip(parts.items(), held, strict=True)}
    return msgspec.msgpack.decode(held) if isinstance(held, bytes) else held
