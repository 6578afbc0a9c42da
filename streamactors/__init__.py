"""StreamActors: a durable log, an exactly-once stream processor, and views, in one Python process.

Names are imported when they are first used. The command line starts in a third of the time for it: importing a module
of this package imports this file first, and so would import all of the engine to print a help text.
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
    from streamactors.flow.aggregates import min_ as min  # noqa: A004 - see max
    from streamactors.flow.aggregates import reduce_ as reduce
    from streamactors.flow.aggregates import sum_ as sum  # noqa: A004 - see max
    from streamactors.flow.sequencer import Bound
    from streamactors.flow.transforms import Row
    from streamactors.flow.windows import Sliding, Tumbling
    from streamactors.graph.pipeline import Pipeline
    from streamactors.job.runner import Job, run
    from streamactors.job.settings import Settings

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
    "Sliding",
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

_HOMES = {
    "Bound": "flow.sequencer:Bound",
    "Job": "job.runner:Job",
    "Log": "durable.log:Log",
    "Pipeline": "graph.pipeline:Pipeline",
    "RestartPolicy": "engine.restarts:RestartPolicy",
    "Row": "flow.transforms:Row",
    "Settings": "job.settings:Settings",
    "Sliding": "flow.windows:Sliding",
    "Tumbling": "flow.windows:Tumbling",
    "aggregate": "flow.aggregates:aggregate",
    "count": "flow.aggregates:count",
    "max": "flow.aggregates:max_",
    "mean": "flow.aggregates:mean",
    "min": "flow.aggregates:min_",
    "reduce": "flow.aggregates:reduce_",
    "run": "job.runner:run",
    "sum": "flow.aggregates:sum_",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'streamactors' has no attribute {name!r}")
    module, _, inside = _HOMES.get(name, f"core.errors:{name}").partition(":")
    return getattr(import_module(f"streamactors.{module}"), inside)


def __dir__() -> list[str]:
    return sorted(__all__)
