"""Schemas of what is kept: which differences the new code can read, and which it can't."""

from dataclasses import dataclass
from typing import Any, Literal, Optional

import msgspec
import pytest
from msgspec import Struct

from streamactors.flow.aggregates import aggregate, count, max_, mean, several, sum_
from streamactors.flow.kept import ANY, differences, schema_of, seen, shown
from streamactors.flow.user_state import StateForm


class Old(Struct):
    points: int
    name: str = ""


class Inner(Struct):
    x: int


class Nested(Struct):
    inner: Inner
    more: list[Inner] = []


class Itself(Struct):
    children: list["Itself"] = []


@dataclass
class Data:
    points: int
    name: str = ""


def made(fields, **options):
    return msgspec.defstruct("State", fields, **options)


CASES = {
    "the same": (Old, Old, True, None),
    "a field more, with a default": (
        Old,
        made([("points", int), ("name", str, ""), ("more", int, 0)]),
        True,
        "a default",
    ),
    "a field more, without one": (Old, made([("points", int), ("more", int), ("name", str, "")]), False, "no default"),
    "an optional field less": (Old, made([("points", int)]), True, "name is gone"),
    "a required field less": (Old, made([("name", str, "")]), False, "was required"),
    "an optional field less, where none may be unknown": (
        Old,
        made([("points", int)], forbid_unknown_fields=True),
        False,
        "refused by the new type",
    ),
    "a default less": (Old, made([("points", int), ("name", str)]), False, "no default any more"),
    "another type of a field": (Old, made([("points", str), ("name", str, "")]), False, "points: int became str"),
    "None allowed as well": (Old, made([("points", Optional[int]), ("name", str, "")]), True, "points: takes"),  # noqa: UP045
    "None allowed no more": (made([("points", int | None)]), made([("points", int)]), False, "points"),
    "another name of the class": (Old, msgspec.defstruct("Other", [("points", int), ("name", str, "")]), True, None),
    "a struct in a struct": (
        Nested,
        msgspec.defstruct("Nested", [("inner", Old), ("more", list[Inner], [])]),
        False,
        "inner",
    ),
    "builtins became a struct": (None, Old, False, "anything became Old"),
    "a struct became builtins": (Old, None, False, "Old became anything"),
    "a dataclass of the same fields": (Old, Data, True, None),
    "an array with a field more": (
        made([("points", int)], array_like=True),
        made([("points", int), ("more", int, 0)], array_like=True),
        True,
        "more is new and has a default",
    ),
    "an array with a field in front": (
        made([("points", int)], array_like=True),
        made([("more", str), ("points", int)], array_like=True),
        False,
        "int became str",
    ),
    "a struct became an array": (made([("points", int)]), made([("points", int)], array_like=True), False, "laid out"),
    "another tag": (made([("a", int)], tag="x"), made([("a", int)], tag="y"), False, "tag"),
    "one value more": (Literal["a"], Literal["a", "b"], False, "one of a became one of a, b"),
    "items of another type": (list[int], list[str], False, "items: int became str"),
}


@pytest.mark.parametrize(("was", "now", "reads", "why"), CASES.values(), ids=CASES.keys())
def test_the_verdict_is_what_decoding_says(was, now, reads, why):
    found = list(differences(schema_of(was), schema_of(now)))

    assert all(difference.reads for difference in found) == reads, found
    assert why is None or why in "; ".join(difference.what for difference in found)


def test_what_reads_is_read_by_the_new_type():
    """The oracle: msgspec itself, on values of the old type."""
    values = {Old: Old(3, "x"), Nested: Nested(Inner(1), [Inner(2)])}
    for was, now, reads, _ in CASES.values():
        if was not in values or now is None:
            continue
        encoded = StateForm(was).pack(values[was])
        try:
            StateForm(now).unpack(encoded)
        except msgspec.ValidationError:
            decodes = False
        else:
            decodes = True
        assert decodes or not reads, (was, now)


def test_a_schema_is_builtins_and_survives_the_store():
    for kind in (Old, Nested, Itself, Data, dict[str, list[int | None]], tuple[int, str], Any, None):
        schema = schema_of(kind)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(schema)) == schema
        assert shown(schema)
    assert schema_of(Any) == schema_of(None) == ANY


def test_aggregates_say_what_they_keep():
    whole = several(n=count(), top=max_("at"), avg=mean("at"), own=aggregate(0, lambda acc, v: acc, state_type=int))
    assert list(whole.kept["parts"]) == ["n", "top", "avg", "own"]
    (only,) = differences(whole.kept, several(n=count(), top=max_("at")).kept)
    assert not only.reads
    (only,) = differences(sum_("a").kept, sum_("b").kept)
    assert only.what == "sum('a') became sum('b')"


def test_what_is_seen_of_an_accumulator_goes_back():
    form = StateForm(Old)
    whole = several(n=count(), own=aggregate(Old(0), lambda acc, v: acc, state_type=Old), avg=mean("x"))
    held = (3, form.pack(Old(4, "x")), (2.5, 2))
    shown_value = seen(whole.kept, held)
    assert shown_value == {"n": 3, "own": {"points": 4, "name": "x"}, "avg": (2.5, 2)}
    assert whole.held(shown_value) == held
    with pytest.raises(msgspec.ValidationError):
        whole.held({**shown_value, "own": {"points": "many"}})
    with pytest.raises(TypeError, match="keeps a dict of n, own, avg"):
        whole.held(3)
