"""Crashes at every operation of the disk, killed or without power: what was promised is there, nothing is twice."""

import asyncio

import pytest

from streamactors.core.errors import Damaged
from streamactors.durable.frames import Records, Stamp
from streamactors.testing.disk import Crash

EPOCHS = 8


async def work(world, partition, promised):
    """Append by producer and by stamp, as one that doesn't know how far it came; note what was promised."""
    last = await partition.last_stamp("job", "sink")
    for epoch in range(0 if last is None else last.epoch + 1, EPOCHS):
        values = [b"s%d-%d" % (epoch, n) for n in range(world.random.randint(1, 40))]
        await partition.append_stamped(Records.of(values), Stamp("job", "sink", "i", epoch, 0, 1), last)
        last = Stamp("job", "sink", "i", epoch, 0, 1)
    appends = []
    for sequence in range(EPOCHS):
        for name in ("p", "q"):
            records = Records.of([f"{name}{sequence}-{n}".encode() for n in range(3)])
            appends.append((records, asyncio.create_task(partition.append(records, producer=(name, sequence)))))
            if world.random.random() < 0.5:
                await asyncio.sleep(0)
    done = await asyncio.gather(*(task for _, task in appends), return_exceptions=True)
    for (records, _), result in zip(appends, done, strict=True):
        if isinstance(result, int):
            promised.update(records.column.values())
    for result in done:
        if isinstance(result, BaseException):
            raise result


async def one_life(world, operations, promised, read_all):
    """Run until done (True), or until the crash at the n-th operation."""
    world.disk.fail_at(operations)
    try:
        partition = await world.partition()
        assert promised <= set(await read_all(partition)), "what was promised before is there"
        if world.random.random() < 0.5:
            await partition.append(Records.of([b"s"]), producer=("first", 0))
            partition._commits._appender.segment_bytes_max = 2_000
        await work(world, partition, promised)
    except (Exception, Crash):  # noqa: BLE001 - a crash shows as whatever the caller was waiting for
        assert world.disk.dead, "only the crash ends a life early"
        return False
    return True


@pytest.mark.parametrize("seed", range(60))
async def test_many_lives_leave_each_record_once_and_in_order(new_world, seed, read_all):
    """Each life crashes at a random operation; at last one lives on. Retries by sequence and stamp make it once."""
    world = new_world(seed)
    promised = set()
    for _ in range(12):
        if await one_life(world, world.random.randint(1, 60), promised, read_all):
            world.crash()
            break
        world.crash()
    await one_life(world, 1_000_000, promised, read_all)

    values = await read_all(await world.partition())
    assert len(values) == len(set(values)), "nothing twice"
    assert promised <= set(values)
    for name in ("p", "q"):
        mine = [value for value in values if value.startswith(name.encode())]
        assert mine == [f"{name}{sequence}-{n}".encode() for sequence in range(EPOCHS) for n in range(3)]
    stamped = [value for value in values if value.startswith(b"s") and value != b"s"]
    epochs = [int(value[1:].split(b"-")[0]) for value in stamped]
    assert epochs == sorted(epochs) and set(epochs) == set(range(EPOCHS))


@pytest.mark.parametrize("power", [False, True])
async def test_a_crash_at_each_operation_of_a_first_life_loses_nothing_promised(new_world, power, read_all):
    """Every operation from making the topic to the last append, one after the other."""
    operation, lived = 0, False
    while not lived:
        operation += 1
        world = new_world(operation)
        promised = set()
        lived = await one_life(world, operation, promised, read_all)
        world.crash(power=power)
        assert promised <= set(await read_all(await world.partition()))
    assert operation > 40, "the crash reached each operation"


