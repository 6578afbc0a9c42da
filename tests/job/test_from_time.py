"""A version that begins at a time: what starts behind it is as in one that has read everything, the rest is left out.

The oracle is the version that is served, where the program is the same; where a rule differs, a version that began with
the first record, and for windows without late records a plain count.
"""

from collections import Counter
from random import Random

import pytest
from msgspec import json

import streamactors as sa
from streamactors import Bound
from streamactors.core.errors import UsageError
from streamactors.durable.catalogue import Catalogue
from streamactors.durable.files import RealDisk
from streamactors.durable.frames import Records
from streamactors.durable.sharing import read_briefly
from streamactors.durable.views import ViewReader
from streamactors.job.folders import job_folder, version_folder
from streamactors.job.from_time import since_of
from streamactors.kappa.differing import at_one_place, changes, covered, views_of
from streamactors.kappa.promotion import Versioned

WINDOWED = ("tumbling", "sliding", "gaps", "finals", "sums_of_sums")


def program(parts=1, rule=lambda e: True):
    flow = sa.Pipeline("quiz", parts=parts)
    events = flow.topic("events").event_time("at", disorder=30, idle_after="1min").filter(rule, name="rule")
    keyed = events.key_by("key")
    tumbling = keyed.window(sa.Tumbling(100)).allowed_lateness(60).early(every="20ms").sum("n")
    tumbling.to_view("tumbling")
    tumbling.late.to_topic("late")
    keyed.window(sa.Sliding(300, slide=100, offset=10)).early(every="50ms").count().to_view("sliding")
    keyed.window(sa.Sliding(40, slide=90)).count().to_view("gaps")
    finals = keyed.window(sa.Tumbling(70)).count().final()
    finals.to_view("finals")
    again = finals.map(lambda n: {"n": n}, name="counted").key_by(lambda v: v["n"] % 2, name="parity")
    again.window(sa.Tumbling(200)).sum("n").final().to_view("sums_of_sums")
    keyed.count().to_view("totals")
    keyed.map_with_state(lambda e, n: ({"n": n or 0, "at": e["at"]}, (n or 0) + 1)).window(sa.Tumbling(100)).sum(
        "n"
    ).to_view("of_state")
    keyed.to_view("newest")
    return flow


async def ran(flow, data_dir, version=None, bound=Bound.UNTIL_END, **more):
    """Run to the end of what is there."""
    settings = sa.Settings(version=version, bound=bound, sync=False, **more)
    async with sa.run(flow, data_dir, settings=settings) as job:
        await job.wait()


async def served(data_dir, random, parts=1, pieces=25):
    """Let v1 read a log that grows, with a checkpoint behind each piece; return the events."""
    events = []
    settings = sa.Settings(sync=False)
    async with sa.Log(data_dir) as log:
        await log.create_topic("events", 3)
    async with sa.run(program(parts), data_dir, settings=settings) as job:
        topic = await job.log.topic("events")
        for _ in range(pieces):
            for _ in range(random.randint(1, 20)):
                back = random.choice((0, 0, 0, 5, 20, 60, 200, 500))
                events.append({"key": random.choice("abcd"), "n": len(events), "at": 3 * len(events) + 1_000 - back})
                number = random.randrange(3)
                await topic.partition(number).append(Records.of([json.encode(events[-1])]))
            await job.catch_up()
    return events


def store_of(data_dir, label):
    return read_briefly(version_folder(data_dir, "quiz", label))


def rows(data_dir, label):
    with store_of(data_dir, label) as store:
        views = ViewReader(store)
        return {name: dict(views[name].items()) for name in WINDOWED}


async def read(data_dir, name):
    """Return the records of a topic with one partition."""
    async with sa.Log(data_dir) as log:
        reader, values = (await log.topic(name)).partition(0).reader(), []
        while chunks := await reader.read():
            values += [json.decode(bytes(value)) for chunk in chunks for value in chunk.values()]
        await reader.close()
    return values


def boundary(data_dir, label):
    with store_of(data_dir, label) as store:
        return since_of(store.restore("events")), store.coverage


