"""Diff: against the plain difference of two dicts, at the edges of chunks, and between versions that stand apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from streamactors.durable.rows import encode_keys, encode_rows
from streamactors.durable.store import Checkpoint, Delta, Store
from streamactors.durable.views import view_database
from streamactors.kappa.differing import Change, at_one_place, changes, differing, views_of

keys = st.binary(min_size=1, max_size=2)
tables = st.dictionaries(keys, st.binary(max_size=1), max_size=40)


def rows_of(table, chunk):
    rows = sorted(table.items())
    return lambda after: [row for row in rows if after is None or row[0] > after][:chunk]


@given(old=tables, new=tables, chunk=st.integers(1, 5))
def test_what_differs_is_what_two_dicts_say(old, new, chunk):
    expected = [
        (key, old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    ]
    assert list(differing(rows_of(old, chunk), rows_of(new, chunk), chunk)) == expected


@given(table=tables, chunk=st.integers(1, 5))
def test_what_is_equal_does_not_differ(table, chunk):
    assert not list(differing(rows_of(table, chunk), rows_of(dict(table), chunk), chunk))


# Stores. --------------------------------------------------------------------------------------------------------------


def position(entries, offset):
    part = {"source": "events", "partition": 0, "disorder": 0, "offset": offset, "time_max": 0, "idle": False}
    return {"partitions": [part], "entries": entries}


def fill(folder, rows, *, entries=1, offset=10, view="totals", epoch=1):
    folder.mkdir(exist_ok=True)
    with Store.open(folder) as store:
        attempt = store.begin_attempt("events")
        encoded = encode_keys(list(rows))
        puts = encode_rows([b""] * len(encoded), encoded, list(rows.values()))
        store.commit(
            Checkpoint(
                "events", attempt, epoch, position(entries, offset), deltas=[Delta(view_database(view), puts=puts)]
            )
        )


def never(first, second):
    raise AssertionError(f"they stand at {first} and {second}")


def test_changes_come_in_the_order_of_the_view_with_both_values(tmp_path):
    fill(tmp_path / "v1", {"a": 1, ("b", 2): {"x": 1}, "c": 3})
    fill(tmp_path / "v2", {"a": 1, ("b", 2): {"x": 2}, "d": 4}, epoch=7)
    with at_one_place(tmp_path / "v1", tmp_path / "v2", never) as (old, new):
        assert list(changes("totals", old, new)) == [
            Change("totals", ("b", 2), "changed", {"x": 1}, {"x": 2}),
            Change("totals", "c", "removed", 3, None),
            Change("totals", "d", "added", None, 4),
        ]
        assert views_of(old) == {"totals"}


def test_versions_that_stand_apart_are_looked_at_again_until_they_meet(tmp_path):
    fill(tmp_path / "v1", {"a": 1}, entries=2, offset=20)
    fill(tmp_path / "v2", {"a": 1})
    looked = []

    def again(first, second):
        looked.append((first["events"].position["entries"], second["events"].position["entries"]))
        raise TimeoutError

    with pytest.raises(TimeoutError), at_one_place(tmp_path / "v1", tmp_path / "v2", again):
        raise AssertionError("they do not stand at one place")
    assert looked == [(2, 1)]


def test_a_version_without_a_checkpoint_is_named(tmp_path):
    fill(tmp_path / "v1", {"a": 1})
    (tmp_path / "v2").mkdir()
    with Store.open(tmp_path / "v2") as store:
        store.identity("quiz", version="v2", new_id="0" * 32)
    with (
        pytest.raises(sa.UsageError, match=r"no checkpoint in .*v2"),
        at_one_place(tmp_path / "v1", tmp_path / "v2", never),
    ):
        pass
