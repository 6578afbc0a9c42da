"""Reading the views of a job that runs elsewhere, or nowhere: those of the version that is served.

A reader takes the catalogue's pointer, begins a snapshot, and looks at the pointer again. So whatever is read in one
snapshot is wholly of one version, and of the one that was served when it began; in the instant of a promotion that is
all of the old or all of the new, for every view. A scan stays with the version with which it began.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamactors.durable.catalogue import FIRST, Catalogue
from streamactors.durable.files import RealDisk
from streamactors.durable.sharing import forget, reading
from streamactors.durable.snapshot import Snapshot
from streamactors.durable.store import StoreClosed
from streamactors.durable.views import View, ViewReader

from .folders import job_folder, version_folder


class _Served:
    """Finds the store that is served, for each snapshot anew."""

    def __init__(self, data_dir: Path, job: str) -> None:
        self._data_dir = data_dir
        self._job = job
        self._catalogue = Catalogue(RealDisk(), job_folder(data_dir, job))
        self.read: set[Path] = set()

    @property
    def version(self) -> str:
        versions = self._catalogue.read()
        return FIRST if versions is None else versions.serving

    def snapshot(self) -> Snapshot:
        """Return a snapshot of the version that is served, and was so all the while."""
        while True:
            version = self.version
            snapshot = self.of(version)
            if self.version == version:
                return snapshot
            snapshot.close()

    def of(self, version: str) -> Snapshot:
        """Return a snapshot of *version*, served or not."""
        folder = version_folder(self._data_dir, self._job, version)
        self.read.add(folder)
        while True:
            try:
                return reading(folder).snapshot()
            except StoreClosed:
                continue  # a job of this process has opened it meanwhile, or let it go


class ServedViews(ViewReader):
    """As ``job.views``, of the version that is served. See the module's header."""

    def __init__(self, data_dir: Path, job: str) -> None:
        self._served = _Served(data_dir, job)
        super().__init__(self._served)

    def __getitem__(self, name: str) -> View:
        return _ServedView(name, self._served)

    @property
    def version(self) -> str:
        """The version that is served now."""
        return self._served.version

    def close(self) -> None:
        """Close what was opened to be read."""
        for folder in self._served.read:
            forget(folder)


class _ServedView(View):
    def __init__(self, name: str, served: _Served) -> None:
        super().__init__(name, served.snapshot)
        self._served = served

    def items(self, prefix: list[Any] | tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any]]:
        """Return (key, value) of all rows, as ``View.items``; all chunks are of the version that is served now."""
        version = self._served.version
        return View(self.name, lambda: self._served.of(version)).items(prefix)


@contextmanager
def open_views(data_dir: Path | str, job: str) -> Iterator[ServedViews]:
    """
    Read the views of *job*, whether it runs in this process, in another one, or not at all::

        with streamactors.open_views("data", "quiz-counts") as views:
            views["quiz_counts"].get(["algebra", 0])

    What is read is as of the last checkpoint of the version that is served; each read sees the newest one.

    Raises:
        UsageError: at the first read, when no job of that name has written there yet; a later read may find it.

    Cost: a read looks at one small file, twice.
    """
    views = ServedViews(Path(data_dir), job)
    try:
        yield views
    finally:
        views.close()
