"""Views: keys go in and come out as the user writes them, and a snapshot is one epoch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.errors import PipelineError, UsageError
from streamactors.core.keys import canonical_keys, encode_key, plain_key
from streamactors.durable import views as views_module
from streamactors.durable.store import Checkpoint, Store
from streamactors.durable.views import ViewBuffer, ViewReader


class Job:
    """Commits what view buffers hold, an epoch each time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.attempt = store.begin_attempt("r")
        last = store.restore("r")
        self.epoch = last.epoch if last else 0

    def commit(self, *buffers: ViewBuffer) -> None:
        self.epoch += 1
        for buffer in buffers:
            buffer.freeze(self.epoch)
            while not buffer.encode(3):
                pass
        deltas = [delta for buffer in buffers for delta in buffer.hand_over()]
        self.store.commit(Checkpoint("r", self.attempt, self.epoch, None, deltas=deltas))
        for buffer in buffers:
            buffer.committed(self.epoch)


@pytest.fixture
def job(tmp_path):
    with Store.open(tmp_path / "v1", sync=False) as store:
        yield Job(store)


@pytest.fixture
def reader(job):
    return ViewReader(job.store)


def fill(job, name, rows):
    buffer = ViewBuffer(name)
    buffer.upsert(canonical_keys(list(rows)), rows.values())
    job.commit(buffer)


def test_a_view_is_read_by_the_users_keys(job, reader):
    buffer = ViewBuffer("quiz_counts")
    buffer.upsert(canonical_keys([["algebra", 0], ["algebra", 600_000], ["zoo", 0]]), [3, 4, 5])
    job.commit(buffer)

    view = reader["quiz_counts"]
    assert view.get(["algebra", 0]) == view[("algebra", 0)] == 3
    assert view.get(["algebra", 1]) is None and view.get(["algebra", 1], 0) == 0
    assert ["zoo", 0] in view and ["zoo", 1] not in view
    assert len(view) == 3 and list(view) == [("zoo", 0), ("algebra", 0), ("algebra", 600_000)]
    with pytest.raises(KeyError):
        view[["zoo", 1]]


def test_the_newest_change_of_a_row_wins(job, reader):
    buffer = ViewBuffer("v")
    buffer.upsert(["a", "b", "a"], [1, 2, 3])
    buffer.delete(["b"])
    buffer.upsert(["c"], [None])  # a value like any other
    job.commit(buffer)
    assert dict(reader["v"].items()) == {"a": 3, "c": None}
    assert "c" in reader["v"]

    buffer.delete(["a", "never there"])
    buffer.upsert(["b"], [4])
    job.commit(buffer)
    assert dict(reader["v"].items()) == {"b": 4, "c": None}


def test_a_row_that_changes_after_the_barrier_belongs_to_the_next_epoch(job, reader):
    buffer = ViewBuffer("v")
    buffer.upsert(["a"], ["before"])
    buffer.freeze(1)
    buffer.upsert(["a"], ["after"])
    assert not buffer.encode(1) and buffer.encode(1)
    job.store.commit(Checkpoint("r", job.attempt, 1, None, deltas=buffer.hand_over()))

    assert reader["v"]["a"] == "before" and buffer.entries_dirty == 1


def test_an_epoch_without_changes_hands_over_nothing():
    buffer = ViewBuffer("v")
    buffer.freeze(1)
    assert buffer.encode(1) and buffer.hand_over() == []


def test_a_view_that_was_never_written_reads_as_empty(reader):
    view = reader.view("nothing")
    assert view.get("a") is None and len(view) == 0 and list(view.items()) == [] and list(view.items(["a"])) == []
    assert reader.names() == []


def test_a_prefix_selects_the_rows_of_one_first_item(job, reader):
    rows = {("a", n): n for n in range(300)} | {("aa", 1): 0, ("b", 1): 0, "a": 0, ("a",): 1, ("a", 1, 2): 2}
    rows |= {("a", "long" * 200): 3, ("b", "long" * 200): 4, ("a", *range(20)): 5}
    fill(job, "v", rows)

    assert dict(reader["v"].items(["a"])) == {
        key: value for key, value in rows.items() if isinstance(key, tuple) and key[0] == "a"
    }
    assert dict(reader["v"].items(("a", 1))) == {("a", 1): 1, ("a", 1, 2): 2}
    with pytest.raises(UsageError, match="'a' is not a list or tuple"):
        list(reader["v"].items("a"))


def test_what_can_not_be_a_key_is_refused(reader):
    with pytest.raises(PipelineError, match="can't be a key"):
        reader["v"].get({"a": 1})


def test_a_snapshot_of_several_views_is_one_epoch(job, reader):
    one, two = ViewBuffer("one"), ViewBuffer("two")
    one.upsert(["k"], [1])
    two.upsert(["k"], [1])
    job.commit(one, two)

    with reader.snapshot() as view:
        assert view("one")["k"] == 1
        one.upsert(["k"], [2])
        two.upsert(["k"], [2])
        job.commit(one, two)
        assert view("two")["k"] == 1 and dict(view("two").items()) == {"k": 1}
    assert reader["one"]["k"] == reader["two"]["k"] == 2


def test_a_long_scan_sees_each_lasting_row_once_whatever_is_committed_meanwhile(job, reader, monkeypatch):
    monkeypatch.setattr(views_module, "_CHUNK_ROWS", 10)
    fill(job, "v", dict.fromkeys(range(100), "first"))

    scan = reader["v"].items()
    seen = [next(scan) for _ in range(5)]
    changed = ViewBuffer("v")
    changed.upsert(list(range(0, 200, 2)), ["second"] * 100)
    changed.delete([1, 99])
    job.commit(changed)
    seen += scan

    assert [key for key, _ in seen] == [*range(99), *range(100, 200, 2)]
    assert dict(seen)[9] == "first" and dict(seen)[10] == "second"


ATOMS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text())
KEYS = st.one_of(ATOMS, st.binary(), st.text(min_size=500), st.lists(ATOMS, max_size=3).map(tuple))


@given(st.lists(KEYS, max_size=30))
def test_any_key_comes_back_as_it_went_in(tmp_path_factory, keys):
    unique = {encode_key(key): key for key in canonical_keys(keys)}
    with Store.open(tmp_path_factory.mktemp("view"), sync=False) as store:
        buffer = ViewBuffer("v")
        buffer.upsert(unique.values(), range(len(unique)))
        Job(store).commit(buffer)
        view = ViewReader(store)["v"]

        assert {encode_key(canonical_keys([key])[0]): value for key, value in view.items()} == {
            encoded: index for index, encoded in enumerate(unique)
        }
        assert [view[plain_key(key)] for key in unique.values()] == list(range(len(unique)))
        assert len(view) == len(unique)
