"""Supervision, as its specification: what restarts, when, in which state, and who hears of it. In virtual time."""

import asyncio
import logging
from random import Random

import pytest
from msgspec import json

import streamactors as sa
from streamactors.core.connectors import Payload
from streamactors.engine import actor as actors
from streamactors.job import failures as reports
from streamactors.testing.source import Crash, Pause, Script
from streamactors.testing.world import World

STEADY = {"backoff_first": 8.0, "backoff_max": 8.0}
"""Waits between 4 and 8 s."""


@pytest.fixture
def world(tmp_path):
    return World(Random(1), tmp_path, shuffled=False)


def play(world, pipeline, scene, **options):
    """Run *pipeline* while *scene(job, clock)* plays; return what the scene returns."""
    settings = {"checkpoint_every_ms": 100, "sync": False, **options.pop("settings", {})}
    settings["restarts"] = sa.RestartPolicy(**{**STEADY, **options.pop("restarts", {})})

    async def main(process):
        async with sa.run(
            pipeline, process.data_dir, ports=process.ports, settings=sa.Settings(**settings), **options
        ) as job:
            return await scene(job, process.ports.clock)

    return world.run(main).result


def counting(*scripts, function=None):
    """Each script is a region, which counts its values in a view of its name."""
    flow = sa.Pipeline("job")
    for script in scripts:
        stream = flow.source(script)
        if function is not None:
            stream = stream.map(function)
        stream.key_by(lambda value: value).count().to_view(script.id)
    return flow


def states(job):
    return {region.id: region.state for region in job.status().regions}


async def until(clock, fact):
    """Virtual time goes on until *fact()* holds: within an hour."""
    for _ in range(360_000):
        if fact():
            return
        await clock.sleep(0.01)
    raise AssertionError("an hour has passed")


class TestTheStates:
    def test_a_region_that_fails_waits_runs_again_and_remembers_why(self, world):
        script = Script(["a", Crash(), "b", Pause(), "c"])

        async def scene(job, clock):
            await until(clock, lambda: states(job) == {"script": "restarting"})
            assert job.state == "restarting"
            waiting = job.status().regions[0]
            await until(clock, lambda: job.state == "running")
            again = job.status().regions[0]
            await job.catch_up()
            return waiting, again, dict(job.views["script"].items())

        waiting, again, counts = play(world, counting(script), scene)
        assert waiting.error == again.error == "ScriptedCrash: the script says Crash() at offset 1"
        assert (waiting.restarts, again.restarts, again.attempt) == (1, 1, 2)
        assert 4_000 <= again.since_ms - waiting.since_ms <= 8_100
        assert counts == {"a": 1, "b": 1}

    def test_why_it_does_not_run_is_said_with_the_time_that_is_left(self, world):
        async def scene(job, clock):
            await until(clock, lambda: job.state == "restarting")
            return job.status().regions[0].reasons

        (reason,) = play(world, counting(Script([Crash(), Pause()])), scene)
        assert reason.startswith("restarts in ") and " s after ScriptedCrash: the script says" in reason

    def test_a_job_that_drains_says_so_until_it_has_ended(self, world):
        gate = asyncio.Event()

        async def slow(value):
            await gate.wait()
            return value

        flow = counting(Script(["a", Pause()]), function=slow)

        async def scene(job, clock):
            await until(clock, lambda: sum(part.offset for part in job.status().regions[0].partitions) == 1)
            draining = asyncio.create_task(job.drain())
            await clock.sleep(5)
            seen, reasons = job.state, job.status().regions[0].reasons
            gate.set()
            await draining
            return seen, reasons, job.state, repr(job)

        seen, reasons, after, shown = play(world, flow, scene)
        assert (seen, after, shown) == ("draining", "ended", "Job('job', ended)")
        assert reasons[0] == "drains: reads nothing more and takes its last checkpoint"
        assert any("has awaited" in reason and "gate.wait()" in reason for reason in reasons)

    def test_a_drain_that_meets_a_failure_still_drains(self, world):
        script = Script(["a", Crash(), "b", Pause()])

        async def scene(job, clock):
            await until(clock, lambda: job.state == "restarting")
            await job.drain()
            return job.state, job.status().regions[0].restarts

        assert play(world, counting(script), scene) == ("ended", 1)

    def test_a_stop_between_two_attempts_ends_the_wait(self, world):
        async def scene(job, clock):
            await until(clock, lambda: job.state == "restarting")
            before = clock.monotonic()
            await job.stop()
            return job.state, clock.monotonic() - before

        state, seconds = play(world, counting(Script([Crash(), Pause()])), scene)
        assert state == "ended" and seconds < 0.1

    def test_a_stop_while_an_attempt_is_built_lets_it_be_built_and_releases_what_it_holds(self, world):
        script = Script(["a", Pause()])

        async def scene(job, clock):
            await job.stop()
            return job.state, states(job)

        assert play(world, counting(script), scene) == ("ended", {"script": "ended"})

    def test_a_stop_is_not_kept_up_by_a_source_that_hangs_while_it_is_opened(self, world):
        class Hangs(Script):
            async def reader(self, world, partition, start):
                await asyncio.Event().wait()

        async def scene(job, clock):
            await clock.sleep(1)
            before = clock.monotonic()
            await job.stop()
            return job.state, clock.monotonic() - before

        state, seconds = play(world, counting(Hangs(["a"])), scene)
        assert state == "ended" and seconds == pytest.approx(actors.STOP_GRACE_SECONDS, abs=0.1)


