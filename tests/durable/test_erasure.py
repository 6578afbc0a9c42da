"""Erased records: their bytes are gone, everything else is as it was, whoever reads and whenever it crashes."""

import asyncio

import pytest

from streamactors.core.errors import Damaged, Held, QuotaFull, UsageError
from streamactors.durable.appender import open_appender
from streamactors.durable.erasure import erase, find
from streamactors.durable.frames import ERASED_VERSION, MAGIC, Records, Stamp
from streamactors.durable.register import FILE, ranges_of, read_register
from streamactors.testing.disk import Crash
from streamactors.testing.idle import settle

from .conftest import DATA

FOLDER = DATA / "log" / "t" / "0"
SECRET = b"ada@example.org"


def ids(world):
    return lambda: f"{world.random.getrandbits(128):032x}"


def is_hers(key, value):
    return key == SECRET or SECRET in value


def erase_hers(world):
    return erase(world.disk, FOLDER, is_hers, ids(world), world.clock.now_ms())


def segments(world):
    return [path for path in world.disk.files() if path.suffix == ".segment"]


def all_bytes(world):
    return b"".join(world.disk.peek(path) for path in world.disk.files())


async def read(partition, start=0):
    """Return {offset: (value, key, append time)} of all that can be read, and the reader's position."""
    reader = partition.reader(start)
    rows = {}
    while chunks := await reader.read(world_batch):
        for chunk in chunks:
            rows.update(
                zip(
                    range(chunk.first, chunk.end),
                    zip(chunk.values(), chunk.keys(), chunk.append_times(), strict=True),
                    strict=True,
                )
            )
    position, erased = reader.position, reader.erased_records
    await reader.close()
    return rows, position, erased


world_batch = 7  # so that chunks are cut in the middle of frames


def values_of(random):
    """Values and keys of one append, in all forms that a frame has; some are hers."""
    count = random.choice([1, 1, 2, 5, 40, 300])
    hers = random.choice([0.0, 0.05, 0.5, 1.0])
    odd = random.random() < 0.3
    values, keys = [], []
    for _ in range(count):
        text = b"%x" % random.getrandbits(random.choice([1, 30, 400]))
        if odd:
            text = random.choice([b"", b"\n", text + b"\n", text])
        mine = random.random() < hers
        by_key = mine and random.random() < 0.5
        values.append(text if by_key or not mine else text + SECRET + text)
        keys.append(SECRET if by_key else random.choice([None, b"", b"k\n", b"bob"]))
    return values, random.choice([keys, keys, None]) if SECRET not in keys else keys


async def fill(world, appends=25):
    """Append in three ways, over several segments; return what stands at each offset."""
    partition = await world.partition()
    written, stamp = {}, None
    for number in range(appends):
        values, keys = values_of(world.random)
        world.clock.advance(world.random.randint(0, 5))
        records = Records.of(values, keys)
        if number % 5 == 4:
            new = Stamp("job", "sink", "i", number, 1, 1)
            assert await partition.append_stamped(records, new, stamp)
            first, stamp = partition.durable_end() - len(values), new
        else:
            first = await partition.append(records, producer=("p", number))
        partition._commits._appender.segment_bytes_max = 4_000
        written |= {
            first + row: (value, keys and keys[row])
            for row, (value, keys) in enumerate(zip(values, [keys] * len(values), strict=True))
        }
    before, _, _ = await read(partition)
    assert {offset: row[:2] for offset, row in before.items()} == {
        o: (v, k or (k if k == b"" else None)) for o, (v, k) in written.items()
    }
    await partition.close()
    return before


def left_of(rows):
    return {offset: row for offset, row in rows.items() if not is_hers(row[1], row[0])}


@pytest.mark.parametrize("seed", range(25))
async def test_what_is_left_is_what_was_there_without_hers(new_world, seed):
    """The oracle is a dict of all rows, filtered. Values, keys, append times, offsets; then appends go on."""
    world = new_world(seed)
    before = await fill(world)
    end = max(before) + 1

    found = erase_hers(world)
    assert found.offsets == sorted(before.keys() - left_of(before).keys())
    assert SECRET not in all_bytes(world)

    partition = await world.partition()
    rows, position, erased = await read(partition)
    assert rows == left_of(before)
    assert (position, erased) == (end, len(found.offsets)) and partition.durable_end() == end

    for start in world.random.sample(range(end), 5):
        rows, _, _ = await read(partition, start)
        assert rows == {offset: row for offset, row in left_of(before).items() if offset >= start}
    assert await partition.append(Records.of([b"more"])) == end
    assert (await partition.last_stamp("job", "sink")).epoch == 24
    assert await partition.append(Records.of([b"again"]), producer=("p", 23)) < end, "a retry is still found"


