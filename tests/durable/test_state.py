"""Keyed state against a plain dict, under any order of writes, drops, barriers, commits, evictions and crashes."""

import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from streamactors.core.errors import Damaged
from streamactors.core.keys import canonical_key, encode_key, key_group
from streamactors.core.limits import ENCODE_SLICE_ENTRIES
from streamactors.core.times import MIN_TIME
from streamactors.durable import state as state_module
from streamactors.durable.rows import GROUP_BYTES, namespace_bytes, row_key
from streamactors.durable.state import KeyedState, OperatorRow
from streamactors.durable.store import Checkpoint, Delta, Store

GROUPS = range(4)
CANDIDATES = [*range(80), *map(str, range(80)), *map(float, range(80)), *((n, "é") for n in range(80))]
CANDIDATES += [f"{'long' * 150}{n}" for n in range(160)]
KEYS = [key for key in map(canonical_key, CANDIDATES) if key_group(encode_key(key)) in GROUPS][::2]
NAMESPACES = [None, MIN_TIME]  # their bytes begin alike

keys = st.sampled_from(KEYS)
namespaces = st.sampled_from(NAMESPACES)
values = st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(max_size=5), st.lists(st.integers(0, 9), max_size=3))


class Process:
    """A store, the epochs that commit into it, and whatever state is opened on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epoch = 0
        self.open()

    def open(self) -> None:
        self.store = Store.open(self.folder, sync=False)
        self.attempt = self.store.begin_attempt("r")

    def commit(self, epoch: int, deltas: list[Delta]) -> None:
        self.store.commit(Checkpoint("r", self.attempt, epoch, None, deltas=deltas))

    def checkpoint(self, *durables) -> None:
        """All of an epoch, at once."""
        self.epoch += 1
        for durable in durables:
            durable.freeze(self.epoch)
            while not durable.encode(ENCODE_SLICE_ENTRIES):
                pass
        self.commit(self.epoch, [delta for durable in durables for delta in durable.hand_over()])
        for durable in durables:
            durable.committed(self.epoch)

    def crash(self) -> None:
        """Lose the memory; keep what was committed."""
        self.store.close()
        self.open()


@pytest.fixture
def process(tmp_path):
    made = Process(tmp_path / "v1")
    yield made
    made.store.close()


class StateIsADict(RuleBasedStateMachine):
    """What is read is what a dict would say; after a crash it is what the dict said at the last commit."""

    @initialize(cache_max=st.sampled_from([0, 0, 3, 1_000]), stored=st.booleans())
    def begin(self, cache_max, stored):
        self.folder = Path(tempfile.mkdtemp())
        self.process = Process(self.folder)
        self.cache_max = cache_max
        self.neighbour = KeyedState(self.process.store, "state", range(4, 128))
        self.neighbours_key = next(n for n in range(100) if key_group(encode_key(n)) not in GROUPS)
        if stored:
            for namespace in NAMESPACES:
                self.neighbour.put(namespace, self.neighbours_key, "not ours")
        self.process.checkpoint(self.neighbour)
        self.expected_of_neighbour = "not ours" if stored else None
        self.durable: dict = {namespace: {} for namespace in NAMESPACES}
        self.start()

    def start(self):
        self.state = KeyedState(self.process.store, "state", GROUPS, cache_max=self.cache_max)
        self.model = deepcopy(self.durable)
        self.frozen = []  # (epoch, the model at its barrier), oldest first
        self.handed = 0  # how many of them were handed over
        self.written = 0  # how many of them are in the store although state doesn't know yet
        self.deltas = []

    @rule(namespace=namespaces)
    def read_all(self, namespace):
        self.read(namespace, KEYS)

    @rule(data=st.data())
    def take_the_next_step(self, data):
        """Whatever the protocol allows next, so that epochs get through while other things happen."""
        data.draw(st.sampled_from(self.next_steps()))()

    def next_steps(self):
        steps = {
            self.freeze: len(self.frozen) == self.handed < 2,
            self.encode_all: len(self.frozen) > self.handed,
            self.write: self.handed > self.written,
            self.hear_of_the_commit: self.written > 0,
        }
        return [step for step, allowed in steps.items() if allowed]

    @rule(namespace=namespaces, updates=st.dictionaries(keys, st.none() | values, max_size=12))
    def put(self, namespace, updates):
        self.state.put_many(namespace, dict(updates))
        model = {**self.model[namespace], **updates}
        self.model[namespace] = {key: value for key, value in model.items() if value is not None}

    @rule(namespace=namespaces, key=keys)
    def delete(self, namespace, key):
        self.state.delete(namespace, key)
        self.model[namespace].pop(key, None)

    @rule(namespace=namespaces)
    def drop(self, namespace):
        self.state.drop(namespace)
        self.model[namespace] = {}

    @rule(namespace=namespaces)
    def fill(self, namespace):
        """More keys than groups, so that a drop goes by prefix."""
        self.put(namespace, dict.fromkeys(KEYS, 7))

    @rule(namespace=namespaces)
    def be_born(self, namespace):
        if not any(model[namespace] for model in (self.model, self.durable, *(model for _, model in self.frozen))):
            self.state.born(namespace)

    @rule(namespace=namespaces, wanted=st.lists(keys, unique=True))
    def read(self, namespace, wanted):
        assert self.state.get_many(namespace, wanted) == [self.model[namespace].get(key) for key in wanted]

    @rule(namespace=namespaces)
    def scan(self, namespace):
        expected = sorted(self.model[namespace].items(), key=lambda entry: encode_key(entry[0]))
        assert self.state.items(namespace) == expected

    def freeze(self):
        self.process.epoch += 1
        self.state.freeze(self.process.epoch)
        self.frozen.append((self.process.epoch, deepcopy(self.model)))

    @precondition(lambda self: len(self.frozen) > self.handed)
    @rule(entries=st.integers(1, 20))
    def encode(self, entries):
        if self.state.encode(entries):
            self.deltas.append(self.state.hand_over())
            self.handed += 1

    def encode_all(self):
        self.encode(10_000)

    def write(self):
        epoch, model = self.frozen[self.written]
        self.process.commit(epoch, self.deltas.pop(0))
        self.written += 1
        self.durable = model

    def hear_of_the_commit(self):
        self.state.committed(self.frozen.pop(0)[0])
        self.handed -= 1
        self.written -= 1

    @rule()
    def crash(self):
        self.process.crash()
        self.start()

    def teardown(self):
        if hasattr(self, "process"):
            self.process.crash()
            self.start()
            for namespace in NAMESPACES:
                self.scan(namespace)
                self.read(namespace, KEYS)
                neighbour = KeyedState(self.process.store, "state", range(4, 128))
                assert neighbour.get(namespace, self.neighbours_key) == self.expected_of_neighbour
            self.process.store.close()
            shutil.rmtree(self.folder)


TestStateIsADict = StateIsADict.TestCase
TestStateIsADict.settings = settings(max_examples=60, stateful_step_count=50)


@settings(max_examples=120)
@given(st.integers(0, 2**32))
def test_state_is_a_dict_on_long_walks(seed):
    """The same, with the steps weighted so that many epochs get through between two crashes."""
    random = Random(seed)
    walk = StateIsADict()
    walk.begin(random.choice([0, 0, 3, 1_000]), random.random() < 0.5)
    for _ in range(150):
        namespace = random.choice(NAMESPACES)
        step = random.choices(
            ["epoch", "put", "read", "drop", "fill", "scan", "born", "crash"], [44, 20, 15, 7, 5, 5, 3, 1]
        )
        match step[0]:
            case "epoch":
                random.choice(walk.next_steps())()
            case "put":
                updates = {random.choice(KEYS): random.choice([None, 1, "x", [1]]) for _ in range(random.randrange(6))}
                walk.put(namespace, updates)
            case "read":
                walk.read(namespace, random.sample(KEYS, random.choice([1, 3, len(KEYS)])))
            case "drop":
                walk.drop(namespace)
            case "fill":
                walk.fill(namespace)
            case "scan":
                walk.scan(namespace)
            case "born":
                walk.be_born(namespace)
            case "crash":
                walk.crash()
    walk.teardown()


def test_keys_that_python_takes_for_equal_are_kept_apart(process):
    state = KeyedState(process.store, "state")
    written = {canonical_key(key): f"{key!r}" for key in (1, 1.0, True, "1", b"1", 0, False, -0.0, 0.0, None)}
    state.put_many(None, written)
    process.checkpoint(state)
    process.crash()

    restored = KeyedState(process.store, "state")

    assert len(written) == 10
    assert restored.get_many(None, list(written)) == list(written.values())
    assert dict(restored.items(None)) == written


@pytest.mark.parametrize("namespace", [None, 0])
@pytest.mark.parametrize("length", [480, 497, 498, 499, 500, 506, 507, 508, 509, 510, 511, 512, 2_000])
def test_a_key_may_be_longer_than_lmdb_allows(process, namespace, length):
    state = KeyedState(process.store, "state")
    state.put_many(namespace, {"k" * length: 1, "k" * (length - 1) + "l": 2, "gone": 3})
    process.checkpoint(state)
    state.delete(namespace, "k" * length)
    process.checkpoint(state)
    process.crash()

    restored = KeyedState(process.store, "state")

    assert restored.get_many(namespace, ["k" * length, "k" * (length - 1) + "l"]) == [None, 2]
    assert restored.items(namespace) == sorted(restored.items(namespace), key=lambda entry: encode_key(entry[0]))


def test_a_barrier_freezes_values_and_not_names(process):
    """What is written between the barrier and its encoding belongs to the next epoch."""
    state = KeyedState(process.store, "state")
    state.put_many(7, {"a": "before", "b": "before"})
    state.freeze(1)
    state.put_many(7, {"a": "after", "c": "after"})
    state.delete(7, "b")

    assert state.encode(100)
    process.commit(1, state.hand_over())
    process.crash()

    assert KeyedState(process.store, "state").items(7) == [("a", "before"), ("b", "before")]


def test_a_barrier_may_come_while_the_last_commit_is_under_way(process):
    state = KeyedState(process.store, "state", cache_max=0)
    state.put(None, "a", 1)
    state.freeze(1)
    state.encode(100)
    first = state.hand_over()
    state.put_many(None, {"a": 2, "b": 2})
    state.freeze(2)
    state.put(None, "b", 3)

    process.commit(1, first)
    state.committed(1)

    assert state.get_many(None, ["a", "b"]) == [2, 3]
    state.encode(100)
    process.commit(2, state.hand_over())
    state.committed(2)
    assert state.entries_dirty == 1
    process.crash()
    assert KeyedState(process.store, "state").items(None) == [("a", 2), ("b", 2)]


def test_a_delete_is_remembered_while_an_older_value_may_reach_the_store(process):
    """Epoch 1 deletes, epoch 2 puts and is in the store already, then comes a delete: it must hide epoch 2's value."""
    state = KeyedState(process.store, "state")
    state.put_many(None, {"a": 0, "b": 0})
    process.checkpoint(state)
    state = KeyedState(process.store, "state")
    for epoch, value in ((2, None), (3, "old")):
        state.put(None, "a", value)
        state.freeze(epoch)
        state.encode(100)
        process.commit(epoch, state.hand_over())
    state.delete(None, "a")

    state.committed(2)

    assert state.get(None, "a") is None and state.items(None) == [("b", 0)]


