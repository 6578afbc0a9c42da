"""Error policies: what happens to a record that an operator can't handle, and what is kept of it."""

import asyncio
from collections import Counter
from random import Random

import pytest
from msgspec import Struct, json

import streamactors as sa
from streamactors.durable.frames import Records
from streamactors.flow.dead_letters import DeadLetter
from streamactors.testing.source import Crash, Script
from streamactors.testing.world import CrashAtLabel, CrashAtPoint, Crashed, World

QUICK = sa.RestartPolicy(restarts_max=20, backoff_first=0.001)


def settings(**more):
    return sa.Settings(**{"bound": sa.Bound.UNTIL_END, "checkpoint_every_ms": 5, "restarts": QUICK, **more})


async def letters(log, topic):
    partition = (await log.topic(topic)).partition(0)
    reader, found = partition.reader(), []
    while chunks := await reader.read():
        found += [json.decode(value, type=DeadLetter) for chunk in chunks for value in chunk.values()]
    await reader.close()
    return found


async def end(flow, data_dir, **more):
    async with sa.run(flow, data_dir, settings=settings(**more)) as job:
        await job.wait()
        views = {name: dict(job.views[name].items()) for name in job.views.names()}
        dead = {name: await letters(job.log, name) for name in await job.log.topics() if name.startswith("dead-")}
        return views, dead, job.status()


def odd_fails(n):
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n


async def odd_fails_later(n):
    return odd_fails(n)


def counting_odd(value, state):
    return odd_fails(value), (state or 0) + 1


async def counting_odd_later(value, state):
    return counting_odd(value, state)


OPERATORS = {
    "map": lambda s: s.map(odd_fails),
    "async map": lambda s: s.map(odd_fails_later),
    "filter": lambda s: s.filter(lambda n: odd_fails(n) >= 0),
    "async filter": lambda s: s.filter(odd_fails_later).on_error("skip").map(lambda n: n),
    "flat_map": lambda s: s.flat_map(lambda n: [odd_fails(n)]),
    "flat_map that yields": lambda s: s.flat_map(lambda n: (odd_fails(m) for m in [n])),
    "key_by": lambda s: s.key_by(odd_fails),
    "map_with_state": lambda s: s.key_by(lambda n: n).map_with_state(counting_odd),
    "async map_with_state": lambda s: s.key_by(lambda n: n).map_with_state(counting_odd_later),
    "split": lambda s: s.split(lambda n: n < 0, lambda n: odd_fails(n) < 0)[2],
    "map_async": lambda s: s.map_async(odd_fails_later, capacity=4),
    "map_async, unordered": lambda s: s.map_async(odd_fails_later, capacity=4, ordered=False),
}


@pytest.mark.parametrize("policy", ["skip", "dead_letter"])
@pytest.mark.parametrize("name", OPERATORS)
async def test_a_record_that_can_t_be_handled_is_left_out_and_the_others_go_on(data_dir, name, policy):
    flow = sa.Pipeline("p")
    stream = OPERATORS[name](flow.items(list(range(20)), name="numbers"))
    if name != "async filter":
        stream.on_error(policy)
    stream.key_by(lambda n: n).count().to_view("passed")
    views, dead, status = await end(flow, data_dir, batch_records=7)
    even = dict.fromkeys(range(0 if name != "async filter" else 2, 20, 2), 1)
    assert views["passed"] == even
    if policy == "dead_letter" and name != "async filter":
        assert [letter.offset for letter in dead["dead-letters.p.numbers"]] == list(range(1, 20, 2))
    else:
        assert dead == {}
    refused = {operator.name: operator.refused for stage in status.regions[0].stages for operator in stage.operators}
    assert sum(refused.values()) == 10


async def test_a_dead_letter_says_what_happened_where_and_to_which_bytes(data_dir):
    class Answer(Struct):
        n: int

    flow = sa.Pipeline("quiz")
    flow.topic("answers", Answer).map(lambda a: 10 // a.n, name="divide").on_error("dead_letter").key_by(
        lambda n: n
    ).count().to_view("v")
    async with sa.Log(data_dir) as log:
        await (await log.create_topic("answers", 1)).append_many([b'{"n": 5}', b'{"n":  0, "more": true}'])
    _, dead, _ = await end(flow, data_dir)
    (letter,) = dead["dead-letters.quiz.answers"]
    assert letter.operator == "quiz/divide"
    assert (letter.source, letter.partition, letter.offset) == ("answers", 0, 1)
    assert letter.error.startswith("ZeroDivisionError: integer division or modulo by zero (in test_dead_letters.py:")
    assert "ZeroDivisionError" in letter.traceback
    assert "10 // a.n" in letter.traceback
    assert letter.original == b'{"n":  0, "more": true}'
    assert letter.value == "Answer(n=0)"


