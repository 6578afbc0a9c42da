"""Views: keys go in and come out as the user writes them, and a snapshot is one epoch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.errors import BadRecord, PipelineError, UsageError
from streamactors.core.keys import canonical_keys, encode_key, plain_key
from streamactors.durable import views as views_module
from streamactors.durable.store import Checkpoint, Store
from streamactors.durable.views import Overlay, ShownViewBuffer, ViewBuffer, ViewReader


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


# Shown at once. -------------------------------------------------------------------------------------------------------


@pytest.fixture
def overlay():
    return Overlay()


@pytest.fixture
def shown(job, overlay):
    return ViewReader(job.store, {"v": overlay})


def test_a_change_is_seen_at_once_here_and_with_the_epoch_elsewhere(job, reader, shown, overlay):
    buffer = ShownViewBuffer("v", overlay)
    buffer.upsert(["a", "b"], [1, 2])
    assert dict(shown["v"].items()) == {"a": 1, "b": 2} and len(shown["v"]) == 2 and shown.names() == ["v"]
    assert dict(reader["v"].items()) == {} and reader.names() == []
    job.commit(buffer)
    assert dict(reader["v"].items()) == dict(shown["v"].items()) == {"a": 1, "b": 2}
    assert not any(overlay.layers), "what the store has leaves the overlay"
    buffer.delete(["a"])
    assert dict(shown["v"].items()) == {"b": 2} and "a" not in shown["v"] and len(shown["v"]) == 1
    assert dict(reader["v"].items()) == {"a": 1, "b": 2}


def test_a_frozen_change_stays_visible_until_its_epoch_is_durable(job, shown, overlay):
    buffer = ShownViewBuffer("v", overlay)
    buffer.upsert(["a", "b"], [1, 1])
    buffer.freeze(1)
    buffer.upsert(["a"], [2])
    assert dict(shown["v"].items()) == {"a": 2, "b": 1}
    assert buffer.encode(10)
    job.store.commit(Checkpoint("r", job.attempt, 1, None, deltas=buffer.hand_over()))
    assert dict(shown["v"].items()) == {"a": 2, "b": 1}, "in the store and in the overlay: seen once"
    buffer.freeze(2)
    buffer.committed(1)
    assert dict(shown["v"].items()) == {"a": 2, "b": 1}


def test_a_snapshot_is_one_instant_of_what_is_shown(job, shown, overlay):
    buffer = ShownViewBuffer("v", overlay)
    buffer.upsert(["a"], [1])
    with shown.snapshot() as view:
        buffer.upsert(["a", "b"], [2, 2])
        job.commit(buffer)
        assert dict(view("v").items()) == {"a": 1} and view("v")["a"] == 1 and len(view("v")) == 1
        assert list(view("another").items()) == []
    assert dict(shown["v"].items()) == {"a": 2, "b": 2}


def test_a_new_attempt_shows_what_is_durable_and_nothing_of_the_one_before(job, shown, overlay):
    buffer = ShownViewBuffer("v", overlay)
    buffer.upsert(["a"], [1])
    job.commit(buffer)
    buffer.upsert(["a", "b"], [2, 2])
    ShownViewBuffer("v", overlay)
    assert dict(shown["v"].items()) == {"a": 1}


def test_values_come_back_as_the_store_gives_them(shown, overlay):
    buffer = ShownViewBuffer("v", overlay)
    value = {"pair": (1, 2), "list": [3]}
    buffer.upsert(["a"], [value])
    shown["v"]["a"]["list"].append(4)
    assert shown["v"]["a"] == dict(shown["v"].items())["a"] == {"pair": [1, 2], "list": [3]}
    assert value["list"] == [3], "a reader can't change what the job holds"


def test_a_row_that_can_not_be_stored_is_named_when_it_is_read(shown, overlay):
    buffer = ShownViewBuffer("v", overlay)
    buffer.upsert(["a"], [object()])
    for read in (lambda: shown["v"].get("a"), lambda: dict(shown["v"].items())):
        with pytest.raises(BadRecord, match=r"view v.*it can't be stored"):
            read()


KEYS = st.one_of(
    st.integers(0, 5),
    st.sampled_from(["a", "b", "long" * 200, "longer" * 200]),
    st.tuples(st.sampled_from(["a", "b"]), st.one_of(st.integers(0, 3), st.just("long" * 200))),
    st.just(("a", *range(20))),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(-9, 9)),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.sampled_from(["freeze", "commit", "committed", "look"])),
    ),
    max_size=40,
)


@given(steps=STEPS, chunk=st.integers(1, 4))
def test_an_overlaid_view_is_a_dict_at_every_step_of_an_epochs_life(tmp_path_factory, steps, chunk):
    """Between freeze, commit and the word of it, whatever changes meanwhile."""
    overlay, model = Overlay(), {}
    with (
        Store.open(tmp_path_factory.mktemp("views") / "v1", sync=False) as store,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(views_module, "_CHUNK_ROWS", chunk)
        job, view = Job(store), ViewReader(store, {"v": overlay})["v"]
        buffer, epoch, frozen, stored = ShownViewBuffer("v", overlay), 0, None, None
        for kind, *rest in [*steps, ("look",)]:
            if kind == "put":
                buffer.upsert([canonical_keys([rest[0]])[0]], [rest[1]])
                model[rest[0]] = rest[1]
            elif kind == "delete":
                buffer.delete([canonical_keys([rest[0]])[0]])
                model.pop(rest[0], None)
            elif kind == "freeze" and frozen is None:
                epoch += 1
                buffer.freeze(epoch)
                while not buffer.encode(2):
                    pass
                frozen = buffer.hand_over()
            elif kind == "commit" and frozen is not None and stored is None:
                store.commit(Checkpoint("r", job.attempt, epoch, None, deltas=frozen))
                frozen, stored = None, epoch
            elif kind == "committed" and stored is not None:
                buffer.committed(stored)
                stored = None
            rows = list(view.items())
            assert dict(rows) == model and len(rows) == len(model) == len(view)
            assert [key for key, _ in rows] == list(view) == in_order(model)
            assert dict(view.items(["a"])) == {k: v for k, v in model.items() if isinstance(k, tuple) and k[0] == "a"}
            assert all(view.get(key) == value for key, value in model.items())


def in_order(model):
    """Return the keys as the store orders its rows: long ones by their digest, last of all."""
    from streamactors.durable.rows import row_key

    return sorted(model, key=lambda key: row_key(b"", encode_key(canonical_keys([key])[0])))
