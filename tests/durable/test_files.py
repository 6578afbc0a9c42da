"""The real disk does what the port says; the simulated one, where both can be asked, the same."""

import threading
from pathlib import Path
from random import Random

import pytest

from streamactors.core.errors import Held
from streamactors.durable.files import RealDisk
from streamactors.durable.realtime import RealThreads
from streamactors.testing.disk import SimDisk


@pytest.fixture(params=["real", "simulated"])
def place(request, tmp_path):
    """A disk and an empty folder on it."""
    if request.param == "real":
        return RealDisk(), tmp_path
    disk = SimDisk(Random(0))
    disk.make_folder(Path("/data"))
    return disk, Path("/data")


def test_bytes_come_back_from_where_they_were_written(place):
    disk, folder = place
    file = disk.open(folder / "f", write=True, create=True)
    file.write(0, b"hello")
    file.write(8, b"!")
    assert file.read(0, 100) == b"hello\0\0\0!" and file.size() == 9
    assert file.read(4, 2) == b"o\0" and file.read(9, 5) == b""

    file.truncate(3)
    file.sync()
    assert file.read(0, 100) == b"hel"
    file.close()
    file.close()


def test_names_are_made_once_renamed_and_removed(place):
    disk, folder = place
    disk.open(folder / "f", write=True, create=True).close()
    with pytest.raises(FileExistsError):
        disk.open(folder / "f", write=True, create=True)
    disk.rename(folder / "f", folder / "g")
    disk.sync_folder(folder)
    assert disk.names(folder) == ["g"] and not disk.exists(folder / "f")

    disk.remove(folder / "g")
    assert disk.names(folder) == [] == disk.names(folder / "nowhere")
    with pytest.raises(FileNotFoundError):
        disk.open(folder / "g")


def test_folders_are_made_with_their_parents(place):
    disk, folder = place
    disk.make_folder(folder / "a" / "b")
    disk.make_folder(folder / "a" / "b")
    assert disk.names(folder) == ["a"] and disk.exists(folder / "a" / "b")


def test_a_cell_is_shared_by_all_who_map_it(place):
    disk, folder = place
    with pytest.raises(FileNotFoundError):
        disk.cell(folder / "c")
    writer = disk.cell(folder / "c", write=True)
    reader = disk.cell(folder / "c")
    woken = []
    end = reader.watch(lambda: woken.append(reader.load()))

    writer.store(2**62 + 1)
    assert reader.load() == 2**62 + 1 == woken[0]
    end()
    writer.store(5)
    reader.watch(lambda: woken.append(0))
    reader.close()
    writer.store(6)
    assert len(woken) == 1
    writer.close()


def test_a_lock_names_its_holder_until_it_is_released(place):
    disk, folder = place
    lock = disk.lock(folder / "lock")
    with pytest.raises(Held, match="in use by process") as held:
        disk.lock(folder / "lock")
    assert held.value.pid is not None
    lock.release()
    lock.release()
    disk.lock(folder / "lock").release()


def test_the_boot_id_is_16_bytes_and_stays(place):
    disk, _ = place
    assert len(disk.boot_id()) == 16 and disk.boot_id() == disk.boot_id()


def test_a_file_that_was_not_closed_is_reported(tmp_path):
    file = RealDisk().open(tmp_path / "f", write=True, create=True)
    with pytest.warns(ResourceWarning, match="was not closed"):
        del file


async def test_a_lane_is_one_thread_and_keeps_the_order():
    threads = RealThreads()
    seen = []
    for number in range(10):
        await threads.run("a", seen.append, number)
    names = {(await threads.run(lane, threading.current_thread)).name for lane in "aab"}
    assert seen == list(range(10)) and names == {"a", "b"}

    with pytest.raises(ZeroDivisionError):
        await threads.run("a", divmod, 1, 0)
    await threads.close()
    assert not {thread.name for thread in threading.enumerate()} & {"a", "b"}
