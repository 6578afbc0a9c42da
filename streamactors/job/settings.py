"""Settings of a run: typed, in one place."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamactors.core.connectors import Guarantee
from streamactors.core.errors import UsageError
from streamactors.core.limits import BATCH_RECORDS_MAX
from streamactors.engine.restarts import RestartPolicy
from streamactors.flow.sequencer import Bound

from .guarantees import guarantee_of

SINKS = ("continue", "shadow", "reset")
"""What a start from a savepoint can do to targets."""

_LEAST = {"checkpoint_every_ms": 1, "batch_records": 1, "watchdog_ms": 0, "await_ms": 0, "quota_bytes": 1}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a job runs."""

    checkpoint_every_ms: int = 200
    """Time between checkpoints, ms. Shorter: views follow sooner. Longer: fewer writes."""

    guarantee: Guarantee = Guarantee.EXACTLY_ONCE
    """What a crash may do to the result."""

    version: str | None = None
    """Label of the version that runs. None: the one that is served, at first ``v1``. One that is not served follows."""

    from_savepoint: Path | None = None
    """A savepoint of which the version's state is made before it runs. The version has none yet."""

    from_time: int | None = None
    """Event time, ms, at which the version begins: at the nearest position before it that is known (from_time.py).
    None: with the first record, or where it stands."""

    sinks: str | None = None
    """What a start from a savepoint does to targets: ``continue``, ``shadow`` or ``reset`` (job/savepoints.py)."""

    fresh: frozenset[str] = frozenset()
    """Ids of operators that may start empty, if they are new or what is stored does not fit them."""

    dropped: frozenset[str] = frozenset()
    """Ids of operators whose state may go, if the pipeline does not have them any more."""

    bound: Bound = Bound.LIVE
    """How far the run goes."""

    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    """What starts again after a failure, how often, and how fast."""

    watchdog_ms: int = 500
    """A function that keeps the event loop for this long, ms, is named in the log. 0: nobody looks. Shorter finds more,
    and costs more; a web service around the job is late by as much before anybody is told."""

    await_ms: int = 10_000
    """A call of an async function that has not returned after this long, ms, is named in the log. 0: never."""

    quota_bytes: int | None = None
    """Bytes that the job's state may take on disk. None: what the disk has."""

    batch_records: int = BATCH_RECORDS_MAX
    """Records in a batch, at most. The result does not depend on it (T2)."""

    follow: dict[str, Iterable[tuple[Any, ...]]] | None = None
    """For each region, a journal to follow instead of deciding anew: the run repeats it and ends with it."""

    sync: bool = True
    """Whether a checkpoint waits for the disk. False is for simulations, whose crashes never lose the machine."""

    @classmethod
    def from_environment(cls, program: Settings | None = None) -> Settings:
        """
        Return *program*, by default the defaults, changed by what the STREAMACTORS_ variables of this process say.

        Raises UsageError for a value that makes no sense; it names the variable.
        """
        from .options import from_variables  # it is made of this class

        return from_variables(program or cls(), os.environ)

    def __post_init__(self) -> None:
        """Refuse what would never rest, or never move, or is of another kind."""
        object.__setattr__(self, "guarantee", guarantee_of(self.guarantee))  # a name does
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None and name == "quota_bytes":
                continue
            if type(value) is not int:
                raise UsageError(f"settings: {name}={value!r} is no whole number, which it has to be. Give one.")
            if value < least:
                off = ", which turns it off" if least == 0 else ""
                raise UsageError(f"settings: {name}={value} is below {least}. Give at least {least}{off}.")
        if not isinstance(self.restarts, RestartPolicy):
            raise UsageError(f"settings: restarts={self.restarts!r} is no RestartPolicy. Give one.")
        if (self.from_savepoint is None) != (self.sinks is None) or self.sinks not in {None, *SINKS}:
            raise UsageError(
                f"settings: from_savepoint={self.from_savepoint}, sinks={self.sinks}: a start from a savepoint, and no "
                f"other, has to say what becomes of targets outside. Give one of {', '.join(SINKS)}: go on where the "
                "savepoint stands; write others, that bear the version's label; or write behind what is there."
            )
        if self.from_time is not None and self.from_savepoint is not None:
            raise UsageError("settings: from_time and from_savepoint both say where the version begins. Give one.")
