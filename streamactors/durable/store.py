"""The store: the LMDB environment of one job and version. A checkpoint is one write transaction in it.

    database                what a row is
    meta                    identity and plan of the job
    attempts                region → its attempt
    regions                 region → its newest checkpoint: epoch, position
    journal:<region>        epoch → what the sequencer noted in it
    checkpoints:<region>    epoch → a summary for people; the newest CHECKPOINTS_KEPT
    positions:<region>      positions that are kept for good: see positions.py
    state of operators, rows, view:<name>, ...     whatever the deltas of a checkpoint name

  (E1) What is in a region's part of LMDB belongs to one complete epoch. All of an epoch goes into one transaction;
       its commit is the checkpoint. ``commit`` asserts that epochs rise and that the attempt is the stored one, so
       nothing that an earlier attempt left over can land after the rewind.

If we crash, or the disk is full, or the quota: LMDB writes changed pages beside the old ones, syncs, and then exchanges
the root. Whatever happens before that leaves epoch N - 1 whole; after it there is N.

Who calls what, in which thread: ``commit``, ``begin_attempt``, ``identity`` and ``save_plan`` write, and an LMDB write
transaction belongs to one OS thread: the job runs them in one lane. Reads may come from any thread, at any time; they
see the newest commit and never wait.

What LMDB taught us, each found by running it (py-lmdb 3.0.0, LMDB 0.9.36):

  - A read transaction that is older than a database's handle fails on it with EINVAL, and for an instant so does one
    that begins while the creating commit returns. So databases are created, empty, by a transaction of their own
    before the one with the data, and a snapshot uses only the handles that were published before it began: what it
    doesn't know was empty then.
  - The handle of a database that an aborted transaction created is dead. Handles are published after the commit.
  - Beside a busy event loop a commit of 10,000 rows takes more than 10 s unless turns are kept short: writing.py.
  - ``list.sort`` keeps the interpreter to itself; half a second for a million rows. Many rows are spread over ranges
    of keys first, and each range is sorted alone.
  - The quota is the size of the writer's map, so LMDB itself counts, with the pages that it reuses, inside the
    transaction. Readers in other processes map MAP_SIZE always. A map moves when it is resized, which under a read
    transaction of this process is a crash: with a quota, those are counted, and a resize waits until there is none.
  - A disk that takes a part of what is written in one go is not "no space" to LMDB, but EIO. So what LMDB can't name is
    looked at by asking the disk for room.
  - Reading behind the end of the file, and writing to a page of lock.mdb that the full disk has no block for, end the
    process: pages.py, reserve.py.
  - Copy-on-write by pages: 10,000 random keys of 1,000,000 touch most leaf pages. The bytes written follow what
    changed only for few or clustered changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb

from streamactors.core.codec import decode_value, encode_value, seal, unseal
from streamactors.core.errors import QuotaFull, StorageError, UsageError
from streamactors.core.formats import newer
from streamactors.core.limits import CHECKPOINTS_KEPT, MAP_SIZE

from .checkpoint import Checkpoint, CommitStats, Restored, own_rows, summary_of
from .environment import map_size, no_room, open_environment
from .positions import Kept, keep_position, kept_positions, positions_of
from .reserve import Reserve, has_room
from .snapshot import BROKEN, Handles, Snapshot, damaged
from .writing import Delta, apply_delta, big, short_turns

FORMAT = 1
"""Version of the layout described above; raised when an older reader would misread it."""

_JOURNAL_CHUNK = 256

_IDLE_SECONDS_MAX = 2.0
"""How long a change of the quota waits for this process's snapshots, which live for milliseconds."""