async def test_a_recovery_that_crashes_at_each_operation_can_be_repeated(new_world, read_all):
    operation, lived = 0, False
    while not lived:
        operation += 1
        world = new_world(operation)
        partition = await world.partition()
        await partition.append(Records.of([b"kept"]))
        world.disk.fail_at(2)  # the write is there, its sync is not
        with pytest.raises(Crash, match="sync"):
            await partition.append(Records.of([b"whole, and unsynced"]))
        world.crash(power=False)

        world.disk.fail_at(operation)
        try:
            await (await world.partition()).append(Records.of([b"after"]))
            lived = True
        except (Exception, Crash):  # noqa: BLE001 - a crash shows as whatever the caller was waiting for
            assert world.disk.dead
        world.crash()
        values = await read_all(await world.partition())
        assert values[0] == b"kept" and (not lived or values[1:] == [b"whole, and unsynced", b"after"])
    assert operation > 5


async def test_a_torn_tail_is_kept_beside_the_segment(world, read_all):
    partition = await world.partition()
    await partition.append(Records.of([b"kept"]))
    segment = next(path for path in world.disk.files() if path.suffix == ".segment")
    end = len(world.disk.peek(segment))
    world.crash(power=False)
    world.disk.damage(segment, end, b"half a frame")

    again = await world.partition()
    await again.last_stamp("any", "sink")  # opens for writing, appends nothing
    assert len(world.disk.peek(segment)) == end, "and the segment is cut there before anything is appended"
    await again.append(Records.of([b"next"]))
    torn = next(path for path in world.disk.files() if path.suffix == ".torn")
    assert torn.name == f"{segment.name}.{end}.torn" and world.disk.peek(torn) == b"half a frame"
    assert await read_all(again) == [b"kept", b"next"]


async def test_after_a_reboot_the_first_to_come_recovers_even_if_it_only_reads(world, read_all):
    partition = await world.partition()
    await partition.append(Records.of([b"kept"]))
    world.crash(power=True)

    reader = await world.partition()
    assert await read_all(reader) == [b"kept"]
    assert not reader.writes, "and has let the lock go"


async def test_after_a_reboot_a_reader_waits_for_a_writer_that_is_recovering(world, read_all):
    partition = await world.partition()
    await partition.append(Records.of([b"kept"]))
    world.crash(power=True)
    lock = world.disk.lock(partition._folder / "writer.lock")

    opening = asyncio.create_task(world.partition())
    for _ in range(50):
        await asyncio.sleep(0)
    assert world.clock.sleeping == 1
    lock.release()
    world.clock.advance(40)
    assert await read_all(await opening) == [b"kept"]


async def test_bit_rot_is_an_error_with_file_and_position_for_the_reader_and_the_next_writer(world, read_all):
    partition = await world.partition()
    await partition.append(Records.of([b"rotten"]))
    await partition.append(Records.of([b"good"]))
    segment = next(path for path in world.disk.files() if path.suffix == ".segment")
    world.disk.damage(segment, world.disk.peek(segment).index(b"rotten"), b"R")

    with pytest.raises(Damaged, match=r"segment at position \d+: the frame of offset 0"):
        await read_all(partition)
    world.crash(power=False)
    with pytest.raises(Damaged, match=r"segment at position \d+: offsets 0 to 1 were durable"):
        await (await world.partition()).append(Records.of([b"x"]))


async def test_bit_rot_behind_good_frames_ends_a_reader_that_has_them(world):
    partition = await world.partition()
    await partition.append(Records.of([b"good"]))
    await partition.append(Records.of([b"rotten"]))
    segment = next(path for path in world.disk.files() if path.suffix == ".segment")
    world.disk.damage(segment, world.disk.peek(segment).index(b"rotten"), b"R")

    reader = partition.reader()
    assert [chunk.values() for chunk in await reader.read()] == [[b"good"]]
    for _ in range(2):
        with pytest.raises(Damaged, match=r"segment at position \d+: the frame of offset 1"):
            await reader.read()
    with pytest.raises(Damaged, match="offset 1"):
        await partition.reader(1).read()


async def test_segments_that_somebody_removed_are_missed(world):
    partition = await world.partition()
    await partition.append(Records.of([b"x"]))
    world.crash(power=False)
    for path in world.disk.files():
        if path.suffix == ".segment":
            world.disk.remove(path)

    with pytest.raises(Damaged, match="1 records were durable"):
        await (await world.partition()).append(Records.of([b"x"]))