class TestWaitingForRoom:
    def test_a_full_disk_is_a_state_and_no_failure(self, world):
        told, target, script = [], Target(asyncio.Event()), Script(["a", Pause(), "b", Pause()])
        target.gate.set()
        full, commit = [True], target.commit

        async def refusing(payload, stamp, expect):
            if full:
                raise sa.QuotaFull("the disk of the target is full")
            await commit(payload, stamp, expect)

        target.commit = refusing
        flow = sa.Pipeline("job")
        flow.source(script).to(target)

        async def scene(job, clock):
            await until(clock, lambda: job.state == "waiting")
            await clock.sleep(30)
            seen = job.status().regions[0]
            full.clear()
            await until(clock, lambda: job.state == "running")
            script.go_on()
            await job.catch_up()
            return seen

        seen = play(world, flow, scene, on_failure=told.append)
        assert seen.state == "waiting"
        assert seen.reasons[0] == "waits for room, and goes on by itself: the disk of the target is full"
        assert target.committed == ["a", "b"] and told == []

    def test_a_wait_for_room_ends_with_a_stop(self, world):
        target = Target(asyncio.Event())

        async def full(payload, stamp, expect):
            raise sa.QuotaFull("full")

        target.commit = full
        flow = sa.Pipeline("job")
        flow.source(Script(["a", Pause()])).to(target)

        async def scene(job, clock):
            await until(clock, lambda: job.state == "waiting")
            before = clock.monotonic()
            await job.stop()
            return job.state, clock.monotonic() - before

        state, seconds = play(world, flow, scene)
        assert state == "ended" and seconds < 0.1


