"""Transcripts: what the actors of a job say to each other and do to the disk, one line each, in order.

A protocol is easiest to judge by reading it. A transcript is compared with a text file, and a change of the protocol is
a diff that somebody reads.

    sequencer > count            1  Batch(2 from script/0)      a message, with its sequence number
    count                           hands over epoch 1          to the coordinator
    threads                         the commit is durable       a piece of work that changes what is on disk
    region script                   attempt 1 has ended         what the supervisor sees

Times, sizes and ids are left out: they are not the protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from streamactors.engine.mailbox import Channel
from streamactors.job.coordinator import Coordinator
from streamactors.job.region import RegionSupervisor

from .world import Process

_NOTED = {
    "after Store.begin_attempt": "a new attempt is durable",
    "after Store.commit": "the commit is durable",
    "after GroupCommit._write": "an append is durable",
    "before Job._release": "closes",
}
"""Work of threads that is part of a protocol."""


class Transcript:
    """Lines, as they are said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __str__(self) -> str:
        return "".join(f"{line.rstrip()}\n" for line in self.lines)

    def note(self, who: str, sequence: int | None, what: object) -> None:
        """Add a line."""
        self.lines.append(f"{who:34} {'' if sequence is None else sequence:>3}  {what}")

    def chapter(self, title: str) -> None:
        """Begin a part."""
        self.lines += ["", f"# {title}", ""] if self.lines else [f"# {title}", ""]

    def follow(self, process: Process) -> None:
        """Note what the threads of *process* do, and its death."""
        noted = process.on_point

        def on_point(label: str) -> None:
            noted(label)
            if label in _NOTED:
                self.note("threads", None, _NOTED[label])

        process.on_point = on_point

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note messages and hand-overs while the block runs. One block at a time in a process."""
        put, hand_over = Channel.put, Coordinator._hand_over  # noqa: SLF001 - it stands between the two
        attempt = RegionSupervisor._attempt  # noqa: SLF001 - see above

        def noted_put(channel: Channel, sequence: int, message: Any, records: int = 0, size: int = 0) -> None:
            self.note(_short(channel.name), sequence, message)
            put(channel, sequence, message, records, size)

        def noted_hand_over(coordinator: Coordinator, member: str, epoch: int) -> None:
            self.note(_short(member), None, f"hands over epoch {epoch}")
            hand_over(coordinator, member, epoch)

        async def noted_attempt(region: RegionSupervisor) -> None:
            try:
                await attempt(region)
            except Exception as error:
                self.note(f"region {region.id}", None, f"attempt {region.attempt} failed: {error}")
                raise
            self.note(f"region {region.id}", None, f"attempt {region.attempt} has ended")

        Channel.put, Coordinator._hand_over = noted_put, noted_hand_over  # type: ignore[method-assign, assignment]  # noqa: SLF001
        RegionSupervisor._attempt = noted_attempt  # type: ignore[method-assign, assignment]  # noqa: SLF001
        try:
            yield
        finally:
            Channel.put, Coordinator._hand_over = put, hand_over  # type: ignore[method-assign]  # noqa: SLF001
            RegionSupervisor._attempt = attempt  # type: ignore[method-assign]  # noqa: SLF001


def _short(name: str) -> str:
    """Return a path without the job's name in front of each part."""
    return " > ".join(part.split("/", 1)[-1] for part in name.split(" > "))
