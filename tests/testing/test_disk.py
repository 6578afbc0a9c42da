"""The simulated disk: it keeps what it must, and forgets all that it may."""

import errno
from pathlib import Path
from random import Random

import pytest

from streamactors.core.errors import Held
from streamactors.testing.disk import SECTOR_BYTES, Crash, SimDisk

FOLDER = Path("/data")
FILE = FOLDER / "file"


def disk_with_file(seed=0, data=b"synced"):
    disk = SimDisk(Random(seed))
    disk.make_folder(FOLDER)
    file = disk.open(FILE, write=True, create=True)
    file.write(0, data)
    file.sync()
    disk.sync_folder(FOLDER)
    return disk, file


def test_what_was_synced_is_there_after_any_crash():
    for seed in range(50):
        disk, file = disk_with_file(seed)
        file.write(6, b"more")
        after = disk.crash()
        assert after.peek(FILE)[:6] == b"synced"


def test_a_kill_keeps_what_was_written_and_a_power_loss_any_of_its_sectors():
    big = b"x" * (3 * SECTOR_BYTES)
    found = set()
    for seed in range(100):
        disk, file = disk_with_file(seed, b"")
        file.write(0, big)
        assert disk_kill(disk).peek(FILE) == big
        found.add(disk.crash(power=True).peek(FILE))
    assert {b"", big, bytes(SECTOR_BYTES) + big[SECTOR_BYTES:]} <= found, "nothing, all, and a hole in front"


def disk_kill(disk):
    after = disk.crash(power=False)
    disk.dead = False
    return after


def test_what_a_kill_kept_may_still_go_with_the_power():
    found = set()
    for seed in range(30):
        disk, file = disk_with_file(seed)
        file.write(0, b"SYNCED")
        found.add(disk.crash(power=False).crash(power=True).peek(FILE))
    assert found == {b"synced", b"SYNCED"}


def test_after_a_failed_sync_only_writing_again_helps():
    disk, file = disk_with_file()
    file.write(0, b"SYNCED")

    def refuse(label, path):
        raise OSError(errno.EIO, label)

    disk.on_operation = refuse
    with pytest.raises(OSError, match="sync"):
        file.sync()
    disk.on_operation = None
    file.sync()
    assert file.read(0, 6) == b"SYNCED", "as it is read"
    assert disk.crash(power=True).peek(FILE) == b"synced", "as it is on disk"


def test_names_that_were_not_synced_may_be_the_old_ones():
    found = set()
    for seed in range(30):
        disk, _ = disk_with_file(seed)
        disk.rename(FILE, FOLDER / "renamed")
        found.add(tuple(path.name for path in disk.crash(power=True).files()))
    assert found == {("file",), ("renamed",)}


def test_the_process_ends_at_the_operation_that_was_named_and_stays_dead():
    disk, file = disk_with_file()
    disk.fail_at(2)
    file.write(6, b"1")
    file.read(0, 1)  # changes nothing, so it does not count
    with pytest.raises(Crash, match="write"):
        file.write(7, b"2")
    with pytest.raises(Crash, match="after the crash"):
        file.read(0, 1)


def test_a_write_that_was_under_way_is_there_up_to_some_byte():
    found = set()
    for seed in range(100):
        disk, file = disk_with_file(seed, b"")
        disk.fail_at(1)
        with pytest.raises(Crash):
            file.write(0, b"abc")
        found.add(disk.crash(power=False).peek(FILE))
    assert found == {b"", b"a", b"ab", b"abc"}


def test_a_cell_keeps_its_value_when_killed_and_has_an_earlier_one_after_a_power_loss():
    found = set()
    for seed in range(50):
        disk, _ = disk_with_file(seed)
        cell = disk.cell(FOLDER / "cell", write=True)
        disk.sync_folder(FOLDER)
        for value in (1, 2, 3):
            cell.store(value)
        assert disk_kill(disk).cell(FOLDER / "cell").load() == 3
        found.add(disk.crash(power=True).cell(FOLDER / "cell").load())
    assert found == {0, 1, 2, 3}


def test_a_boot_and_a_lock_end_with_the_machine_and_the_process():
    disk, _ = disk_with_file()
    disk.lock(FOLDER / "lock")
    with pytest.raises(Held):
        disk.lock(FOLDER / "lock")

    killed = disk.crash(power=False)
    killed.lock(FOLDER / "lock").release()
    assert killed.boot_id() == disk.boot_id() != killed.crash(power=True).boot_id()


def test_a_write_that_does_not_fit_leaves_what_fits_and_says_so():
    disk = SimDisk(Random(1))
    disk.make_folder(Path("/a"))
    file = disk.open(Path("/a/f"), create=True)
    file.write(0, b"1234")
    disk.quota_bytes = 6

    with pytest.raises(OSError, match="No space left"):
        file.write(4, b"5678")
    assert disk.peek(Path("/a/f")) == b"123456"
    with pytest.raises(OSError, match="No space left"):
        disk.open(Path("/a/g"), create=True)

    file.write(0, b"abcdef")  # what is there already needs no room
    disk.quota_bytes = None
    file.write(6, b"gh")
    assert disk.peek(Path("/a/f")) == b"abcdefgh"
    disk.quota_bytes = 1
    assert disk.crash().quota_bytes is None, "somebody has made room meanwhile"
