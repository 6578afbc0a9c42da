"""Succession with sinks: what readers of targets know is one version's output at a time, each record once."""

import asyncio
import shutil
import sqlite3
from types import SimpleNamespace

import pytest
from msgspec import json

import streamactors as sa
from streamactors.durable.catalogue import Catalogue, Served, Version, Versions
from streamactors.durable.files import RealDisk
from streamactors.durable.frames import Records
from streamactors.durable.store import Restored
from streamactors.flow.guide import Guide
from streamactors.flow.sequencing import Position, joined
from streamactors.job import following
from streamactors.job.folders import job_folder
from streamactors.job.following import JournalTail, Lead, portions
from streamactors.job.succession import Part, part_of
from streamactors.job.swapping import complete
from streamactors.kappa.promotion import Versioned

EVERY = "20ms"


# Who does what: pure. -------------------------------------------------------------------------------------------------


def versions(*labels, serving="v1"):
    return Versions("quiz", serving, [Version(label, 0) for label in labels], [Served(serving, 0)])


def test_who_is_served_writes_the_known_targets_and_the_others_their_own():
    found = versions("v1", "v2", "v3")
    assert part_of(None, "v1") == Part(None, None)
    assert part_of(found, "v1") == Part(None, None)
    assert part_of(found, "v2") == Part("v1", "v2")


def test_who_has_yielded_rests_and_both_rest_while_targets_are_exchanged():
    found = versions("v1", "v2", "v3")
    found.ask("v2", 1)
    assert part_of(found, "v1") == Part(None, None)
    found.yielded({})
    assert part_of(found, "v1") is None
    assert part_of(found, "v2") == Part("v1", "v2")
    found.exchange()
    assert [part_of(found, label) for label in ("v1", "v2", "v3")] == [None, None, Part("v1", "v3")]
    with pytest.raises(sa.UsageError, match="can't be taken back"):
        found.take_back()
    found.serve(2)
    assert [part_of(found, label) for label in ("v1", "v2", "v3")] == [
        Part("v2", "v1"),
        Part(None, None),
        Part("v2", "v3"),
    ]


def test_rolling_back_goes_one_step_further_each_time_and_ends_with_the_first():
    found = versions("v1", "v2", "v3")
    for label in ("v2", "v3"):
        serve(found, label)
    for expected in ("v2", "v1"):
        assert found.before == expected
        serve(found, found.before, back=True)
    assert (found.serving, found.before) == ("v1", None)
    serve(found, "v3")
    assert found.before == "v1"


def serve(found, label, *, back=False):
    found.ask(label, 0, back=back)
    found.yielded({})
    found.exchange()
    found.serve(1)


def test_a_job_of_a_release_without_catalogues_has_a_first_version_that_is_served(tmp_path):
    (tmp_path / "quiz" / "v1").mkdir(parents=True)
    (tmp_path / "quiz" / "v1" / "data.mdb").touch()
    kept = Catalogue(RealDisk(), tmp_path / "quiz")
    assert kept.read().serving == "v1" and kept.read().is_first("v1")
    kept.change("quiz", "v2", 5, lambda found: found.begin("v2", 5))
    assert (kept.read().serving, kept.read().followed_by("v2")) == ("v1", "v1")


# With sinks. ----------------------------------------------------------------------------------------------------------


def marking(mark, data_dir):
    """A pipeline that says who wrote each record, to a topic, a table and a folder."""
    flow = sa.Pipeline("quiz")
    events = flow.topic("events").map(lambda e: {"by": mark, "n": e["n"]}, name="mark")
    events.to_topic("out")
    events.to_sqlite(data_dir / "out.db", "out")
    events.to_json_lines(data_dir / "files")
    return flow


def running(flow, data_dir, version=None, **more):
    return sa.run(flow, data_dir, checkpoint_every=EVERY, settings=sa.Settings(version=version, **more))


def catalogue(data_dir):
    return Catalogue(RealDisk(), job_folder(data_dir, "quiz"))


def ask(data_dir, label):
    return catalogue(data_dir).change("quiz", "v1", 0, lambda found: found.ask(label, 0))


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def append(log, start, count):
    topic = await log.create_topic("events", 2)
    for number in range(2):
        await topic.partition(number).append(
            Records.of([json.encode({"n": n}) for n in range(start, start + count) if n % 2 == number])
        )


async def topic_rows(data_dir, name):
    async with sa.Log(data_dir) as log:
        topic = await log.topic(name)
        if topic is None:
            return []
        reader, rows = topic.partition(0).reader(0), []
        while chunks := await reader.read():
            rows += [json.decode(value) for chunk in chunks for value in chunk.values()]
        return sorted((row["by"], row["n"]) for row in rows)


def table_rows(data_dir, name):
    connection = sqlite3.connect(data_dir / "out.db")
    try:
        return sorted(connection.execute(f"SELECT by, n FROM {name}").fetchall())
    finally:
        connection.close()