@pytest.mark.parametrize("seed", range(5))
async def test_a_second_time_finds_nothing_and_changes_nothing(new_world, seed):
    world = new_world(seed)
    await fill(world)
    first = erase_hers(world)
    before = {path: world.disk.peek(path) for path in segments(world)}

    second = erase_hers(world)
    assert second.offsets == [] and second.erased == set(first.offsets)
    assert {path: world.disk.peek(path) for path in segments(world)} == before
    assert len(read_register(world.disk, FOLDER)) <= 1


async def test_a_dry_run_tells_the_same_and_changes_nothing(world):
    await fill(world)
    before = {path: world.disk.peek(path) for path in world.disk.files()}
    found = find(world.disk, FOLDER, is_hers, ids(world))
    assert {path: world.disk.peek(path) for path in world.disk.files()} == before
    assert found == erase_hers(world)


@pytest.mark.parametrize("power", [False, True])
async def test_a_crash_at_each_operation_leaves_each_segment_old_or_new(new_world, power):
    """Then it is done again, and what is left is the same as without a crash."""
    operation, lived = 0, False
    while not lived:
        operation += 1
        world = new_world(3)
        before = await fill(world, appends=12)
        old = {path: world.disk.peek(path) for path in segments(world)}
        world.disk.fail_at(operation)
        try:
            erase_hers(world)
            lived = True
        except Crash:
            pass
        world.crash(power=power)

        rows, _, _ = await read(await world.partition())
        assert left_of(rows) == left_of(before) and rows.items() <= before.items()
        for path in segments(world):
            in_new = SECRET not in world.disk.peek(path)
            assert in_new or world.disk.peek(path)[: len(old[path])] == old[path]
        gone = before.keys() - rows.keys()
        named = {o for entry in read_register(world.disk, FOLDER) for a, b in entry.offsets for o in range(a, b)}
        assert gone <= named, "no tombstone is without an entry"

        world.crash(power=False)  # who read has let go
        erase_hers(world)
        assert SECRET not in all_bytes(world)
        rows, _, _ = await read(await world.partition())
        assert rows == left_of(before)
        register = read_register(world.disk, FOLDER)
        assert len(register) == 1 and register[0].done
        assert register[0].offsets == ranges_of(sorted(before.keys() - rows.keys()))
    assert operation > 20


async def test_a_reader_in_the_old_file_goes_on_in_the_new_one(world):
    """It reads the file that it has open to the end, then what was appended to the file that took its name."""
    partition = await world.partition()
    await partition.append(Records.of([b"a", SECRET, b"b"]))
    await partition.close()
    old = await world.partition()
    reader = old.reader(0)
    assert [chunk.first for chunk in await reader.read(1)] == [0]

    erase_hers(world)
    theirs = await world.partition()
    await theirs.append(Records.of([b"c", SECRET, b"d"]))
    seen = []
    while chunks := await reader.read():
        seen += [value for chunk in chunks for value in chunk.values()]
    assert seen == [SECRET, b"b", b"c", SECRET, b"d"]
    rows, _, _ = await read(old)
    assert [row[0] for row in rows.values()] == [b"a", b"b", b"c", SECRET, b"d"], "who begins anew reads the new file"


