"""Files by a pattern: one partition, whose offsets mean the same lines for ever, whatever appears when."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import streamactors as sa
from connectors.files import MatchingJsonLines, MatchingTextLines, manifest, text_lines
from streamactors.core.connectors import Undecodable, World
from streamactors.durable.realtime import real_ports
from streamactors.testing.clock import ManualClock
from streamactors.testing.disk import SimDisk
from streamactors.testing.idle import settle


@pytest.fixture
async def world(data_dir):
    ports = real_ports()
    yield World(data_dir, ports, None)
    await ports.threads.close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def write(path: Path, text: str | bytes) -> None:
    """Write elsewhere, rename into place, as a careful writer does."""
    path.parent.mkdir(exist_ok=True)
    (path.parent / ".new").write_bytes(text.encode() if isinstance(text, str) else text)
    (path.parent / ".new").rename(path)


async def rows(source, world, start=0, records_max=3):
    reader = await source.reader(world, 0, start)
    found = []
    try:
        while (got := await reader.read(records_max)) is not None:
            assert 1 <= len(got[0]) <= records_max
            found += zip(got[0].offsets, got[0].values, strict=True)
    finally:
        await reader.close()
    return found


async def lines(source, world, start=0):
    await source.ends(world)
    return [value for _, value in await rows(source, world, start)]


async def test_files_are_read_sorted_and_those_that_appear_later_behind_them(world, folder):
    source = MatchingTextLines(folder / "*.log")
    write(folder / "b.log", "b1\nb2\n")
    write(folder / "c.log", "c1\n")
    write(folder / "other", "no\n")
    assert await lines(source, world) == ["b1", "b2", "c1"]
    first = await rows(source, world)
    write(folder / "a.log", "a1\n")
    assert await lines(source, world) == ["b1", "b2", "c1", "a1"]
    assert (await rows(source, world))[:3] == first, "the same offset is the same line"


async def test_folders_below_are_matched_by_two_stars(world, folder):
    for name in ("x/2.log", "1.log", "y/3.log"):
        write(folder / name, f"{name}\n")
    assert await lines(MatchingTextLines(folder / "**/*.log"), world) == ["1.log", "x/2.log", "y/3.log"]
    assert await lines(MatchingTextLines(folder / "?/*.log"), world) == ["x/2.log", "y/3.log"]


@pytest.mark.parametrize("seed", range(20))
async def test_any_history_of_files_gives_each_line_once_at_an_offset_that_never_changes(world, folder, seed):
    """Beside an oracle: a dict of offset to line, which may only grow, and the lines of all files."""
    random, source = Random(seed), MatchingTextLines(folder / "**/*")
    known, written = {}, []
    for step in range(8):
        for name in random.sample(["a", "b", "c/d", "c/e", f"n{step}"], 2):
            new = [f"{step}.{n}.{'x' * random.randint(0, 40)}" for n in range(random.randint(0, 5))]
            written += new
            (folder / name).parent.mkdir(exist_ok=True)
            with (folder / name).open("a") as file:
                file.write("".join(line + "\n" for line in new))
        await source.ends(world)
        found = dict(await rows(source, world, records_max=random.randint(1, 9)))
        assert known.items() <= found.items()
        known = found
        assert sorted(found.values()) == sorted(written)
        start = random.choice([0, *found])
        assert await rows(source, world, start) == [row for row in found.items() if row[0] >= start]


async def test_a_file_that_grows_is_read_on_in_whole_lines(world, folder):
    source = MatchingTextLines(folder / "*")
    write(folder / "a", "a1\n")
    write(folder / "b", "b1\n")
    assert await lines(source, world) == ["a1", "b1"]
    with (folder / "a").open("a") as file:
        file.write("a2\na3\n")
    assert await lines(source, world) == ["a1", "b1", "a2", "a3"]


async def test_a_last_line_without_a_newline_counts_when_its_file_rests(world, folder):
    source = MatchingTextLines(folder / "*")
    write(folder / "old", "1\n2")
    os.utime(folder / "old", (1, 1))
    assert await lines(source, world) == ["1", "2"]


async def test_a_start_waits_for_a_line_that_is_being_written(world, folder):
    clock = ManualClock(int((folder.stat().st_mtime + 0.2) * 1_000))
    world = replace(world, ports=replace(world.ports, clock=clock))
    source = MatchingTextLines(folder / "*")
    (folder / "a").write_text("1\n2")
    os.utime(folder / "a", ns=(0, clock.now_ms() * 1_000_000))
    starting = asyncio.create_task(source.ends(world))
    while not clock.sleepers:
        await asyncio.sleep(0)
    assert not starting.done()
    with (folder / "a").open("a") as file:
        file.write("2\n3")
    os.utime(folder / "a", ns=(0, clock.now_ms() * 1_000_000 + 500_000_000))
    await clock.advance(1)
    assert await starting == [5]
    assert [value for _, value in await rows(source, world)] == ["1", "22"]


async def test_a_running_reader_finds_what_appears(world, folder):
    clock = ManualClock()
    world = replace(world, ports=replace(world.ports, clock=clock))
    source = MatchingTextLines(folder / "*")
    assert await source.ends(world) == [0]
    reader = await source.reader(world, 0, 0)
    assert await reader.read(9) is None
    waiting = asyncio.create_task(reader.wait())
    await clock.advance(0)
    write(folder / "a", "a1\n")
    assert not waiting.done()
    await clock.advance(1)
    await waiting
    assert (await reader.read(9))[0].values == ["a1"]
    await reader.close()


async def test_a_wait_that_is_cancelled_while_it_looks_loses_nothing(world, folder):
    source = MatchingTextLines(folder / "*")
    await source.ends(world)
    clock = ManualClock()
    world = replace(world, ports=replace(world.ports, clock=clock))
    reader = await source.reader(world, 0, 0)
    write(folder / "a", "a1\n")
    for _ in range(3):
        waiting = asyncio.create_task(reader.wait())
        await clock.advance(1)
        waiting.cancel()
        await asyncio.wait([waiting])
        await settle()
    waiting = asyncio.create_task(reader.wait())
    await clock.advance(1)
    await waiting
    assert (await reader.read(9))[0].values == ["a1"]
    await reader.close()


SPOILT = {
    "shrank": lambda path: path.write_text("a1\n"),
    "was exchanged": lambda path: path.write_text("b1\nb2\nb3\n"),
    "vanished": lambda path: path.unlink(),
    "grew from another begin": lambda path: path.write_text("b1\na2\na3\na4\n"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
async def test_a_file_that_is_no_longer_what_was_read_is_damage_with_its_path(world, folder, spoil):
    source = MatchingTextLines(folder / "*")
    write(folder / "a", "a1\na2\na3\n")
    await source.ends(world)
    spoil(folder / "a")
    with pytest.raises(sa.Damaged, match="in/a "):
        await source.ends(world)
    with pytest.raises(sa.Damaged, match="in/a "):
        await rows(source, world)


async def test_a_manifest_that_is_lost_is_damage(world, folder):
    source = MatchingTextLines(folder / "*")
    write(folder / "a", "a1\n")
    await source.ends(world)
    [path] = (world.data_dir / "sources").glob("*.files")
    path.unlink()
    with pytest.raises(sa.Damaged, match=r"knows 0 bytes of files, but 3 were read"):
        await source.reader(world, 0, 3)


async def test_a_torn_end_of_the_manifest_is_cut_and_damage_before_it_is_named(world, folder):
    source = MatchingTextLines(folder / "*")
    for name in "abc":
        write(folder / name, f"{name}1\n")
        await source.ends(world)
    [path] = (world.data_dir / "sources").glob("*.files")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert await lines(source, world) == ["a1", "b1", "c1"]
    path.write_bytes(whole[:-5].replace(b'"b"', b'"B"') + b"\n")
    assert await lines(source, world) == ["a1", "b1", "c1"], "two lines at the end that nobody can have read"
    path.write_bytes(whole.replace(b'"b"', b'"B"'))
    with pytest.raises(sa.Damaged, match="does not check out at byte"):
        await source.ends(world)


@pytest.mark.parametrize("seed", range(5))
def test_the_manifest_survives_a_crash_at_any_point(tmp_path, folder, seed):
    """What a reader may have been told of is there afterwards, unchanged."""
    random = Random(seed)
    disk = SimDisk(random)
    told = []
    for step in range(12):
        (folder / f"{random.random()}").write_text(f"{step}\n")
        known = manifest.Manifest("s", folder / "*", Path("/data/sources/m"), disk)
        limit, count = random.randint(1, 25), 0

        def crash(operation, path, limit=limit, disk=disk):
            nonlocal count
            count += 1
            if count == limit:
                disk.dead = True
                raise KeyboardInterrupt

        disk.on_operation = crash
        try:
            known.look(lambda: 0)
        except KeyboardInterrupt:
            pass
        else:
            assert known._pieces[: len(told)] == told
            told = list(known._pieces)
        disk = disk.crash(power=random.random() < 0.5)


async def test_two_who_look_at_the_same_time_agree(world, folder):
    source = MatchingTextLines(folder / "*")
    for name in "abcdef":
        write(folder / name, f"{name}\n")
    await asyncio.gather(*(MatchingTextLines(folder / "*").ends(world) for _ in range(4)))
    assert await lines(source, world) == list("abcdef")


async def test_a_bad_line_names_its_file_and_the_byte_there(world, folder):
    source = MatchingJsonLines(folder / "*")
    write(folder / "a", "1\n")
    write(folder / "b", "2\n{\n")
    await source.ends(world)
    with pytest.raises(Undecodable) as caught:
        await rows(source, world)
    assert "json/0 at offset 4" in str(caught.value.bad[0][0]) and "in/b, byte 2" in str(caught.value.bad[0][0])


async def test_a_folder_that_is_not_there_and_packed_files_are_refused(world, folder):
    with pytest.raises(sa.UsageError, match="there is no folder"):
        await MatchingTextLines(folder / "none" / "*").ends(world)
    write(folder / "a.gz", b"\x1f\x8b")
    with pytest.raises(sa.UsageError, match=r"a\.gz is compressed"):
        await MatchingTextLines(folder / "*").ends(world)
    with pytest.raises(sa.UsageError, match="pattern stands alone"):
        text_lines(folder / "*", folder / "b")


async def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    (folder / "a[1].txt").write_text("x\n")
    assert "Matching" not in type(text_lines(folder / "a[1].txt")).__name__


async def test_a_job_reads_what_appeared_while_it_was_down_and_while_it_runs(folder, data_dir):
    def flow():
        pipeline = sa.Pipeline("words")
        pipeline.text_lines(str(folder / "*.txt")).key_by(None).count().to_view("words")
        return pipeline

    async def bounded():
        async with sa.run(flow(), data_dir, settings=sa.Settings(bound=sa.Bound.UNTIL_END)) as job:
            await job.wait()
            return dict(job.views["words"].items())

    write(folder / "b.txt", "x\ny\n")
    assert await bounded() == {"x": 1, "y": 1}
    write(folder / "a.txt", "x\n")
    assert await bounded() == await bounded() == {"x": 2, "y": 1}
    async with asyncio.timeout(20), sa.run(flow(), data_dir) as job:
        write(folder / "c.txt", "z\n")
        while job.views["words"].get("z") is None:
            await asyncio.sleep(0.01)
    assert await bounded() == {"x": 2, "y": 1, "z": 1}
