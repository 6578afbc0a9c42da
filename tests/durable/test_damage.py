"""Damaged, cut, unreadable files: a clear error with file and position, never a gap, never the end of the process."""

import errno
import subprocess
import sys
from pathlib import Path
from random import Random, SystemRandom

import lmdb
import pytest

from streamactors.core.codec import encode_value, seal
from streamactors.core.errors import Damaged, StorageError, UsageError
from streamactors.durable.frames import Records
from streamactors.durable.pages import first_missing
from streamactors.durable.state import KeyedState
from streamactors.durable.store import Checkpoint, Delta, Store
from streamactors.durable.views import ViewBuffer, ViewReader

PAGE = 4_096


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "jobs" / "quiz" / "v1"


@pytest.fixture
def stored(folder):
    """A folder with a checkpoint."""
    with Store.open(folder) as store:
        store.identity("quiz", new_id="1")
        store.begin_attempt("r")
        rows = [(b"%d" % n, seal(encode_value("v" * 300))) for n in range(500)]
        store.commit(Checkpoint("r", 1, 1, {"at": 1}, deltas=[Delta("x", puts=rows)]))
        store.make_reserve()
    return folder


# The store. -----------------------------------------------------------------------------------------------------------


def test_a_cut_file_is_refused_or_whole_and_never_ends_the_process(tmp_path, record_property):
    seed = SystemRandom().randrange(10**9)
    child = Path(__file__).parent / "damage_child.py"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", child, str(seed), tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"seed {seed}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    record_property("said", done.stdout.strip())


def test_a_whole_file_may_be_shorter_than_its_meta_page_says(tmp_path):
    """LMDB does not write a page that the same commit gave back. To take that for damage would refuse good state."""
    for seed in range(500):
        random, name = Random(seed), str(tmp_path / str(seed))
        with lmdb.open(name, map_size=1 << 30, sync=False, max_dbs=1) as environment:
            x = environment.open_db(b"x")
            with environment.begin(write=True) as transaction:
                for n in range(3_000):
                    transaction.put(b"%05d" % n, b"v" * random.randint(10, 200), db=x)
            for _ in range(4):
                with environment.begin(write=True) as transaction:
                    start = random.randint(0, 3_000)
                    for n in range(start, start + random.randint(1, 1_500)):
                        transaction.delete(b"%05d" % n, db=x)
                path = tmp_path / str(seed) / "data.mdb"
                assert first_missing(path) is None, f"seed {seed}"
                if path.stat().st_size < (environment.info()["last_pgno"] + 1) * PAGE:
                    return
    pytest.fail("no seed made such a file")


def test_the_message_of_a_cut_file_has_the_position(stored):
    path = stored / "data.mdb"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size // 2 // PAGE * PAGE)
    with pytest.raises(Damaged, match=rf"{path} ends at [\d,]+ bytes, a page that is in use stands at [\d,]+.*cut"):
        Store.open(stored)


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("damage", ["both meta pages", "empty"])
def test_a_file_that_is_no_store_any_more_is_damage(stored, damage, read_only):
    path = stored / "data.mdb"
    path.write_bytes(b"" if damage == "empty" else b"\xff" * 2 * PAGE + path.read_bytes()[2 * PAGE :])
    before = path.read_bytes()
    with pytest.raises(Damaged, match=str(path)):
        Store.open(stored, read_only=read_only)
    assert path.read_bytes() == before, "what is left was touched"


@pytest.mark.parametrize("read_only", [True, False])
def test_a_file_that_somebody_removed_is_damage_and_not_a_new_job(stored, read_only):
    """Starting from nothing would count the whole log once more, into views that people trust."""
    (stored / "data.mdb").unlink()
    with pytest.raises(Damaged, match="is not there, but a job has had its state in this folder"):
        Store.open(stored, read_only=read_only)


def test_a_lock_file_that_somebody_removed_is_made_again(stored):
    (stored / "lock.mdb").unlink()
    with Store.open(stored) as store:
        assert store.restore("r").epoch == 1


def test_a_start_that_was_killed_while_it_made_the_file_is_no_damage(folder):
    folder.mkdir(parents=True)
    (folder / "data.mdb.new").write_bytes(b"half")
    with pytest.raises(UsageError, match="no job has written there"):
        Store.open(folder, read_only=True)
    with Store.open(folder) as store:
        assert store.begin_attempt("r") == 1