def file_rows(folder):
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_bytes().splitlines()]
    return sorted((row["by"], row["n"]) for row in map(json.decode, lines))


def whole(mark, count):
    return sorted((mark, n) for n in range(count))


def stands(job, part, count):
    """Whether *job* has taken *part* and has read all."""
    running = job._regions[0].running
    read = 0 if running is None else sum(p.offset for p in running.sequencer.sequencing.partitions.values())
    return job._succession.part == part and job.state == "running" and read == count


async def test_targets_are_exchanged_at_each_promotion_and_hold_each_version_s_output_once(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 0, 40)
    count = 40
    one, two = marking("one", data_dir), marking("two", data_dir)
    async with running(one, data_dir) as first, running(two, data_dir, "v2") as second:
        for label in ("v2", "v1", "v2", "v1"):
            ask(data_dir, label)
            await append(first.log, count, 20)
            await until(lambda label=label: catalogue(data_dir).read().serving == label)
            await append(first.log, count + 20, 20)
            count += 40
            mark, shadow, behind = ("two", "one", "v1") if label == "v2" else ("one", "two", "v2")
            deciding, other = (second, first) if label == "v2" else (first, second)
            await until(lambda job=deciding, count=count: stands(job, Part(None, None), count))
            await deciding.checkpoint()
            part = Part(label, behind)
            await until(lambda job=other, part=part, count=count: stands(job, part, count))
            await other.checkpoint()
            assert await topic_rows(data_dir, "out") == whole(mark, count)
            assert await topic_rows(data_dir, f"out.{behind}") == whole(shadow, count)
            assert table_rows(data_dir, "out") == whole(mark, count)
            assert table_rows(data_dir, f"out__{behind}") == whole(shadow, count)
            assert file_rows(data_dir / "files") == whole("one", count)
            assert file_rows(data_dir / "files.v2") == whole("two", count)


# A crash in the middle of an exchange. --------------------------------------------------------------------------------


class Killed(BaseException):
    """The process dies here."""


class DyingDisk(RealDisk):
    """A disk on which the process dies at an operation that changes something."""

    def __init__(self, at):
        self.left = at

    def _operate(self):
        self.left -= 1
        if self.left == 0:
            raise Killed

    def rename(self, old, new):
        self._operate()
        super().rename(old, new)
        self._operate()

    def cell(self, path, *, write=False):
        self._operate()
        return super().cell(path, write=write)

    def sync_folder(self, folder):
        self._operate()
        super().sync_folder(folder)


@pytest.fixture
def yielded(data_dir):
    """Both versions stand at the same place with all their output written, and targets are to be exchanged."""

    async def fill():
        async with sa.Log(data_dir) as log:
            await append(log, 0, 40)
        for mark, label in (("one", "v1"), ("two", "v2")):
            async with running(marking(mark, data_dir), data_dir, label, bound=sa.Bound.UNTIL_END) as job:
                await job.wait()

    asyncio.run(fill())
    return data_dir


def exchanging(found):
    found.ask("v2", 1)
    found.yielded({})
    found.exchange()


def die_at(data_dir, operation):
    """Begin to exchange and die; return whether it was done before that."""
    catalogue(data_dir).change("quiz", "v1", 0, exchanging)
    disk = DyingDisk(operation)
    try:
        complete(Catalogue(disk, job_folder(data_dir, "quiz")), disk, data_dir, "quiz", 2)
    except Killed:
        return False
    return True


@pytest.mark.parametrize("who", ["v1", "v2", "promote", "rollback"])
def test_an_exchange_is_completed_by_whoever_comes_next_wherever_it_was_killed(yielded, tmp_path, who):
    done, operation = False, 0
    while not done:
        operation += 1
        data_dir = tmp_path / f"{who}-{operation}"
        shutil.copytree(yielded, data_dir)
        move_table(yielded, data_dir)
        done = die_at(data_dir, operation)
        if who in {"v1", "v2"}:
            asyncio.run(start_and_drain(data_dir, who))
        elif who == "promote":
            assert Versioned(data_dir, "quiz").promote("v2", timeout=5) is False  # it is completed when looked at
        else:
            assert Versioned(data_dir, "quiz").roll_back(timeout=5) == "v1"
        serves, mark, other, shadow = ("v1", "one", "two", "v2") if who == "rollback" else ("v2", "two", "one", "v1")
        assert catalogue(data_dir).read().serving == serves
        assert asyncio.run(topic_rows(data_dir, "out")) == whole(mark, 40)
        assert asyncio.run(topic_rows(data_dir, f"out.{shadow}")) == whole(other, 40)
        assert table_rows(data_dir, "out") == whole(mark, 40)
        assert table_rows(data_dir, f"out__{shadow}") == whole(other, 40)
    assert operation > 15


