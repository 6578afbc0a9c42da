"""The store: a checkpoint is there whole or not at all, and readers see one epoch at a time."""

import resource
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.codec import encode_value, seal
from streamactors.core.errors import Damaged, QuotaFull, UsageError
from streamactors.durable import store as store_module
from streamactors.durable import writing
from streamactors.durable.store import Checkpoint, Delta, Restored, Store
from streamactors.durable.writing import sorted_ranges

ID = "0" * 32


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "jobs" / "quiz" / "v1"


@pytest.fixture
def store(folder):
    with Store.open(folder, sync=False) as opened:
        yield opened


def checkpoint(epoch, *deltas, attempt=1, region="r", **more) -> Checkpoint:
    return Checkpoint(region, attempt, epoch, {"offset": epoch * 10}, deltas=list(deltas), **more)


def rows(store, database):
    with store.snapshot() as snapshot:
        return dict(snapshot.scan(database))


def test_a_checkpoint_comes_back_after_a_restart(store, folder):
    assert store.restore("r") is None
    assert store.begin_attempt("r") == 1
    delta = Delta("state:count", puts=[(b"b", b"2"), (b"a", b"1")])
    stats = store.commit(checkpoint(1, delta, journal=[["read", 0, 10]], created_ms=5, stats={"duration_ms": 7}))
    store.close()

    with Store.open(folder) as reopened:
        assert reopened.regions() == ["r"]
        assert reopened.restore("r") == Restored("r", attempt=1, epoch=1, position={"offset": 10}, created_ms=5)
        assert rows(reopened, "state:count") == {b"a": b"1", b"b": b"2"}
        assert list(reopened.journal("r")) == [["read", 0, 10]]
        assert reopened.checkpoints("r") == [
            {"epoch": 1, "attempt": 1, "created_ms": 5, "duration_ms": 7, "bytes": stats.bytes, "entries": 2}
        ]


def test_a_delta_deletes_prefixes_then_keys_and_then_puts(store):
    store.begin_attempt("r")
    old = [(key, b"old") for key in (b"a", b"b1", b"b2", b"b3", b"c", b"d")]
    store.commit(checkpoint(1, Delta("x", puts=old)))
    store.commit(
        checkpoint(2, Delta("x", puts=[(b"b2", b"new"), (b"d", b"new")], deletes=[b"d", b"z"], prefixes=[b"b"]))
    )

    assert rows(store, "x") == {b"a": b"old", b"b2": b"new", b"c": b"old", b"d": b"new"}


def test_the_attempt_is_raised_and_kept(store, folder):
    assert [store.begin_attempt("r"), store.begin_attempt("r"), store.begin_attempt("other")] == [1, 2, 1]
    store.close()

    with Store.open(folder) as reopened:
        assert reopened.begin_attempt("r") == 3


@pytest.mark.parametrize(
    ("late", "because"),
    [
        (checkpoint(3, attempt=1), "E1: r committed in attempt 1, the store is at 2"),
        (checkpoint(2, attempt=2), "E1: r committed epoch 2 after 2"),
        (checkpoint(1, attempt=2), "E1: r committed epoch 1 after 2"),
        (checkpoint(1, attempt=1, region="unknown"), "E1: unknown committed in attempt 1, the store is at None"),
    ],
)
def test_a_commit_that_a_restart_left_over_is_refused(store, late, because):
    store.begin_attempt("r")
    store.commit(checkpoint(2, Delta("x", puts=[(b"k", b"right")])))
    store.begin_attempt("r")
    late.deltas = [Delta("x", puts=[(b"k", b"wrong")]), Delta("y", puts=[(b"k", b"wrong")])]

    with pytest.raises(AssertionError, match=because):
        store.commit(late)
    assert rows(store, "x") == {b"k": b"right"} and rows(store, "y") == {}
    store.commit(checkpoint(3, attempt=2))


def test_a_full_quota_leaves_the_epoch_before_whole(folder):
    big = Delta("x", puts=[(b"%d" % n, b"v" * 1_000) for n in range(1_000)])
    with Store.open(folder, quota_bytes=256 * 1024) as store:
        store.begin_attempt("r")
        store.commit(checkpoint(1, Delta("x", puts=[(b"k", b"1")])))
        with pytest.raises(QuotaFull, match=r"epoch 2 of region r does not fit into the quota of 262,144 bytes"):
            store.commit(checkpoint(2, Delta("x", puts=[(b"k", b"2")]), big, Delta("new", puts=[(b"k", b"2")])))
        assert store.restore("r").epoch == 1
        assert rows(store, "x") == {b"k": b"1"} and rows(store, "new") == {}

    with Store.open(folder, quota_bytes=16 * 1024 * 1024) as store:
        store.commit(checkpoint(3, big))
        assert len(rows(store, "x")) == 1_001