def differences(data_dir, old, new):
    """Return what ``diff`` compares, and what of it differs."""
    folders = [version_folder(data_dir, "quiz", label) for label in (old, new)]
    with read_briefly(folders[0]) as first, read_briefly(folders[1]) as second:
        coverage = first.coverage, second.coverage
    starts = covered(*coverage)
    found = {}

    def apart(*stands):
        raise AssertionError(f"they do not stand at one place: {stands}")

    with at_one_place(*folders, apart) as (mine, its):
        for view in sorted(views_of(mine).union(coverage[0]) & views_of(its).union(coverage[1])):
            if starts.get(view, 0) is not None:
                found[view] = [(c.key, c.old, c.new) for c in changes(view, mine, its, starts.get(view))]
    return starts, found


def from_start(rows, start):
    return {key: value for key, value in rows.items() if key[1] >= start}


def boundaries(data_dir):
    with store_of(data_dir, "v1") as store:
        return [max(p["time_max"] for p in one.position["partitions"]) + 1 for one in store.positions("events")]


@pytest.mark.parametrize("seed", range(6))
async def test_an_unchanged_program_shows_the_same_windows_from_the_boundary_on_and_no_others(data_dir, seed):
    random = Random(seed)
    parts = random.choice((1, 4))
    events = await served(data_dir, random, parts)
    kept = boundaries(data_dir)
    assert len(kept) > 3 and kept == sorted(kept)
    compared = 0
    for turn in range(3):
        label, time = f"v{turn + 2}", random.randint(kept[0], max(e["at"] for e in events))
        await ran(program(parts), data_dir, label, from_time=time)
        since, coverage = boundary(data_dir, label)
        assert since == max(one for one in kept if one <= time), "the nearest position before the time"
        mine, its = rows(data_dir, "v1"), rows(data_dir, label)
        starts, found = differences(data_dir, "v1", label)
        assert starts == coverage and set(found) == set(WINDOWED)
        assert not any(found.values()), found
        for view in WINDOWED:
            first = since if view != "sums_of_sums" else since + 69
            assert coverage[view] == first
            assert its[view] == from_start(mine[view], first), f"seed {seed}, {view} from {time}"
        compared += len(its["tumbling"])
        assert {view for view, start in coverage.items() if start is None} == {"totals", "of_state", "newest"}
    assert compared


