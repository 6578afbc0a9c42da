"""Savepoints of jobs: taking one, starting from one, and going on with other code.

Taking. From a store that is open here, or to be read: what is saved is its newest checkpoint, whether the job runs or
not. ``Job.savepoint`` takes a checkpoint first.

Starting. A version's store is made of the savepoint before the version runs: a new incarnation, whole or not at all. A
version that has state already is refused; another label is another version. What it does to targets outside, someone
has to say (``Sinks``), because no default is right:

    continue    it goes on where the savepoint stands: a target must show the last stamp that the savepoint knows, or
                one that its pending output explains. If anybody has written since, the job that was saved included,
                the start is refused (SinkConflict): what follows the savepoint would be there twice
    shadow      it writes to targets of its own, which bear its label. What was pending is the old job's business. When
                no other version is served, it is a trial: its targets bear the label as long as it lives
    reset       whatever a target shows is taken as given, and what follows the savepoint is written behind it. What
                was pending is written unless the target shows that it was: nothing is lost; a topic, a table without a
                key and a folder may hold output that follows the savepoint twice, a table with a key only once

A version that is not served writes shadow targets in any case, so it takes shadow and nothing else; and it follows the
journal of the one that is served, in which the savepoint's position has to be found (``refuse_lineage``).

Going on. Each start compares what the checkpoint holds with what the code wants (fit.py), and changes it in one
transaction where that is needed.

If we crash: a store that was being made is not there; one whose change was under way is as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from streamactors.core.codec import encode_value, seal
from streamactors.core.connectors import Guarantee
from streamactors.core.errors import PipelineError, UsageError
from streamactors.core.ports import Disk, Ports
from streamactors.durable.positions import positions_of
from streamactors.durable.savepoint import Counts, RowsBlock, SavepointDecoder, SavepointHead
from streamactors.durable.savepoint_files import SUFFIX, chunks, load, making_store, open_savepoint, write_savepoint
from streamactors.durable.store import Delta, Store
from streamactors.flow.operator import Operator
from streamactors.flow.sequencing import Entry, Position, joined
from streamactors.graph.pipeline import Pipeline
from streamactors.graph.plan import RegionPlan

from .fit import Fit, Plan, compare, kept_versions, places_of, wanted_plan
from .guarantees import PROMISES
from .migration import OPERATOR_ROWS, STAMPS, Refit, changes_in_place

FOLDER = "savepoints"
"""Of the data folder: where savepoints go that were given no other place."""


class Sinks(Enum):
    """What a start from a savepoint does to targets. See the module's header."""

    CONTINUE = "continue"
    SHADOW = "shadow"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Savepoint:
    """A savepoint that was taken."""

    path: Path
    head: SavepointHead
    counts: Counts

    @property
    def epochs(self) -> dict[str, int]:
        """The epoch of each region."""
        return {name: region.epoch for name, region in self.head.regions.items()}

    @property
    def entries(self) -> int:
        """Rows in it."""
        return sum(rows for rows, _ in self.counts.values())

    @property
    def bytes(self) -> int:
        """Bytes of keys and values in it."""
        return sum(size for _, size in self.counts.values())


@dataclass(frozen=True, slots=True)
class Code:
    """A pipeline that is to go on with what was stored."""

    pipeline: Pipeline
    plans: Sequence[RegionPlan]
    fresh: frozenset[str] = frozenset()
    """Operators that may start empty, if what is stored does not fit."""

    dropped: frozenset[str] = frozenset()
    """Operators whose state may go, if they are not there."""

    def fit(self, stored: Plan) -> Fit:
        """Return the verdicts on what is *stored*, which may be refusals."""
        return compare(
            stored,
            self.wanted(),
            migrations=self.pipeline.migrations,
            fresh=self.fresh,
            dropped=self.dropped,
            places=places_of(self.plans),
        )

    def wanted(self) -> Plan:
        """Return what the code wants to find."""
        return wanted_plan(self.pipeline, self.plans)

    def refit(self, fit: Fit, *, only_report: bool = False) -> Refit:
        """Return what changes rows as *fit* demands."""
        changed = {line.operator for line in fit.changed}
        nodes = [node for region in self.plans for stage in region.stages for node in stage.nodes]
        operators: dict[str, Operator] = {}
        for node in nodes:
            if node.id in changed and node.stateful and node.build is not None:
                operators[node.id] = node.build()
                operators[node.id].name = node.id
        return Refit(fit, operators, self.pipeline.migrations, only_report=only_report)


# Taking. --------------------------------------------------------------------------------------------------------------


