"""Metrics for Prometheus, through its official client: ``pip install 'streamactors[metrics]'``.

    with metrics.register(job):                            # into the client's default registry
        ...                                                # serve it as your service does
    with metrics.register(job), metrics.serve(9_100):      # or at http://127.0.0.1:9100/metrics

Nothing is done for metrics while records flow. A scrape reads ``job.status()``; what must be counted as it happens (how
long a checkpoint took, or a sync) is counted once an epoch or once a sync, whether somebody scrapes or not.

A scrape comes in whichever thread the registry is read in, and a job may be looked at in its own event loop alone. So
from another thread the loop is asked; while it does not answer, the last figures are given, and their age.

Counters begin at 0 with the process and never go back, also when a region restarts.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from streamactors.core.errors import UsageError
from streamactors.core.histogram import Histogram
from streamactors.durable.log import Log
from streamactors.job.runner import Job
from streamactors.job.status import JobStatus

from .metric_table import METRICS, Metric, Seen, Value, read

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family

ANSWER_SECONDS = 1.0
"""How long a scrape waits for an event loop: longer than a healthy one needs, and far below Prometheus' own timeout of
10 s, so that figures of other jobs still get there."""


def _client() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise UsageError(
            "metrics need the Prometheus client, which is not installed: nothing can be shown. Install it with "
            "pip install 'streamactors[metrics]'"
        ) from error
    return prometheus_client


class _Watched:
    """A job, and the event loop that it lives in."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._status = job.status()
        self._at = time.monotonic()

    def status(self) -> tuple[JobStatus, float]:
        """Return the status, and its age in seconds."""
        if threading.get_ident() == self._thread:
            self._take()
        else:
            self._ask()
        return self._status, max(0.0, time.monotonic() - self._at)

    def _take(self) -> None:
        self._status, self._at = self.job.status(), time.monotonic()

    def _ask(self) -> None:
        taken: Future[None] = Future()

        def take() -> None:
            self._take()
            taken.set_result(None)

        with suppress(RuntimeError, TimeoutError):  # the loop is closed; it does not answer
            self._loop.call_soon_threadsafe(take)
            taken.result(ANSWER_SECONDS)


class _Collector:
    """What one registry shows: one collector for all jobs, because each metric may be described only once."""

    def __init__(self) -> None:
        self.jobs: list[_Watched] = []
        self.logs: list[Log] = []

    def describe(self) -> Iterator[Family]:
        """Return the metrics without values: their names are taken."""
        return (self._family(metric, {}) for metric in METRICS)

    def collect(self) -> Iterator[Family]:
        """Return the metrics as they are now."""
        jobs = [watched.status() for watched in list(self.jobs)]
        logs = {id(log): log for log in [*self.logs, *(watched.job.log for watched in self.jobs)]}
        seen = Seen(jobs, [log.appends() for log in logs.values()], time.time())
        return (self._family(metric, read(metric, seen)) for metric in METRICS)

    def _family(self, metric: Metric, values: dict[tuple[str, ...], Value]) -> Family:
        from prometheus_client import core

        kinds: dict[str, Callable[..., Any]] = {
            "counter": core.CounterMetricFamily,
            "gauge": core.GaugeMetricFamily,
            "histogram": core.HistogramMetricFamily,
        }
        family = kinds[metric.kind](metric.name, metric.text, labels=metric.labels)
        for labels, value in values.items():
            if isinstance(value, Histogram):
                bounds = [*map(str, value.bounds), "+Inf"]
                family.add_metric(labels, list(zip(bounds, value.up_to(), strict=True)), value.sum)
            else:
                family.add_metric(labels, value)
        return family  # type: ignore[no-any-return]  # the client's own types


_collectors: WeakKeyDictionary[CollectorRegistry, _Collector] = WeakKeyDictionary()


@contextmanager
def register(watched: Job | Log, registry: CollectorRegistry | None = None) -> Iterator[None]:
    """
    Show the metrics of a job and of its log, or of a log alone, in *registry* while the block runs.

    Args:
        watched:
            A running job: call this in its event loop. Or a ``Log``, where a process appends and runs no job.

        registry:
            The client's default one, which also shows the process and Python, unless another is given.

    Raises:
        UsageError: the Prometheus client is not installed.
    """
    client = _client()
    registry = client.REGISTRY if registry is None else registry
    assert registry is not None, "the client has a default registry"
    collector = _collectors.get(registry)
    if collector is None:
        collector = _collectors[registry] = _Collector()
        registry.register(collector)
    shown: list[Any] = collector.logs if isinstance(watched, Log) else collector.jobs
    one = watched if isinstance(watched, Log) else _Watched(watched)
    shown.append(one)
    try:
        yield
    finally:
        shown.remove(one)
        if not collector.jobs and not collector.logs:
            registry.unregister(collector)
            del _collectors[registry]


@contextmanager
def serve(port: int, host: str = "127.0.0.1", registry: CollectorRegistry | None = None) -> Iterator[int]:
    """
    Answer ``GET /metrics`` at *host*:*port*, from a thread, while the block runs; yield the port.

    Port 0 is any free one. Whoever reaches the address reads the metrics: a *host* other than loopback is a decision.

    Raises:
        UsageError: the client is not installed, or the address can't be had.
    """
    client = _client()
    registry = client.REGISTRY if registry is None else registry
    try:
        server, thread = client.start_http_server(port, host, registry)
    except OSError as error:
        raise UsageError(
            f"metrics can't be served at {host}:{port}: {error.strerror or error}. Give a free port and an address of "
            "this machine."
        ) from error
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