class TestTheScopes:
    def two(self):
        return Script(["a", Pause(), "p", Crash(), "b", Pause()], id="one"), Script(["x", Pause(), "y"], id="other")

    def test_region_leaves_the_others_alone(self, world):
        one, other = self.two()

        async def scene(job, clock):
            await job.catch_up()
            one.go_on()
            await until(clock, lambda: states(job)["one"] == "restarting")
            seen = states(job)
            await job.catch_up()
            return seen, {region.id: region.attempt for region in job.status().regions}

        assert play(world, counting(one, other), scene) == (
            {"one": "restarting", "other": "running"}, {"one": 2, "other": 1},
        )  # fmt: skip

    def test_all_takes_every_region_back_and_starts_them_together(self, world, caplog):
        one, other = self.two()

        async def scene(job, clock):
            await job.catch_up()
            one.go_on()
            other.go_on()  # what is read of it behind the checkpoint is read again
            await until(clock, lambda: set(states(job).values()) == {"restarting"})
            reasons = {region.id: region.reasons for region in job.status().regions}
            await until(clock, lambda: set(states(job).values()) == {"running"})
            began = {region.since_ms for region in job.status().regions}
            await job.catch_up()
            tables = dict(job.views["one"].items()), dict(job.views["other"].items())
            return reasons, began, {region.id: region.attempt for region in job.status().regions}, tables

        with caplog.at_level(logging.WARNING):
            reasons, began, attempts, tables = play(world, counting(one, other), scene, restarts={"scope": "all"})
        assert attempts == {"one": 2, "other": 2}
        assert tables == ({"a": 1, "b": 1, "p": 1}, {"x": 1, "y": 1})
        assert max(began) - min(began) < 100
        assert "together with one" in reasons["other"][0]
        assert "goes back to its checkpoint, as region one has to" in caplog.text

    def test_all_counts_the_failures_of_all_regions_together(self, world):
        scripts = [Script([Crash(), Pause()], id="one"), Script(["x", Pause(), "p", Crash(), Pause()], id="other")]

        async def scene(job, clock):
            await until(clock, lambda: states(job)["other"] == "restarting")
            await until(clock, lambda: set(states(job).values()) == {"running"})
            scripts[1].go_on()
            with pytest.raises(sa.JobFailed, match="gave up on region other"):
                await job.wait()
            return states(job)

        with pytest.raises(sa.JobFailed):
            play(world, counting(*scripts), scene, restarts={"scope": "all", "restarts_max": 1})

    def test_all_waits_for_the_slowest_to_stop(self, world):
        """A region that can't stop holds the common start, and is named."""
        gate = asyncio.Event()
        one = Script(["a", Pause(), "p", Crash(), Pause()], id="one")
        target = Target(gate)
        flow = counting(one)
        flow.source(Script(["x", Pause()], id="slow")).to(target)

        async def scene(job, clock):
            await until(clock, lambda: target.asked)
            one.go_on()
            await clock.sleep(30)
            seen = states(job), {region.id: region.reasons for region in job.status().regions}
            gate.set()
            await until(clock, lambda: set(states(job).values()) == {"running"})
            return seen

        seen, reasons = play(world, flow, scene, restarts={"scope": "all"})
        assert seen == {"one": "restarting", "slow": "restarting"}
        assert reasons["one"] == ["restarts together with one, when slow has stopped"]
        assert reasons["slow"][0].startswith("restarts when sink target has answered for epoch ")

    def test_none_makes_the_first_failure_final(self, world):
        async def scene(job, clock):
            with pytest.raises(sa.JobFailed):
                await job.wait()
            return states(job), job.status().regions[0].reasons

        with pytest.raises(sa.JobFailed, match="Crash"):
            play(world, counting(Script([Crash(), "a", Pause()])), scene, restarts={"scope": "none"})

    def test_a_random_play_of_failures_always_ends_with_the_right_tables(self, tmp_path, record_property):
        """Each region counts what its script holds, whatever fails, under either scope."""
        seed = Random().getrandbits(32)
        record_property("said", f"seed {seed}")
        for number in range(20):
            random = Random(seed + number)
            world = World(random, tmp_path / str(number))
            scripts = [Script(faulty(random), faulty(random), id=f"s{i}") for i in range(3)]
            wanted = {script.id: tally(script) for script in scripts}

            async def tables(job, clock):
                await job.wait()
                return {name: dict(job.views[name].items()) for name in ("s0", "s1", "s2")}

            policy = {"scope": random.choice(["all", "region"]), "restarts_max": 100, "backoff_first": 0.1}
            bound = {"bound": sa.Bound.UNTIL_END, "checkpoint_every_ms": random.choice([1, 20, 1_000])}
            assert play(world, counting(*scripts), tables, restarts=policy, settings=bound) == wanted, (seed, number)


def faulty(random):
    return [Crash() if random.random() < 0.1 else random.choice("abc") for _ in range(random.randint(0, 40))]


def tally(script):
    values = [value for partition in script._partitions for value in partition.values]
    return {value: values.count(value) for value in sorted(set(values))}


class Target:
    """A sink of one partition whose first commit waits for *gate*."""

    id = "target"
    upserts = False

    def __init__(self, gate):
        self.gate = gate
        self.asked = 0
        self.open = 0
        self.most = 0
        self.stamp = None
        self.committed = []

    async def partitions(self, world):
        return 1

    def writer(self, partitions):
        return Writer()

    async def target(self, world):
        return self

    async def last_stamp(self, partition, job, sink):
        assert not self.open, "asked for its stamp while a commit was with it"
        return self.stamp

    async def commit(self, payload, stamp, expect):
        self.asked += 1
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await self.gate.wait()
        finally:
            self.open -= 1
        if self.stamp != stamp:
            assert self.stamp == expect
            self.stamp = stamp
            self.committed += json.decode(payload.data)

    async def close(self):
        pass


class Writer:
    def __init__(self):
        self.values = []

    def write(self, batch):
        self.values += batch.values
        return 0

    def take(self):
        values, self.values = self.values, []
        return [Payload(0, json.encode(values))] if values else []