async def test_what_can_t_be_decoded_is_left_out_by_the_source(data_dir):
    class Answer(Struct):
        n: int

    flow = sa.Pipeline("p")
    flow.topic("answers", Answer).on_error("dead_letter").key_by("n").count().to_view("v")
    values = [b'{"n":1}', b"{", b'{"n":"x"}', b'{"n":2}', b"", b"\xff\xfe", b"[" * 100_000, b'{"n":1}']
    async with sa.Log(data_dir) as log:
        await (await log.create_topic("answers", 1)).append_many(values)
    views, dead, _ = await end(flow, data_dir, batch_records=3)
    assert views["v"] == {1: 2, 2: 1}
    assert [letter.original for letter in dead["dead-letters.p.answers"]] == [values[i] for i in (1, 2, 4, 5, 6)]


@pytest.mark.parametrize("first", ["nothing can be decoded", "nothing is left"])
async def test_an_awaited_function_in_a_reader_passes_over_a_batch_in_which_there_is_nothing(data_dir, first):
    async def same(n):
        return n

    flow = sa.Pipeline("p")
    numbers = flow.topic("numbers", int).on_error("skip").filter(lambda n: n != 1)
    numbers.map(same).event_time(None).key_by(None).count().to_view("v")
    async with sa.Log(data_dir) as log:
        bad = b"{" if first == "nothing can be decoded" else b"1"
        await (await log.create_topic("numbers", 1)).append_many([bad, bad, b"2", bad])
    async with asyncio.timeout(30):
        views, _, _ = await end(flow, data_dir, batch_records=2)
    assert views["v"] == {2: 1}


async def test_a_time_that_is_none_is_left_out_by_event_time(data_dir):
    flow = sa.Pipeline("p")
    rows = [{"at": 1}, {"at": None}, {}, {"at": 2}, {"at": 2**70}, {"at": 120}]
    timed = flow.items(rows).event_time("at").on_error("dead_letter")
    timed.key_by(lambda r: "all").window(sa.Tumbling(100)).count().to_view("v")
    views, dead, _ = await end(flow, data_dir, batch_records=2)
    assert views["v"] == {("all", 0): 2}
    assert [letter.offset for letter in dead["dead-letters.p.items"]] == [1, 2, 4]


async def test_a_value_that_a_sink_can_t_encode_is_left_out_there_and_nowhere_else(data_dir):
    flow = sa.Pipeline("p")
    stream = flow.items([1, object(), 2, {3, 4}, 5]).map(lambda v: v)
    stream.to_topic("out", partitions=2, on_error="dead_letter")
    stream.key_by(lambda v: type(v).__name__).count().to_view("types")
    views, dead, _ = await end(flow, data_dir)
    assert views["types"] == {"int": 3, "object": 1, "set": 1}
    assert [letter.offset for letter in dead["dead-letters.p.items"]] == [1]
    async with sa.Log(data_dir) as log:
        topic, out = await log.topic("out"), []
        for number in range(2):
            reader = topic.partition(number).reader()
            while chunks := await reader.read():
                out += [bytes(value) for chunk in chunks for value in chunk.values()]
            await reader.close()
    assert sorted(out) == [b"1", b"2", b"5", b"[3,4]"]


async def test_without_a_policy_a_sink_names_the_record_that_it_can_t_encode(data_dir):
    flow = sa.Pipeline("p")
    flow.items([1, 2, object(), 3]).to_topic("out")
    with pytest.raises(sa.JobFailed, match=r"items/0 at offset 2"):
        await end(flow, data_dir, restarts=sa.RestartPolicy(restarts_max=0))


async def test_a_running_aggregate_leaves_out_what_it_can_t_add(data_dir):
    flow = sa.Pipeline("p")
    flow.items([1, None, 2, "x", 3]).key_by(lambda v: "all").sum().on_error("dead_letter").to_view("sum")
    views, dead, _ = await end(flow, data_dir)
    assert views["sum"] == {"all": 6}
    assert [letter.offset for letter in dead["dead-letters.p.items"]] == [1, 3]