def test_a_namespace_in_use_is_not_born_again(process):
    state = KeyedState(process.store, "state")
    state.put(600, "a", 1)
    process.checkpoint(state)
    state = KeyedState(process.store, "state")
    assert state.get(600, "b") is None

    state.born(600)

    assert state.get(600, "a") == 1


def test_a_third_epoch_does_not_freeze_while_two_are_pending(process):
    state = KeyedState(process.store, "state")
    for epoch in (1, 2):
        state.freeze(epoch)
        state.encode(1)

    with pytest.raises(AssertionError, match="epoch 3 froze while two were pending"):
        state.freeze(3)


def test_an_epoch_does_not_freeze_before_the_last_was_encoded(process):
    state = KeyedState(process.store, "state")
    state.put_many(None, {"a": 1, "b": 2})
    state.freeze(1)
    assert not state.encode(1)

    with pytest.raises(AssertionError, match="before the last hand-over"):
        state.freeze(2)


def test_a_namespace_that_is_dropped_and_used_again_holds_only_what_is_new(process):
    state = KeyedState(process.store, "state", cache_max=0)
    state.put_many(600, dict.fromkeys(range(1000), "old"))
    process.checkpoint(state)
    process.crash()
    state = KeyedState(process.store, "state", cache_max=0)

    state.drop(600)
    state.put(600, 1, "new")
    state.freeze(3)
    assert state.get_many(600, [1, 2]) == ["new", None]  # the old rows are still in LMDB
    state.encode(100)
    process.commit(3, state.hand_over())
    state.committed(3)

    assert state.items(600) == [(1, "new")]
    process.crash()
    assert KeyedState(process.store, "state").items(600) == [(1, "new")]