def default_path(data_dir: Path, job: str, version: str, now_ms: int) -> Path:
    """Return where a savepoint goes that was given no other place."""
    at = datetime.fromtimestamp(now_ms / 1_000, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    return data_dir / FOLDER / job / f"{version}-{at}Z{SUFFIX}"


def write(
    disk: Disk,
    store: Store,
    data_dir: Path,
    path: Path | str | None,
    now_ms: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Savepoint:
    """Write the newest checkpoint of *store* to *path*, or where savepoints go. Synchronous; for a thread."""
    identity = store.identity()
    to = default_path(data_dir, identity.job, identity.version, now_ms) if path is None else Path(path)
    head, counts = write_savepoint(disk, store, to, now_ms=now_ms, stopped=stopped)
    return Savepoint(to, head, counts)


class Taking:
    """The savepoints of a job that runs, while they are written."""

    def __init__(self, ports: Ports, job: str, data_dir: Path) -> None:
        self._ports, self._lane, self._data_dir = ports, f"savepoint/{job}", data_dir
        self._under_way: set[asyncio.Future[Savepoint]] = set()
        self._closing = False

    async def take(self, store: Store, path: Path | str | None) -> Savepoint:
        """Write the newest checkpoint, in a thread. Cancelling it does not end the writing; ``close`` does."""
        now_ms, stopped = self._ports.clock.now_ms(), lambda: self._closing
        writing = self._ports.threads.run(
            self._lane, write, self._ports.disk, store, self._data_dir, path, now_ms, stopped
        )
        task = asyncio.ensure_future(writing)
        self._under_way.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what is being written: its store will be closed."""
        self._closing = True
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _done(self, task: asyncio.Future[Savepoint]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; after a cancellation nobody does


# Going on with other code. --------------------------------------------------------------------------------------------


def go_on(store: Store, code: Code, guarantee: Guarantee) -> Fit | None:
    """
    Let *code* go on with the checkpoints in *store*, which nobody runs; return the verdicts, None without state.

    Raises PipelineError when it can't; nothing was changed then.
    """
    wanted = code.wanted()
    stored = store.plan if PROMISES[guarantee].keeps else None  # else there is no state to fit
    # What was planned and never ran to a checkpoint binds nobody: there is no state to fit.
    begun = {region: was for region, was in (stored or {}).items() if store.restore(region) is not None}
    fit = code.fit(begun) if begun else None
    if fit is not None:
        fit.require(f"pipeline {code.pipeline.name} does not fit its checkpoint in {store.folder}")
        wanted = kept_versions(begun, wanted)
    if stored != wanted:
        changes = [] if fit is None or not fit.rewrites else list(_changes(store, code.refit(fit), fit))
        store.amend([*changes, _meta("plan", wanted)])
    return fit


def _changes(store: Store, refit: Refit, fit: Fit) -> Iterator[Delta]:
    """Yield what has to change in a store; the rows of operators last."""
    with store.snapshot() as snapshot:
        names = [name for name in snapshot.databases() if refit.reads(name)]
        for database in names:
            for rows in chunks(snapshot, database):
                delta = changes_in_place(refit, database, rows)
                if delta.puts or delta.deletes:
                    yield delta
        yield changes_in_place(refit, OPERATOR_ROWS, snapshot.scan(OPERATOR_ROWS))
        for region in sorted(fit.regions_gone):
            for database in (f"journal:{region}", positions_of(region)):
                yield Delta(database, deletes=[key for key, _ in snapshot.scan(database)])
            yield from (Delta(database, deletes=[region.encode()]) for database in ("regions", "attempts"))


def _meta(name: str, value: Any) -> Delta:
    return Delta("meta", puts=[(name.encode(), seal(encode_value(value)))])


# Starting from a savepoint. -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """A version that is to be made of a savepoint."""

    path: Path
    sinks: Sinks
    folder: Path
    """Of the version; the caller holds its lock."""

    job: str
    version: str
    new_id: str
    code: Code | None = None
    """None: the code that took it; another one is compared when it starts."""

    guarantee: Guarantee | None = None
    """Under which it will run; None: as before."""


@dataclass(slots=True)
class _Rows:
    """Sorts the rows of a savepoint into what is to be stored."""

    sinks: Sinks
    refit: Refit | None
    of_operators: list[tuple[bytes, bytes]] = field(default_factory=list)

    def take(self, block: RowsBlock) -> list[Delta]:
        """Return what is to be stored of a block; the rows of operators wait for the end."""
        database, rows = block.database, block.rows
        if database == OPERATOR_ROWS:
            self.of_operators += rows
            return []
        if database.startswith("pending:") and self.sinks is Sinks.SHADOW:
            return []
        kept = rows if self.refit is None else self.refit.rows(database, rows)
        return [Delta(database, puts=list(kept))] if kept else []

    def last(self) -> Delta:
        """Return the rows of operators, when all others were taken."""
        rows = self.of_operators if self.refit is None else self.refit.operator_rows(self.of_operators)
        if self.sinks is not Sinks.CONTINUE:
            rows = [(key, value) for key, value in rows if not key.endswith(f":{STAMPS}".encode())]
        return Delta(OPERATOR_ROWS, puts=rows)


def start_from(start: Start, disk: Disk, served: Store | None, *, sync: bool = True) -> Fit | None:
    """
    Make the state of a version of a savepoint; return the verdicts, None without other code.

    Synchronous. All or nothing: until this returns there is no state.

    Raises:
        UsageError: the version has state; the savepoint is another job's; the sinks can't do that.

        PipelineError: the code can't go on with it, or a migration fails.

        Damaged: the savepoint is not what was written.
    """
    if (start.folder / "data.mdb").exists():
        raise UsageError(
            f"job {start.job}: version {start.version} has state already. Leave the savepoint out to go on with that, "
            "or give a label that is not taken, to run beside it."
        )
    with open_savepoint(disk, start.path) as decoder:
        fit = _refuse(start, decoder.head, served)
        if fit is not None:
            for region in fit.regions_gone:
                decoder.head.regions.pop(region, None)
        _make(start, decoder, fit, beside=served is not None, sync=sync)
    return fit


def _refuse(start: Start, head: SavepointHead, served: Store | None) -> Fit | None:
    if head.job != start.job:
        raise UsageError(
            f"{start.path} is a savepoint of job {head.job}, not of {start.job}: targets and readers know the job by "
            "its name. Give the pipeline that name."
        )
    was = Guarantee(head.guarantee or Guarantee.EXACTLY_ONCE)
    if not all(PROMISES[one].keeps for one in (was, start.guarantee or was)):
        raise UsageError(f"{start.path}: at-most-once keeps no state, so none can be gone on with.")
    if served is not None:
        if start.sinks is not Sinks.SHADOW:
            raise UsageError(
                f"version {start.version} is not served, so its sinks write to targets of their own: give --sinks "
                f"shadow. To replace {served.folder.name}, promote {start.version} when it has caught up."
            )
        for region, stands in head.regions.items():
            refuse_lineage(msgspec.convert(stands.position, Position), served.journal(region), start, region)
    if start.code is None:
        return None
    fit = start.code.fit({region: was for region, was in (head.plan or {}).items() if region in head.regions})
    fit.require(f"pipeline {start.job} does not fit the savepoint {start.path}")
    return fit


def _make(start: Start, decoder: SavepointDecoder, fit: Fit | None, *, beside: bool, sync: bool) -> None:
    head, code = decoder.head, start.code
    plan = head.plan if code is None else kept_versions(head.plan or {}, code.wanted())
    rows = _Rows(start.sinks, None if code is None or fit is None else code.refit(fit))
    with making_store(start.folder, sync=sync) as store:
        store.identity(start.job, version=start.version, new_id=start.new_id)
        load(store, decoder, rows.take)
        origin = {
            "savepoint": start.path.name,
            "digest": decoder.digest,
            "sinks": start.sinks.value,
            "trial": start.sinks is Sinks.SHADOW and not beside,
            "version": head.version,
            "incarnation": head.incarnation,
            "epochs": {name: region.epoch for name, region in head.regions.items()},
        }
        guarantee = (start.guarantee or Guarantee(head.guarantee or Guarantee.EXACTLY_ONCE)).value
        store.amend([rows.last(), _meta("plan", plan), _meta("origin", origin), _meta("guarantee", guarantee)])


def refuse_lineage(position: Position, rows: Iterable[Entry], start: Start, region: str) -> None:
    """Refuse a position that is not one of the journal *rows*: a version that followed from there would be wrong."""
    wanted = {(part.source, part.partition): part.offset for part in position.partitions}
    offsets = dict.fromkeys(wanted, 0)
    begun = 0
    for entry in islice(joined(rows), position.entries):
        begun += 1
        if entry[0] == "read":
            key = (entry[1], entry[2])
            inside = begun == position.entries and entry[3] <= wanted.get(key, -1) <= entry[4]  # read on since
            offsets[key] = wanted[key] if inside else entry[4]
    if begun < position.entries or any(offsets.get(key) != offset for key, offset in wanted.items()):
        raise PipelineError(
            f"{start.path} stands, in region {region}, where the journal of the served version never was: at entry "
            f"{position.entries} with {_told(wanted)}; the journal has {_told(offsets)} there. The savepoint is of "
            "another run of the job. Take one from the version that is served."
        )


def _told(offsets: dict[tuple[str, int], int]) -> str:
    return ", ".join(f"{source}/{partition} at {offset}" for (source, partition), offset in sorted(offsets.items()))
