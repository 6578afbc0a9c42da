"""The folder, in the thread of its lane."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamactors.core.connectors import Payload, Stamp, World
from streamactors.core.errors import StorageError

from .staging import Showing, Staging


class FolderTarget:
    """Where parts become visible. *encode* makes a part of a payload, in the lane; it may look at the folder first."""

    def __init__(
        self, world: World, folder: Path, sink: str, extension: str, encode: Callable[[bytes], bytes] | None = None
    ) -> None:
        self._ports = world.ports
        self._lane = f"part_files/{folder}"
        self._folder = folder
        self._sink, self._extension = sink, extension
        self._encode = encode
        self._stagings: dict[tuple[str, str], Staging] = {}
        self._showing = Showing(
            world.ports.disk, folder, sink, extension, owner=world.data_dir, life=world.ports.new_id()
        )

    async def last_stamp(self, partition: int, job: str, sink: str) -> Stamp | None:
        stamp: Stamp | None = await self._run(self._last_stamp, partition, job, sink)
        return stamp

    async def commit(self, payload: Payload, stamp: Stamp, expect: Stamp | None) -> None:
        await self._run(self._commit, payload, stamp, expect)

    async def write(self, payload: Payload) -> None:
        await self._run(self._show, payload, self._ports.clock.now_ms())

    async def close(self) -> None:
        await self._run(self._close)

    def _last_stamp(self, partition: int, job: str, sink: str) -> Stamp | None:
        return self._staging(job, sink).last_stamp(partition)

    def _close(self) -> None:
        for staging in self._stagings.values():
            staging.close()

    def _staging(self, job: str, sink: str) -> Staging:
        if (job, sink) not in self._stagings:
            staging = Staging(self._ports.disk, self._folder, job, sink, self._extension)
            self._stagings[job, sink] = staging
        return self._stagings[job, sink]

    def _commit(self, payload: Payload, stamp: Stamp, expect: Stamp | None) -> None:
        self._staging(stamp.job, stamp.sink).commit(payload.partition, self._part(payload), stamp, expect)

    def _show(self, payload: Payload, now_ms: int) -> None:
        self._showing.show(payload.partition, self._part(payload), now_ms)

    def _part(self, payload: Payload) -> bytes:
        return payload.data if self._encode is None else self._encode(payload.data)

    async def _run(self, work: Callable[..., Any], *arguments: object) -> Any:
        return await self._ports.threads.run(self._lane, self._named, work, *arguments)

    def _named(self, work: Callable[..., Any], *arguments: object) -> Any:
        """Do *work*; what the disk says against it gets a name and a remedy."""
        try:
            return work(*arguments)
        except OSError as error:
            raise StorageError(
                f"sink {self._sink}: {self._folder} could not be written ({error}). Nothing is lost or shown twice; it "
                "is tried again. Make room, or repair the folder."
            ) from error
