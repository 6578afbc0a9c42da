"""What made a value: the records that are listed, folded by a plain function, give it; late ones are the oracle's.

The oracle is testing/quiz.py's, which follows a journal with plain dicts, one record at a time; here it also notes
which record went where. Other shapes have oracles of a few lines beside them.
"""

import asyncio
import json
import random as random_module
import shutil
from collections import defaultdict
from functools import reduce
from random import Random

import pytest

import streamactors as sa
from connectors.push import Push
from streamactors.core.errors import UsageError
from streamactors.core.keys import encode_key, key_group
from streamactors.durable import appender
from streamactors.durable.frames import Records
from streamactors.durable.log import Log
from streamactors.durable.store import Store
from streamactors.flow.stage import part_of_group
from streamactors.kappa.explaining import ABSENT, explain
from streamactors.testing.quiz import QuizOracle, Submissions, random_quiz
from streamactors.testing.world import CrashAtPoint, CrashAtTime, Ended, World

FAST = sa.RestartPolicy(restarts_max=50, backoff_first=0.001, backoff_max=0.001)


def places(explained, what="record"):
    return [(step.partition, step.offset) for step in explained.steps if step.what == what]


def values(explained):
    return [step.value for step in explained.steps if step.what == "record"]


# The quiz, in a world where processes die. ----------------------------------------------------------------------------


class Lister(QuizOracle):
    """The quiz's oracle, noting for each key and window which records counted, and which were late."""

    def __init__(self, quiz, image):
        super().__init__(quiz, lambda partition, first, end: image[partition][first:end])
        self.quiz = quiz
        self.counted = defaultdict(list)
        self.missed = defaultdict(list)
        self.of_quiz = defaultdict(list)
        self._offsets = defaultdict(int)

    def _record(self, partition, line):
        place = partition, self._offsets[partition]
        self._offsets[partition] += 1
        record = json.loads(line)
        start = record["submitted_at"] // self.quiz.window * self.quiz.window
        gone = start + self.quiz.window + self.quiz.lateness <= self._horizon
        (self.missed if gone else self.counted)[record["quiz_id"], start].append(place)
        self.of_quiz[record["quiz_id"]].append(place)
        super()._record(partition, line)


def lives(world, quiz, random, pipeline, settings):
    """Append and run for a few lives that end in crashes; return what is in the log's partitions at last."""
    source = Submissions(random, quiz)
    image = [[] for _ in range(quiz.partitions)]

    async def life(process):
        async with sa.run(pipeline(), process.data_dir, ports=process.ports, settings=settings()) as job:
            topic = await job.log.topic("submissions")
            for _ in range(random.randint(3, 10)):
                number, lines = random.randrange(quiz.partitions), source.take(random.randint(1, 30))
                await topic.partition(number).append(Records.of(lines))
                await process.ports.clock.sleep(random.random())

    async def last_life(process):
        async with Log(process.data_dir, process.ports) as log:
            topic = await log.topic("submissions")
            for number in range(quiz.partitions):
                reader = topic.partition(number).reader()
                image[number] = []
                while chunks := await reader.read():
                    image[number] += [bytes(value) for chunk in chunks for value in chunk.values()]
                await reader.close()

    for plan in (CrashAtTime(random.random() * 3), CrashAtPoint(random.randint(50, 300)), None):
        world.run(life, plan)
    assert isinstance(world.run(last_life), Ended)
    return image