class TestACommitOnItsWay:
    def test_no_attempt_begins_before_it_is_answered_however_long_that_takes(self, world, caplog):
        """Longer than the grace after which what hangs is cancelled."""
        gate, script = asyncio.Event(), Script(["a", Pause(), "p", Crash(), "b", Pause()])
        target = Target(gate)
        flow = sa.Pipeline("job")
        flow.source(script).to(target)

        async def scene(job, clock):
            await until(clock, lambda: target.asked)
            script.go_on()
            await until(clock, lambda: job.state == "restarting")
            await clock.sleep(10 * actors.STOP_GRACE_SECONDS)
            seen = job.status().regions[0]
            asking = asyncio.create_task(job.checkpoint())
            await clock.sleep(1)
            assert not asking.done()
            gate.set()
            await asking
            await job.catch_up()
            return seen

        with caplog.at_level(logging.WARNING):
            seen = play(world, flow, scene)
        assert "starts again when sink target has answered for epoch 1: not before" in caplog.text
        assert (seen.state, seen.attempt) == ("restarting", 1)
        assert seen.reasons[0].startswith("restarts when sink target has answered for epoch 1, which it has had for 5")
        assert target.committed == ["a", "p", "b"]
        assert target.most == 1

    def test_a_stop_does_not_wait_for_it_longer_than_the_grace_and_the_next_start_asks_the_target(self, world):
        gate = asyncio.Event()
        target = Target(gate)

        def flow():
            made = sa.Pipeline("job")
            made.source(Script(["a", Pause()])).to(target)
            return made

        async def scene(job, clock):
            await until(clock, lambda: target.asked)
            before = clock.monotonic()
            await job.stop()
            return job.state, clock.monotonic() - before

        state, seconds = play(world, flow(), scene)
        assert state == "ended" and seconds == pytest.approx(actors.STOP_GRACE_SECONDS, abs=0.1)
        assert target.committed == []
        target.gate = asyncio.Event()
        target.gate.set()

        async def again(job, clock):
            await job.catch_up()

        play(world, flow(), again)
        assert target.committed == ["a"]


class TestGivingUp:
    def test_the_job_fails_with_operator_record_and_place(self, world):
        flow = counting(Script(["a", "b"], ["c"]), function=lambda value: 1 / 0 if value == "b" else value)

        async def scene(job, clock):
            await job.wait()

        with pytest.raises(sa.JobFailed) as failed:
            play(world, flow, scene, restarts={"restarts_max": 1})
        (cause,) = failed.value.exceptions
        assert (cause.operator, str(cause.place)) == ("job/map", "script/0 at offset 1")
        assert "can't handle record 'b'" in str(failed.value)

    def test_the_others_stop_even_if_nobody_waits_for_the_job(self, world):
        one, other = Script([Crash(), "a"], id="one"), Script(["x", Pause()], id="other")

        async def scene(job, clock):
            await until(clock, lambda: job.state == "failed")
            assert states(job) == {"one": "failed", "other": "ended"}

        with pytest.raises(sa.JobFailed, match="gave up on region one"):
            play(world, counting(one, other), scene, restarts={"restarts_max": 0})

    @pytest.mark.parametrize("call", ["checkpoint", "catch_up"])
    def test_who_waits_for_a_checkpoint_hears_of_it(self, world, call):
        """Not the number of an old checkpoint, as if what was read were in it."""
        script = Script(["a", Pause(), "p", Crash(), "b"])

        async def scene(job, clock):
            await job.catch_up()
            script.go_on()
            await until(clock, lambda: job.state == "restarting")
            await asyncio.wait_for(getattr(job, call)(), 60)

        always = counting(script, function=lambda value: 1 / 0 if value == "b" else value)
        with pytest.raises(sa.JobFailed):
            play(world, always, scene, restarts={"restarts_max": 1})

    def test_a_source_without_partitions_does_not_hang_who_catches_up(self, world):
        async def scene(job, clock):
            await asyncio.wait_for(job.catch_up(), 60)

        play(world, counting(Script()), scene)


