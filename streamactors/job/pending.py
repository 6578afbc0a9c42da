"""Pending output: how what a sink wrote in epoch N becomes visible outside exactly once (E2).

    in the stage       the sink's writer turns batches into payloads. At the barrier each gets its stamp, and the stamp
                       that it expects the target to show. Stamped payloads are rows of checkpoint N.
    after checkpoint   the committer reads those rows and commits them to the target, one at a time, in order; the
                       target compares and sets the stamp in its own transaction.
    a checkpoint later the rows are deleted, because the target's answer was durable.

If we crash before the checkpoint, nothing was visible and the records come again. After it, the rows are found on
recovery. For each partition of the target, the stamps of its rows form a chain (each expects the one before it), and
the target must show a link of that chain: what follows it is committed, what precedes it is done. If it shows anything
else, another writer was there or the target lost what it had confirmed; that is an error, never a guess.

The first epoch of an incarnation expects what the target shows when the job first opens it: none, or the last stamp of
an incarnation before. One that was made of a savepoint, or of a backup, knows which stamp that has to be, and is
refused if the target shows another: somebody has written since. One that was told to take targets as they are
(``resets``) does: pending output of the incarnation before is committed behind whatever is there, unless the target
shows that it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import msgspec

from streamactors.core.codec import CHECKSUM_BYTES, bytes_head, seal, unseal
from streamactors.core.connectors import Payload, SinkTarget, SinkWriter, Stamp
from streamactors.core.errors import SinkConflict
from streamactors.core.limits import EPOCH_OUTPUT_BYTES_MAX
from streamactors.durable.state import OperatorRow
from streamactors.durable.store import Delta

Row = tuple[bytes, bytes]
"""(key: epoch, partition, part, big-endian; value: sealed PendingRow)"""


class PendingRow(msgspec.Struct, array_like=True):
    """What a checkpoint holds of one payload."""

    stamp: Stamp
    expect: Stamp | None
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_NO_BYTES = len(bytes_head(0))
_decode = msgspec.msgpack.Decoder(PendingRow).decode


def database_of(sink: str) -> str:
    """Return the name of the database that holds the pending rows of *sink*."""
    return f"pending:{sink}"


class PendingOutput:
    """What a sink's writer has written and no checkpoint holds yet; a Durable of the sink's stage."""

    def __init__(self, writer: SinkWriter, row: OperatorRow, *, job: str, sink: str, incarnation: str) -> None:
        self._writer = writer
        self._row = row
        self._identity = (job, sink, incarnation)
        self._frozen: list[tuple[bytes, PendingRow]] = []
        self._encoded: list[Row] = []
        self.bytes = 0

    @property
    def full(self) -> bool:
        """Whether an epoch should end now, because this one's output has reached its limit."""
        return self.bytes >= EPOCH_OUTPUT_BYTES_MAX

    def write(self, batch: Any) -> None:
        """Give *batch* to the writer."""
        self.bytes = self._writer.write(batch)

    def freeze(self, epoch: int) -> None:
        """Take the epoch's payloads and chain their stamps. Cost: nothing per record."""
        self.bytes = 0
        payloads = sorted(self._writer.take(), key=lambda payload: payload.partition)
        stamps = {int(partition): stamp for partition, stamp in (self._row.value or {}).items()}
        self._frozen = []
        for partition, group in groupby(payloads, key=lambda payload: payload.partition):
            parts = list(group)
            for number, payload in enumerate(parts, 1):
                stamp = Stamp(*self._identity, epoch, number, len(parts))
                before = stamps.get(partition)
                expect = None if before is None else msgspec.convert(before, Stamp)
                key = epoch.to_bytes(8, "big") + partition.to_bytes(4, "big") + number.to_bytes(4, "big")
                self._frozen.append((key, PendingRow(stamp, expect, payload.data)))
                stamps[partition] = msgspec.to_builtins(stamp)
        if self._frozen:
            self._row.set({str(partition): stamp for partition, stamp in stamps.items()})
        self._row.freeze(epoch)

    def encode(self, entries: int) -> bool:
        """Encode one payload; True when none is left."""
        if self._frozen:
            key, row = self._frozen.pop(0)
            self._encoded.append((key, _sealed(row)))
        return not self._frozen and self._row.encode(entries)

    def hand_over(self) -> list[Delta]:
        """Return the rows of the epoch."""
        rows, self._encoded = self._encoded, []
        deltas = self._row.hand_over()
        if rows:
            deltas.append(Delta(database_of(self._identity[1]), puts=rows))
        return deltas

    def committed(self, epoch: int) -> None:
        """The epoch is durable; the committer has its rows."""
        self._row.committed(epoch)


