"""Part files: each appears exactly once, though it is moved away at any moment, and process or machine dies there."""

import asyncio
import json
from pathlib import Path
from random import Random

import pytest

import streamactors as sa
from connectors.part_files import JsonLinesFolder, ParquetFolder
from connectors.part_files.staging import STAGED, Showing, Staging, base_name
from streamactors.core.batch import Batch
from streamactors.core.connectors import Stamp, World
from streamactors.core.errors import Held, SinkConflict
from streamactors.core.keys import canonical_keys
from streamactors.durable.files import RealDisk
from streamactors.durable.realtime import real_ports
from streamactors.testing.disk import Crash, SimDisk
from streamactors.testing.source import Script
from streamactors.testing.world import CrashAtPoint, Crashed, Ended
from streamactors.testing.world import World as SimulatedWorld

FOLDER = Path("/parts")
EPOCHS = [(1, 1, 1), (2, 1, 2), (2, 2, 2), (5, 1, 1)]  # epoch, part, parts
STAMPS = [Stamp("j", "s", "i", *numbers) for numbers in EPOCHS]


def content(stamp):
    return f"{stamp.epoch}/{stamp.part}\n".encode() * 200


class Machine:
    """Lives that write the parts of STAMPS on a simulated disk, and another program that moves parts away."""

    def __init__(self, random, *, greedy):
        self.random = random
        self.greedy = greedy  # how often the other program looks, per operation of ours
        self.disk = SimDisk(random)
        self.disk.make_folder(FOLDER)
        self.moved = []  # (name, content), as they were taken

    def live(self, fail_at=None):
        """Commit what the target does not show yet; return whether the process came to its end."""
        disk = self.disk
        disk.on_operation = self._look
        if fail_at is not None:
            disk.fail_at(fail_at)
        try:
            staging = Staging(disk, FOLDER, "j", "s", ".jsonl")
            shown = staging.last_stamp(0)
            links = [None, *STAMPS]
            for expect, stamp in list(zip(links, STAMPS, strict=False))[links.index(shown) :]:
                staging.commit(0, content(stamp), stamp, expect)
                assert staging.last_stamp(0) == stamp if self.random.random() < 0.2 else True
            staging.close()
        except Crash:
            return False
        return True

    def die(self, *, power):
        self.disk = self.disk.crash(power=power)

    def _look(self, label, path):
        if label != "remove" and self.random.random() < self.greedy:
            self.take()

    def take(self):
        """Move finished parts away, as another process would: none of it is an operation of ours."""
        names = self.disk._names
        for path in sorted(path for path in names if not path.name.startswith(".")):
            self.moved.append((path.name, bytes(names[path].current)))
            self.disk._change_names((path, None))

    def check(self, *, power):
        self.take()
        wanted = [(f"j@s-p0000-0001-{s.epoch:010}-{s.part:05}.jsonl", content(s)) for s in STAMPS]
        if power:  # a part may be seen again in that instant, as the header of staging.py says: by its name it is one
            self.moved = sorted(set(self.moved))
        assert self.moved == wanted
        left = [path.name for path in self.disk.files()]
        assert left == [".j@s-p0000.stamp"], left


def operations():
    machine = Machine(Random(0), greedy=0)
    before = machine.disk.operations
    machine.live()
    return machine.disk.operations - before


@pytest.mark.parametrize("greedy", [0, 0.3, 1])
@pytest.mark.parametrize("power", [False, True])
def test_a_crash_at_each_operation_and_in_the_recovery_of_each_leaves_every_part_once(power, greedy):
    total = operations()
    for first in range(1, total + 2):
        for second in (None, *range(1, 12)):
            machine = Machine(Random(first * 100 + (second or 0)), greedy=greedy)
            lives = [first] if second is None else [first, second]
            for fail_at in lives:
                ended = machine.live(fail_at)
                machine.die(power=power and not ended)
            assert machine.live()
            machine.die(power=power)  # and what was answered for is durable
            assert machine.live()
            machine.check(power=power)


def test_when_the_process_dies_a_part_is_never_seen_twice_even_by_who_copies_it():
    """Without a power cut the name is used up by the rename itself."""
    for fail_at in range(1, operations() + 1):
        machine = Machine(Random(fail_at), greedy=1)
        machine.live(fail_at)
        machine.die(power=False)
        machine.live()
        assert len(machine.moved) == len(set(machine.moved))
        machine.check(power=False)


