"""Promotion from outside: the steps of a handover that no running version can take, and waiting for those that one can.

    the serving version does not run    its lock is taken, and where it stands is noted for it
    the new one does not run            its lock is taken; it has to stand at that very place, or the promotion is
                                        refused with how far it is behind; then targets are exchanged and it is served
    both run                            they do it themselves (succession.py); we wait

Whoever holds a version's lock keeps it from starting meanwhile. Each step is one change of the catalogue, so a
promotion that is killed goes on when it is asked for again, or by itself where both versions run. One that takes
longer than it may is withdrawn: a version that is served minutes after somebody has gone home would surprise him. An
exchange of targets that has begun is not withdrawn.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from streamactors.core.errors import Held, StreamActorsError, UsageError
from streamactors.core.ports import Lock
from streamactors.durable.catalogue import Catalogue, Place, Versions
from streamactors.durable.files import RealDisk
from streamactors.durable.sharing import forget, read_briefly, settle
from streamactors.durable.store import Restored
from streamactors.job.folders import LOCK, check_label, job_folder, version_folder
from streamactors.job.succession import place_of, stands_at
from streamactors.job.swapping import complete, folders_of, refuse_what_is_in_the_way, remove_shadows

POLL_SECONDS = 0.02
"""Between two looks at the catalogue; a promotion takes tenths of a second."""


class NotInTime(StreamActorsError):
    """The versions did not come together within the time that was given; the promotion was withdrawn."""


class Versioned:
    """A job's versions, for a process that runs none of them."""

    def __init__(self, data_dir: Path, job: str, say: Callable[[str], None] = lambda _: None) -> None:
        self.job = job
        self.folder = job_folder(data_dir, job)
        self._data_dir = data_dir
        self._disk = RealDisk()
        self.catalogue = Catalogue(self._disk, self.folder)
        self._say = say
        self._said = ""

    def versions(self) -> Versions:
        """Return what the catalogue says, when what was left of an exchange is done; refuse a job that is not there."""
        found = complete(self.catalogue, self._disk, self._data_dir, self.job, _now_ms()) or self.catalogue.read()
        if found is None:
            jobs = sorted(path.name for path in self.folder.parent.glob("*") if path.is_dir())
            raise UsageError(
                f"there is no job {self.job} in {self._data_dir}. Jobs there: {', '.join(jobs) or 'none'}."
            )
        return found

    def change(self, change: Callable[[Versions], None]) -> Versions:
        """Change the catalogue; the job is there."""
        return self.catalogue.change(self.job, self.versions().serving, _now_ms(), change)

    def places(self, label: str) -> dict[str, Restored]:
        """Return the newest checkpoint of each region of a version; of one that has none, nothing."""
        folder = version_folder(self._data_dir, self.job, label)
        if not (folder / "data.mdb").exists():
            return {}
        with read_briefly(folder) as store:
            found = [store.restore(region) for region in store.regions()]
        return {restored.region: restored for restored in found if restored is not None}

    @contextmanager
    def held(self, label: str) -> Iterator[bool]:
        """Keep *label* from starting; False: it runs."""
        folder = version_folder(self._data_dir, self.job, label)
        lock: Lock | None = None
        if not folder.exists():
            yield True
            return
        try:
            lock = self._disk.lock(folder / LOCK)
        except Held:
            yield False
            return
        try:
            if (folder / "data.mdb").exists():
                settle(folder)  # where it stands is what is asked for next, and it may have been killed in a commit
            yield True
        finally:
            lock.release()

    def pid(self, label: str) -> int | None:
        """Return the process that runs *label*; 0 for one whose number is not known; None: nobody does."""
        folder = version_folder(self._data_dir, self.job, label)
        if not (folder / LOCK).exists():
            return None
        try:
            self._disk.lock(folder / LOCK).release()
        except Held as held:
            return held.pid or 0
        return None

    # Promotion. -------------------------------------------------------------------------------------------------------

    def promote(self, label: str, *, timeout: float, back: bool = False) -> bool:
        """
        Let *label* be served; return False when it was already.

        Raises:
            UsageError: it is behind, or somebody called it back. Nothing has changed.

            NotInTime: it was not served within *timeout* seconds, and the request is withdrawn.
        """
        deadline = time.monotonic() + timeout
        versions = self.versions()
        versions.version(label)
        if versions.serving == label and versions.handover is None:
            return False
        if versions.handover is None or versions.handover.to != label:
            self._refuse_behind(versions, label)
            self.change(lambda found: found.ask(label, _now_ms(), back=back))
        try:
            while not self._step(label):
                if time.monotonic() > deadline:
                    raise self._withdrawn(label, timeout)
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self._withdraw(label)
            raise
        return True

    def _step(self, label: str) -> bool:
        """Take the step that nobody else would take; return whether *label* is served."""
        versions = self.versions()
        handover = versions.handover
        if handover is None or handover.to != label:
            if versions.serving == label:
                return True
            raise UsageError(f"job {self.job}: the promotion of {label} was called back by somebody else.")
        if handover.at is None:
            self._tell(f"{versions.serving} is to take a last checkpoint and rest")
            self._yield_for(versions.serving, label)
        else:
            self._tell(f"{versions.serving} rests; {label} is to come to the same place")
            self._serve_for(label, handover.at, versions.serving)
        return False

    def _tell(self, what: str) -> None:
        """Say once what is waited for."""
        if what != self._said:
            self._said = what
            self._say(f"{self.job}: {what}")

    def _yield_for(self, serving: str, label: str) -> None:
        with self.held(serving) as free:
            if free:
                places = {region: place_of(restored) for region, restored in self.places(serving).items()}

                def note(found: Versions) -> None:
                    if found.handover is not None and found.handover.to == label and found.handover.at is None:
                        found.yielded(places)

                self.change(note)

    def _serve_for(self, label: str, at: dict[str, Place], serving: str) -> None:
        with self.held(label) as free:
            if not free:
                return
            there = self.places(label)
            if not there or not stands_at(there.get, at, list(there)):
                self._withdraw(label)
                raise UsageError(self._behind(label, serving))

            def note(found: Versions) -> None:
                if found.handover is not None and found.handover.to == label and found.handover.at is not None:
                    refuse_what_is_in_the_way(self._disk, self._data_dir, found)
                    found.exchange()

            try:
                self.change(note)
            except UsageError:
                self._withdraw(label)
                raise
            self.versions()  # completes it

    def _refuse_behind(self, versions: Versions, label: str) -> None:
        """Refuse at once a version that does not run and does not stand where the serving one does."""
        with self.held(label) as free:
            if free:
                there, wanted = self.places(label), self.places(versions.serving)
                at = {region: place_of(restored) for region, restored in wanted.items()}
                if not there or not stands_at(there.get, at, list(there)):
                    raise UsageError(self._behind(label, versions.serving))

    def _behind(self, label: str, serving: str) -> str:
        lag = lag_records(self.places(label), self.places(serving))
        by = f"{lag:,} records" if lag else "some marks of time"
        code = self.versions().version(label).code or "FILE.py"
        return (
            f"job {self.job}: {label} does not run, and is {by} behind {serving}. Nothing was changed. Let "
            f"it catch up: `streamactors replay {code} --data {self._data_dir} --as {label}`; while {serving} runs, "
            "add --keep-following and promote beside it."
        )

    def _withdraw(self, label: str) -> None:
        def note(found: Versions) -> None:
            if found.handover is not None and found.handover.to == label and not found.handover.exchanging:
                found.take_back()

        self.change(note)

    def _withdrawn(self, label: str, timeout: float) -> NotInTime:
        versions = self.versions()
        lag = lag_records(self.places(label), self.places(versions.serving))
        self._withdraw(label)
        return NotInTime(
            f"job {self.job}: {label} was not served within {timeout:g} s; it is {lag:,} records behind "
            f"{versions.serving}. The request is withdrawn, {versions.serving} goes on. Wait until it has caught up "
            "(`streamactors versions`), or give a longer --timeout."
        )

    def roll_back(self, *, timeout: float) -> str | None:
        """
        Go back to the version that was served before, or withdraw a promotion that is not finished.

        Returns the label that is served now; None: no other was served before, so there is nothing to go back to.
        """
        versions = self.versions()
        handover = versions.handover
        if handover is not None and not handover.back:
            self.change(Versions.take_back)
            return versions.serving
        label = handover.to if handover is not None else versions.before
        if label is None:
            return None
        self.promote(label, timeout=timeout, back=True)
        return label

    def retire(self, label: str) -> list[str]:
        """
        Forget a version, delete its state and what it wrote beside the served one; return folders of its that stay.

        Raises UsageError: it is served, or about to be, or not there. Held: it runs.
        """
        check_label(label)
        folder = version_folder(self._data_dir, self.job, label)
        going = folder.with_name(f".{label}.retired")
        versions = self.versions()
        stays: list[str] = []
        if label not in versions and not folder.exists() and not going.exists():
            versions.version(label)
        lock = self._disk.lock(folder / LOCK) if folder.exists() else None
        try:
            if label in versions:
                self.catalogue_allows(label)
                version = versions.version(label)
                stays = folders_of(version) if version.first else []
                remove_shadows(self._disk, self._data_dir, self.job, version)
                self.change(lambda found: found.retire(label))
            if folder.exists():
                forget(folder)
                shutil.rmtree(going, ignore_errors=True)
                self._disk.rename(folder, going)
                self._disk.sync_folder(folder.parent)
        finally:
            if lock is not None:
                lock.release()
        if going.exists():
            shutil.rmtree(going)
            self._disk.sync_folder(going.parent)
        return stays

    def catalogue_allows(self, label: str) -> None:
        """Refuse what ``Versions.retire`` would refuse, before anything is removed."""
        found = self.versions()
        found.retire(label)  # of this copy, which is not written


def lag_records(behind: dict[str, Restored], ahead: dict[str, Restored]) -> int:
    """Return by how many offsets *behind* has read less than *ahead*."""
    mine, its = (
        {
            (region, part["source"], part["partition"]): part["offset"]
            for region, restored in found.items()
            for part in restored.position["partitions"]
        }
        for found in (behind, ahead)
    )
    return sum(max(0, offset - mine.get(key, 0)) for key, offset in its.items())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