@pytest.mark.parametrize("windows", [sa.Tumbling(100), sa.Sliding(100, 20), sa.Sliding(20, 100)])
@pytest.mark.parametrize("seed", range(4))
async def test_windows_leave_out_what_they_can_t_add_as_if_it_had_never_come(data_dir, windows, seed):
    """Whatever its window is: open, alone in it, fired, gone; and however the records are cut."""
    random = Random(seed)
    rows = [
        {"at": 3 * i - random.choice([0, 0, 0, 20, 60, 300]), "n": random.choice([1, 2, 3, None, "x"]), "k": i % 2}
        for i in range(300)
    ]

    def sums(name, values, **more):
        flow = sa.Pipeline(name, **more)
        timed = flow.items(values).event_time("at", disorder=10).key_by("k")
        found = timed.window(windows).allowed_lateness(80).early(every="1s").sum("n")
        found.to_view("sums")
        found.late.key_by("at").count().to_view("late")
        return flow

    batches = random.choice([1, 7, 1000])
    views, dead, _ = await end(sums("dirty", rows, on_error="dead_letter"), data_dir, batch_records=batches)
    late = {at for at, _ in views["late"].items()}
    bad = [number for number, row in enumerate(rows) if type(row["n"]) is not int]
    letters_of = [letter.offset for letter in dead["dead-letters.dirty.items"]]
    assert set(letters_of) <= set(bad)
    assert all(rows[number]["at"] in late or windows.size < windows.slide for number in set(bad) - set(letters_of))
    # Without them, but with what moves event time: the same place in the same order.
    clean = [row if type(row["n"]) is int else {**row, "k": "elsewhere", "n": 0} for row in rows]
    expected, _, _ = await end(sums("clean", clean), data_dir / "clean")
    assert views["sums"] == {key: n for key, n in expected["sums"].items() if key[0] != "elsewhere"}