__all__ = ["Checkpoint", "CommitStats", "Delta", "Identity", "Restored", "Snapshot", "Store"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose store it is."""

    job: str
    version: str
    """Label, such as ``v1``."""

    incarnation: str
    """Random 128-bit id in hex, new whenever a job starts from nothing."""

    format: int = FORMAT


class StoreClosed(StorageError):
    """The store was closed by its owner; whoever shares it may ask for it again."""


class Store:
    """The LMDB environment of one (job, version). See the module's header."""

    def __init__(
        self, folder: Path, environment: lmdb.Environment, *, read_only: bool, quota_bytes: int | None = None
    ) -> None:
        self.folder = folder
        self.read_only = read_only
        self.quota_bytes = quota_bytes
        """Bytes that the file may take; the last part of them is the last checkpoint's."""

        self.closed = False
        self._environment = environment
        self._reserve = Reserve(folder)
        self._idle = threading.Condition(threading.Lock())  # no snapshot is open
        self._snapshots = 0
        self._handles: Handles = {}
        self._publish()

    @classmethod
    def open(cls, folder: Path, *, read_only: bool = False, sync: bool = True, quota_bytes: int | None = None) -> Store:
        """
        Open the environment in *folder*; a writer creates it.

        Args:
            folder:
                Holds data.mdb and lock.mdb. One process at a time opens it to write (the job's lock sees to it), any
                number to read. LMDB allows one open environment per process and folder.

            read_only:
                For another process than the writer's.

            sync:
                False only in simulations, where a crash never loses what the operating system has.

            quota_bytes:
                A commit that would make the file larger raises QuotaFull; see ``commit`` and ``set_quota``.

        Raises:
            UsageError: there is nothing to read, or this process has it open already.

            Damaged: the files are not what was written, or not all there. Nothing was changed.

            QuotaFull: the disk has no room for a new job.
        """
        environment = open_environment(folder, read_only=read_only, sync=sync, quota_bytes=quota_bytes)
        try:
            return cls(folder, environment, read_only=read_only, quota_bytes=quota_bytes)
        except BROKEN as error:
            environment.close()
            raise damaged(str(folder / "data.mdb"), error) from error

    def settle(self) -> None:
        """Take the writer's lock once: LMDB then shows what a writer had committed that was killed while he held it."""
        self._environment.begin(write=True).abort()

    def close(self) -> None:
        """Close the environment when no snapshot is open any more; harmless when repeated."""
        with self._idle:
            if not self._idle.wait_for(lambda: not self._snapshots, _IDLE_SECONDS_MAX):
                raise StorageError(
                    f"{self.folder}: a snapshot has been open for {_IDLE_SECONDS_MAX} s. Close it first."
                )
            self.closed = True
            self._environment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.folder}{', read only' if self.read_only else ''})"

    # ---- who it belongs to

    def identity(self, job: str | None = None, *, version: str = "v1", new_id: str | None = None) -> Identity:
        """
        Return whose store it is; with *new_id*, a store that is nobody's yet becomes *job*'s.

        Raises UsageError when it belongs to another job or version, was written in another format, or is nobody's.
        """
        stored = self._meta("identity")
        if stored is None:
            if job is None or new_id is None:
                raise UsageError(f"the state in {self.folder} belongs to no job yet: nothing was ever committed there.")
            stored = {"job": job, "version": version, "incarnation": new_id, "format": FORMAT}
            self._save_meta("identity", stored)
        found = Identity(**stored)
        if found.format > FORMAT:
            raise UsageError(newer(f"the state in {self.folder}", found.format, FORMAT))
        if job is not None and (found.job, found.version) != (job, version):
            raise UsageError(
                f"the state in {self.folder} belongs to job {found.job!r} version {found.version}, not to {job!r} "
                f"version {version}. Give each job a name, or a data folder, of its own."
            )
        return found

    def renew_incarnation(self, new_id: str) -> None:
        """Make the store that of a new incarnation, which goes on from its checkpoints: of a copy, before it runs.

        Pending output keeps the stamps that it has; what follows is chained to them with the new id. So the copy and
        the job that it was copied from never take each other's commits for their own.
        """
        stored = self._meta("identity")
        if stored is not None:
            self._save_meta("identity", {**stored, "incarnation": new_id})

    @property
    def plan(self) -> Any:
        """What ``save_plan`` stored: which operators and parts the checkpoints belong to; or None."""
        return self._meta("plan")

    def save_plan(self, plan: Any) -> None:
        """Store *plan*, in a transaction of its own."""
        self._save_meta("plan", plan)

    @property
    def origin(self) -> Any:
        """Which savepoint the store was made of (job/savepoints.py), or which time (from_time.py); None: of none."""
        return self._meta("origin")

    @property
    def coverage(self) -> dict[str, int | None]:
        """What ``save_coverage`` stored; empty for a version that began with the first record."""
        return self._meta("coverage") or {}

    def save_coverage(self, coverage: dict[str, int | None]) -> None:
        """Store, for each view of a version that began at a time, which rows are right (graph/coverage.py)."""
        self._save_meta("coverage", coverage)

    @property
    def guarantee(self) -> str | None:
        """What ``save_guarantee`` stored: under which guarantee the checkpoints were made; or None."""
        stored = self._meta("guarantee")
        return None if stored is None else str(stored)

    def save_guarantee(self, guarantee: str) -> None:
        """Store *guarantee*, in a transaction of its own."""
        self._save_meta("guarantee", guarantee)

    # ---- regions

    def begin_attempt(self, region: str) -> int:
        """Raise the region's attempt, durably, and return it: from now on only its commits are taken."""
        with self._writing("a new attempt", ["attempts"]) as transaction:
            handle = self._handles["attempts"]
            key = region.encode()
            stored = transaction.get(key, db=handle)
            attempt = 1 if stored is None else self._value(stored, f"attempts, key {region}") + 1
            transaction.put(key, seal(encode_value(attempt)), db=handle)
        return int(attempt)

    def make_reserve(self) -> None:
        """Set room on the disk aside for the last checkpoint; call it when the job's identity is stored."""
        self._reserve.make()

    def set_quota(self, quota_bytes: int) -> bool:
        """Change the quota of a store that has one; False if a snapshot was open all the while, and nothing changed."""
        assert self.quota_bytes is not None, "a store without a quota does not count its snapshots"
        changed = self._resize(map_size(quota_bytes, last=False)) is not None
        if changed:
            self.quota_bytes = quota_bytes
        return changed

    def give_up_reserve(self) -> bool:
        """Make what was kept free for the last checkpoint available; return whether there was anything."""
        gave_up = self._reserve.give_up()
        grown = None if self.quota_bytes is None else self._resize(map_size(self.quota_bytes, last=True))
        return gave_up or (grown is not None and grown > 0)

    def commit(self, checkpoint: Checkpoint) -> CommitStats:
        """
        Store one epoch, durably, in one transaction. When it returns, the checkpoint is there.

        Raises:
            QuotaFull: no room. The store holds the epoch before, whole; the same checkpoint can be given again.

            StorageError: the store holds the epoch before, whole; start again from it.
        """
        region, epoch = checkpoint.region, checkpoint.epoch
        deltas = [*checkpoint.deltas, *own_rows(checkpoint)]
        stats = CommitStats(sum(map(Delta.bytes, deltas)), sum(map(Delta.entries, checkpoint.deltas)))
        summaries = f"checkpoints:{region}"
        deltas.append(Delta(summaries, puts=[(big(epoch), seal(encode_value(summary_of(checkpoint, stats))))]))
        positions = [] if checkpoint.horizon is None else [positions_of(region)]
        names = ["attempts", *positions, *(delta.database for delta in deltas)]
        with self._writing(f"epoch {epoch} of region {region}", names) as transaction:
            self._check(transaction, checkpoint)
            with short_turns():
                for delta in deltas:
                    apply_delta(transaction, self._handles[delta.database], delta)
            _keep_newest(transaction, self._handles[summaries], CHECKPOINTS_KEPT)
            for database in positions:
                keep_position(transaction, self._handles[database], checkpoint, self.place(database))
        return stats

    def amend(self, deltas: list[Delta]) -> None:
        """Change rows of the newest checkpoint, in one transaction; for a job that does not run. See forgetting.py."""
        with self._writing("the change", [delta.database for delta in deltas]) as transaction:
            for delta in deltas:
                apply_delta(transaction, self._handles[delta.database], delta)

    def restore(self, region: str) -> Restored | None:
        """Return the region's newest checkpoint, or None when it has none."""
        with self.snapshot() as snapshot:
            stored = snapshot.get("regions", region.encode())
        if stored is None:
            return None
        return Restored(region, **self._value(stored, f"regions, key {region}"))

    def regions(self) -> list[str]:
        """Return the names of all regions that ever began."""
        with self.snapshot() as snapshot:
            return [key.decode() for key, _ in snapshot.scan("attempts")]

    def journal(self, region: str, *, after_epoch: int = 0) -> Iterator[Any]:
        """Return the journal's entries of the epochs behind *after_epoch*, in the order in which they were decided."""
        for _, entries in self.journal_by_epoch(region, after_epoch=after_epoch):
            yield from entries

    def journal_by_epoch(self, region: str, *, after_epoch: int = 0) -> Iterator[tuple[int, list[Any]]]:
        """Return (epoch, its entries) of the epochs behind *after_epoch* in which something was decided."""
        database, after = f"journal:{region}", big(after_epoch)
        while True:
            with self.snapshot() as snapshot:
                rows = snapshot.scan(database, after=after, limit=_JOURNAL_CHUNK)
            for key, stored in rows:
                yield int.from_bytes(key, "big"), self._value(stored, f"{database}, key {key.hex()}")
            if len(rows) < _JOURNAL_CHUNK:
                return
            after = rows[-1][0]

    def checkpoints(self, region: str) -> list[dict[str, Any]]:
        """Return the summaries of the newest checkpoints, oldest first."""
        database = f"checkpoints:{region}"
        with self.snapshot() as snapshot:
            rows = snapshot.scan(database)
        return [self._value(stored, f"{database}, key {key.hex()}") for key, stored in rows]

    def positions(self, region: str) -> list[Kept]:
        """Return the positions of the region that were kept for good, oldest first."""
        with self.snapshot() as snapshot:
            return kept_positions(snapshot, region)

    # ---- reading

    def snapshot(self) -> Snapshot:
        """
        Return one consistent view of all databases, as of the newest commit; a context manager.

        Short-lived: while it is open LMDB reuses no page, and the file grows with every commit.
        """
        if self.closed:
            raise StoreClosed(f"{self.folder} was closed by its owner. Ask for it again.")
        ended = self._counted()
        try:
            while True:
                handles = self._handles
                transaction = self._environment.begin()
                # If a database was published in between, its first rows could be in the snapshot and unknown to it.
                if handles is self._handles and not (self.read_only and _databases(transaction) != len(handles)):
                    return Snapshot(transaction, handles, str(self.folder / "data.mdb"), ended)
                transaction.abort()
                if self.read_only:
                    self._publish()
        except BaseException:
            ended()
            raise

    def copy_to(self, folder: Path) -> None:
        """
        Write data.mdb, as of the newest commit and without its free pages, into *folder*, which is there and empty.

        A job in another process goes on meanwhile; until this returns no page is reused there, and its file grows by
        all that it writes. Memory: a few MB, whatever the size.
        """
        try:
            self._environment.copy(str(folder), compact=True)
        except BROKEN as error:
            raise damaged(str(self.folder / "data.mdb"), error) from error
        except lmdb.Error as error:
            if not has_room(folder):
                raise no_room(folder, "the copy", error) from error
            raise StorageError(f"{self.folder} can't be copied to {folder}: {error}. Check both disks.") from error

    # ---- inside

    def _publish(self, names: list[str] | None = None) -> None:
        """Open the named databases, or all that there are, and publish their handles."""
        environment = self._environment
        if names is None:
            with environment.begin() as transaction:
                names = [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]
            opened = {name: environment.open_db(name.encode(), create=False) for name in names}
        else:
            with environment.begin(write=True) as transaction:
                opened = {name: environment.open_db(name.encode(), txn=transaction) for name in names}
        self._handles = {**self._handles, **opened}

    @contextmanager
    def _writing(self, what: str, names: list[str]) -> Iterator[lmdb.Transaction[bytes]]:
        """Open a write transaction in which the databases *names* exist; what LMDB says becomes an error of ours."""
        assert not self.read_only, f"{self!r} was opened to read"
        try:
            # A reader that was killed keeps its place in LMDB's table, and with it the pages of its epoch, until
            # somebody asks whether it lives: the file then grew by all that each epoch writes (measured: by 50 KB, and
            # by nothing with this). Costs microseconds.
            self._environment.reader_check()
            missing = [name for name in dict.fromkeys(names) if name not in self._handles]
            if missing:
                self._publish(missing)
            with self._environment.begin(write=True) as transaction:
                yield transaction
        except lmdb.MapFullError as error:
            quota = MAP_SIZE if self.quota_bytes is None else self.quota_bytes
            raise QuotaFull(
                f"{self.folder}: {what} does not fit into the quota of {quota:,} bytes; nothing of it was written, the "
                "epoch before is whole. Raise the quota and start again."
            ) from error
        except BROKEN as error:
            raise damaged(str(self.folder / "data.mdb"), error) from error
        except lmdb.Error as error:
            if type(error) in (lmdb.DiskError, lmdb.Error) and not has_room(self.folder):
                raise no_room(self.folder, what, error) from error
            raise StorageError(
                f"{self.folder}: {what} was not written: {error}. The epoch before is whole. Make room, or repair the "
                "disk, then start again."
            ) from error

    def _resize(self, size: int) -> int | None:
        """
        Change the writer's map while no snapshot of this process is open; return by how much it grew.

        None: a snapshot was open all the while. LMDB makes no map smaller than what it holds.
        """
        with self._idle:
            if not self._idle.wait_for(lambda: not self._snapshots, _IDLE_SECONDS_MAX):
                return None
            before = int(self._environment.info()["map_size"])
            self._environment.set_mapsize(size)
            return int(self._environment.info()["map_size"]) - before

    def _counted(self) -> Callable[[], None]:
        """Count a snapshot that begins; return what says that it has ended."""
        with self._idle:
            self._snapshots += 1
        return self._uncount

    def _uncount(self) -> None:
        with self._idle:
            self._snapshots -= 1
            self._idle.notify_all()

    def _check(self, transaction: lmdb.Transaction[bytes], checkpoint: Checkpoint) -> None:
        key = checkpoint.region.encode()
        stored = transaction.get(key, db=self._handles["attempts"])
        attempt = None if stored is None else self._value(stored, f"attempts, key {checkpoint.region}")
        assert attempt == checkpoint.attempt, (
            f"E1: {checkpoint.region} committed in attempt {checkpoint.attempt}, the store is at {attempt}"
        )
        stored = transaction.get(key, db=self._handles["regions"])
        last = 0 if stored is None else self._value(stored, f"regions, key {checkpoint.region}")["epoch"]
        assert checkpoint.epoch > last, f"E1: {checkpoint.region} committed epoch {checkpoint.epoch} after {last}"

    def place(self, database: str) -> str:
        """Return what a message calls *database*: its name, and the file that it is in."""
        return f"{database} in {self.folder / 'data.mdb'}"

    def _value(self, stored: bytes, what: str) -> Any:
        return decode_value(unseal(stored, f"{self.folder / 'data.mdb'}, database {what}"))

    def _meta(self, name: str) -> Any:
        with self.snapshot() as snapshot:
            stored = snapshot.get("meta", name.encode())
        return None if stored is None else self._value(stored, f"meta, key {name}")

    def _save_meta(self, name: str, value: Any) -> None:
        with self._writing(f"the job's {name}", ["meta"]) as transaction:
            transaction.put(name.encode(), seal(encode_value(value)), db=self._handles["meta"])


def _keep_newest(transaction: lmdb.Transaction[bytes], handle: Any, kept: int) -> None:
    cursor = transaction.cursor(handle)
    for _ in range(transaction.stat(handle)["entries"] - kept):
        cursor.first()
        cursor.delete()


def _databases(transaction: lmdb.Transaction[bytes]) -> int:
    """Return how many named databases there are; the unnamed one holds nothing but their names."""
    return int(transaction.stat()["entries"])