def test_dropped_namespaces_leave_nothing_behind(process):
    """A window that came and went costs no memory and no row."""
    state = KeyedState(process.store, "state")
    for window in range(0, 10_000, 1_000):
        state.put_many(window, dict.fromkeys(range(200), 1))
        process.checkpoint(state)
        state.drop(window)
        process.checkpoint(state)

    assert state._spaces == {}
    with process.store.snapshot() as snapshot:
        assert snapshot.count("state") == 0


@pytest.mark.parametrize("known_by", ["a fresh store", "birth"])
def test_a_complete_namespace_never_asks_the_disk(process, monkeypatch, known_by):
    state = KeyedState(process.store, "state")
    if known_by == "birth":
        state.put(None, "something", 1)
        process.checkpoint(state)
        state = KeyedState(process.store, "state")
        state.born(600)
    monkeypatch.setattr(process.store, "snapshot", lambda: pytest.fail("the disk was asked"))

    assert state.get_many(600, ["a", "b"]) == [None, None]
    state.put(600, "a", 1)
    assert state.get_many(600, ["a", "b"]) == [1, None]
    assert state.items(600) == [("a", 1)]


def test_the_misses_of_a_batch_are_fetched_in_one_transaction(process, monkeypatch):
    state = KeyedState(process.store, "state")
    state.put_many(None, {f"k{n}": n for n in range(1_000)})
    process.checkpoint(state)
    state = KeyedState(process.store, "state")
    opened = []
    snapshot = process.store.snapshot
    monkeypatch.setattr(process.store, "snapshot", lambda: opened.append(1) or snapshot())

    assert state.get_many(None, [f"k{n}" for n in range(500, 1_500)]) == [*range(500, 1_000), *[None] * 500]
    assert state.get_many(None, [f"k{n}" for n in range(500, 1_500)]) == [*range(500, 1_000), *[None] * 500]
    assert len(opened) == 1


