"""StreamActors: a durable log, an exactly-once stream processor, and views, in one Python process.

Names are imported when they are first used. The command line starts in a third of the time for it: importing a module
of this package imports this file first, and so would import all of the engine to print a help text.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from connectors.iterators import AsyncItems
    from connectors.push import Push
    from connectors.ticks import Ticks
    from streamactors.core.connectors import Guarantee
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
        Unacknowledged,
        UsageError,
    )
    from streamactors.durable.log import Log
    from streamactors.engine.restarts import RestartPolicy
    from streamactors.flow.aggregates import aggregate, count, mean
    from streamactors.flow.aggregates import max_ as max  # noqa: A004 - the user writes streamactors.max
    from streamactors.flow.aggregates import min_ as min  # noqa: A004 - see max
    from streamactors.flow.aggregates import reduce_ as reduce
    from streamactors.flow.aggregates import sum_ as sum  # noqa: A004 - see max
    from streamactors.flow.async_calls import Retry
    from streamactors.flow.sequencer import Bound
    from streamactors.flow.transforms import Row
    from streamactors.flow.windows import Sliding, Tumbling
    from streamactors.graph.pipeline import Pipeline
    from streamactors.job.failures import Failure
    from streamactors.job.runner import Job, run
    from streamactors.job.served import open_views
    from streamactors.job.settings import Settings
    from streamactors.job.standby import StandBy, stand_by

__all__ = [
    "AsyncItems",
    "BadRecord",
    "Bound",
    "Damaged",
    "Failure",
    "Guarantee",
    "Held",
    "Job",
    "JobFailed",
    "Log",
    "LogClosed",
    "Pipeline",
    "PipelineError",
    "Push",
    "QuotaFull",
    "RestartPolicy",
    "Retry",
    "Row",
    "Settings",
    "SinkConflict",
    "Sliding",
    "StandBy",
    "StorageError",
    "StreamActorsError",
    "Ticks",
    "Tumbling",
    "Unacknowledged",
    "UsageError",
    "aggregate",
    "count",
    "max",
    "mean",
    "min",
    "open_views",
    "reduce",
    "run",
    "stand_by",
    "sum",
]

_HOMES = {
    "AsyncItems": "connectors.iterators:AsyncItems",
    "Bound": "flow.sequencer:Bound",
    "Failure": "job.failures:Failure",
    "Guarantee": "core.connectors:Guarantee",
    "Job": "job.runner:Job",
    "open_views": "job.served:open_views",
    "Log": "durable.log:Log",
    "Pipeline": "graph.pipeline:Pipeline",
    "Push": "connectors.push:Push",
    "RestartPolicy": "engine.restarts:RestartPolicy",
    "Retry": "flow.async_calls:Retry",
    "Row": "flow.transforms:Row",
    "Settings": "job.settings:Settings",
    "Sliding": "flow.windows:Sliding",
    "StandBy": "job.standby:StandBy",
    "Ticks": "connectors.ticks:Ticks",
    "Tumbling": "flow.windows:Tumbling",
    "aggregate": "flow.aggregates:aggregate",
    "count": "flow.aggregates:count",
    "max": "flow.aggregates:max_",
    "mean": "flow.aggregates:mean",
    "min": "flow.aggregates:min_",
    "reduce": "flow.aggregates:reduce_",
    "run": "job.runner:run",
    "stand_by": "job.standby:stand_by",
    "sum": "flow.aggregates:sum_",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'streamactors' has no attribute {name!r}")
    module, _, inside = _HOMES.get(name, f"core.errors:{name}").partition(":")
    return getattr(import_module(module if module.startswith("connectors.") else f"streamactors.{module}"), inside)


def __dir__() -> list[str]:
    return sorted(__all__)
