"""A job that goes on from a savepoint equals one that never stopped; what else it may be started for is refused."""

import asyncio
import shutil
from contextlib import closing

import pytest
from msgspec import json

import streamactors as sa
from connectors.sqlite import SqliteTable
from streamactors.core.errors import Damaged, SinkConflict
from streamactors.durable.files import RealDisk
from streamactors.durable.frames import Records
from streamactors.durable.savepoint_files import GivenUp, open_savepoint, write_savepoint
from streamactors.durable.store import Store
from streamactors.job.folders import job_folder

EVERY = "20ms"


def counting(parts=1, sink=None):
    flow = sa.Pipeline("quiz", parts=parts)
    events = flow.topic("events").event_time("at", disorder=10, idle_after=None)
    keyed = events.key_by("key")
    windows = keyed.window(sa.Tumbling(100)).allowed_lateness(30).early(every="50ms").count()
    windows.to_view("counts")
    windows.late.to_topic("late")
    keyed.window(sa.Sliding(200, slide=50), name="sliding").aggregate(n=sa.count(), top=sa.max("at")).to_view("tops")
    keyed.count().to_view("totals")
    keyed.map_with_state(lambda e, s: ((s or 0) + 1, (s or 0) + 1)).key_by(None, name="all").max().to_view("most")
    events.distinct("at", name="seen").to_topic("seen")
    keyed.distinct("near", ttl=100, name="near").count(name="nearby").to_view("nearby")
    if sink is not None:
        keyed.count(name="for-sink").map(lambda n: {"n": n}).to(sink)
    return flow


