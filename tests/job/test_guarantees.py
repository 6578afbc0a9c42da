"""What each guarantee shows, writes, keeps and acknowledges, and what it does at a crash."""

import asyncio

import pytest

import streamactors as sa
from streamactors.core.batch import Batch
from streamactors.core.connectors import Guarantee, Payload, Replay
from streamactors.core.errors import StorageError
from streamactors.engine.restarts import RestartPolicy
from streamactors.testing.idle import settle
from streamactors.testing.source import Crash, Pause, Script

QUICK = RestartPolicy(restarts_max=5, backoff_first=0.0, backoff_max=0.0)
ALL = ["exactly-once", "at-least-once", "at-most-once"]
AT_ONCE = ALL[1:]


def settings(guarantee, **more):
    common = {"checkpoint_every_ms": 100_000, "restarts": QUICK, "guarantee": Guarantee(guarantee), "sync": False}
    return sa.Settings(**{**common, **more})


def counting(source, *, sink=None, name="counts"):
    flow = sa.Pipeline(name)
    stream = flow.source(source)
    stream.key_by(str).count().to_view("counts")
    if sink is not None:
        stream.to(sink)
    return flow


async def until(true, what="it"):
    """Return when *true*() holds; the loop turns meanwhile."""
    for _ in range(20_000):
        if true():
            return
        await asyncio.sleep(0)
    for _ in range(2_000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{what} never came")


def shown(job, view="counts"):
    return dict(job.views[view].items())


def running_again(job):
    region = job._regions[0]
    return region.attempt == 2 and region.running is not None


class Target:
    """A target of one partition: writes when it is let, dies when it is told."""

    def __init__(self):
        self.values = []
        self.stamps = {}
        self.asked = 0
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail_at = set()

    async def last_stamp(self, partition, job, sink):
        self.asked += 1
        return self.stamps.get(partition)

    async def commit(self, payload, stamp, expect):
        if self.stamps.get(payload.partition) != stamp:
            assert self.stamps.get(payload.partition) == expect
            self.values += payload.data
            self.stamps[payload.partition] = stamp

    async def write(self, payload):
        self.calls += 1
        await self.gate.wait()
        if self.calls in self.fail_at:
            raise StorageError("the target was away for a moment. Try again.")
        self.values += payload.data

    async def close(self):
        pass


class Sink:
    """A list in memory; survives jobs, as a real target does."""

    id, upserts = "memory", False

    def __init__(self):
        self.there = Target()
        self.bytes_each = 1

    async def partitions(self, world):
        return 1

    def writer(self, partitions):
        return Writer(self.bytes_each)

    async def target(self, world):
        return self.there


class Writer:
    def __init__(self, bytes_each):
        self._each, self._values = bytes_each, []

    def write(self, batch):
        self._values += batch.values
        return len(self._values) * self._each

    def take(self):
        values, self._values = self._values, []
        return [Payload(0, bytes(values))] if values else []


class Queue:
    """A source that keeps each record until it is acknowledged, and gives the others to every new reader."""

    id, type, replay = "queue", None, Replay.UNACKNOWLEDGED

    def __init__(self, *values):
        self.kept = list(values)
        self.acknowledged = []
        self.woken = asyncio.Event()

    def add(self, *values):
        self.kept += values
        self.woken.set()

    async def ends(self, world):
        return [None]

    async def reader(self, world, partition, start):
        return QueueReader(self, start)


class QueueReader:
    def __init__(self, queue, start):
        self._queue, self._given, self._start, self._safe = queue, 0, start, start

    async def read(self, records_max):
        values = self._queue.kept[self._given : self._given + records_max]
        if not values:
            return None
        first = self._safe + self._given
        self._given += len(values)
        return Batch(values, offsets=range(first, first + len(values))), first + len(values)

    def end(self):
        return self._safe + len(self._queue.kept)

    async def wait(self):
        while self._given >= len(self._queue.kept):
            self._queue.woken.clear()
            await self._queue.woken.wait()

    async def acknowledge(self, end):
        done = end - self._safe
        self._queue.acknowledged += self._queue.kept[:done]
        del self._queue.kept[:done]
        self._safe, self._given = end, self._given - done

    async def close(self):
        pass


# What is seen, and when. ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", AT_ONCE)
async def test_views_and_sinks_show_a_record_without_a_checkpoint(data_dir, guarantee):
    sink = Sink()
    async with sa.run(counting(Script([1, 2, 1]), sink=sink), data_dir, settings=settings(guarantee)) as job:
        await until(lambda: shown(job) == {"1": 2, "2": 1} and sink.there.values == [1, 2, 1])
        assert job.status().regions[0].checkpoint.epoch == 0, "no checkpoint was taken"
        assert job._store.restore("script") is None


async def test_exactly_once_shows_nothing_before_the_checkpoint(data_dir):
    sink = Sink()
    async with sa.run(counting(Script([1, 2, 1]), sink=sink), data_dir, settings=settings("exactly-once")) as job:
        await until(lambda: job.status().regions[0].records == 3)
        await settle()
        assert shown(job) == {} and sink.there.values == []
        await job.checkpoint()
        assert shown(job) == {"1": 2, "2": 1} and sink.there.values == [1, 2, 1]


@pytest.mark.parametrize("guarantee", ALL)
@pytest.mark.parametrize("bound", [sa.Bound.UNTIL_END, sa.Bound.FINISH])
async def test_a_bounded_run_ends_with_everything_seen(data_dir, guarantee, bound):
    sink = Sink()
    flow = counting(Script([n % 3 for n in range(3_000)]), sink=sink)
    async with sa.run(flow, data_dir, settings=settings(guarantee, bound=bound, checkpoint_every_ms=5)) as job:
        await job.wait()
        assert shown(job) == {"0": 1_000, "1": 1_000, "2": 1_000}
        assert sink.there.values == [n % 3 for n in range(3_000)]
    async with sa.run(flow, data_dir, settings=settings(guarantee)) as job:
        assert shown(job) == {"0": 1_000, "1": 1_000, "2": 1_000}, "the store has all of it"
        if bound is sa.Bound.FINISH:
            await job.wait()
            assert job.state == "finished"


@pytest.mark.parametrize("guarantee", ALL)
async def test_draining_writes_what_was_read(data_dir, guarantee):
    sink = Sink()
    async with sa.run(counting(Script([1, 2]), sink=sink), data_dir, settings=settings(guarantee)) as job:
        await until(lambda: job.status().regions[0].records == 2)
    assert sink.there.values == [1, 2]
    async with sa.run(counting(Script([1, 2]), sink=sink), data_dir, settings=settings(guarantee)) as job:
        assert shown(job) == {"1": 1, "2": 1}


@pytest.mark.parametrize("guarantee", ALL)
async def test_catching_up_reads_your_own_writes(data_dir, guarantee):
    sink, script = Sink(), Script([1, Pause(), 2, Pause(), 3])
    async with sa.run(counting(script, sink=sink), data_dir, settings=settings(guarantee)) as job:
        for seen in ([1], [1, 2], [1, 2, 3]):
            await job.catch_up()
            assert shown(job) == {str(n): 1 for n in seen} and sink.there.values == seen
            script.go_on()


@pytest.mark.parametrize("guarantee", ALL[:2])
@pytest.mark.parametrize("ask", ["catch_up", "checkpoint"])
async def test_a_checkpoint_that_was_asked_for_is_one_of_an_attempt_that_has_read_so_far(data_dir, guarantee, ask):
    """The region fails when it has numbered everything, before the checkpoint: the next attempt begins without it."""
    script = Script([1, 2, 3, Pause()])
    async with sa.run(counting(script), data_dir, settings=settings(guarantee)) as job:
        region = job._regions[0]
        await until(lambda: region.running is not None and region.running.sequencer.records == 3)
        first = region.running.coordinator
        first._begin = lambda *, last: 1 / 0
        await getattr(job, ask)()
        assert region.running.coordinator is not first
        assert shown(job) == {"1": 1, "2": 1, "3": 1}


@pytest.mark.parametrize("guarantee", AT_ONCE)
async def test_other_processes_see_views_after_an_interval(data_dir, guarantee):
    every = settings(guarantee, checkpoint_every_ms=2)
    async with sa.run(counting(Script([1, 2])), data_dir, settings=every) as job:
        stored = sa_views(job)
        await until(lambda: dict(stored["counts"].items()) == {"1": 1, "2": 1})


def sa_views(job):
    """Return the job's views as the store has them."""
    from streamactors.durable.views import ViewReader

    return ViewReader(job._store)


async def test_a_value_looks_the_same_before_and_after_the_checkpoint(data_dir):
    flow = sa.Pipeline("values")
    tuples = flow.source(Script(["a"])).map(lambda v: {"tuple": (v, 1)})
    tuples.key_by(lambda v: "k").reduce(lambda a, b: b).to_view("v")
    async with sa.run(flow, data_dir, guarantee="at-least-once", settings=settings("exactly-once")) as job:
        await until(lambda: "k" in job.views["v"])
        before = job.views["v"]["k"]
        await job.checkpoint()
        assert before == job.views["v"]["k"] == {"tuple": ["a", 1]}


# Crashes. -------------------------------------------------------------------------------------------------------------


async def test_at_least_once_repeats_what_followed_the_checkpoint_and_loses_nothing(data_dir):
    sink, script = Sink(), Script([1, Pause(), 2, Pause(), 3, Crash(), 4])
    async with sa.run(counting(script, sink=sink), data_dir, settings=settings("at-least-once")) as job:
        await job.catch_up()
        script.go_on()
        await until(lambda: sink.there.values == [1, 2] and shown(job) == {"1": 1, "2": 1})
        script.go_on()
        await until(lambda: shown(job) == {"1": 1, "2": 1, "3": 1, "4": 1})
        await until(lambda: sink.there.values[-1:] == [4])
        assert sink.there.values in ([1, 2, 2, 3, 4], [1, 2, 3, 2, 3, 4])


async def test_a_view_falls_back_to_the_checkpoint_as_one_when_its_region_starts_again(data_dir):
    script = Script([1, Pause(), 1, 2, Pause(), 3, Crash(), Pause()])
    async with sa.run(counting(script), data_dir, settings=settings("at-least-once")) as job:
        await job.catch_up()
        script.go_on()
        await until(lambda: shown(job) == {"1": 2, "2": 1})
        seen = []
        script.go_on()
        while not running_again(job) or len(shown(job)) < 3:
            seen.append(shown(job))
            await asyncio.sleep(0)
        places = [{"1": 1}, {"1": 2, "2": 1}, {"1": 2, "2": 1, "3": 1}]
        assert all(rows in places for rows in seen), "never a mixture of two attempts"
        assert {"1": 1} in seen, "it does go back"


async def test_at_most_once_goes_on_at_the_end_with_empty_state_and_repeats_nothing(data_dir):
    sink, script = Sink(), Script([1, 2, Pause(), 3, Crash(), Pause(), 1])
    async with sa.run(counting(script, sink=sink), data_dir, settings=settings("at-most-once")) as job:
        await until(lambda: sink.there.values == [1, 2] and shown(job) == {"1": 1, "2": 1})
        script.go_on()
        await until(lambda: running_again(job))
        script.go_on()
        await job.catch_up()
        assert sink.there.values in ([1, 2, 1], [1, 2, 3, 1])
        assert shown(job) == {"1": 1}, "empty state counts anew, and what was not stored is gone"


async def test_a_later_start_at_most_once_reads_what_comes_from_now_on(data_dir):
    sink, script = Sink(), Script([1, 2, Pause(), 3, Pause(), 4])
    flow = counting(script, sink=sink)
    async with sa.run(flow, data_dir, settings=settings("at-most-once")) as job:
        await job.catch_up()
    script.go_on()
    async with sa.run(flow, data_dir, settings=settings("at-most-once")) as job:
        await until(lambda: job.status().regions[0].state == "running")
        script.go_on()
        await job.catch_up()
    assert sink.there.values == [1, 2, 4]


async def test_a_write_that_fails_starts_the_region_again(data_dir):
    sink = Sink()
    sink.there.fail_at = {1, 3}
    every = settings("at-least-once", bound=sa.Bound.UNTIL_END, batch_records=1)
    async with sa.run(counting(Script([1, 2, 3]), sink=sink), data_dir, settings=every) as job:
        await job.wait()
        assert shown(job) == {"1": 1, "2": 1, "3": 1}
    assert set(sink.there.values) == {1, 2, 3}
    assert job.status().regions[0].restarts == 2
    assert sink.there.asked == 3, "each attempt asks first: a target that has failed is opened anew"


async def test_a_checkpoint_waits_for_what_sinks_write_at_once(data_dir):
    sink = Sink()
    sink.there.gate.clear()
    async with sa.run(counting(Script([1, 2]), sink=sink), data_dir, settings=settings("at-least-once")) as job:
        await until(lambda: sink.there.calls == 1)
        asked = asyncio.create_task(job.checkpoint())
        await settle()
        assert not asked.done() and job._store.restore("script") is None
        sink.there.gate.set()
        await asked
        assert sink.there.values == [1, 2]


@pytest.mark.parametrize("guarantee", AT_ONCE)
async def test_a_stop_while_somebody_waits_for_a_sink_is_no_failure(data_dir, guarantee, caplog):
    sink, script = Sink(), Script([1, Pause(), 2])
    sink.there.gate.clear()
    async with sa.run(counting(script, sink=sink), data_dir, settings=settings(guarantee)) as job:
        await until(lambda: sink.there.calls == 1)
        script.go_on()
        await until(lambda: shown(job) == {"1": 1, "2": 1})
        asked, drained = asyncio.create_task(job.checkpoint()), asyncio.create_task(job.drain())
        await settle()
        stopped = asyncio.create_task(job.stop())
        await settle()
        sink.there.gate.set()
        await asyncio.wait([asked, drained, stopped])
        assert isinstance(asked.exception(), sa.UsageError) and job.state == "ended"
    assert not caplog.records


async def test_a_slow_target_stops_the_source_and_keeps_the_order(data_dir):
    sink = Sink()
    sink.there.gate.clear()
    sink.bytes_each = 1 << 20
    values = [n % 256 for n in range(4_000)]
    every = settings("at-least-once", batch_records=1)
    async with sa.run(counting(Script(values), sink=sink), data_dir, settings=every) as job:
        await until(lambda: sink.there.calls == 1)
        await settle()
        assert job.status().regions[0].records < 2_000, "the source waits for the target"
        sink.there.gate.set()
        await job.catch_up()
        assert sink.there.values == values


# Sources that acknowledge. --------------------------------------------------------------------------------------------


async def test_at_least_once_acknowledges_what_a_durable_checkpoint_holds(data_dir):
    sink, queue = Sink(), Queue(1, 2)
    async with sa.run(counting(queue, sink=sink), data_dir, settings=settings("at-least-once")) as job:
        await until(lambda: sink.there.values == [1, 2])
        assert queue.acknowledged == []
        await job.checkpoint()
        assert queue.acknowledged == [1, 2] and queue.kept == []
        queue.add(3)
        await until(lambda: sink.there.values == [1, 2, 3])
        assert queue.acknowledged == [1, 2]
    assert queue.acknowledged == [1, 2, 3], "draining acknowledges as well"


async def test_what_was_not_acknowledged_comes_again(data_dir):
    sink, queue = Sink(), Queue(1, 2)
    flow = counting(queue, sink=sink)
    async with sa.run(flow, data_dir, settings=settings("at-least-once")) as job:
        await until(lambda: sink.there.values == [1, 2])
        await job.stop()
    assert queue.acknowledged == []
    async with sa.run(flow, data_dir, settings=settings("at-least-once")) as job:
        await until(lambda: sink.there.values == [1, 2, 1, 2])
    assert queue.acknowledged == [1, 2]


async def test_at_most_once_acknowledges_what_it_has_read(data_dir):
    sink, queue = Sink(), Queue(1, 2)
    sink.there.gate.clear()
    async with sa.run(counting(queue, sink=sink), data_dir, settings=settings("at-most-once")) as job:
        await until(lambda: queue.acknowledged == [1, 2])
        assert sink.there.values == []
        sink.there.gate.set()
        await until(lambda: sink.there.values == [1, 2])
        await job.stop()


# What is refused. -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", ALL)
@pytest.mark.parametrize("replay", list(Replay))
async def test_a_source_must_give_again_what_the_guarantee_needs(data_dir, guarantee, replay):
    taken = {
        Replay.BY_OFFSET: ALL,
        Replay.UNACKNOWLEDGED: ["at-least-once", "at-most-once"],
        Replay.NOTHING: ["at-most-once"],
    }[replay]
    script = Script([1])
    script.replay = replay
    if guarantee in taken:
        async with sa.run(counting(script), data_dir, settings=settings(guarantee)) as job:
            await job.catch_up()
            assert shown(job) == {"1": 1}
        return
    with pytest.raises(sa.PipelineError, match=r"source script .*through_log.*run with the guarantee .*at-most-once"):
        async with sa.run(counting(script), data_dir, settings=settings(guarantee)):
            pass
    assert not (data_dir / "jobs").exists(), "nothing was changed"


@pytest.mark.parametrize("first", ALL)
@pytest.mark.parametrize("second", ALL)
async def test_a_job_changes_only_between_the_guarantees_that_keep_state(data_dir, first, second):
    sink, script = Sink(), Script([1, Pause(), 2])
    flow = counting(script, sink=sink)
    async with sa.run(flow, data_dir, settings=settings(first)) as job:
        await job.catch_up()
    if (first == "at-most-once") != (second == "at-most-once"):
        with pytest.raises(sa.PipelineError, match=rf"has run as {first}.*{second} needs"):
            async with sa.run(flow, data_dir, settings=settings(second)):
                pass
        second = first
    async with sa.run(flow, data_dir, settings=settings(second)) as job:
        await until(lambda: job.status().regions[0].state == "running")
        script.go_on()
        await job.catch_up()
    assert sink.there.values == [1, 2]


async def test_pending_output_of_exactly_once_is_committed_by_an_at_least_once_run(data_dir):
    """The process dies behind the checkpoint and before the commit; whichever guarantee comes next commits."""
    sink, script = Sink(), Script([1, Pause(), 2, Pause(), 3, Pause(), 4])
    flow = counting(script, sink=sink)

    class Died(Exception):
        pass

    async def die(payload, stamp, expect):
        raise Died("between the checkpoint and the commit")

    commit, sink.there.commit = sink.there.commit, die
    never = settings("exactly-once", restarts=RestartPolicy(restarts_max=0))
    with pytest.raises(sa.JobFailed):
        async with sa.run(flow, data_dir, settings=never) as job:
            await until(lambda: job.status().regions[0].records == 1)
    assert sink.there.values == []
    sink.there.commit = commit
    for guarantee in ("at-least-once", "exactly-once", "at-least-once"):
        async with sa.run(flow, data_dir, settings=settings(guarantee)) as job:
            script.go_on()
            await until(lambda: job.status().regions[0].state == "running")
            await job.catch_up()
    assert sink.there.values == [1, 2, 3, 4]


async def test_a_guarantee_may_be_given_as_text_and_a_wrong_one_is_named(data_dir):
    with pytest.raises(sa.UsageError, match="'twice' is none of exactly-once, at-least-once, at-most-once"):
        async with sa.run(counting(Script([])), data_dir, guarantee="twice"):
            pass


async def test_settings_may_name_it_as_text_as_well(data_dir):
    async with sa.run(counting(Script([1])), data_dir, settings=sa.Settings(guarantee="at-least-once")) as job:
        await until(lambda: shown(job) == {"1": 1})
        assert job._store.guarantee == "at-least-once"


async def test_at_most_once_may_read_from_another_number_of_partitions(data_dir):
    async with sa.run(counting(Script([1])), data_dir, settings=settings("at-most-once")) as job:
        await job.catch_up()
    async with sa.run(counting(Script([1], [2], [3])), data_dir, settings=settings("at-most-once")) as job:
        await job.catch_up()
        assert job.state == "running"


async def test_at_most_once_may_change_its_pipeline(data_dir):
    async with sa.run(counting(Script([1])), data_dir, settings=settings("at-most-once")) as job:
        await job.catch_up()
    flow = sa.Pipeline("counts")
    flow.source(Script([1])).map(lambda n: n).key_by(str).reduce(max).to_view("greatest")
    async with sa.run(flow, data_dir, settings=settings("at-most-once")) as job:
        await job.catch_up()
        assert job.state == "running"


async def test_at_most_once_holds_nothing_of_what_was_deleted(data_dir):
    """Windows that are gone leave neither rows nor marks behind, however long the job runs."""
    flow = sa.Pipeline("windows")
    timed = flow.source(Script([{"k": "a", "at": 10 * n} for n in range(5_000)])).event_time("at")
    timed.key_by("k").window(sa.Tumbling(100)).count().to_view("counts")
    every = settings("at-most-once", bound=sa.Bound.UNTIL_END, checkpoint_every_ms=1)
    async with sa.run(flow, data_dir, settings=every) as job:
        region = job._regions[0]
        await until(lambda: region.running is not None)
        states = volatile_states(region.running)
        await job.wait()
        assert len(job.views["counts"]) >= 499
    assert states and all(len(state._spaces) <= 2 and not state._dirty for state in states)


def volatile_states(running):
    from streamactors.durable.volatile import VolatileState

    operators = [operator for stage in running.stages for operator in stage.operators]
    return [value for operator in operators for value in vars(operator).values() if isinstance(value, VolatileState)]
