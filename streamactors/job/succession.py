"""Succession: which version of a job decides, which follows, and how one comes after the other.

The catalogue (durable/catalogue.py) says what is to be; this task, one beside each running version, sees to it that its
own regions are that. A region changes its part between two attempts: it takes a last checkpoint, rests, lets its
targets go, and begins again as the other. In the order of the code, for the version that is served (S) and the one that
was asked for (N):

    S   sees that N was asked for: its regions come to rest, and it notes where they stand (``yielded``). It rests
    N   follows to that very place; a checkpoint of its own stands there; its regions come to rest
    N   notes that targets are exchanged now, exchanges them (swapping.py), and is served: the last two in one change
    N   decides from there on. S, and everyone else, follows N

If S is not running, whoever asks notes the place for it; if N is not running, whoever asks finds that it stands there
already, or refuses (promotion.py does both).

If we crash between two steps: the catalogue is as the last one left it, and the next start goes on from there. Nobody
decides while nobody may. While targets are exchanged nobody opens one: who starts then completes it first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from streamactors.core.errors import StreamActorsError
from streamactors.core.ports import Ports
from streamactors.durable.catalogue import Catalogue, Place, Versions, digest_of
from streamactors.durable.store import Restored

from .folders import job_folder, version_folder
from .following import Lead
from .swapping import complete, refuse_what_is_in_the_way

POLL_SECONDS = 0.1
"""How often the catalogue is looked at: nobody promotes in a hurry, and a look costs 0.1 ms."""

CATALOGUE_LANE = "catalogue"


@dataclass(frozen=True, slots=True)
class Part:
    """What a version does while it runs."""

    following: str | None
    """The version whose journal it follows; None: it decides."""

    shadow: str | None
    """What its targets bear; None: they are those that readers know."""


def part_of(versions: Versions | None, label: str) -> Part | None:
    """Return the part that the catalogue gives to *label*; None: it rests."""
    if versions is None:
        return Part(None, None)
    return None if versions.waits(label) else Part(versions.followed_by(label), versions.shadow(label))


class Region(Protocol):
    """What succession asks of a region's supervisor."""

    @property
    def id(self) -> str:
        """The region's id."""

    async def rest(self) -> None:
        """Take a last checkpoint; return when the attempt has ended and targets are let go, or the region is over."""

    async def go_on(self, lead: Lead | None, shadow: str | None) -> None:
        """Begin again, following *lead*, or deciding; with the targets that *shadow* names."""


class Succession:
    """See the module's header."""

    def __init__(
        self,
        version: str,
        *,
        job: str,
        data_dir: Path,
        ports: Ports,
        restore: Callable[[str], Restored | None],
        to_end: bool,
    ) -> None:
        self.version = version
        self.following: str | None = None
        """The version whose journal is followed, or was until it came to rest; None: this one decides."""

        self.part: Part | None = None
        """None: it rests."""

        self._job = job
        self._data_dir = data_dir
        self._ports = ports
        self._catalogue = Catalogue(ports.disk, job_folder(data_dir, job))
        self._restore = restore
        self._to_end = to_end
        self._regions: list[Region] = []
        self._log = logging.getLogger(f"streamactors.{job}")

    def begin(self, versions: Versions | None) -> None:
        """Take the part that the catalogue gives to this version, before its regions begin."""
        self._take(part_of(versions, self.version))
        if self.part is None and versions is not None:
            self.following = versions.followed_by(self.version)

    def _take(self, part: Part | None) -> None:
        self.part = part
        if part is not None:
            self.following = part.following

    def lead(self, region: str) -> Lead | None:
        """Return what *region* follows; None: it decides."""
        if self.following is None:
            return None
        folder = version_folder(self._data_dir, self._job, self.following)
        return Lead(self.following, folder, region, self._to_end)

    async def register(self, targets: Sequence[Sequence[str]], file: str | None, since: int | None = None) -> None:
        """
        Note in the catalogue that this version is there, what it writes, the file of its code, and when it began.

        It is the first one's to be served.
        """
        wanted = [list(address) for address in targets]
        digest = await self._ports.threads.run(CATALOGUE_LANE, digest_of, file)

        def note(found: Versions) -> None:
            version = found.begin(self.version, self._now())
            version.created_ms = version.created_ms or self._now()
            version.targets = wanted
            version.since = "earliest" if since is None else str(since)
            version.code, version.digest = file or "", digest

        found = await self._read()
        known = found.version(self.version) if found is not None and self.version in found else None
        code_is_known = known is not None and (known.code, known.digest) == (file or "", digest)
        if known is None or not known.created_ms or known.targets != wanted or not code_is_known:
            await self._change(note)

    async def run(self, regions: Sequence[Region]) -> None:
        """See to it, until cancelled, that *regions* are what the catalogue says."""
        self._regions = list(regions)
        trouble = ""
        if self.part is None:
            self._log.warning(
                "version %s rests: another one is about to be served, and follows to where this one ended. Start that "
                "one, or roll back",
                self.version,
            )
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
        elif handover is not None and handover.exchanging and versions.waits(self.version):
            await self._rest()
            await self._serve()
        elif handover is not None and handover.at is not None and handover.to == self.version:
            if stands_at(self._restore, handover.at, [region.id for region in self._regions]):
                await self._take_over()
        elif (part := part_of(versions, self.version)) != self.part:
            await self._turn(part)

    async def _yield(self, to: str) -> None:
        self._log.info("version %s comes to rest, as %s is to be served", self.version, to)
        await self._rest()
        places = {region.id: place_of(self._restore(region.id)) for region in self._regions}

        def note(found: Versions) -> None:
            if found.handover is not None and found.handover.to == to and found.handover.at is None:
                found.yielded(places)

        await self._change(note)

    async def _take_over(self) -> None:
        await self._rest()

        def note(found: Versions) -> None:
            if found.handover is not None and found.handover.to == self.version and found.handover.at is not None:
                refuse_what_is_in_the_way(self._ports.disk, self._data_dir, found)
                found.exchange()

        await self._change(note)
        await self._serve()

    async def _serve(self) -> None:
        """Do what is left of an exchange that was noted, whoever began it."""
        versions = await self._ports.threads.run(
            CATALOGUE_LANE, complete, self._catalogue, self._ports.disk, self._data_dir, self._job, self._now()
        )
        if versions is not None:
            self._log.info("version %s is served from here on", versions.serving)

    async def _turn(self, part: Part | None) -> None:
        if part is not None:
            what = "decides" if part.following is None else f"follows {part.following}"
            self._log.info("version %s %s", self.version, what)
        await self._rest()
        if part is not None:
            self.following = part.following
            for region in self._regions:
                await region.go_on(self.lead(region.id), part.shadow)
            self.part = part

    async def _rest(self) -> None:
        """Come to rest; harmless when that was done. What fails on the way is tried again."""
        self.part = None
        await asyncio.gather(*(region.rest() for region in self._regions))

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