def test_the_cache_forgets_the_oldest_clean_entries(process):
    state = KeyedState(process.store, "state", cache_max=100)
    state.put_many(None, {n: n for n in range(300)})
    assert len(state._spaces[None].live) == 300  # dirty ones are never forgotten
    process.checkpoint(state)

    assert sorted(state._spaces[None].live) == list(range(201, 300))  # the limit, and a little room
    assert state.get_many(None, list(range(300))) == list(range(300))


def test_a_flipped_bit_in_a_stored_value_is_damage_with_a_name(process):
    state = KeyedState(process.store, "state")
    state.put(600, "k", [1, 2, 3])
    process.checkpoint(state)
    encoded = encode_key("k")
    key = row_key(GROUP_BYTES[key_group(encoded)] + namespace_bytes(600), encoded)
    with process.store.snapshot() as snapshot:
        value = bytearray(snapshot.get("state", key))
    value[-1] ^= 1
    process.commit(2, [Delta("state", puts=[(key, bytes(value))])])

    restored = KeyedState(process.store, "state")

    with pytest.raises(Damaged, match=f"database state in .*, key {key.hex()}"):
        restored.get(600, "k")
    with pytest.raises(Damaged, match=f"database state in .*, key {key.hex()}"):
        restored.items(600)


def test_a_key_of_another_part_is_a_bug_that_names_itself(process):
    state = KeyedState(process.store, "state", range(1))
    state.put_many(None, dict.fromkeys(range(300), 1))
    state.freeze(1)

    with pytest.raises(AssertionError, match="a key of another part"):
        state.encode(300)


def test_a_row_comes_back_and_is_written_only_when_it_changed(process):
    row = OperatorRow(process.store, "rows", "window[0]")
    assert row.value is None
    row.set({"open": [1, 2]})
    process.checkpoint(row)
    process.crash()

    row = OperatorRow(process.store, "rows", "window[0]")
    assert row.value == {"open": [1, 2]}
    row.set({"open": [1, 2]})
    row.freeze(5)
    assert row.encode(1) and row.hand_over() == []
    row.set(None)
    row.freeze(6)
    assert row.hand_over() == [Delta("rows", deletes=[b"window[0]"])]


def test_large_values_end_an_epoch_by_their_bytes(process, monkeypatch):
    """Entries alone would let 2,000,000 values of a megabyte wait in memory."""
    monkeypatch.setattr(state_module, "DIRTY_BYTES_MAX", 100_000)
    state = KeyedState(process.store, "state")
    state.put_many(None, dict.fromkeys(range(400), "v" * 1000))
    assert not state.full, "the first epoch's rows have not been seen yet"
    process.checkpoint(state)

    state.put_many(None, dict.fromkeys(range(90), "v" * 1000))
    assert not state.full
    state.put_many(None, dict.fromkeys(range(100), "v" * 1000))
    assert state.full
    process.checkpoint(state)
    assert not state.full