def test_a_part_is_visible_only_when_its_stamp_is_durable():
    """Else a power cut could take the stamp back, and the part would come again under a name of its own."""
    machine = Machine(Random(1), greedy=0)

    def look(label, path):
        stamps = [p for p in machine.disk._synced_names if p.name.endswith(".stamp")]
        durable = [bytes(machine.disk._synced_names[p].synced) for p in stamps]
        if label == "rename" and path.name.endswith(".stamp"):  # a stamp without its staged file would mean "done"
            assert any(p.name.endswith(STAGED) for p in machine.disk._synced_names)
        for name in {p.name for p in machine.disk.files() if not p.name.startswith(".")} - shown:
            assert any(name.encode() in data for data in durable)
            shown.add(name)

    shown = set()
    machine._look = look
    machine.live()
    look("the end", FOLDER)
    assert len(shown) == len(STAMPS)


def test_a_new_incarnation_replaces_no_part_of_the_old_one_and_sorts_behind_it():
    disk = SimDisk(Random(0))
    disk.make_folder(FOLDER)
    staging = Staging(disk, FOLDER, "j", "s", ".jsonl")
    before = None
    for incarnation in ("i", "k"):
        for epoch in (1, 2):
            stamp = Stamp("j", "s", incarnation, epoch, 1, 1)
            staging.commit(0, f"{incarnation}{epoch}".encode(), stamp, before)
            before = stamp
    parts = [path for path in disk.files() if not path.name.startswith(".")]
    assert [disk.peek(path) for path in parts] == [b"i1", b"i2", b"k1", b"k2"]


def test_names_that_are_taken_are_not_used_though_the_hidden_files_are_gone():
    disk = SimDisk(Random(0))
    disk.make_folder(FOLDER)
    for incarnation in ("i", "k"):
        staging = Staging(disk, FOLDER, "j", "s", ".jsonl")
        staging.commit(0, incarnation.encode(), Stamp("j", "s", incarnation, 1, 1, 1), None)
        staging.close()
        disk.remove(FOLDER / ".j@s-p0000.stamp")
    assert [disk.peek(path) for path in disk.files()] == [b"i", b"k"]


def test_garbage_of_others_in_the_folder_is_left_alone():
    disk = SimDisk(Random(0))
    disk.make_folder(FOLDER)
    others = [
        f".j@s2-p0000-0001-{1:010}-{1:05}.jsonl{STAGED}",  # another sink of the job
        f".j@s-p0000-x-p0000-0001-{1:010}-{1:05}.jsonl{STAGED}",  # a sink whose name begins with ours
        f".j@s-p0000-0001-{1:010}-{1:05}.parquet{STAGED}",
        ".hidden",
        "data.csv",
    ]
    dead = f".j@s-p0003-0001-{1:010}-{1:05}.jsonl{STAGED}"
    for name in [*others, dead]:
        disk.open(FOLDER / name, create=True)
    assert Staging(disk, FOLDER, "j", "s", ".jsonl").last_stamp(0) is None
    assert [path.name for path in disk.files()] == sorted(others)


def test_one_process_at_a_time_writes_as_a_job_and_sink():
    disk = SimDisk(Random(0))
    disk.make_folder(FOLDER)
    first = Staging(disk, FOLDER, "j", "s", ".jsonl")
    first.last_stamp(0)
    with pytest.raises(Held):
        Staging(disk, FOLDER, "j", "s", ".jsonl").last_stamp(0)
    Staging(disk, FOLDER, "j", "another", ".jsonl").last_stamp(0)
    first.close()
    Staging(disk, FOLDER, "j", "s", ".jsonl").last_stamp(0)


def test_a_stamp_that_is_not_expected_is_refused_and_nothing_is_written():
    disk = SimDisk(Random(0))
    disk.make_folder(FOLDER)
    staging = Staging(disk, FOLDER, "j", "s", ".jsonl")
    staging.commit(0, b"1", STAMPS[0], None)
    files = disk.files()
    with pytest.raises(SinkConflict, match="Another writer was there"):
        staging.commit(0, b"2", STAMPS[1], None)
    assert disk.files() == files


@pytest.mark.parametrize("label", ["create", "write", "sync", "rename", "sync_folder", "remove"])
def test_a_disk_that_says_no_at_any_operation_is_tried_again_and_shows_each_part_once(label):
    for number in range(1, 30):
        machine, seen = Machine(Random(0), greedy=0.5), [0]

        def refuse(operation, path, machine=machine, seen=seen, number=number):
            machine._look(operation, path)
            if operation == label:
                seen[0] += 1
                if seen[0] == number:
                    raise OSError(28, "No space left on device")

        machine.disk.on_operation = refuse
        staging = Staging(machine.disk, FOLDER, "j", "s", ".jsonl")
        for expect, stamp in zip([None, *STAMPS], STAMPS, strict=False):
            for _ in range(2):
                try:
                    staging.commit(0, content(stamp), stamp, expect)
                    break
                except OSError:
                    continue
        machine.disk.on_operation = None
        staging.last_stamp(0)
        machine.check(power=False)