def test_pages_are_used_again_inside_the_quota(folder):
    """The quota is about what is stored, not about how often it changed."""
    with Store.open(folder, sync=False, quota_bytes=1024 * 1024) as store:
        store.begin_attempt("r")
        for epoch in range(1, 60):
            store.commit(checkpoint(epoch, Delta("x", puts=[(b"%d" % n, b"%500d" % epoch) for n in range(300)])))
        assert (folder / "data.mdb").stat().st_size <= 1024 * 1024


def test_a_disk_that_takes_no_more_leaves_the_epoch_before_whole(folder):
    with Store.open(folder) as store:
        store.begin_attempt("r")
        store.commit(checkpoint(1, Delta("x", puts=[(b"k", b"1")])))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "data.mdb").stat().st_size, hard))
        try:
            with pytest.raises(QuotaFull, match=r"the disk is full.*Nothing of epoch 2 of region r was written"):
                store.commit(checkpoint(2, Delta("x", puts=[(b"%d" % n, b"v" * 1_000) for n in range(1_000)])))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with Store.open(folder) as store:
        assert store.restore("r").epoch == 1
        assert rows(store, "x") == {b"k": b"1"}
        store.commit(checkpoint(3))


def test_a_store_belongs_to_one_job_for_good(store, folder):
    with pytest.raises(UsageError, match="belongs to no job yet"):
        store.identity()
    mine = store.identity("quiz", new_id=ID)
    assert (mine.job, mine.version, mine.incarnation) == ("quiz", "v1", ID)
    assert store.identity("quiz", new_id="another") == mine == store.identity()

    with pytest.raises(UsageError, match="belongs to job 'quiz' version v1, not to 'flights' version v1"):
        store.identity("flights", new_id=ID)
    with pytest.raises(UsageError, match="not to 'quiz' version v2"):
        store.identity("quiz", version="v2", new_id=ID)


def test_another_format_is_refused(store):
    mine = store.identity("quiz", new_id=ID)
    store._save_meta("identity", {**asdict(mine), "format": 99})

    with pytest.raises(UsageError, match="has format version 99, this release reads up to 1"):
        store.identity("quiz")


def test_the_plan_is_kept(store):
    assert store.plan is None
    store.save_plan({"count": 4})
    assert store.plan == {"count": 4}


def test_nothing_to_read_is_a_mistake_of_the_caller(folder):
    with pytest.raises(UsageError, match=f"no state in {folder}: no job has written there"):
        Store.open(folder, read_only=True)
    folder.mkdir(parents=True)
    with pytest.raises(UsageError, match="no job has written there"):
        Store.open(folder, read_only=True)


def test_a_second_open_in_one_process_is_refused(store, folder):
    """LMDB's locks are the process's: a second environment would release those of the first."""
    with pytest.raises(UsageError, match="open in this process already"):
        Store.open(folder, read_only=True)


def test_only_the_newest_summaries_are_kept(store, monkeypatch):
    monkeypatch.setattr(store_module, "CHECKPOINTS_KEPT", 3)
    store.begin_attempt("r")
    for epoch in (1, 2, 5, 6, 9):
        store.commit(checkpoint(epoch))

    assert [summary["epoch"] for summary in store.checkpoints("r")] == [5, 6, 9]


def test_the_journal_is_read_in_the_order_of_its_epochs(store):
    store.begin_attempt("r")
    for epoch in range(1, 600):
        store.commit(checkpoint(epoch, journal=[] if epoch % 3 == 0 else [[epoch, 0], [epoch, 1]]))

    assert list(store.journal("r")) == [[epoch, part] for epoch in range(1, 600) if epoch % 3 for part in (0, 1)]
    assert list(store.journal("r", after_epoch=598)) == [[599, 0], [599, 1]]
    assert list(store.journal("unknown")) == []


def test_a_flipped_bit_in_a_position_is_damage_with_a_name(store):
    store.begin_attempt("r")
    store.commit(checkpoint(1))
    flipped = bytearray(seal(encode_value({"epoch": 1})))
    flipped[5] ^= 4
    with store._writing("damage", []) as transaction:
        transaction.put(b"r", bytes(flipped), db=store._handles["regions"])

    with pytest.raises(Damaged, match="database regions, key r"):
        store.restore("r")


def test_a_snapshot_does_not_see_what_came_after_it(store):
    """Not even a database that came after it: LMDB itself would answer "invalid argument"."""
    store.begin_attempt("r")
    store.commit(checkpoint(1, Delta("x", puts=[(b"k", b"1")])))

    with store.snapshot() as old:
        store.commit(checkpoint(2, Delta("x", puts=[(b"k", b"2")]), Delta("y", puts=[(b"k", b"2")])))
        assert old.get("x", b"k") == b"1"
        assert old.get("y", b"k") is None
        assert old.get_many("y", [b"k"]) == [] and old.scan("y") == [] and old.count("y") == 0
    assert rows(store, "y") == {b"k": b"2"}