@pytest.mark.parametrize("seed", range(6))
def test_records_and_late_ones_are_those_of_the_oracle_whatever_died_meanwhile(tmp_path, seed, record_property):
    seed += random_module.SystemRandom().randrange(10**6) * 10
    record_property("said", f"seed {seed}")
    random = Random(seed)
    quiz = random_quiz(random)
    guarantee = random.choice(["exactly-once", "at-least-once"])
    world = World(Random(seed), tmp_path)

    def pipeline():
        made = quiz.pipeline()

        @made.before_start
        async def prepare(log):
            await log.create_topic("submissions", quiz.partitions)

        return made

    def settings():
        return sa.Settings(checkpoint_every_ms=100, restarts=FAST, sync=False, guarantee=sa.Guarantee(guarantee))

    image = lives(world, quiz, random, pipeline, settings)

    async def ask(process):
        with Store.open(process.data_dir / "jobs/quiz/v1", read_only=True) as store:
            journal = list(store.journal("submissions"))
        oracle = Lister(quiz, image)
        oracle.follow(journal)
        keys = sorted({*oracle.counted, *oracle.missed})
        for name, start in random.sample(keys, min(12, len(keys))):
            found = await explain(
                pipeline(), process.data_dir, "quiz_counts", [name, start], ports=process.ports, original=True
            )
            assert found.agrees and found.stored == oracle.counts.get((name, start), ABSENT)
            assert places(found) == oracle.counted[name, start], f"seed {seed}"
            assert places(found, "late") == oracle.missed[name, start], f"seed {seed}"
            assert all(step.original == image[step.partition][step.offset] for step in found.steps if step.place)
            if found.stored is not ABSENT:  # (records that came since may wait for the next firing)
                assert len(places(found)) >= found.stored
                assert [step.value for step in shown(found)][-1] == found.stored
        for name, counted in random.sample(sorted(oracle.of_quiz.items()), min(3, len(oracle.of_quiz))):
            found = await explain(pipeline(), process.data_dir, "quiz_totals", name, ports=process.ports)
            scores = [value.score for value in values(found)]
            assert found.agrees and places(found) == counted
            assert found.stored == {
                "count": len(scores),
                "mean_score": reduce(float.__add__, scores, 0.0) / len(scores),
            }
            assert [step.then.value["count"] for step in found.steps] == list(range(1, len(scores) + 1))

    outcome = world.run(ask)
    assert isinstance(outcome, Ended), outcome


def shown(explained):
    """Return the changes of the view, those that a record made at once among them."""
    changes = [step if step.what == "shown" else step.then for step in explained.steps]
    return [change for change in changes if change is not None]


# Other shapes, over a list. -------------------------------------------------------------------------------------------


def events(seed, count=400, keys="abc"):
    random = Random(seed)
    return [
        {"id": n, "key": random.choice(keys), "n": random.randint(-5, 9), "at": 10 * n + random.randint(0, 300)}
        for n in range(count)
    ]


def run_to(pipeline, data_dir, bound=sa.Bound.FINISH, **settings):
    async def to_the_end():
        async with sa.run(pipeline, data_dir, settings=sa.Settings(bound=bound, restarts=FAST, **settings)) as job:
            await job.wait()
            return {name: dict(job.views[name].items()) for name in job.views.names()}

    return asyncio.run(to_the_end())


def ask(pipeline, data_dir, view, key, **more):
    return asyncio.run(explain(pipeline, data_dir, view, key, **more))


def ids(explained, what="record"):
    return [step.offset for step in explained.steps if step.what == what]


PARTS = pytest.mark.parametrize("parts", [1, 4])