async def expect_what_is_there(
    row: OperatorRow, target: SinkTarget, partitions: int, job: str, sink: str, incarnation: str
) -> None:
    """Let the first epoch of an incarnation expect what the target shows now; refuse another stamp than is known."""
    if row.value is not None:
        known = {int(number): msgspec.convert(stamp, Stamp) for number, stamp in row.value.items()}
        for partition, last in known.items():
            if last.incarnation != incarnation and (shown := await target.last_stamp(partition, job, sink)) != last:
                raise SinkConflict(
                    f"sink {sink}, partition {partition}: the target shows {shown}, but the state that this job goes "
                    f"on from was the last to write there, {last}. Somebody has written since, and what comes now "
                    "would be there twice. Start from the savepoint with --sinks shadow or reset, or from a later one."
                )
        return
    stamps = {}
    for partition in range(partitions):
        stamp = await target.last_stamp(partition, job, sink)
        if stamp is not None:
            stamps[str(partition)] = msgspec.to_builtins(stamp)
    row.set(stamps)


class Committer:
    """Commits one sink's pending rows to its target, in order."""

    def __init__(self, sink: str, job: str, target: SinkTarget, *, resets: bool = False) -> None:
        self.sink = sink
        self.database = database_of(sink)
        self.resets = resets
        self._job = job
        self._target = target
        self._settled: list[bytes] = []
        self.waiting_bytes = 0
        """Of checkpoints that are durable, and which the target has not answered for."""

    async def recover(self, rows: Sequence[Row]) -> None:
        """Commit of *rows*, found after a start, what the target does not show yet."""
        decoded = [(key, self._decode(value)) for key, value in rows]
        self.waiting_bytes = sum(len(value) for _, value in rows)
        for partition in sorted({_partition(key) for key, _ in decoded}):
            chain = [(key, row) for key, row in decoded if _partition(key) == partition]
            shown = await self._target.last_stamp(partition, self._job, self.sink)
            links = [chain[0][1].expect, *(row.stamp for _, row in chain)]
            if shown not in links and self.resets:
                if not _is_beyond(shown, chain[-1][1].stamp):
                    chain[0][1].expect = shown
                    await self._commit(chain)
                continue
            if shown not in links:
                raise SinkConflict(
                    f"sink {self.sink}, partition {partition}: the target shows {shown}, but this job's pending output "
                    f"begins after {links[0]} and ends with {links[-1]}. Another writer was there, or the target lost "
                    "what it had confirmed. Restore the target, or start the job anew."
                )
            await self._commit(chain[links.index(shown) :])
        self.waiting_bytes = 0
        self._settled = [key for key, _ in decoded]

    async def before(self) -> list[Delta]:
        """Return what goes into the next checkpoint beside the rows of the sink's stage."""
        return self.take_settled()

    async def after(self, deltas: Sequence[Delta]) -> None:
        """Commit the rows of the checkpoint that has just become durable."""
        rows = [row for delta in deltas if delta.database == self.database for row in delta.puts]
        self.waiting_bytes = sum(len(value) for _, value in rows)
        # These bytes have not left the process: their checksum need not be looked at. Decoded one at a time.
        await self._commit((key, _decode(memoryview(value)[CHECKSUM_BYTES:])) for key, value in rows)
        self.waiting_bytes = 0
        self._settled += [key for key, _ in rows]

    def take_settled(self) -> list[Delta]:
        """Return the deletion of rows that the target has answered for; for the next checkpoint."""
        keys, self._settled = self._settled, []
        return [Delta(self.database, deletes=keys)] if keys else []

    def finish(self) -> None:
        """Nothing follows in this run; what was written has been committed."""

    async def close(self) -> None:
        """Release the target."""
        await self._target.close()

    async def _commit(self, rows: Iterable[tuple[bytes, PendingRow]]) -> None:
        for key, row in rows:
            await self._target.commit(Payload(_partition(key), row.data), row.stamp, row.expect)
            self.waiting_bytes -= len(row.data)

    def _decode(self, value: bytes) -> PendingRow:
        return _decode(unseal(value, f"pending output of sink {self.sink}"))


def _sealed(row: PendingRow) -> bytes:
    """Return *row* as LMDB keeps it: as the encoder would give it, without a copy of the data by the encoder."""
    head = _encode(PendingRow(row.stamp, row.expect, b""))[:-_NO_BYTES]
    return seal(head + bytes_head(len(row.data)), row.data)


def _is_beyond(shown: Stamp | None, stamp: Stamp) -> bool:
    """Whether a target that shows *shown* has had *stamp* before: the same incarnation has written on."""
    return shown is not None and shown.incarnation == stamp.incarnation and shown.epoch > stamp.epoch


def _partition(key: bytes) -> int:
    return int.from_bytes(key[8:12], "big")
