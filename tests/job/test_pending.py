"""Pending output: stamps chain, a target sees each payload once, and what can't be explained is an error (E2)."""

import msgspec
import pytest

from streamactors.core.codec import unseal
from streamactors.core.connectors import Payload, Stamp
from streamactors.core.errors import SinkConflict
from streamactors.durable.state import OperatorRow
from streamactors.durable.store import Checkpoint, Store
from streamactors.job.pending import Committer, PendingOutput, PendingRow, database_of, expect_what_is_there


class Crash(Exception):
    """The process dies here."""


class Writer:
    """Hands over the payloads that a test gives it."""

    def __init__(self):
        self.payloads = []

    def write(self, batch):
        self.payloads.append(batch)
        return sum(len(payload.data) for payload in self.payloads)

    def take(self):
        payloads, self.payloads = self.payloads, []
        return payloads


class Target:
    """A target with partitions, each with what was committed and its last stamp; dies before or after a commit."""

    def __init__(self):
        self.data = {}
        self.stamps = {}
        self.die = None

    async def last_stamp(self, partition, job, sink):
        return self.stamps.get(partition)

    async def commit(self, payload, stamp, expect):
        if self.die == ("before", stamp.epoch, payload.partition, stamp.part):
            raise Crash
        shown = self.stamps.get(payload.partition)
        if shown != stamp:
            if shown != expect:
                raise SinkConflict(f"{shown} is neither {expect} nor {stamp}")
            self.data.setdefault(payload.partition, []).append(payload.data)
            self.stamps[payload.partition] = stamp
        if self.die == ("after", stamp.epoch, payload.partition, stamp.part):
            raise Crash

    async def close(self):
        pass


class Life:
    """One process's life: a store, a pending output, a committer."""

    def __init__(self, folder, target, incarnation="i1", resets=False):
        self.store = Store.open(folder, sync=False)
        self.target = target
        self.writer = Writer()
        self.row = OperatorRow(self.store, "rows", "sink")
        self.incarnation = incarnation
        self.pending = PendingOutput(self.writer, self.row, job="j", sink="s", incarnation=incarnation)
        self.committer = Committer("s", "j", target, resets=resets)
        self.attempt = self.store.begin_attempt("r")
        restored = self.store.restore("r")
        self.epoch = 0 if restored is None else restored.epoch

    async def start(self, partitions=2):
        with self.store.snapshot() as snapshot:
            rows = snapshot.scan(database_of("s"))
        await self.committer.recover(rows)
        await expect_what_is_there(self.row, self.target, partitions, "j", "s", self.incarnation)
        return self

    def checkpoint(self, *payloads):
        """Take an epoch with *payloads*: (partition, data)."""
        for partition, data in payloads:
            self.pending.write(Payload(partition, data))
        self.epoch += 1
        self.pending.freeze(self.epoch)
        while not self.pending.encode(1):
            pass
        deltas = [*self.committer.take_settled(), *self.pending.hand_over()]
        self.store.commit(Checkpoint("r", self.attempt, self.epoch, position={}, deltas=deltas))
        self.pending.committed(self.epoch)
        return deltas

    async def epoch_of(self, *payloads):
        await self.committer.after(self.checkpoint(*payloads))

    def rows(self):
        with self.store.snapshot() as snapshot:
            return len(snapshot.scan(database_of("s")))


async def test_payloads_are_committed_in_order_with_a_chain_of_stamps(tmp_path):
    target = Target()
    life = await Life(tmp_path, target).start()
    await life.epoch_of((0, b"a"), (1, b"x"), (0, b"b"))
    await life.epoch_of((0, b"c"))
    assert target.data == {0: [b"a", b"b", b"c"], 1: [b"x"]}
    assert target.stamps == {0: Stamp("j", "s", "i1", 2, 1, 1), 1: Stamp("j", "s", "i1", 1, 1, 1)}
    life.store.close()


async def test_an_epoch_without_output_writes_no_stamp_and_no_row(tmp_path):
    target = Target()
    life = await Life(tmp_path, target).start()
    await life.epoch_of()
    assert target.stamps == {}
    assert life.rows() == 0
    life.store.close()


async def test_a_later_checkpoint_deletes_what_the_target_has_answered_for(tmp_path):
    life = await Life(tmp_path, Target()).start()
    await life.epoch_of((0, b"a"))
    assert life.rows() == 1
    await life.epoch_of()
    assert life.rows() == 0
    life.store.close()


async def all_of(life, epochs):
    for payloads in epochs:
        await life.epoch_of(*payloads)


PLACES = [
    (side, epoch, partition, part)
    for side in ("before", "after")
    for epoch, partition, part in [(1, 0, 1), (1, 0, 2), (1, 1, 1), (2, 0, 1), (2, 1, 1)]
]


@pytest.mark.parametrize("die", PLACES)
async def test_a_crash_at_any_commit_is_repaired_by_the_next_start(tmp_path, die):
    target = Target()
    life = await Life(tmp_path, target).start()
    target.die = die
    epochs = [[(0, b"a"), (0, b"b"), (1, b"x")], [(0, b"c"), (1, b"y")]]
    with pytest.raises(Crash):
        await all_of(life, epochs)
    life.store.close()
    target.die = None
    life = await Life(tmp_path, target).start()
    for payloads in epochs[life.epoch :]:
        await life.epoch_of(*payloads)
    await life.epoch_of()
    assert target.data == {0: [b"a", b"b", b"c"], 1: [b"x", b"y"]}
    assert life.rows() == 0
    life.store.close()