class TestOnFailure:
    def told(self, world, on_failure, scene=None, **options):
        failures = iter([True, True])
        flow = counting(
            Script(["a", "b", Pause()]), function=lambda value: 1 / 0 if value == "b" and next(failures, 0) else value
        )

        async def catch_up(job, clock):
            await job.catch_up()
            return clock.monotonic()

        return play(world, flow, scene or catch_up, on_failure=on_failure, **options)

    def test_each_failure_is_told_as_plain_data(self, world):
        told = []
        self.told(world, told.append)
        first, second = told
        assert (first.job, first.region, first.operator) == ("job", "script", "job/map")
        assert (first.place.source, first.place.partition, first.place.offset) == ("script", 0, 1)
        assert "ZeroDivisionError" in first.error and "\n" not in first.error
        assert "Traceback" in first.traceback and "1 / 0" in first.traceback
        assert (first.attempt, first.decision, second.attempt) == (1, "restarts", 2)
        assert 4 <= first.restarts_in <= 8 and first.at_ms < second.at_ms
        assert f"attempt 1, restarts in {first.restarts_in:.2f} s" in str(first)
        assert json.decode(json.encode(first), type=sa.Failure) == first

    def test_giving_up_is_told(self, world):
        told = []
        with pytest.raises(sa.JobFailed):
            self.told(world, told.append, restarts={"restarts_max": 0})
        assert [(failure.decision, failure.restarts_in) for failure in told] == [("gave up", None)]

    def test_an_error_that_no_attempt_could_mend_is_told_as_given_up(self, world):
        told = []
        target = Target(asyncio.Event())
        flow = sa.Pipeline("job")
        flow.source(Script(["a", Pause()])).to(target)

        async def commit(payload, stamp, expect):
            raise sa.SinkConflict("another writer was there")

        target.commit = commit

        async def scene(job, clock):
            await job.wait()

        with pytest.raises(sa.JobFailed, match="another writer"):
            play(world, flow, scene, on_failure=told.append)
        assert [failure.decision for failure in told] == ["gave up"]

    def test_what_failed_is_named_when_no_record_is_to_blame(self, world):
        told, target = [], Target(asyncio.Event())
        target.gate.set()
        away = [OSError("the target is away")]

        async def commit(payload, stamp, expect):
            if away:
                raise away.pop()

        target.commit = commit
        flow = sa.Pipeline("job")
        flow.source(Script(["a", Pause()])).to(target)

        async def scene(job, clock):
            await job.catch_up()

        play(world, flow, scene, on_failure=told.append)
        assert [(failure.operator, failure.place) for failure in told] == [("sink target", None)]

    def test_a_failure_of_a_region_that_is_being_stopped_is_told_and_starts_nothing(self, world):
        told, target = [], Target(asyncio.Event())
        script = Script(["a", Pause(), "p", Crash(), "b"])
        flow = sa.Pipeline("job")
        flow.source(script).to(target)

        async def scene(job, clock):
            await until(clock, lambda: target.asked)
            script.go_on()
            await clock.sleep(0.5)  # the reader has failed; the region waits for the commit
            stopping = asyncio.create_task(job.stop())
            await clock.sleep(0.1)
            target.gate.set()
            await stopping
            return job.state, job.status().regions[0].restarts

        assert play(world, flow, scene, on_failure=told.append) == ("ended", 0)
        assert [(failure.decision, failure.restarts_in) for failure in told] == [("stops", None)]

    @pytest.mark.parametrize("error", [ValueError("its own bug"), asyncio.CancelledError()])
    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_an_error_in_it_hurts_nobody(self, world, caplog, error, asynchronous):
        def fails(failure):
            raise error

        async def fails_later(failure):
            await asyncio.sleep(0.1)
            raise error

        self.told(world, fails_later if asynchronous else fails)
        if not (asynchronous and isinstance(error, asyncio.CancelledError)):
            assert "on_failure itself failed" in caplog.text

    def test_a_slow_one_holds_up_no_restart_and_is_awaited_at_the_end(self, world):
        done = []

        async def slow(failure):
            await asyncio.sleep(2)
            done.append(failure.attempt)

        caught_up = self.told(world, slow, restarts={"backoff_first": 0.1})
        assert caught_up < 1
        assert done == [1, 2]

    def test_one_that_never_returns_ends_with_the_job_after_a_grace(self, world, caplog):
        async def never(failure):
            await asyncio.Event().wait()

        self.told(world, never)
        assert caplog.text.count(f"has not returned {reports.GRACE_SECONDS:g} s after the job's end") == 2

    def test_one_that_swallows_its_cancellation_does_not_keep_the_job(self, world):
        class Stubborn:
            left = 3

            async def __call__(self, failure):
                while self.left:
                    try:
                        await asyncio.sleep(1_000)
                    except asyncio.CancelledError:
                        self.left -= 1
                        if not self.left:
                            raise

        async def main(process):
            async with sa.run(
                counting(Script([Crash(), "a", Pause()])), process.data_dir, ports=process.ports,
                settings=sa.Settings(sync=False), on_failure=Stubborn(),
            ) as job:  # fmt: skip
                await job.catch_up()
            ended = process.ports.clock.monotonic()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
                await asyncio.sleep(0)
                task.cancel()
            return ended

        assert world.run(main).result < 30
