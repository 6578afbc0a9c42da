"""What runs on the small disk of test_full_disk.py: ``python full_disk_child.py <scenario> <folder>``."""

import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from streamactors.core.errors import QuotaFull
from streamactors.durable import appender
from streamactors.durable.frames import Records
from streamactors.durable.log import Log
from streamactors.durable.store import Checkpoint, Delta, Store
from tests.durable.small_disk import Filling


def checkpoint(epoch, *deltas):
    return Checkpoint("r", 1, epoch, {"at": epoch}, deltas=list(deltas))


def rows(store):
    with store.snapshot() as snapshot:
        return dict(snapshot.scan("x"))


def refused(work):
    """Whether there is no room for *work*."""
    try:
        work()
    except QuotaFull:
        return True
    return False


def store_goes_on(folder):
    """Whatever is left free, a refused checkpoint leaves the one before, and can be given again as it is."""
    other = Filling(folder)
    with Store.open(folder / "j") as store:
        store.begin_attempt("r")
        oracle, refusals = {}, 0
        for turn, epoch in enumerate(range(1, 13)):
            change = {b"%d" % (turn * 37 + n): os.urandom(900) for n in range(100)}
            given = checkpoint(epoch, Delta("x", puts=list(change.items())), Delta(f"new{turn}", puts=[(b"k", b"v")]))
            other.fill(leave=turn * 8_192)
            while refused(lambda given=given: store.commit(given)):
                refusals += 1
                assert rows(store) == oracle
                assert epoch == 1 or store.restore("r").epoch == epoch - 1
                if refusals % 3 == 0:
                    other.clear()
            oracle |= change
            assert rows(store) == oracle and store.restore("r").epoch == epoch
    with Store.open(folder / "j", read_only=True) as store:
        assert rows(store) == oracle
    return refusals


def reserve_saves_the_last(folder):
    other = Filling(folder)
    big = Delta("x", puts=[(b"%d" % n, os.urandom(900)) for n in range(300)])
    with Store.open(folder / "j") as store:
        store.begin_attempt("r")
        store.commit(checkpoint(1))
        store.make_reserve()
        other.fill()
        assert refused(lambda: store.commit(checkpoint(2, big)))
        assert store.give_up_reserve()
        store.commit(checkpoint(2, big))
        assert not store.give_up_reserve(), "there is one reserve"
        other.clear()
        store.make_reserve()
        assert store.give_up_reserve(), "it is made anew when there is room"
        return len(rows(store))


def opening(folder):
    """Every start on a disk with little room works, or says why not; none of them ends the process."""
    other, outcomes = Filling(folder), []
    for turn in range(60):
        if turn:
            other.clear()
        other.fill(leave=turn * 4_096)
        path = folder / "jobs" / str(turn)
        try:
            with Store.open(path) as store:
                store.identity("j", new_id="1")
                store.begin_attempt("r")
                for epoch in range(1, 4):
                    store.commit(checkpoint(epoch, Delta("x", puts=[(b"k", b"v" * 2_000)])))
            outcomes.append("worked")
        except (QuotaFull, OSError) as error:
            outcomes.append(type(error).__name__)
        other.clear()
        with Store.open(path) as store:  # whatever that has left, it works when there is room
            store.identity("j", new_id="1")
            store.commit(Checkpoint("r", store.begin_attempt("r"), 10, None))
        other.fill()
    return sorted(set(outcomes))


async def log_goes_on(folder):
    """Nothing that was acknowledged is lost, nothing that was refused appears, and appends go on."""
    appender.SEGMENT_BYTES_MAX = 200_000
    other, acknowledged, refusals = Filling(folder), [], 0
    async with Log(folder) as log:
        topic = await log.create_topic("t", 2)
        for turn in range(40):
            other.fill(leave=turn * 3_000)
            answers = await asyncio.gather(
                *(topic.partition(n % 2).append(Records.of([b"%d-%d-" % (turn, n) + b"x" * 5_000])) for n in range(30)),
                return_exceptions=True,
            )
            refusals += sum(isinstance(answer, QuotaFull) for answer in answers)
            assert not [a for a in answers if not isinstance(a, int | QuotaFull)], answers
            acknowledged += [
                (n % 2, answer, b"%d-%d-" % (turn, n)) for n, answer in enumerate(answers) if isinstance(answer, int)
            ]
            if turn % 10 == 0:
                await no_topic(log, f"made-{turn}")
            other.clear()
            if turn % 10 == 0:
                made = await log.create_topic(f"made-{turn}", 3)
                await made.append(b"works")
    async with Log(folder) as log:
        topic = await log.topic("t")
        for number, offset, start in acknowledged:
            assert (await topic.partition(number).read_at(offset)).startswith(start)
        ends = [topic.partition(number).durable_end() for number in range(2)]
        assert sum(ends) == len(acknowledged)
    return f"{len(acknowledged)} acknowledged, {refusals} refused"


async def no_topic(log, name):
    filler = Filling(log._folder, "more")
    filler.fill()
    try:
        topic = await log.create_topic(name, 3)
        await topic.append(b"does not fit")
    except QuotaFull:
        return
    finally:
        filler.clear()
    raise AssertionError("a topic was made, and written, without room")


if __name__ == "__main__":
    scenario, path = globals()[sys.argv[1]], Path(sys.argv[2])
    result = asyncio.run(scenario(path)) if asyncio.iscoroutinefunction(scenario) else scenario(path)
    print(result)  # noqa: T201 - its answer
