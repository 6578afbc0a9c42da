"""StreamActors: a durable log, an exactly-once stream processor, and views, in one Python process."""

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
from streamactors.flow.windows import Tumbling
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