def values(first, last):
    return [
        json.encode({"key": "abcdefgh"[i * i % 7], "at": 7 * i + (i * 13) % 40 - i % 11 // 10 * 190, "near": i % 3})
        for i in range(first, last)
    ]


async def append(log, first, last):
    topic = await log.create_topic("events", 1)
    await topic.partition(0).append(Records.of(values(first, last)))


def running(flow, data_dir, version=None, **more):
    return sa.run(flow, data_dir, checkpoint_every=EVERY, settings=sa.Settings(version=version, **more))


def shown(job):
    with job.views.snapshot() as view:
        return {name: dict(view(name).items()) for name in ("counts", "tops", "totals", "most", "nearby")}


async def seen(log, name="seen"):
    topic = await log.topic(name)
    found = []
    reader = topic.partition(0).reader(0)
    while chunks := await reader.read():
        found += [json.decode(value) for chunk in chunks for value in chunk.values()]
    await reader.close()
    return found


async def run_to_end(flow, data_dir, **more):
    async with running(flow, data_dir, bound=sa.Bound.FINISH, **more) as job:
        await job.wait()
        return shown(job), await seen(job.log) + await seen(job.log, "late")


@pytest.fixture
async def stopped(data_dir):
    """A job that has read half of its input and drained, its savepoint, and what it comes to when it just goes on."""
    async with sa.Log(data_dir) as log:
        await append(log, 0, 200)
    async with running(counting(), data_dir) as job:
        await job.catch_up()
        savepoint = await job.savepoint()
    async with sa.Log(data_dir) as log:
        await append(log, 200, 400)
    fork = data_dir.with_name("fork")
    shutil.copytree(data_dir, fork)
    return savepoint.path, fork, await run_to_end(counting(), data_dir)


def other_state(fork):
    """Remove the job's own state: what is left is the log, as on another machine."""
    shutil.rmtree(fork / "jobs")


async def test_a_job_that_goes_on_from_a_savepoint_equals_one_that_never_stopped(stopped):
    path, fork, expected = stopped
    other_state(fork)

    assert await run_to_end(counting(), fork, from_savepoint=path, sinks="continue") == expected


async def test_its_state_is_the_savepoint_s_and_a_new_incarnation(stopped):
    path, fork, _ = stopped
    with Store.open(job_folder(fork, "quiz") / "v1", read_only=True) as store:
        before = store.identity()
        journal = list(store.journal("events"))
    other_state(fork)
    async with running(counting(), fork, from_savepoint=path, sinks="continue", bound=sa.Bound.UNTIL_END) as job:
        await job.wait()
    with Store.open(job_folder(fork, "quiz") / "v1", read_only=True) as store:
        after = store.identity()
        assert after.incarnation != before.incarnation
        assert store.origin["incarnation"] == before.incarnation
        from streamactors.flow.sequencing import joined

        assert list(joined(store.journal("events")))[: len(journal) // 2] == list(joined(journal))[: len(journal) // 2]


@pytest.mark.parametrize("parts", [(1, 4, 1), (4, 1, 4), (4, 3, 128)])
async def test_parts_change_and_change_back_with_equal_results(data_dir, parts):
    async with sa.Log(data_dir) as log:
        await append(log, 0, 100)
    plain = data_dir.with_name("plain")
    async with sa.Log(plain) as log:
        await append(log, 0, 100)
    more = {}
    for number, count in enumerate(parts):
        async with running(counting(count), data_dir, **more) as job, running(counting(), plain) as other:
            await job.catch_up()
            await other.catch_up()
            savepoint = await job.savepoint()
        for folder in (data_dir, plain):
            async with sa.Log(folder) as log:
                await append(log, 100 * (number + 1), 100 * (number + 2))
        shutil.rmtree(data_dir / "jobs")
        more = {"from_savepoint": savepoint.path, "sinks": "continue"}
    found, topics = await run_to_end(counting(parts[0]), data_dir, **more)
    expected, others = await run_to_end(counting(), plain)
    assert found == expected
    assert sorted(topics, key=str) == sorted(others, key=str)
    assert len([record for record in others if others.count(record) > 1]) > 10, "some were late, and are in both topics"


async def test_parts_change_in_place(stopped):
    _, fork, (expected, _) = stopped
    async with running(counting(4), fork) as job:
        await job.catch_up()
    async with running(counting(3), fork) as job:
        await job.catch_up()
    assert (await run_to_end(counting(), fork))[0] == expected


async def test_a_version_that_has_state_is_not_overwritten(stopped):
    path, fork, _ = stopped
    with pytest.raises(sa.UsageError, match="version v1 has state already"):
        async with running(counting(), fork, from_savepoint=path, sinks="continue"):
            pass


async def test_a_savepoint_of_another_job_is_refused(stopped):
    path, fork, _ = stopped
    flow = sa.Pipeline("other")
    flow.topic("events").key_by("key").count().to_view("totals")
    with pytest.raises(sa.UsageError, match="is a savepoint of job quiz, not of other"):
        async with running(flow, fork, from_savepoint=path, sinks="continue"):
            pass


def test_a_start_has_to_say_what_becomes_of_targets():
    with pytest.raises(sa.UsageError, match="continue, shadow, reset"):
        sa.Settings(from_savepoint="a.savepoint")
    with pytest.raises(sa.UsageError, match="continue, shadow, reset"):
        sa.Settings(sinks="continue")


async def test_damage_anywhere_makes_no_state(stopped):
    path, fork, _ = stopped
    other_state(fork)
    data = bytearray(path.read_bytes())
    for at in range(20, len(data), len(data) // 9):
        data[at] ^= 1
        broken = path.with_name("broken.savepoint")
        broken.write_bytes(data)
        data[at] ^= 1
        with pytest.raises(Damaged, match=r"broken\.savepoint, position"):
            async with running(counting(), fork, from_savepoint=broken, sinks="continue"):
                pass
        assert not (job_folder(fork, "quiz") / "v1" / "data.mdb").exists()
        assert not (job_folder(fork, "quiz") / "v1" / "restoring").exists()


# Sinks. ---------------------------------------------------------------------------------------------------------------


async def test_continue_is_refused_where_somebody_has_written_since(stopped):
    path, fork, _ = stopped
    await run_to_end(counting(), fork)  # the job itself goes on
    other_state(fork)
    with pytest.raises(sa.JobFailed) as failed:
        async with running(counting(), fork, from_savepoint=path, sinks="continue") as job:
            await job.wait()
    assert any(isinstance(cause, SinkConflict) for cause in failed.value.exceptions)


async def test_reset_writes_behind_what_is_there(stopped):
    path, fork, (tables, topic) = stopped
    await run_to_end(counting(), fork)
    other_state(fork)
    found, _ = await run_to_end(counting(), fork, from_savepoint=path, sinks="reset")
    assert found == tables
    async with sa.Log(fork) as log:
        again, late = await seen(log), await seen(log, "late")
    first = topic[: len(topic) - len(late) // 2]
    repeated = again[len(set(map(str, again))) :]
    assert repeated == again[len(again) - 2 * len(repeated) : len(again) - len(repeated)]
    assert 0 < len(repeated) < len(first)


async def test_reset_writes_what_was_pending_into_a_target_that_is_new(stopped):
    path, fork, (tables, topic) = stopped
    other_state(fork)
    shutil.rmtree(fork / "log" / "seen")
    shutil.rmtree(fork / "log" / "late")
    found, _ = await run_to_end(counting(), fork, from_savepoint=path, sinks="reset")
    assert found == tables
    async with sa.Log(fork) as log:
        again = await seen(log)
    distinct = list({str(record): record for record in topic}.values())
    assert again == distinct[len(distinct) - len(again) :]


async def test_shadow_writes_to_targets_that_bear_the_label(stopped):
    path, fork, (tables, topic) = stopped
    other_state(fork)
    async with running(counting(), fork, from_savepoint=path, sinks="shadow", bound=sa.Bound.FINISH) as job:
        await job.wait()
        assert shown(job) == tables
        shadow, known = await seen(job.log, "seen.v1"), await seen(job.log)
        assert shadow
        assert known + shadow == topic[: len(known) + len(shadow)]
        assert known + shadow + await seen(job.log, "late") + await seen(job.log, "late.v1") == topic


async def test_a_table_with_a_key_is_the_same_after_reset(data_dir, tmp_path):
    def flow():
        return counting(sink=SqliteTable(tmp_path / "out.db", "totals", upserts=True))

    import sqlite3

    def rows():
        with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
            return sorted(connection.execute("SELECT * FROM totals").fetchall(), key=str)

    async with sa.Log(data_dir) as log:
        await append(log, 0, 100)
    async with running(flow(), data_dir) as job:
        await job.catch_up()
        savepoint = await job.savepoint()
        await append(job.log, 100, 200)
    await run_to_end(flow(), data_dir)
    expected = rows()
    other_state(data_dir)
    await run_to_end(flow(), data_dir, from_savepoint=savepoint.path, sinks="reset")
    assert rows() == expected


# Beside the version that is served. -----------------------------------------------------------------------------------


async def test_a_version_from_a_savepoint_follows_the_served_one_from_there(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 0, 200)
    async with running(counting(), data_dir) as first:
        await first.catch_up()
        savepoint = await first.savepoint()
        await append(first.log, 200, 300)
        await first.catch_up()
        async with running(counting(3), data_dir, "v2", from_savepoint=savepoint.path, sinks="shadow") as second:
            await append(first.log, 300, 400)
            await first.catch_up()
            async with asyncio.timeout(20):
                while shown(first) != shown(second):
                    await asyncio.sleep(0.01)
        async with running(counting(), data_dir, "v3") as third:
            async with asyncio.timeout(20):
                while shown(first) != shown(third):
                    await asyncio.sleep(0.01)


async def test_one_that_is_not_served_does_not_continue_its_targets(stopped):
    path, fork, _ = stopped
    with pytest.raises(sa.UsageError, match="version v2 is not served"):
        async with running(counting(), fork, "v2", from_savepoint=path, sinks="continue"):
            pass


async def test_a_savepoint_of_another_run_can_not_follow(stopped, tmp_path):
    path, _, _ = stopped
    other = tmp_path / "other"
    async with sa.Log(other) as log:
        await append(log, 0, 30)
    async with running(counting(), other, bound=sa.Bound.UNTIL_END) as job:
        await job.wait()
    with pytest.raises(sa.PipelineError, match="where the journal of the served version never was"):
        async with running(counting(), other, "v2", from_savepoint=path, sinks="shadow"):
            pass


# Taking one. ----------------------------------------------------------------------------------------------------------


async def test_the_stream_goes_on_while_a_savepoint_is_written(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 0, 200)
    async with running(counting(), data_dir) as job:
        taken = []
        for number in range(5):
            taken.append(await job.savepoint())
            await append(job.log, 200 + 20 * number, 220 + 20 * number)
        await job.catch_up()
        epochs = [savepoint.epochs["events"] for savepoint in taken]
        assert epochs == sorted(set(epochs))
        with pytest.raises(sa.UsageError, match="is there already"):
            await job.savepoint(taken[0].path)


async def test_a_savepoint_that_is_given_up_leaves_nothing(data_dir, tmp_path):
    async with sa.Log(data_dir) as log:
        await append(log, 0, 50)
    async with running(counting(), data_dir, bound=sa.Bound.UNTIL_END) as job:
        await job.wait()
    with Store.open(job_folder(data_dir, "quiz") / "v1", read_only=True) as store, pytest.raises(GivenUp):
        write_savepoint(RealDisk(), store, tmp_path / "a.savepoint", now_ms=0, stopped=lambda: True)
    assert not list(tmp_path.glob("a.savepoint*"))


async def test_equal_state_makes_an_equal_savepoint(stopped):
    """What the file holds depends on the state alone, not on LMDB's pages: taken from a store that was made of one."""
    path, fork, _ = stopped
    other_state(fork)
    flow = counting()
    settings = sa.Settings(from_savepoint=path, sinks="continue", bound=sa.Bound.UNTIL_END)
    from streamactors.graph.plan import plan
    from streamactors.job.savepoints import Code, Sinks, Start, start_from

    folder = job_folder(fork, "quiz") / "v1"
    folder.mkdir(parents=True)
    start = Start(path, Sinks(settings.sinks), folder, "quiz", "v1", "0" * 32, Code(flow, plan(flow)))
    start_from(start, RealDisk(), None)
    again = path.with_name("again.savepoint")
    with Store.open(folder, read_only=True) as store:
        write_savepoint(RealDisk(), store, again, now_ms=0)

    def blocks(of):
        with open_savepoint(RealDisk(), of) as decoder:
            return list(decoder.blocks())

    def content(of):
        found = {}
        for block in blocks(of):
            if hasattr(block, "database"):
                found.setdefault(block.database, []).extend(block.flat)
            else:
                found.setdefault(block.region, []).extend(block.entries)
        return found

    assert content(again) == content(path)


async def test_at_most_once_has_nothing_to_save(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 0, 20)
    flow = sa.Pipeline("quiz")
    flow.topic("events").key_by("key").count().to_view("totals")
    async with sa.run(flow, data_dir, guarantee="at-most-once") as job:
        with pytest.raises(sa.UsageError, match="keeps no state"):
            await job.savepoint()


async def test_a_trial_leaves_folders_and_tables_alone(data_dir, tmp_path):
    def flow():
        flow = sa.Pipeline("quiz")
        events = flow.topic("events")
        events.to_json_lines(tmp_path / "lines")
        events.key_by("key").count().to_sqlite(tmp_path / "out.db", "totals")
        return flow

    async with sa.Log(data_dir) as log:
        await append(log, 0, 30)
    async with running(flow(), data_dir) as job:
        await job.catch_up()
        savepoint = await job.savepoint()
        await append(job.log, 30, 60)
        await job.catch_up()
    before = {path.name: path.read_bytes() for path in (tmp_path / "lines").iterdir() if path.suffix == ".jsonl"}
    other_state(data_dir)
    async with running(flow(), data_dir, from_savepoint=savepoint.path, sinks="shadow", bound=sa.Bound.FINISH) as job:
        await job.wait()
    async with running(flow(), data_dir, bound=sa.Bound.FINISH) as job:  # and when it starts again
        await job.wait()
    after = {path.name: path.read_bytes() for path in (tmp_path / "lines").iterdir() if path.suffix == ".jsonl"}
    assert after == before
    shadow = [path for path in (tmp_path / "lines.v1").iterdir() if path.suffix == ".jsonl"]
    assert sum(len(path.read_bytes().splitlines()) for path in shadow) == 30
    import sqlite3

    with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"totals", "totals__v1"} <= tables