async def test_a_result_that_is_left_out_takes_its_earlier_one_away(data_dir):
    flow = sa.Pipeline("p")
    counts = flow.items(list("aabab")).key_by(lambda k: k).count()
    counts.map(lambda n: 1 // (3 - n)).on_error("skip").to_view("v")
    views, _, _ = await end(flow, data_dir, batch_records=1)
    assert views["v"] == {"b": 1}


async def test_an_error_of_an_operator_behind_is_not_taken_for_one_s_own(data_dir):
    flow = sa.Pipeline("p")
    flow.items([2, 4, 5]).map(lambda n: n).on_error("skip").map(odd_fails, name="strict").to_topic("out")
    with pytest.raises(sa.JobFailed, match="operator p/strict can't handle record 5"):
        await end(flow, data_dir, restarts=sa.RestartPolicy(restarts_max=0))


async def test_the_pipeline_s_policy_holds_where_no_other_is_given(data_dir):
    flow = sa.Pipeline("p", on_error="skip")
    stream = flow.items([0, 1, 2]).map(odd_fails)
    stream.map(lambda n: 1 // n).on_error("dead_letter").key_by(lambda n: n).count().to_view("v")
    views, dead, _ = await end(flow, data_dir)
    assert views["v"] == {0: 1}
    assert [letter.offset for letter in dead["dead-letters.p.items"]] == [0]


def test_an_unknown_policy_and_one_where_none_can_be_are_refused():
    stream = sa.Pipeline("p").items([])
    with pytest.raises(sa.PipelineError, match="'ignore' is no error policy"):
        stream.map(len).on_error("ignore")
    with pytest.raises(sa.PipelineError, match="can't leave out a record"):
        stream.union(stream.map(len)).on_error("skip")


async def test_the_policy_may_change_while_a_job_has_state(data_dir):
    def flow(policy):
        flow = sa.Pipeline("p")
        flow.topic("numbers", int).map(odd_fails).on_error(policy).key_by(None).count().to_view("v")
        return flow

    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("numbers", 1)
        await topic.append_many([b"2"])
        await end(flow("fail"), data_dir)
        await topic.append_many([b"3", b"2"])
    views, dead, _ = await end(flow("dead_letter"), data_dir)
    assert views["v"] == {2: 2}
    assert len(dead["dead-letters.p.numbers"]) == 1
    assert (await end(flow("skip"), data_dir))[0]["v"] == {2: 2}


@pytest.mark.parametrize("parts", [1, 3])
async def test_crashes_write_each_dead_letter_once(data_dir, parts):
    flow = sa.Pipeline("p", parts=parts)
    script = Script([*range(9), Crash(), *range(9, 20), Crash(), *range(20, 40)], [100, Crash(), 101, 103])
    keyed = flow.source(script).map(odd_fails).on_error("dead_letter").key_by(lambda n: n % 5)
    keyed.map_with_state(lambda v, n: (10 // (v % 3), (n or 0) + 1)).on_error("dead_letter").to_view("v")
    _, dead, _ = await end(flow, data_dir, batch_records=2, checkpoint_every_ms=1)
    values = [*range(40), 100, 101, 103]
    expected = Counter(v for v in values if v % 2 or v % 3 == 0)
    assert Counter(int(letter.value) for letter in dead["dead-letters.p.script"]) == expected


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Faceless:
    def __repr__(self):
        raise RuntimeError("no face")

    def __int__(self):
        raise ValueError("no number")


def raising(error):
    def function(value):
        if type(value) is int and value % 2:
            raise error
        return value

    return function


@pytest.mark.parametrize("error", [Mute(), asyncio.CancelledError(), StopIteration(), RecursionError()], ids=repr)
@pytest.mark.parametrize("awaited", [False, True])
async def test_whatever_a_function_raises_is_its_record_s_error(data_dir, error, awaited):
    function = raising(error)

    async def later(value):
        return function(value)

    flow = sa.Pipeline("p")
    flow.items([1, 2, 3, 4]).map(later if awaited else function).on_error("dead_letter").key_by(
        lambda n: n
    ).count().to_view("v")
    views, dead, _ = await end(flow, data_dir)
    assert views["v"] == {2: 1, 4: 1}
    assert [letter.offset for letter in dead["dead-letters.p.items"]] == [0, 2]


async def test_a_value_that_can_t_show_itself_is_left_out_all_the_same(data_dir):
    flow = sa.Pipeline("p")
    flow.items([1, 2]).map(lambda n: Faceless() if n == 1 else n).map(int).on_error("dead_letter").key_by(
        lambda n: n
    ).count().to_view("v")
    views, dead, _ = await end(flow, data_dir)
    assert views["v"] == {2: 1}
    (letter,) = dead["dead-letters.p.items"]
    assert letter.value == "<Faceless, whose repr() raises RuntimeError>"
    assert letter.error == "ValueError: no number (in test_dead_letters.py:" + letter.error.rpartition(":")[2]


@pytest.mark.parametrize("parts", [1, 3])
async def test_a_key_that_can_t_be_encoded_is_its_record_s_error(data_dir, parts):
    class Answer(Struct):
        n: int

    flow = sa.Pipeline("p", parts=parts)
    flow.topic("answers", Answer).key_by("n").on_error("dead_letter").count().to_view("v")
    keys = flow.items(["a", "\ud800", "é"], name="texts").key_by(lambda text: text)
    keys.on_error("dead_letter").count().to_view("texts")
    async with sa.Log(data_dir) as log:
        await (await log.create_topic("answers", 1)).append_many([b'{"n":5}', b'{"n":%d}' % 2**70])
    views, dead, _ = await end(flow, data_dir)
    assert (views["v"], views["texts"]) == ({5: 1}, {"a": 1, "é": 1})
    assert [letter.offset for letter in dead["dead-letters.p.answers"] + dead["dead-letters.p.texts"]] == [1, 1]


async def test_a_field_that_raises_is_its_record_s_error(data_dir):
    class Answer:
        def __init__(self, n):
            self.n = n

        @property
        def key(self):
            return 10 // self.n

    flow = sa.Pipeline("p")
    flow.items([1, 0, 2]).map(Answer).key_by("key").on_error("dead_letter").count().to_view("v")
    views, dead, _ = await end(flow, data_dir)
    assert views["v"] == {10: 1, 5: 1}
    assert [letter.offset for letter in dead["dead-letters.p.items"]] == [1]


async def test_a_traceback_tells_of_its_own_record_only(data_dir):
    """An operator goes on without a record; what follows must not be told as if it had happened meanwhile."""
    flow = sa.Pipeline("p")
    first = flow.items(list(range(10))).map(lambda n: n + 0 // (n - 5), name="first").on_error("dead_letter")
    first.map(odd_fails, name="second").on_error("dead_letter").key_by(lambda n: n).count().to_view("v")
    _, dead, _ = await end(flow, data_dir)
    found = dead["dead-letters.p.items"]
    assert sorted(letter.offset for letter in found) == [1, 3, 5, 7, 9]
    assert not [letter for letter in found if "another exception" in letter.traceback]
    assert not [letter for letter in found if letter.offset != 5 and "ZeroDivisionError" in letter.traceback]


# ---- in a simulated world: real wiring, chosen crashes


def quiz():
    flow = sa.Pipeline("p", parts=2)
    flow.topic("numbers", int).on_error("dead_letter").map(odd_fails).on_error("dead_letter").key_by(
        lambda n: n % 7
    ).count().to_view("v")
    return flow


@pytest.mark.parametrize("seed", range(8))
def test_dead_letters_survive_crashes_exactly_once(tmp_path, seed):
    random = Random(seed)
    values = [random.choice([b"1", b"2", b"4", b"6", b"x", b"9"]) for _ in range(120)]
    world = World(random, tmp_path)

    async def life(process):
        async with sa.Log(process.data_dir, process.ports) as log:
            topic = await log.create_topic("numbers", 1)
            if not topic.partition(0).durable_end():
                await topic.partition(0).append(Records.of(values))
        how = settings(sync=False, batch_records=random.choice([1, 5, 64]), checkpoint_every_ms=1)
        async with sa.run(quiz(), process.data_dir, ports=process.ports, settings=how) as job:
            await job.wait()
            return dict(job.views["v"].items()), await letters(job.log, "dead-letters.p.numbers")

    for plan in (CrashAtPoint(40 + 7 * seed), CrashAtLabel("after Store.commit"), CrashAtPoint(60 + seed)):
        if not isinstance(outcome := world.run(life, plan), Crashed):
            break
    views, dead = world.run(life).result if isinstance(outcome, Crashed) else outcome.result
    good = [int(v) for v in values if v in (b"2", b"4", b"6")]
    assert views == dict(Counter(n % 7 for n in good))
    assert Counter(letter.original for letter in dead) == Counter(v for v in values if v in (b"1", b"x", b"9"))


def refuse(rest):
    def function(record):
        if record["n"] % 7 == rest:
            raise ValueError(rest)
        return record

    return function


def everywhere(parts):
    """Return a pipeline that leaves records out in its source, its reader and its stages."""
    flow = sa.Pipeline("p", parts=parts, on_error="dead_letter")
    read = flow.topic("numbers").map(refuse(1), name="in_reader").event_time("at", disorder=20)
    plain = read.map(refuse(2), name="in_stage")
    by_key = plain.key_by("k").map_with_state(lambda v, n: (refuse(3)(v), (n or 0) + 1), name="with_state")
    by_key.window(sa.Tumbling(100)).sum(lambda v: refuse(4)(v)["n"]).final().rows().to_topic("sums")
    plain.map(refuse(5), name="in_branch").to_topic("out")
    return flow


def records(random, count):
    at = 0
    for n in range(count):
        at += random.randint(0, 30)
        yield b"{" if n % 7 == 6 else json.encode({"n": n, "k": random.choice("abc"), "at": at})


@pytest.mark.parametrize("parts", [1, 3])
def test_dead_letters_have_the_order_of_their_records_however_these_fell_into_batches(tmp_path, parts):
    """(T2), with the journal's ranges cut anywhere, and followed in two runs."""
    values = list(records(Random(3), 150))

    def run(number, piece, **how):
        world = World(Random(number), tmp_path / str(number))

        def life(follow):
            async def life(process):
                async with sa.Log(process.data_dir, process.ports) as log:
                    topic = await log.create_topic("numbers", 1)
                    if not topic.partition(0).durable_end():
                        await topic.partition(0).append(Records.of(values))
                job_settings = settings(sync=False, batch_records=piece, follow=follow, **how)
                async with sa.run(
                    everywhere(parts), process.data_dir, ports=process.ports, settings=job_settings
                ) as job:
                    await job.wait()
                    return await letters(job.log, "dead-letters.p.numbers")

            return life

        if piece != 4_096:
            for end in range(0, 150, 17):
                followed = {"numbers": [("read", "numbers", 0, 0, end)]} if end else {"numbers": []}
                result = world.run(life(followed)).result
                assert {letter.offset for letter in result} <= set(range(end)), "of records that are still to come"
        return world.run(life({"numbers": [("read", "numbers", 0, 0, 150)]})).result

    whole = run(1, 4_096)
    assert len(whole) > 90
    assert [letter.offset for letter in whole] == sorted(letter.offset for letter in whole)
    assert run(2, 5) == run(3, 1) == whole