def test_long_names_of_jobs_fit_into_a_files_name():
    names = {base_name("j" * 199 + letter, "s" * 200) for letter in "ab"}
    assert len(names) == 2 and max(map(len, names)) < 170


def test_parts_without_stamp_come_in_order_and_what_a_dead_process_staged_is_removed():
    disk = SimDisk(Random(0))
    disk.make_folder(FOLDER)
    owner = Path("/data")
    disk.fail_at(2)
    with pytest.raises(Crash):
        Showing(disk, FOLDER, "s", ".jsonl", owner=owner, life="a" * 32).show(0, b"lost", 5)
    disk = disk.crash(power=False)
    showing = Showing(disk, FOLDER, "s", ".jsonl", owner=owner, life="b" * 32)
    for number, now in enumerate([7, 9, 3]):  # the clock may go back
        showing.show(0, str(number).encode(), now)
    assert [disk.peek(path) for path in disk.files()] == [b"0", b"1", b"2"]


# Writers. -------------------------------------------------------------------------------------------------------------


def batch(values, keys=None):
    return Batch(values, None, None if keys is None else canonical_keys(keys), offsets=range(len(values)))


async def written(sink, folder, *batches):
    """Write *batches* as one epoch each, at once; return the folder's parts."""
    ports = real_ports()
    world = World(folder, ports, None)
    writer = sink.writer(await sink.partitions(world))
    target = await sink.target(world)
    for each in batches:
        writer.write(each)
        for payload in writer.take():
            await target.write(payload)
    await target.close()
    await ports.threads.close()
    return sorted(path for path in Path(sink.folder).iterdir() if not path.name.startswith("."))


async def test_bytes_are_json_already_and_come_on_one_line(tmp_path):
    [part] = await written(JsonLinesFolder(tmp_path / "out"), tmp_path, batch([b'{"a":\n 1}', {"b": 2}]))
    assert part.read_bytes() == b'{"a":1}\n{"b":2}\n'


@pytest.mark.parametrize("value", [b"no json", b"", b"1 2", object(), "\ud800"])
def test_what_is_no_json_is_refused_with_the_record_and_the_rest_of_the_batch_is_not_taken(value):
    writer = JsonLinesFolder("out").writer(1)
    with pytest.raises(sa.BadRecord, match=r"json_lines in out can't handle record .*it is no JSON"):
        writer.write(batch([{"a": 1}, value]))
    assert writer.take() == []


async def test_keys_decide_the_partition(tmp_path):
    keys = [f"k{n % 7}" for n in range(100)]
    parts = await written(JsonLinesFolder(tmp_path / "out", 4), tmp_path, batch(list(range(100)), keys))
    assert len(parts) == 4
    homes = {}
    for part in parts:
        for line in part.read_bytes().splitlines():
            assert homes.setdefault(int(line) % 7, part.name) == part.name


def parquet(parts):
    import pyarrow.parquet as pq

    return [row for part in parts for row in pq.read_table(part).to_pylist()]


async def test_the_first_epoch_tells_the_schema_and_what_does_not_fit_later_is_refused(tmp_path):
    first = batch([{"a": 1, "b": None}, {"a": 2, "b": "x", "c": {"d": [1.5]}}])
    sink = ParquetFolder(tmp_path / "out")
    parts = await written(sink, tmp_path, first)
    assert parquet(parts) == [{"a": 1, "b": None, "c": None}, {"a": 2, "b": "x", "c": {"d": [1.5]}}]
    for value in ({"a": 1.5}, {"a": "1"}, {"a": True}, {"a": 2**63}, {"z": 1}, {"c": {"e": 1}}, {"c": {"d": 1}}):
        again = ParquetFolder(tmp_path / "out")  # as the next process finds it
        with pytest.raises(sa.BadRecord, match=r"does not fit the schema"):
            await written(again, tmp_path, batch([{"a": 1}, value]))
    assert len(parquet(await written(ParquetFolder(tmp_path / "out"), tmp_path, batch([{"a": 3}])))) == 3