def test_a_page_of_zeros_is_damage_with_the_files_name(stored):
    """A disk returns zeros for what it lost. The rest stays readable."""
    path = stored / "data.mdb"
    data = bytearray(path.read_bytes())
    leaves = [at for at in range(0, len(data), PAGE) if b"v" * 300 in data[at : at + PAGE]]
    data[leaves[0] : leaves[0] + PAGE] = bytes(PAGE)
    path.write_bytes(data)
    with Store.open(stored) as store:
        assert store.restore("r").position == {"at": 1}
        with pytest.raises(Damaged, match=f"{path}: LMDB can't read its pages"), store.snapshot() as snapshot:
            snapshot.scan("x")


def test_a_flipped_bit_in_a_value_is_damage_with_file_and_key(tmp_path, folder):
    with Store.open(folder) as store:
        store.begin_attempt("r")
        state = KeyedState(store, "state:counts")
        state.put(None, "somewhere", "v" * 100)
        state.freeze(1)
        state.encode(10)
        store.commit(Checkpoint("r", 1, 1, None, deltas=state.hand_over()))
    path = folder / "data.mdb"
    data = bytearray(path.read_bytes())
    data[data.index(b"v" * 100) + 50] ^= 1
    path.write_bytes(data)
    with Store.open(folder) as store, pytest.raises(Damaged, match=rf"state:counts in {path}, key .*checksum"):
        KeyedState(store, "state:counts").get(None, "somewhere")


def test_views_that_can_be_read_stay_readable_beside_a_damaged_one(folder):
    with Store.open(folder) as store:
        store.begin_attempt("r")
        deltas = []
        for name, text in (("good", "g"), ("bad", "b")):
            view = ViewBuffer(name)
            view.upsert(["k", "l"], [text * 100, 1])
            view.freeze(1)
            assert view.encode(10)
            deltas += view.hand_over()
        store.commit(Checkpoint("r", 1, 1, None, deltas=deltas))
    path = folder / "data.mdb"
    data = bytearray(path.read_bytes())
    data[data.index(b"b" * 100)] ^= 1
    path.write_bytes(data)
    with Store.open(folder, read_only=True) as store:
        views = ViewReader(store)
        assert dict(views["good"].items()) == {"k": "g" * 100, "l": 1}
        assert views["bad"]["l"] == 1
        with pytest.raises(Damaged, match=rf"view:bad in {path}, key .*checksum"):
            views["bad"]["k"]
        with pytest.raises(Damaged, match="view:bad"):
            dict(views["bad"].items())


# The log. -------------------------------------------------------------------------------------------------------------


async def three_segments(world):
    log = world.log()
    partition = (await log.create_topic("t")).partition(0)
    for n in range(3):
        await partition.append(Records.of([b"%d" % n]))
        partition._commits._appender.segment_bytes_max = 1
    return partition


async def test_a_missing_segment_is_named_and_never_skipped(world, read_all):
    partition = await three_segments(world)
    world.disk.remove(partition._folder / f"{1:020d}.segment")
    reader = partition.reader(0)
    assert [chunk.values() for chunk in await reader.read()] == [[b"0"]]
    with pytest.raises(Damaged, match=r"0\.segment ends at position \d+, and no segment begins with offset 1"):
        await reader.read()
    with pytest.raises(Damaged, match="no segment begins with offset 1"):
        await partition.reader(1).read()
    assert await read_all(partition, 2) == [b"2"], "what lies behind it can still be read"


async def test_a_flipped_bit_below_the_end_is_named_by_file_and_position(world, read_all):
    partition = await three_segments(world)
    path = partition._folder / f"{1:020d}.segment"
    data = world.disk.peek(path)
    world.disk.damage(path, len(data) - 1, bytes([data[-1] ^ 1]))
    reader = partition.reader(0)
    await reader.read()
    with pytest.raises(Damaged, match=rf"{path} at position \d+: the frame of offset 1, which was durable"):
        await reader.read()
    assert await read_all(partition, 2) == [b"2"]
    assert await partition.append(Records.of([b"3"])) == 3, "appends go on"


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("operation", ["open", "read"])
async def test_a_file_that_cannot_be_read_is_named_and_can_be_read_later(world, read_all, operation, code):
    partition = await three_segments(world)
    world.refuse(operation, OSError(code, "no", str(partition._folder / f"{0:020d}.segment")))
    with pytest.raises(StorageError, match=r"can't be read from offset 0, position \d+: .*segment"):
        await partition.reader(0).read()
    assert await read_all(partition) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("operation", ["open", "read", "sync_folder"])
async def test_a_partition_that_cannot_be_opened_for_appends_says_so_and_takes_them_later(world, operation):
    partition = await three_segments(world)
    await partition.reopen()
    world.refuse(operation, OSError(errno.EIO, "no"))
    with pytest.raises(StorageError, match="can't be opened for appends"):
        await partition.append(Records.of([b"3"]))
    assert await partition.append(Records.of([b"3"])) == 3