async def start_and_drain(data_dir, label):
    mark = {"v1": "one", "v2": "two"}[label]
    async with running(marking(mark, data_dir), data_dir, label) as job:
        await until(lambda: job.state == "running")


def move_table(old, new):
    """Let the catalogue of the copied folder name its own database."""
    path = job_folder(new, "quiz") / "versions.json"
    path.write_text(path.read_text().replace(str(old), str(new)))


async def read_on(reader):
    while await reader.read():
        pass


async def test_a_reader_of_a_topic_that_is_exchanged_is_told_and_finds_the_other_by_name(yielded):
    async with sa.Log(yielded) as log:
        topic = await log.topic("out")
        reader = topic.partition(0).reader(0)
        (chunk, *_) = await reader.read(max_records=5)
        assert [json.decode(value)["by"] for value in chunk.values()] == ["one"] * 5
        Versioned(yielded, "quiz").promote("v2", timeout=5)
        with pytest.raises(sa.UsageError, match="another process"):
            await read_on(reader)
        again = (await log.topic("out")).partition(0).reader(0)
        (chunk, *_) = await again.read(max_records=5)
        assert [json.decode(value)["by"] for value in chunk.values()] == ["two"] * 5


async def test_a_version_that_starts_while_another_is_about_to_be_served_rests_until_that_is_called_back(yielded):
    def ask_and_yield(found):
        found.ask("v2", 1)
        found.yielded({"events": ["elsewhere"]})

    catalogue(yielded).change("quiz", "v1", 0, ask_and_yield)
    async with running(marking("one", yielded), yielded) as job:
        await append(job.log, 40, 10)
        await until(job._regions[0]._at_rest.is_set)
        assert await topic_rows(yielded, "out") == whole("one", 40)
        Versioned(yielded, "quiz").roll_back(timeout=5)
        await until(lambda: stands(job, Part(None, None), 50))
        await job.checkpoint()
    assert await topic_rows(yielded, "out") == whole("one", 50)


async def test_a_topic_of_somebody_else_in_the_way_is_named_before_anything_changes(yielded):
    async with sa.Log(yielded) as log:
        await log.create_topic("out.v1")
    with pytest.raises(sa.UsageError, match=r"topic out\.v1 is in the way"):
        Versioned(yielded, "quiz").promote("v2", timeout=5)
    assert catalogue(yielded).read().handover is None
    assert await topic_rows(yielded, "out") == whole("one", 40)


async def test_a_version_with_a_sink_that_has_one_target_for_all_is_refused(data_dir):
    class Everywhere:
        id, upserts = "everywhere", False

    flow = sa.Pipeline("quiz")
    flow.topic("events").to(Everywhere())
    async with sa.Log(data_dir) as log:
        await append(log, 0, 4)
    async with running(marking("one", data_dir), data_dir, bound=sa.Bound.UNTIL_END) as job:
        await job.wait()
    with pytest.raises(sa.PipelineError, match="sink everywhere has one target for all versions, which v1 writes"):
        async with running(flow, data_dir, "v2"):
            pass


# Following. -----------------------------------------------------------------------------------------------------------


class Committing:
    """A store in which a checkpoint with a row is committed right after each look at it."""

    def __init__(self):
        self.epoch = 0

    def restore(self, region):
        self.epoch += 1
        return Restored(region, 1, self.epoch - 1, {}, 0) if self.epoch > 1 else None

    def journal_by_epoch(self, region, *, after_epoch):
        rows = [(epoch, [("clock", epoch)]) for epoch in range(after_epoch + 1, self.epoch + 1)]
        self.epoch += 1
        yield from rows


async def test_no_row_is_passed_over_that_is_committed_while_somebody_looks(monkeypatch):
    """A row that is missed is missed for good: the next one would not fit behind what was read (S1)."""
    store = Committing()
    monkeypatch.setattr(following, "reading", lambda folder: store)
    monkeypatch.setattr(following, "forget", lambda folder: None)
    guide = Guide(Position([]))
    sequencer = SimpleNamespace(stopping=False, wake=lambda: None)
    tail = JournalTail("tail", Lead("v1", None, "events"), guide, sequencer, AtOnce(), None)
    for _ in range(20):
        await tail._feed()
    fed = [row for _, row in guide._rows]
    assert fed == [("clock", epoch) for epoch in range(1, len(fed) + 1)]
    assert len(fed) >= 20


class AtOnce:
    async def run(self, lane, work, *arguments):
        return work(*arguments)


def test_portions_of_rows_are_the_rows_cut_and_none_is_longer():
    rows = [("read", "a", 0, 5, 10_000), ("clock", 7), ("read", "a", 0, 10_000, 10_001), ("read", "a", 1, 0, 4_096)]
    cut = list(portions(rows))
    assert list(joined(cut)) == list(joined(rows))
    assert max(row[4] - row[3] for row in cut if row[0] == "read") == 4_096
    assert len(cut) == 6