async def test_a_place_that_was_remembered_in_the_old_file_is_not_used_in_the_new_one(world, monkeypatch):
    monkeypatch.setattr("streamactors.durable.segment_reader.INDEX_EVERY_BYTES", 100)
    partition = await world.partition()
    for number in range(30):
        await partition.append(Records.of([b"%d" % number, SECRET * 5]))
    await partition.close()
    old = await world.partition()
    await read(old)
    erase_hers(world)
    for start in range(0, 60, 7):
        rows, _, _ = await read(old, start)
        assert [row[0] for row in rows.values()] == [b"%d" % n for n in range((start + 1) // 2, 30)]


async def test_where_all_is_erased_a_reader_stands_at_the_end_and_waits(world):
    partition = await world.partition()
    await partition.append(Records.of([SECRET] * 3))
    await partition.close()
    erase_hers(world)

    partition = await world.partition()
    reader = partition.reader(0)
    assert await reader.read() == [] and reader.position == 3 and reader.erased_records == 3
    waiting = asyncio.create_task(reader.wait())
    await settle()
    assert not waiting.done()
    await partition.append(Records.of([b"next"]))
    await waiting
    assert (await reader.read())[0].first == 3


async def test_an_erased_record_says_so_when_it_is_asked_for(world):
    partition = await world.partition()
    await partition.append(Records.of([b"a", SECRET, b"b"]))
    await partition.close()
    erase_hers(world)
    partition = await world.partition()
    assert await partition.read_at(2) == b"b" and await partition.time_at(1) == world.clock.now_ms()
    for offset in (1,):
        with pytest.raises(UsageError, match="offset 1 was erased"):
            await partition.read_at(offset)


async def test_an_older_release_refuses_a_frame_with_tombstones_and_reads_all_others(world):
    """Its version is in the header; a frame that lost nothing keeps the old one."""
    partition = await world.partition()
    await partition.append(Records.of([b"a"]))
    await partition.append(Records.of([SECRET, b"b"]))
    await partition.close()
    erase_hers(world)
    (segment,) = segments(world)
    parts = world.disk.peek(segment).split(MAGIC)[1:]
    assert [part[0] for part in parts] == [1, 1, ERASED_VERSION]


async def test_while_somebody_writes_nothing_is_erased(world):
    partition = await world.partition()
    await partition.append(Records.of([SECRET]))
    with pytest.raises(Held):
        erase_hers(world)
    assert find(world.disk, FOLDER, is_hers, ids(world)).offsets == [0]
    await partition.close()


async def test_a_full_disk_leaves_the_segment_and_says_what_to_do(world):
    partition = await world.partition()
    await partition.append(Records.of([b"x" * 5_000, SECRET]))
    await partition.close()
    world.disk.quota_bytes = world.disk.used + 1_000
    with pytest.raises(QuotaFull, match="Make room for one more segment"):
        erase_hers(world)
    assert not [path for path in world.disk.files() if path.name.endswith(".new")]
    assert not read_register(world.disk, FOLDER)[0].done

    world.disk.quota_bytes = None
    erase_hers(world)
    assert SECRET not in all_bytes(world)
    assert [entry.done for entry in read_register(world.disk, FOLDER)] == [True]


async def test_a_damaged_segment_is_named_and_not_written_anew(world):
    """What can't be read can't be searched: to say that it is clean would be a lie."""
    partition = await world.partition()
    await partition.append(Records.of([SECRET]))
    partition._commits._appender.segment_bytes_max = 1
    await partition.append(Records.of([b"in the next segment"]))
    await partition.close()
    first = segments(world)[0]
    world.disk.damage(first, len(world.disk.peek(first)) - 3, b"???")
    with pytest.raises(Damaged, match="offset 0"):
        erase_hers(world)


async def test_what_crashes_have_cut_off_is_removed(world):
    """Nobody can tell what a torn frame holds."""
    partition = await world.partition()
    await partition.append(Records.of([b"kept"]))
    (segment,) = segments(world)
    end = len(world.disk.peek(segment))
    world.crash(power=False)
    world.disk.damage(segment, end, SECRET)
    open_appender(world.disk, FOLDER, ids(world)).close()
    assert SECRET in all_bytes(world)
    found = erase_hers(world)
    assert found.torn and found.torn_bytes == len(SECRET) and SECRET not in all_bytes(world)


async def test_the_register_tells_when_and_where_and_not_whose(world):
    partition = await world.partition()
    await partition.append(Records.of([SECRET, b"a", SECRET, SECRET]))
    await partition.close()
    erase_hers(world)
    (entry,) = read_register(world.disk, FOLDER)
    assert (entry.at_ms, entry.offsets, entry.done) == (world.clock.now_ms(), [(0, 1), (2, 4)], True)
    assert SECRET not in world.disk.peek(FOLDER / FILE)
    assert await (await world.partition()).erasures() == [entry]


async def test_an_empty_partition_has_nothing_to_erase(world):
    await (await world.partition()).close()
    assert erase_hers(world).offsets == [] and find(world.disk, FOLDER, is_hers, ids(world)).offsets == []
