"""The catalogue of a job: its versions, and which of them is served.

One small file for each job, ``versions.json``, replaced whole: written beside, synced, renamed. So a change is one step
for all readers in all processes, and a person can read it. Changes are made one at a time, under a lock.

    serving      the version whose views readers are given, and which decides: in which order records are read, who is
                 idle, what the clock says
    the others   follow its journal. They have state and views of their own, and nobody is given them unless he asks

How another version comes to be served (promotion; rolling back is the same, in the other direction):

    asked        handover.to is named. The serving version takes a last checkpoint, and decides nothing more
    yielded      handover.at says for each region where its journal ends. Nobody decides now; readers are given the old
                 version, which rests and has let its targets go. The other follows to the same place, and takes a
                 checkpoint there
    exchanging   both rest. From here on it goes forward only: the targets that readers know become the other's
                 (job/swapping.py), and whoever finds it half done does the rest
    served       one replacement of the file: ``serving`` is the other, there is no handover. It decides from there on,
                 and the old version follows it

If somebody dies meanwhile: nothing is lost, because every step is durable before the next begins, and whoever starts
again finds in the file what he is. A version that has yielded does not decide, whatever it was; so at no time do two.
A handover can be taken back until targets are exchanged.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from streamactors.core.errors import Damaged, Held, UsageError
from streamactors.core.formats import newer
from streamactors.core.ports import Disk

from .whole import replace_whole

FIRST = "v1"
"""Label of the first version, when nobody gave another."""

_FORMAT = 1
_FILE = "versions.json"
_SERVED_KEPT = 1_000  # entries of the history: one a day for years
_TRIES = 1_000  # to take the lock: a database may let an exchange of targets wait for five seconds
_TRY_SECONDS = 0.01  # a change takes a few ms

Place = list[Any]
"""Where a journal stands, in a form that can be compared: entries begun, offsets by partition."""


class Version(msgspec.Struct):
    """One version of a job."""

    label: str
    created_ms: int
    code: str = ""
    """Path of the file that it was last run from, where a file was run."""

    digest: str = ""
    """SHA-256 of that file: which code it was."""

    since: str = "earliest"
    """Where it began to read: ``earliest``, or the event time that was asked for, ms."""

    targets: list[list[str]] = []
    """Addresses of what its sinks write: see ``core.connectors.Shadowed``."""

    first: bool = False
    """Whether it is the job's first: what no promotion can exchange bears no label of it."""


class Handover(msgspec.Struct):
    """A change of the served version that is under way."""

    to: str
    asked_ms: int
    back: bool = False
    """Whether it goes back: a rollback, after which what was served before no longer counts as that."""

    at: dict[str, Place] | None = None
    """For each region, where the serving version has ended; None while it has not."""

    exchanging: bool = False
    """Whether targets may be exchanged by now, some of them or all."""


class Served(msgspec.Struct):
    """That a version was served from a time on."""

    label: str
    at_ms: int
    back: bool = False
    """Whether that was a rollback."""