async def test_a_crash_while_recovering_is_repaired_as_well(tmp_path):
    target = Target()
    life = await Life(tmp_path, target).start()
    life.checkpoint((0, b"a"), (0, b"b"))
    life.store.close()
    target.die = ("after", 1, 0, 1)
    second = Life(tmp_path, target)
    with pytest.raises(Crash):
        await second.start()
    second.store.close()
    target.die = None
    third = await Life(tmp_path, target).start()
    assert target.data == {0: [b"a", b"b"]}
    third.store.close()


async def test_a_stamp_that_nobody_can_explain_is_an_error(tmp_path):
    target = Target()
    life = await Life(tmp_path, target).start()
    life.checkpoint((0, b"a"))
    life.store.close()
    target.stamps[0] = Stamp("j", "s", "another", 7, 1, 1)
    second = Life(tmp_path, target)
    with pytest.raises(SinkConflict, match="Another writer was there"):
        await second.start()
    assert target.data == {}
    second.store.close()


async def test_a_target_that_lost_what_it_confirmed_is_an_error(tmp_path):
    target = Target()
    life = await Life(tmp_path, target).start()
    await life.epoch_of((0, b"a"))
    await life.epoch_of((0, b"b"))
    target.stamps.clear()
    with pytest.raises(SinkConflict):
        await life.epoch_of((0, b"c"))
    life.store.close()


async def test_a_new_incarnation_goes_on_behind_what_the_target_shows(tmp_path):
    target = Target()
    life = await Life(tmp_path / "old", target).start()
    await life.epoch_of((0, b"a"))
    life.store.close()
    life = await Life(tmp_path / "new", target, incarnation="i2").start()
    await life.epoch_of((0, b"b"))
    assert target.data == {0: [b"a", b"b"]}
    life.store.close()


async def test_a_row_is_stored_as_messagepack_gives_it(tmp_path):
    target = Target()
    life = await Life(tmp_path, target).start()
    for data in (b"", b"a" * 255, b"b" * 70_000):
        (row,) = next(delta.puts for delta in life.checkpoint((0, data)) if delta.database == database_of("s"))
        stored = unseal(row[1], "row")
        assert stored == msgspec.msgpack.encode(msgspec.msgpack.decode(stored, type=PendingRow))
    life.store.close()


async def test_what_waits_is_counted_until_the_target_has_answered(tmp_path):
    target = Target()
    life = await Life(tmp_path, target).start()
    target.die = ("before", 1, 0, 2)
    with pytest.raises(Crash):
        await life.epoch_of((0, b"a" * 1_000), (0, b"b" * 500))
    assert 500 <= life.committer.waiting_bytes < 1_000
    life.store.close()
    target.die = None
    life = await Life(tmp_path, target).start()
    assert life.committer.waiting_bytes == 0
    assert target.data == {0: [b"a" * 1_000, b"b" * 500]}
    life.store.close()


# A start from a savepoint. --------------------------------------------------------------------------------------------


class Fork:
    """A life whose store was copied amid: a new incarnation that goes on from its pending output."""

    def __init__(self, tmp_path, target, *, resets=False):
        life = Life(tmp_path, target, "i1")
        self.life, self.target, self.folder, self.resets = life, target, tmp_path / "fork", resets

    async def fork(self):
        self.folder.mkdir()
        self.life.store.copy_to(self.folder)
        return Life(self.folder, self.target, "i2", self.resets)


async def forked(tmp_path, target, *, commits, resets):
    """Return a fork behind two epochs, of which the target got the first *commits*; a third is written there since."""
    fork = Fork(tmp_path, target, resets=resets)
    life = await fork.life.start(1)
    kept = []
    for number in range(2):
        deltas = life.checkpoint((0, b"%d" % number))
        if number < commits:
            await life.committer.after(deltas)
        else:
            kept.append(deltas)
    return life, await fork.fork(), kept


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("commits", [1, 2])
async def test_a_target_that_shows_a_link_of_the_chain_gets_the_rest_once(tmp_path, commits, resets):
    target = Target()
    life, fork, _ = await forked(tmp_path, target, commits=commits, resets=resets)
    await fork.start(1)
    await fork.committer.after(fork.checkpoint((0, b"new")))
    assert target.data[0] == [b"0", b"1", b"new"]
    life.store.close()
    fork.store.close()


async def test_a_target_that_somebody_has_written_since_is_refused(tmp_path):
    target = Target()
    life, fork, _ = await forked(tmp_path, target, commits=2, resets=False)
    await life.committer.after(life.checkpoint((0, b"since")))
    with pytest.raises(SinkConflict):
        await fork.start(1)
    life.store.close()
    fork.store.close()


async def test_a_reset_goes_on_behind_what_was_written_since(tmp_path):
    target = Target()
    life, fork, _ = await forked(tmp_path, target, commits=2, resets=True)
    await life.committer.after(life.checkpoint((0, b"since")))
    fork.row.set(None)  # a start from a savepoint leaves the stamps out
    await fork.start(1)
    await fork.committer.after(fork.checkpoint((0, b"again")))
    assert target.data[0] == [b"0", b"1", b"since", b"again"]
    life.store.close()
    fork.store.close()


async def test_a_reset_writes_what_was_pending_into_a_new_target(tmp_path):
    life, fork, _ = await forked(tmp_path, Target(), commits=2, resets=True)
    fork.target = fork.committer._target = new = Target()
    fork.row.set(None)
    await fork.start(1)
    await fork.committer.after(fork.checkpoint((0, b"new")))
    assert new.data[0] == [b"1", b"new"], "of the first, the target had answered before the second epoch"
    life.store.close()
    fork.store.close()