def test_a_scan_takes_a_prefix_a_place_and_a_limit(store):
    store.begin_attempt("r")
    store.commit(checkpoint(1, Delta("x", puts=[(key, b"") for key in (b"a", b"b", b"ba", b"bb", b"c", b"z" * 511)])))

    with store.snapshot() as snapshot:

        def keys(*args, **more):
            return [key for key, _ in snapshot.scan("x", *args, **more)]

        assert keys(b"b") == [b"b", b"ba", b"bb"]
        assert keys(b"b", after=b"b") == [b"ba", b"bb"]
        assert keys(b"b", after=b"b", limit=1) == [b"ba"]
        assert keys(after=b"bab") == [b"bb", b"c", b"z" * 511]
        assert keys(after=b"z" * 511) == keys(b"q") == []
        assert snapshot.get_many("x", [b"a", b"q", b"c"]) == [(b"a", b""), (b"c", b"")]


def test_a_commit_leaves_the_interpreters_switch_interval_as_it_was(store, monkeypatch):
    """Also when it fails, and when another job's commit is under way."""
    before = sys.getswitchinterval()
    seen = []
    apply = store_module.apply_delta
    monkeypatch.setattr(store_module, "apply_delta", lambda *args: seen.append(sys.getswitchinterval()) or apply(*args))
    store.begin_attempt("r")
    with writing.short_turns():
        store.commit(checkpoint(1))
        with pytest.raises(AssertionError, match="an empty prefix"):
            store.commit(checkpoint(2, Delta("x", prefixes=[b""])))
        assert sys.getswitchinterval() == pytest.approx(5e-5)

    assert sys.getswitchinterval() == before and max(seen) == pytest.approx(5e-5)


READER = """
import sys
from pathlib import Path
from streamactors.durable.store import Store

seen = set()
with Store.open(Path(sys.argv[1]), read_only=True) as store:
    print("open", flush=True)
    while True:
        with store.snapshot() as snapshot:
            found = {}
            for database in snapshot.databases():
                if database.startswith("x"):
                    for _, value in snapshot.scan(database):
                        found.setdefault(value, []).append(database)
        assert len(found) <= 1, found
        for value, databases in found.items():
            epoch = int(value)
            assert len(set(databases)) == 1 + epoch // 10, (epoch, databases)
            seen.add(epoch)
            if epoch == 200:
                print(len(seen))
                raise SystemExit
"""


def epoch_over_growing_databases(epoch) -> Checkpoint:
    """Every row of every database says the epoch; each tenth epoch makes a new database."""
    puts = [(b"%d" % n, b"%d" % epoch) for n in range(20)]
    return checkpoint(epoch, *(Delta(f"x{n}", puts=puts) for n in range(1 + epoch // 10)))


def test_another_process_reads_whole_epochs_while_they_are_committed(folder):
    with Store.open(folder, sync=False) as store:
        store.begin_attempt("r")
        store.commit(epoch_over_growing_databases(1))
        with subprocess.Popen([sys.executable, "-c", READER, folder], stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout.readline() == "open\n"
            for epoch in range(2, 201):
                store.commit(epoch_over_growing_databases(epoch))
            assert int(reader.stdout.readline()) >= 1
        assert reader.returncode == 0


def test_another_thread_reads_whole_epochs_while_they_are_committed(store):
    store.begin_attempt("r")
    commits = [epoch_over_growing_databases(epoch) for epoch in range(1, 201)]
    writer = threading.Thread(target=lambda: [store.commit(each) for each in commits])
    writer.start()
    epoch = 0
    while epoch < 200 and (writer.is_alive() or epoch == 0 or rows(store, "x0")[b"0"] != b"%d" % epoch):
        with store.snapshot() as snapshot:
            found = {name: dict(snapshot.scan(name)) for name in snapshot.databases() if name[0] == "x"}
        said = {int(value) for table in found.values() for value in table.values()}
        assert len(said) <= 1
        if said:
            assert said >= {epoch} or min(said) > epoch
            epoch = said.pop()
            assert sum(map(bool, found.values())) == 1 + epoch // 10
    writer.join()
    assert epoch == 200


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=3), st.just(b"")), max_size=300), st.integers(2, 40))
def test_many_rows_are_sorted_in_short_pieces(many, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_SORT_MAX", most)
        assert [row for part in sorted_ranges(many) for row in part] == sorted(many)
