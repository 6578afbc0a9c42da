"""StreamActors: a durable log, an exactly-once stream processor, and views, in one Python process.

Names are imported when they are first used, so that ``import streamactors`` and the command line start fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamactors.core.errors import (
        BadRecord,
        Damaged,
        Held,
        JobFailed,
        LogClosed,
        PipelineError,
        QuotaFull,
        SinkConflict,
        StorageError,
        StreamActorsError,
        UsageError,
    )
    from streamactors.durable.log import Log
    from streamactors.engine.restarts import RestartPolicy
    from streamactors.flow.aggregates import aggregate, count, mean
    from streamactors.flow.aggregates import max_ as max  # noqa: A004 - the user writes streamactors.max
    from streamactors.flow.aggregates import min_ as min  # noqa: A004
    from streamactors.flow.aggregates import reduce_ as reduce
    from streamactors.flow.aggregates import sum_ as sum  # noqa: A004
    from streamactors.flow.sequencer import Bound
    from streamactors.flow.transforms import Row
    from streamactors.flow.windows import Tumbling
    from streamactors.graph.pipeline import Pipeline
    from streamactors.job.runner import Job, run
    from streamactors.job.settings import Settings

_ERRORS = (
    "BadRecord Damaged Held JobFailed LogClosed PipelineError QuotaFull SinkConflict StorageError StreamActorsError "
    "UsageError"
)
_HOMES = {
    **dict.fromkeys(_ERRORS.split(), "core.errors"),
    "Log": "durable.log",
    "RestartPolicy": "engine.restarts",
    **dict.fromkeys(("aggregate", "count", "max", "mean", "min", "reduce", "sum"), "flow.aggregates"),
    "Bound": "flow.sequencer",
    "Row": "flow.transforms",
    "Tumbling": "flow.windows",
    "Pipeline": "graph.pipeline",
    "Job": "job.runner",
    "run": "job.runner",
    "Settings": "job.settings",
}
_UNDERSCORED = {"max", "min", "reduce", "sum"}  # so named where they are defined, not to hide the builtins there

__all__ = [
    "BadRecord",
    "Bound",
    "Damaged",
    "Held",
    "Job",
    "JobFailed",
    "Log",
    "LogClosed",
    "Pipeline",
    "PipelineError",
    "QuotaFull",
    "RestartPolicy",
    "Row",
    "Settings",
    "SinkConflict",
    "StorageError",
    "StreamActorsError",
    "Tumbling",
    "UsageError",
    "aggregate",
    "count",
    "max",
    "mean",
    "min",
    "reduce",
    "run",
    "sum",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'streamactors' has no attribute {name!r}")
    home = import_module(f"streamactors.{_HOMES[name]}")
    return getattr(home, f"{name}_" if name in _UNDERSCORED else name)


def __dir__() -> list[str]:
    return sorted(__all__)