class Versions(msgspec.Struct):
    """What the catalogue holds."""

    job: str
    serving: str
    versions: list[Version]
    history: list[Served]
    handover: Handover | None = None
    format: int = _FORMAT

    def __contains__(self, label: str) -> bool:
        return any(version.label == label for version in self.versions)

    def version(self, label: str) -> Version:
        """Return the version, or refuse a label that is not there."""
        for version in self.versions:
            if version.label == label:
                return version
        known = ", ".join(version.label for version in self.versions)
        raise UsageError(f"job {self.job} has no version {label}; its versions are {known}.")

    def is_first(self, label: str) -> bool:
        """Whether *label* is the job's first version."""
        return any(version.first for version in self.versions if version.label == label)

    @property
    def deciding(self) -> str | None:
        """The version that decides; None while one has yielded and the other is not served yet."""
        return self.serving if self.handover is None or self.handover.at is None else None

    def followed_by(self, label: str) -> str | None:
        """Return the version whose journal *label* follows; None: it decides itself."""
        if label == self.deciding:
            return None
        if self.handover is not None and self.handover.at is not None and label == self.serving:
            return self.handover.to
        return self.serving

    def waits(self, label: str) -> bool:
        """Whether *label* has to rest: it has yielded, or its targets are being exchanged."""
        handover = self.handover
        if handover is None or handover.at is None:
            return False
        return label == self.serving or (label == handover.to and handover.exchanging)

    def shadow(self, label: str) -> str | None:
        """Return what the targets of *label* bear; None: they are those that readers know."""
        return None if label == self.serving else label

    def begin(self, label: str, now_ms: int) -> Version:
        """Add a version, if it is not there; return it."""
        if label not in self:
            self.versions.append(Version(label, now_ms))
        return self.version(label)

    def ask(self, label: str, now_ms: int, *, back: bool = False) -> None:
        """Ask for *label* to be served; *back*: again, as a rollback."""
        self.version(label)
        if self.handover is not None and self.handover.to != label and self.handover.at is not None:
            raise UsageError(
                f"job {self.job}: {self.handover.to} is about to be served instead of {self.serving}. Wait for it, or "
                f"call it back with `streamactors rollback`."
            )
        if label == self.serving:
            self.take_back()
        elif self.handover is None or self.handover.to != label:
            self.handover = Handover(label, now_ms, back)

    def take_back(self) -> None:
        """Let the serving version go on deciding, as if nobody had asked."""
        self._refuse_half_done()
        self.handover = None

    def _refuse_half_done(self) -> None:
        if self.handover is not None and self.handover.exchanging:
            raise UsageError(
                f"job {self.job}: targets of {self.serving} and {self.handover.to} are being exchanged, which can't "
                f"be taken back. `streamactors promote` of {self.handover.to} completes it; then roll back."
            )

    def yielded(self, places: Mapping[str, Place]) -> None:
        """The serving version has ended at *places*."""
        assert self.handover is not None, f"{self.serving} has yielded, and nobody had asked"
        self.handover.at = dict(places)

    def exchange(self) -> None:
        """Both versions rest at the same place: their targets may be exchanged, and from here on nobody turns back."""
        assert self.handover is not None, "nobody was asked for"
        assert self.handover.at is not None, f"{self.serving} decides still"
        self.handover.exchanging = True

    def serve(self, now_ms: int) -> None:
        """The version that was asked for stands where the serving one ended: it is served from here on."""
        assert self.handover is not None, "nobody was asked for"
        assert self.handover.at is not None, f"{self.serving} decides still"
        served = Served(self.handover.to, now_ms, self.handover.back)
        self.serving, self.handover = served.label, None
        self.history = [*self.history[1 - _SERVED_KEPT :], served]

    @property
    def before(self) -> str | None:
        """The version that was served before, of those that are still there: what rolling back goes to."""
        steps: list[str] = []
        for served in self.history:
            while served.back and steps and served.label in steps and steps[-1] != served.label:
                steps.pop()
            if not steps or steps[-1] != served.label:
                steps.append(served.label)
        earlier = [label for label in steps if label != self.serving and label in self]
        return earlier[-1] if earlier else None

    def retire(self, label: str) -> None:
        """Forget a version."""
        version = self.version(label)
        if label == self.serving or (self.handover is not None and self.handover.to == label):
            raise UsageError(
                f"job {self.job}: {label} is served, or about to be. Promote another version first; then retire it."
            )
        self.versions.remove(version)


def digest_of(file: str | None) -> str:
    """Return the SHA-256 of a file of code, in hex; empty where there is none to read."""
    if file is None:
        return ""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""


class Catalogue:
    """The file. Synchronous: called inside ``Threads.run`` where an event loop would wait for it."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk = disk
        self._folder = folder
        self._path = folder / _FILE

    def read(self) -> Versions | None:
        """Return what the file holds; None when the job has none yet. Cost: one small file."""
        if not self._disk.exists(self._path):
            return self._before_catalogues()
        file = self._disk.open(self._path)
        try:
            data = file.read(0, file.size())
        finally:
            file.close()
        try:
            found = msgspec.json.decode(data, type=Versions)
        except msgspec.DecodeError as error:
            raise Damaged(f"{self._path} can't be read: {error}. Restore it from a copy.") from error
        if found.format > _FORMAT:
            raise UsageError(newer(str(self._path), found.format, _FORMAT))
        return found

    def change(self, job: str, first: str, now_ms: int, change: Callable[[Versions], None]) -> Versions:
        """Apply *change* to what the file holds, as one durable step; a job without a catalogue begins with *first*."""
        self._disk.make_folder(self._folder)
        lock = self._lock()
        try:
            versions = self.read()
            if versions is None:
                versions = Versions(job, first, [Version(first, now_ms, first=True)], [Served(first, now_ms)])
            change(versions)
            self._write(versions)
        finally:
            lock.release()
        return versions

    def _before_catalogues(self) -> Versions | None:
        """Return what is known of a job that was last run by a release without catalogues: it has the first version."""
        if not self._disk.exists(self._folder / FIRST / "data.mdb"):
            return None
        return Versions(self._folder.name, FIRST, [Version(FIRST, 0, first=True)], [Served(FIRST, 0)])

    def _lock(self) -> Any:
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._disk.lock(self._folder / "versions.lock")
            except Held:
                if not tries_left:
                    raise
                time.sleep(_TRY_SECONDS)
        raise AssertionError("the last try returns or raises")

    def _write(self, versions: Versions) -> None:
        data = msgspec.json.format(msgspec.json.encode(versions), indent=2)
        replace_whole(self._disk, self._path.with_suffix(".new"), self._path, data)
