"""Succession: which version of a job decides, which follows, and how one comes after the other.

The catalogue (durable/catalogue.py) says what is to be; this task, one beside each running version, sees to it that its
own regions are that. A region changes its part between two attempts: it takes a last checkpoint, rests, and begins
again as the other. In the order of the code, for the version that is served (S) and the one that was asked for (N):

    S   sees that N was asked for: its regions come to rest, and it notes where they stand (``yielded``)
    N   follows to that very place; a checkpoint of its own stands there; its regions come to rest
    N   its targets become those that readers know (see ``Swap``), then the catalogue says that it is served
    N   decides from there on. S, and everyone else, follows N

If S is not running, whoever asks notes the place for it; if N is not running, whoever asks finds that it stands there
already, or refuses (ops/version_commands.py does both).

If we crash between two steps: the catalogue is as the last one left it, and the next start goes on from there. Nobody
decides while nobody may: a version whose part is to wait follows, and finds nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from streamactors.core.errors import StreamActorsError
from streamactors.core.ports import Ports
from streamactors.durable.catalogue import Catalogue, Place, Versions
from streamactors.durable.store import Restored

from .folders import version_folder
from .following import Lead

POLL_SECONDS = 0.1
"""How often the catalogue is looked at: nobody promotes in a hurry, and a look costs 0.1 ms."""

CATALOGUE_LANE = "catalogue"

Swap = Callable[[str, str], Awaitable[None]]
"""(old, new): make the targets of *new* those that readers know. Called again after a crash; must not mind."""


class Region(Protocol):
    """What succession asks of a region's supervisor."""

    @property
    def id(self) -> str:
        """The region's id."""

    async def rest(self) -> None:
        """Take a last checkpoint, and return when the attempt has ended; or when the region is over."""

    def go_on(self, lead: Lead | None) -> None:
        """Begin again, following *lead*, or deciding."""


class Succession:
    """See the module's header."""

    def __init__(
        self,
        catalogue: Catalogue,
        version: str,
        *,
        job: str,
        data_dir: Path,
        ports: Ports,
        restore: Callable[[str], Restored | None],
        swap: Swap,
        to_end: bool,
    ) -> None:
        self.version = version
        self.following: str | None = None
        """The version whose journal is followed now; None: this one decides."""

        self._catalogue = catalogue
        self._job = job
        self._data_dir = data_dir
        self._ports = ports
        self._restore = restore
        self._swap = swap
        self._to_end = to_end
        self._regions: list[Region] = []
        self._log = logging.getLogger(f"streamactors.{job}")

    def begin(self, versions: Versions | None) -> None:
        """Take the part that the catalogue gives to this version, before its regions begin."""
        if versions is not None:
            self.following = versions.followed_by(self.version)

    def lead(self, region: str) -> Lead | None:
        """Return what *region* follows; None: it decides."""
        if self.following is None:
            return None
        folder = version_folder(self._data_dir, self._job, self.following)
        return Lead(self.following, folder, region, self._to_end)

    async def register(self) -> None:
        """Note in the catalogue that this version is there; it is the first one's to be served."""
        versions = await self._read()
        if versions is None or self.version not in versions:
            await self._change(lambda found: found.begin(self.version, self._now()))

    async def run(self, regions: Sequence[Region]) -> None:
        """See to it, until cancelled, that *regions* are what the catalogue says."""
        self._regions = list(regions)
        trouble = ""
        while True:
            await self._ports.clock.sleep(POLL_SECONDS)
            try:
                versions = await self._read()
                if versions is not None and self.version in versions:
                    await self._see_to(versions)
            except (StreamActorsError, OSError) as error:
                if str(error) != trouble:  # said once, not at each look
                    self._log.error(
                        "version %s can't follow the catalogue: %s. It is looked at again.", self.version, error
                    )
                trouble = str(error)
            else:
                trouble = ""

    async def _see_to(self, versions: Versions) -> None:
        handover = versions.handover
        if handover is not None and handover.at is None and versions.serving == self.version:
            await self._yield(handover.to)
        elif handover is not None and handover.at is not None and handover.to == self.version:
            if stands_at(self._restore, handover.at, [region.id for region in self._regions]):
                await self._take_over(versions.serving)
        elif versions.followed_by(self.version) != self.following:
            await self._turn(versions.followed_by(self.version))

    async def _yield(self, to: str) -> None:
        self._log.info("version %s comes to rest, as %s is to be served", self.version, to)
        await self._rest()
        places = {region.id: place_of(self._restore(region.id)) for region in self._regions}

        def note(found: Versions) -> None:
            if found.handover is not None and found.handover.to == to and found.handover.at is None:
                found.yielded(places)

        self._begin_again(await self._change(note))

    async def _take_over(self, serving: str) -> None:
        await self._rest()
        await self._swap(serving, self.version)

        def serve(found: Versions) -> None:
            if found.handover is not None and found.handover.to == self.version and found.handover.at is not None:
                found.serve(self._now())

        versions = await self._change(serve)
        self._log.info("version %s is served from here on", versions.serving)
        self._begin_again(versions)

    async def _turn(self, following: str | None) -> None:
        self._log.info("version %s %s", self.version, "decides" if following is None else f"follows {following}")
        await self._rest()
        self.following = following
        self._go_on()

    async def _rest(self) -> None:
        await asyncio.gather(*(region.rest() for region in self._regions))

    def _begin_again(self, versions: Versions) -> None:
        self.following = versions.followed_by(self.version)
        self._go_on()

    def _go_on(self) -> None:
        for region in self._regions:
            region.go_on(self.lead(region.id))

    async def _read(self) -> Versions | None:
        return await self._ports.threads.run(CATALOGUE_LANE, self._catalogue.read)

    async def _change(self, change: Callable[[Versions], Any]) -> Versions:
        return await self._ports.threads.run(
            CATALOGUE_LANE, self._catalogue.change, self._job, self.version, self._now(), change
        )

    def _now(self) -> int:
        return self._ports.clock.now_ms()


def place_of(restored: Restored | None) -> Place:
    """Return where a region's checkpoint stands in the journal, the same for all versions that hold it."""
    if restored is None:
        return []
    position = restored.position
    offsets = sorted([part["source"], part["partition"], part["offset"]] for part in position["partitions"])
    return [position["entries"], offsets]


def stands_at(restore: Callable[[str], Restored | None], at: dict[str, Place], regions: Sequence[str]) -> bool:
    """Return whether those of *regions* that the other version has, too, stand where it ended."""
    return all(place_of(restore(region)) == at[region] for region in regions if region in at)