async def test_a_field_of_which_nothing_is_known_is_refused(tmp_path):
    with pytest.raises(sa.BadRecord, match=r"does not tell the type of field 'b'. Give the sink a schema"):
        await written(ParquetFolder(tmp_path / "out"), tmp_path, batch([{"a": 1, "b": None}]))


async def test_another_schema_than_the_folders_is_refused_before_anything_runs(tmp_path):
    import pyarrow as pa

    await written(ParquetFolder(tmp_path / "out"), tmp_path, batch([{"a": 1}]))
    sink = ParquetFolder(tmp_path / "out", schema=pa.schema([("a", pa.string())]))
    with pytest.raises(sa.PipelineError, match="has parts with the columns a: int64, and is to get a: string"):
        await written(sink, tmp_path)


def test_without_pyarrow_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(sa.UsageError, match=r"pip install 'streamactors\[parquet\]'"):
        ParquetFolder("out")


# In a job. ------------------------------------------------------------------------------------------------------------


def lines_of(folder):
    return [json.loads(line) for part in sorted(folder.glob("[!.]*")) for line in part.read_bytes().splitlines()]


async def test_a_stream_of_corrections_is_refused(tmp_path):
    stream = sa.Pipeline("p").source(Script([])).key_by("k").count()
    with pytest.raises(sa.PipelineError, match="json_lines"):
        stream.to_json_lines(tmp_path)
    with pytest.raises(sa.PipelineError, match="parquet"):
        stream.to_parquet(tmp_path)


async def test_a_job_writes_parts_and_goes_on_behind_them_when_it_starts_again(tmp_path):
    script = Script([{"n": n} for n in range(10)])
    pipeline = sa.Pipeline("p")
    stream = pipeline.source(script)
    stream.to_json_lines(tmp_path / "lines")
    stream.to_parquet(tmp_path / "columns")
    for _ in range(2):
        async with sa.run(pipeline, tmp_path / "data") as job:
            await job.catch_up()
    assert not list((tmp_path / "lines").glob(".*" + STAGED))
    lines = lines_of(tmp_path / "lines")
    assert lines == parquet(sorted((tmp_path / "columns").glob("[!.]*"))) == [{"n": n} for n in range(10)]


async def test_a_folder_that_can_not_be_written_fails_the_region_and_is_tried_again(tmp_path, monkeypatch):
    failures = iter([OSError(28, "No space left on device")] * 2)
    rename = RealDisk.rename

    def failing(self, old, new):
        if new.suffix == ".jsonl" and (error := next(failures, None)) is not None:
            raise error
        rename(self, old, new)

    monkeypatch.setattr(RealDisk, "rename", failing)
    pipeline = sa.Pipeline("p")
    pipeline.source(Script([{"n": n} for n in range(10)])).to_json_lines(tmp_path / "lines")
    async with asyncio.timeout(30), sa.run(pipeline, tmp_path / "data") as job:
        await job.catch_up()
    lines = lines_of(tmp_path / "lines")
    assert lines == [{"n": n} for n in range(10)]


@pytest.mark.parametrize("power", [False, True])
def test_a_simulated_job_dies_at_every_point_and_parts_are_taken_away_before_it_recovers(tmp_path, power):
    """The product's very wiring: source, checkpoints, committer, target, on a disk and in a loop of the simulation."""
    wanted = list(range(40))
    for number in range(1, 1_000):
        world = SimulatedWorld(Random(number), tmp_path / f"{power}-{number}")
        pipeline = sa.Pipeline("p")
        pipeline.source(Script(wanted)).to_json_lines(FOLDER, partitions=2)
        moved = {}

        async def life(process, world=world, pipeline=pipeline):
            settings = sa.Settings(bound=sa.Bound.UNTIL_END, checkpoint_every_ms=2, batch_records=3)
            async with sa.run(pipeline, world.data_dir, settings=settings, ports=process.ports) as job:
                await job.wait()

        def take(world=world, moved=moved):
            for path in [path for path in world.disk.files() if path.parent == FOLDER and path.name[0] != "."]:
                content = world.disk.peek(path)
                assert moved.setdefault(path.name, content) == content
                world.disk.remove(path)

        died = isinstance(world.run(life, CrashAtPoint(number), power=power), Crashed)
        take()
        assert isinstance(world.run(life), Ended)
        take()
        shown = [[], []]
        for name in sorted(moved):
            shown[int(name.split("-p")[1][:4])] += map(int, moved[name].splitlines())
        assert shown == [wanted[0::2], wanted[1::2]], f"a death at point {number}"
        if not died:
            break
    assert number > 30, "there were points"