async def test_records_of_windows_that_are_left_out_are_not_late(data_dir):
    await served(data_dir, Random(8))
    kept = boundaries(data_dir)
    await ran(program(), data_dir, "v2", from_time=kept[len(kept) // 2])
    since, _ = boundary(data_dir, "v2")
    late, its = await read(data_dir, "late"), await read(data_dir, "late.v2")
    assert late, "the log has late records"
    assert its == [event for event in late if event["at"] - event["at"] % 100 >= since]


@pytest.mark.parametrize("seed", range(4))
async def test_a_changed_rule_differs_as_in_a_version_that_has_read_everything(data_dir, seed):
    random = Random(100 + seed)
    parts = random.choice((1, 4))
    events = await served(data_dir, random, parts)

    await ran(program(parts), data_dir, bound=Bound.FINISH)  # so that all windows are shown

    def rule(event):
        return event["n"] % 5 != seed % 5

    kept = boundaries(data_dir)
    await ran(program(parts, rule), data_dir, "whole")
    await ran(program(parts, rule), data_dir, "v2", from_time=random.choice(kept[: len(kept) // 2]))
    starts, found = differences(data_dir, "v1", "v2")
    _, everything = differences(data_dir, "v1", "whole")
    for view in WINDOWED:
        assert found[view] == [change for change in everything[view] if change[0][1] >= starts[view]], view
    assert found["tumbling"]
    assert not any(differences(data_dir, "whole", "v2")[1].values())
    late = [event["n"] for event in await read(data_dir, "late.whole")]
    plain = Counter()
    for event in events:
        if rule(event) and event["n"] not in late:
            plain[event["key"], event["at"] - event["at"] % 100] += event["n"]
    assert rows(data_dir, "v2")["tumbling"] == from_start(plain, starts["tumbling"])


async def test_another_step_of_event_time_makes_no_difference(data_dir):
    await served(data_dir, Random(3))
    kept = boundaries(data_dir)

    def coarse():
        flow = sa.Pipeline("quiz")
        events = flow.topic("events").event_time("at", disorder=30, idle_after="1min")
        events.key_by("key").window(sa.Sliding(300, slide=100, offset=10)).count().to_view("sliding")
        return flow

    await ran(coarse(), data_dir, "whole")
    await ran(coarse(), data_dir, "v2", from_time=kept[len(kept) // 2] + 1)
    starts, found = differences(data_dir, "whole", "v2")
    assert starts == {"sliding": kept[len(kept) // 2]} and found == {"sliding": []}


async def test_it_goes_on_where_it_stands_follows_on_is_served_and_is_followed(data_dir):
    random = Random(11)
    await served(data_dir, random)
    kept = boundaries(data_dir)
    time = kept[len(kept) // 3]
    await ran(program(), data_dir, "v2", from_time=time)
    await ran(program(), data_dir, "v2", from_time=time)
    await ran(program(), data_dir, "v2")
    with pytest.raises(UsageError, match=f"v2 began at {time}, not at {time + 1}"):
        await ran(program(), data_dir, "v2", from_time=time + 1)
    catalogue = Catalogue(RealDisk(), job_folder(data_dir, "quiz"))
    assert catalogue.read().version("v2").since == str(time)
    Versioned(data_dir, "quiz").promote("v2", timeout=10)
    async with sa.Log(data_dir) as log:
        topic = await log.topic("events")
        more = [{"key": "a", "n": 1, "at": 5_000 + 10 * n} for n in range(50)]
        await topic.partition(0).append(Records.of(list(map(json.encode, more))))
    await ran(program(), data_dir, "v2")
    await ran(program(), data_dir, "v1")  # finds its place in the journal of a version that began later
    assert not any(differences(data_dir, "v2", "v1")[1].values())
    await ran(program(), data_dir, "v3", from_time=kept[1])  # earlier than v2 began: its store knows the place
    starts, found = differences(data_dir, "v2", "v3")
    assert not any(found.values()) and starts["tumbling"] == boundary(data_dir, "v2")[0]
    assert not any(differences(data_dir, "v1", "v3")[1].values())


async def test_a_time_before_all_positions_is_refused_with_the_first_that_there_is(data_dir):
    await served(data_dir, Random(1), pieces=4)
    kept = boundaries(data_dir)
    with pytest.raises(UsageError, match=rf"The first time for which there is one is {kept[0]} .*--from earliest"):
        await ran(program(), data_dir, "v2", from_time=kept[0] - 1)
    assert not (version_folder(data_dir, "quiz", "v2") / "data.mdb").exists()
    await ran(program(), data_dir, "v2", from_time=kept[0])


async def test_a_pipeline_without_event_time_is_refused(data_dir):
    def timeless():
        flow = sa.Pipeline("quiz")
        flow.topic("events").key_by("key").count().to_view("totals")
        return flow

    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("events", 1)
        await topic.partition(0).append(Records.of([b'{"key": "a"}']))
    await ran(timeless(), data_dir)
    with pytest.raises(UsageError, match=r"no event time.*--from earliest"):
        await ran(timeless(), data_dir, "v2", from_time=5)


async def test_a_savepoint_of_it_carries_the_boundary(data_dir):
    await served(data_dir, Random(4))
    kept = boundaries(data_dir)
    await ran(program(), data_dir, "v2", from_time=kept[3])
    async with sa.run(program(), data_dir, settings=sa.Settings(version="v2", sync=False)) as job:
        saved = await job.savepoint()
    await ran(program(), data_dir, "v3", from_savepoint=saved.path, sinks="shadow")
    assert boundary(data_dir, "v3") == boundary(data_dir, "v2")
    assert not any(differences(data_dir, "v1", "v3")[1].values())