@PARTS
@pytest.mark.parametrize("seed", [1, 2])
def test_a_sliding_window_lists_what_it_holds_and_what_came_when_it_was_gone_itself(data_dir, parts, seed):
    """A record may be late for one window and counted in the next: it is the asked window that matters."""
    made = events(seed)

    def pipeline():
        flow = sa.Pipeline("slide", parts=parts)
        keyed = flow.items(made).event_time("at").key_by("key")
        windows = keyed.window(sa.Sliding(400, slide=100)).allowed_lateness(100)
        windows.aggregate(n=sa.count(), total=sa.sum("n")).to_view("windows")
        return flow

    rows = run_to(pipeline(), data_dir)["windows"]
    times, horizon, counted, late = [], float("-inf"), defaultdict(list), defaultdict(list)
    for event in made:
        for start in range(event["at"] // 100 * 100 - 300, event["at"] + 1, 100):
            gone = start + 400 + 100 <= horizon
            (late if gone else counted)[event["key"], start].append(event["id"])
        times.append(event["at"])
        horizon = max(times) // 100 * 100
    assert any(late.values())
    for (key, start), wanted in Random(seed).sample(sorted(counted.items()), 15):
        found = ask(pipeline(), data_dir, "windows", [key, start])
        assert found.agrees and ids(found) == wanted and ids(found, "late") == late[key, start]
        total = sum(step.value["n"] for step in found.steps if step.what == "record")
        assert rows[key, start] == found.stored == {"n": len(wanted), "total": total}


@PARTS
def test_a_row_that_a_filter_deletes_is_explained_as_gone_and_one_that_it_keeps_as_there(data_dir, parts):
    made = events(3)

    def pipeline():
        flow = sa.Pipeline("deleting", parts=parts)
        totals = flow.items(made).key_by("key").sum("n")
        totals.filter(lambda total: total % 2 == 0).map(lambda total: total * 10).to_view("even")
        return flow

    run_to(pipeline(), data_dir)
    for key in "abc":
        found = ask(pipeline(), data_dir, "even", key)
        total, changes = 0, []
        for event in (event for event in made if event["key"] == key):
            total += event["n"]
            changes.append(("update", total * 10) if total % 2 == 0 else ("delete", None))
        assert found.agrees and found.stored == (total * 10 if total % 2 == 0 else ABSENT)
        assert [(step.then.kind, step.then.value) for step in found.steps] == changes


@PARTS
def test_flat_maps_unions_splits_and_filters_before_the_key_are_followed_to_their_records(data_dir, parts):
    made = events(4)

    def several(event):
        return [{**event, "n": part} for part in range(event["n"])]

    def pipeline():
        flow = sa.Pipeline("shapes", parts=parts)
        low, high = flow.items(made).filter(lambda e: e["id"] % 3 != 0).split(lambda e: e["n"] < 2)
        joined = low.union(high.flat_map(several)).key_by(lambda e: (e["key"], e["id"] % 2))
        joined.map(lambda e: e["n"]).sum().to_view("sums")
        return flow

    run_to(pipeline(), data_dir)
    for key in [("a", 0), ("b", 1), ("c", 0)]:
        wanted = []
        for event in made:
            if event["id"] % 3 and (event["key"], event["id"] % 2) == key:
                wanted += [event["n"]] if event["n"] < 2 else range(event["n"])
        found = ask(pipeline(), data_dir, "sums", list(key))
        # Branches of one source meet behind each other within a piece: order is by branch there.
        assert found.agrees and sorted(values(found)) == sorted(wanted) and found.stored == sum(wanted)


@PARTS
def test_a_function_with_state_and_distinct_are_listed_by_what_reached_them(data_dir, parts):
    made = [{**event, "n": abs(event["n"])} for event in events(5)]

    def pipeline():
        flow = sa.Pipeline("stateful", parts=parts)
        keyed = flow.items(made).key_by("key")
        keyed.map_with_state(lambda e, best: (max(e["n"], best or 0), max(e["n"], best or 0))).to_view("best")
        keyed.distinct("n").map(lambda e: e["n"]).to_view("last_new")
        keyed.distinct("n").count().to_view("kinds")
        return flow

    run_to(pipeline(), data_dir)
    for key in "abc":
        mine = [event for event in made if event["key"] == key]
        best = ask(pipeline(), data_dir, "best", key)
        assert best.agrees and ids(best) == [event["id"] for event in mine]
        first = list({event["n"]: event for event in reversed(mine)}.values())
        first = sorted(event["id"] for event in first)
        for view in ("kinds", "last_new"):
            found = ask(pipeline(), data_dir, view, key)
            assert found.agrees and ids(found) == first
        assert ask(pipeline(), data_dir, "kinds", key).stored == len(first)


@PARTS
def test_results_of_windows_that_another_key_adds_up_are_listed_with_the_records_of_each(data_dir, parts):
    made = events(6)

    def pipeline():
        flow = sa.Pipeline("twice", parts=parts)
        counts = flow.items(made).event_time("at").key_by("key").window(sa.Tumbling(200)).final().count()
        counts.map(lambda n: n, name="as-it-is").key_by(lambda n: n >= 8).count().to_view("busy")
        return flow

    busy = run_to(pipeline(), data_dir)["busy"]
    windows, late, horizon = defaultdict(list), defaultdict(list), float("-inf")
    for event in made:
        start = event["at"] // 200 * 200
        gone = start + 200 <= horizon
        (late if gone else windows)[event["key"], start].append(event["id"])
        horizon = max(horizon, event["at"] // 200 * 200)
    for key in (True, False):
        wanted = {window: inside for window, inside in windows.items() if (len(inside) >= 8) == key}
        found = ask(pipeline(), data_dir, "busy", key)
        results = [step for step in found.steps if step.what == "result"]
        assert found.agrees and found.stored == busy[key] == len(results)
        assert {(step.key, step.window[0]): step.value for step in results} == {w: len(i) for w, i in wanted.items()}
        assert ids(found) == sorted(i for inside in wanted.values() for i in inside)
        assert ids(found, "late") == sorted(i for window in wanted for i in late[window])


def test_changes_of_windows_are_a_view_without_windows(data_dir):
    made = events(7)

    def pipeline():
        flow = sa.Pipeline("changing")
        counts = flow.items(made).event_time("at").key_by("key").window(sa.Tumbling(300)).count()
        counts.changes().to_view("newest")
        counts.late.key_by("key").count().to_view("too_late")
        return flow

    rows = run_to(pipeline(), data_dir)
    horizon, late = float("-inf"), defaultdict(list)
    for event in made:
        if event["at"] // 300 * 300 + 300 <= horizon:
            late[event["key"]].append(event["id"])
        horizon = max(horizon, event["at"] // 300 * 300)
    assert any(late.values())
    for key in "abc":
        found = ask(pipeline(), data_dir, "newest", key)
        assert found.agrees and found.stored == rows["newest"][key]
        assert ids(found, "late") == late[key] and len(ids(found)) + len(late[key]) == sum(
            e["key"] == key for e in made
        )
        found = ask(pipeline(), data_dir, "too_late", key)
        assert found.agrees and ids(found) == late[key] and found.stored == len(late[key])


def test_a_view_with_a_key_of_its_own_and_keys_that_look_alike_are_told_apart(data_dir):
    made = [1, 1.0, True, "1", None, b"1", 1]

    def pipeline():
        flow = sa.Pipeline("alike")
        flow.items(made).map(lambda v: [v, 7]).to_view("newest", key=lambda pair: pair[0])
        return flow

    run_to(pipeline(), data_dir)
    for place, key in enumerate(made[1:6], 1):
        found = ask(pipeline(), data_dir, "newest", key)
        assert found.agrees and ids(found) == [place]
    assert ids(ask(pipeline(), data_dir, "newest", 1)) == [0, 6]


# What was left out. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["skip", "dead_letter"])
def test_left_out_records_are_listed_with_their_error_and_whether_their_key_was_known(data_dir, policy):
    made = events(8, 60)

    def cents(event):
        return {**event, "n": 100 // event["n"]}

    def check(event):
        if event["n"] == 100:
            raise ValueError("a hundred")
        return event

    def pipeline():
        flow = sa.Pipeline("leaving", on_error=policy)
        keyed = flow.items(made).event_time("at").map(cents).key_by("key").map(check)
        keyed.window(sa.Tumbling(200)).allowed_lateness(10_000).sum("n").to_view("windows")
        keyed.sum("n").to_view("sums")
        return flow

    run_to(pipeline(), data_dir)
    for key in "abc":
        found = ask(pipeline(), data_dir, "sums", key)
        unsure = [step for step in found.steps if step.what == "left_out" and not step.certain]
        sure = [step for step in found.steps if step.what == "left_out" and step.certain]
        assert found.agrees and [step.offset for step in unsure] == [e["id"] for e in made if e["n"] == 0]
        assert [step.offset for step in sure] == [e["id"] for e in made if e["n"] == 1 and e["key"] == key]
        assert all("ZeroDivisionError" in step.error for step in unsure)
        assert all(step.error.startswith("ValueError: a hundred") and step.operator == "map-2" for step in sure)
        assert found.stored == sum(100 // e["n"] for e in made if e["key"] == key and e["n"] not in (0, 1))
        window = ask(pipeline(), data_dir, "windows", [key, 200])
        left = [step.offset for step in window.steps if step.what == "left_out"]
        inside = [e for e in made if 200 <= e["at"] < 400]
        assert left == [e["id"] for e in inside if e["n"] == 0 or (e["n"] == 1 and e["key"] == key)]


def test_what_an_aggregate_refuses_is_left_out_and_does_not_count(data_dir):
    made = [{"key": "a", "n": n} for n in (1, "x", 2, None, 3)]

    def pipeline():
        flow = sa.Pipeline("refusing", on_error="skip")
        flow.items(made).key_by("key").sum("n").to_view("sums")
        return flow

    run_to(pipeline(), data_dir)
    found = ask(pipeline(), data_dir, "sums", "a")
    assert found.agrees and found.stored == 6
    assert ids(found) == [0, 2, 4] and ids(found, "left_out") == [1, 3]
    assert found.counts["record"] == 3 and found.counts["left_out"] == 2


async def test_records_that_can_t_be_decoded_are_in_their_place_among_the_others(data_dir):
    def pipeline():
        flow = sa.Pipeline("decoding", on_error="skip")
        timed = flow.topic("events").map(lambda e: e).event_time("at")
        timed.key_by("key").count().to_view("counts")
        return flow

    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("events")
        lines = [b'{"key": "a", "at": %d}' % n for n in range(10)]
        lines[4:4], lines[7:7] = [b"{"], [b'{"key": "a", "at": "noon"}']
        await topic.append_many(lines)
        async with sa.run(pipeline(), data_dir, settings=sa.Settings(bound=sa.Bound.UNTIL_END), log=log) as job:
            await job.wait()
    found = await explain(pipeline(), data_dir, "counts", "a", original=True)
    assert found.agrees and found.stored == 10 and found.read == 10
    assert [(step.what, step.offset) for step in found.steps] == [
        ("left_out" if n in (4, 7) else "record", n) for n in range(12)
    ]
    assert [step.original for step in found.steps] == lines


# Beside a job, and after changes. -------------------------------------------------------------------------------------


async def test_a_job_that_runs_is_explained_as_of_its_last_checkpoint_and_goes_on(data_dir):
    def pipeline():
        flow = sa.Pipeline("living")
        flow.topic("events").key_by("key").count().to_view("counts")
        return flow

    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("events", 2)
        async with sa.run(pipeline(), data_dir, checkpoint_every="20ms", log=log) as job:
            for round_ in range(1, 5):
                await topic.append_many([b'{"key": "a"}', b'{"key": "b"}'] * 10)
                await job.catch_up()
                found = await explain(pipeline(), data_dir, "counts", "a")
                assert found.agrees and found.stored == len(ids(found)) == 10 * round_
                assert job.views["counts"]["a"] == 10 * round_


def test_nothing_in_the_data_folder_is_changed(data_dir):
    made = events(9)

    def pipeline():
        flow = sa.Pipeline("resting")
        flow.items(made).key_by("key").count().to_view("counts")
        return flow

    run_to(pipeline(), data_dir)
    job = data_dir / "jobs/resting"

    def contents():
        return {p: p.read_bytes() for p in sorted(job.rglob("*")) if p.is_file() and p.name != "lock.mdb"}

    before = contents()
    assert ask(pipeline(), data_dir, "counts", "a").agrees
    assert contents() == before


def test_the_file_of_the_code_is_noted_and_compared(data_dir, tmp_path):
    made = events(10)
    flow = sa.Pipeline("noting")
    flow.items(made).key_by("key").count().to_view("counts")
    run_to(flow, data_dir)
    found = ask(flow, data_dir, "counts", "a")
    assert found.version.code == found.file == __file__ and found.same_code is True and found.agrees

    other = sa.Pipeline("noting")
    other.items(made).filter(lambda e: e["n"] > 0).key_by("key").count().to_view("counts")
    copy = tmp_path / "copy.py"
    copy.write_text("# other code\n")
    other.file = str(copy)
    found = ask(other, data_dir, "counts", "a")
    assert found.same_code is False and not found.agrees
    assert found.value == sum(e["key"] == "a" and e["n"] > 0 for e in made)
    assert found.stored == sum(e["key"] == "a" for e in made)


def test_with_a_limit_the_first_and_the_last_are_kept_and_all_are_counted(data_dir):
    made = [{"key": "a"}] * 5_000

    def pipeline():
        flow = sa.Pipeline("hot", parts=4)
        flow.items(made).key_by("key").count().to_view("counts")
        return flow

    run_to(pipeline(), data_dir)
    found = ask(pipeline(), data_dir, "counts", "a", limit=3)
    assert ids(found) == [0, 1, 2, 4_997, 4_998, 4_999] and found.counts["record"] == 5_000 and found.agrees
    assert [step.then.value for step in found.steps] == [1, 2, 3, 4_998, 4_999, 5_000]


# What can't be explained. ---------------------------------------------------------------------------------------------


def counting(name="counting", made=({"key": "a", "at": 1},), **more):
    flow = sa.Pipeline(name, **more)
    keyed = flow.items(list(made)).event_time("at").key_by("key")
    keyed.window(sa.Tumbling(10)).count().to_view("windows")
    keyed.count().to_view("counts")
    return flow


@pytest.mark.parametrize(
    ("view", "key", "version", "message"),
    [
        ("nope", "a", None, "has no view nope. Its views: counts, windows"),
        ("windows", "a", None, "start of the window"),
        ("counts", "a", "v9", "has no version v9"),
    ],
)
def test_what_is_not_there_is_refused_with_what_there_is(data_dir, view, key, version, message):
    run_to(counting(), data_dir)
    with pytest.raises(UsageError, match=message):
        ask(counting(), data_dir, view, key, version=version)


def test_a_job_that_never_ran_or_that_keeps_no_journal_is_refused(data_dir):
    with pytest.raises(UsageError, match="there is no job counting"):
        ask(counting(), data_dir, "counts", "a")
    run_to(counting(), data_dir, guarantee=sa.Guarantee.AT_MOST_ONCE)
    with pytest.raises(UsageError, match="at-most-once keeps no journal"):
        ask(counting(), data_dir, "counts", "a")


def test_a_source_that_can_t_replay_is_refused_with_the_remedy(data_dir):
    run_to(counting(), data_dir)
    flow = sa.Pipeline("counting")
    flow.source(Push(id="items")).key_by("key").count().to_view("counts")
    with pytest.raises(UsageError, match="through_log"):
        ask(flow, data_dir, "counts", "a")


def test_other_sources_than_those_that_were_read_are_refused(data_dir):
    run_to(counting(), data_dir)
    flow = sa.Pipeline("counting")
    first, second = flow.items([{"key": "a"}]), flow.items([{"key": "a"}], name="more")
    first.union(second).key_by("key").count().to_view("counts")
    with pytest.raises(UsageError, match="reads items, more"):
        ask(flow, data_dir, "counts", "a")


# Sources, and functions that are awaited. -----------------------------------------------------------------------------


def test_files_are_explained_by_byte_offset_and_whole(data_dir, tmp_path):
    made = [{"key": "ab"[n % 2], "at": n} for n in range(20)]
    for number in range(2):
        lines = [json.dumps(event) for event in made[number::2]]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines) + "\n")

    def pipeline():
        flow = sa.Pipeline("files")
        flow.json_lines(tmp_path / "*.jsonl").key_by("key").count().to_view("counts")
        return flow

    run_to(pipeline(), data_dir)
    found = ask(pipeline(), data_dir, "counts", "b", original=True)
    assert found.agrees and found.stored == 10
    assert [json.loads(step.original) for step in found.steps] == made[1::2]
    (tmp_path / "2.jsonl").write_text('{"key": "b", "at": 99}\n')
    assert ask(pipeline(), data_dir, "counts", "b").agrees, "a file that came since changes nothing"


@PARTS
def test_awaited_functions_are_awaited_again(data_dir, parts):
    made = events(11, 100)

    async def doubled(event):
        await asyncio.sleep(0)
        return {**event, "n": 2 * event["n"]}

    async def adding(event, total):
        total = (total or 0) + event["n"]
        return total, total

    def pipeline():
        flow = sa.Pipeline("awaited", parts=parts)
        keyed = flow.items(made).map_async(doubled, capacity=7).key_by("key")
        keyed.map_with_state(adding).to_view("totals")
        keyed.sum("n").to_view("sums")
        return flow

    run_to(pipeline(), data_dir)
    for key in "abc":
        mine = [event for event in made if event["key"] == key]
        for view in ("totals", "sums"):
            found = ask(pipeline(), data_dir, view, key)
            assert found.agrees and ids(found) == [event["id"] for event in mine]
            assert found.stored == sum(2 * event["n"] for event in mine)


@PARTS
def test_two_sources_in_one_region_are_told_apart_and_both_make_event_time(data_dir, parts):
    left = [{"key": "a", "side": "left", "at": 10 * n} for n in range(50)]
    right = [{"key": "ab"[n % 2], "side": "right", "at": 35 * n} for n in range(20)]

    def pipeline():
        flow = sa.Pipeline("sides", parts=parts)
        first = flow.items(left, name="left").event_time("at")
        second = flow.items(right, name="right").event_time("at")
        both = first.key_by("key").union(second.key_by("key"))
        both.window(sa.Tumbling(100)).count().to_view("windows")
        first.key_by("side").window(sa.Tumbling(100)).count().to_view("left_alone")
        return flow

    run_to(pipeline(), data_dir)
    for start in range(0, 700, 100):
        found = ask(pipeline(), data_dir, "windows", ["a", start])
        inside = [e for e in left + right if e["key"] == "a" and start <= e["at"] < start + 100]
        assert found.agrees and sorted(step.time for step in found.steps if step.what == "record") == sorted(
            event["at"] for event in inside
        )
        assert {step.source for step in found.steps if step.place} == {event["side"] for event in inside}
    found = ask(pipeline(), data_dir, "left_alone", ["left", 100])
    assert found.agrees and found.stored == 10 and found.read == 70


async def test_what_came_through_the_log_is_read_from_there_and_nothing_new_is_taken_in(data_dir):
    def pipeline():
        flow = sa.Pipeline("through")
        push = Push(id="push")
        flow.source(push).through_log("pushed").key_by("key").count().to_view("counts")
        return flow, push

    flow, push = pipeline()
    async with sa.run(flow, data_dir) as job:
        await push.send_many([{"key": "a"}, {"key": "b"}, {"key": "a"}])
        await job.catch_up()
    found = await explain(pipeline()[0], data_dir, "counts", "a")
    assert found.agrees and found.stored == 2 and ids(found) == [0, 2]


async def test_records_that_retention_has_removed_are_said_to_be_missing(data_dir, monkeypatch):
    monkeypatch.setattr(appender, "SEGMENT_BYTES_MAX", 200)

    def pipeline():
        flow = sa.Pipeline("retained")
        flow.topic("events").key_by("key").count().to_view("counts")
        return flow

    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("events")
        for _ in range(30):
            await topic.append_many([b'{"key": "a"}', b'{"key": "b"}'])
        async with sa.run(pipeline(), data_dir, settings=sa.Settings(bound=sa.Bound.UNTIL_END), log=log) as job:
            await job.wait()
        assert await topic.retain(max_bytes=500) > 0
    found = await explain(pipeline(), data_dir, "counts", "a")
    (first,) = found.missing.values()
    assert found.stored == 30 and not found.agrees and 0 < first < 60
    assert ids(found) == list(range(first + first % 2, 60, 2)) and found.value == len(ids(found))


async def test_a_log_that_ends_before_what_was_read_is_refused_and_not_waited_for(data_dir):
    """As on another machine to which only a savepoint was moved."""

    def pipeline():
        flow = sa.Pipeline("moved")
        flow.topic("events").key_by("key").count().to_view("counts")
        return flow

    async with sa.Log(data_dir) as log:
        await (await log.create_topic("events")).append_many([b'{"key": "a"}'] * 10)
        async with sa.run(pipeline(), data_dir, settings=sa.Settings(bound=sa.Bound.UNTIL_END), log=log) as job:
            await job.wait()
    shutil.rmtree(data_dir / "log" / "events")
    async with sa.Log(data_dir) as log:
        await (await log.create_topic("events")).append_many([b'{"key": "a"}'] * 3)
    with pytest.raises(sa.UsageError, match="has read events/0 up to offset 10, and it ends at 3"):
        await asyncio.wait_for(explain(pipeline(), data_dir, "counts", "a"), 30)


def test_results_that_parts_hand_on_to_parts_twice_keep_the_order_that_they_had(data_dir):
    """What came from no record has no order but that of the parts; leading it back to records must not give it one."""
    of_one_part = [f"k{n}" for n in range(80) if part_of_group(key_group(encode_key(f"k{n}")), 4) == 1]
    made = events(12, 2_000, of_one_part)

    def pipeline():
        flow = sa.Pipeline("handing", parts=4)
        sums = flow.items(made).event_time("at").key_by("key").window(sa.Tumbling(500)).final().sum("n")
        rows = sums.map(lambda n: {"n": n, "sign": n % 2 == 0})
        rows.key_by("sign").distinct("n").map_with_state(
            lambda row, mixed: (mixed, (31 * (mixed or 0) + row["n"]) % 1_000_003)
        ).to_view("mixed")
        return flow

    rows = run_to(pipeline(), data_dir)["mixed"]
    for sign in (True, False):
        found = ask(pipeline(), data_dir, "mixed", sign)
        assert found.agrees and found.stored == rows[sign] and found.counts["result"] > 10
