"""Metrics: the table and its page agree, the figures are right and never go back, a scrape disturbs nobody."""

import asyncio
import re
import signal
import socket
import sys
import threading
import urllib.request
from bisect import bisect_left
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import streamactors as sa
from streamactors.core.histogram import Histogram
from streamactors.durable.frames import Records
from streamactors.job.states import State
from streamactors.ops import metrics
from streamactors.ops.metric_table import METRICS
from streamactors.testing.source import Crash, Pause, Script

ROOT = Path(__file__).parents[2]
AT_ONCE = sa.RestartPolicy(backoff_first=0.001, backoff_max=0.001)


@pytest.fixture
def registry():
    return CollectorRegistry()


def parsed(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name of the sample, values of its labels in the order of their names) → value; states that are 0 left out."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.value or not sample.name.endswith("_state")
    }


def scrape(registry):
    return parsed(generate_latest(registry).decode())


def job_of(script, data_dir, **options):
    pipeline = sa.Pipeline(options.pop("name", "job"))
    pipeline.source(script).key_by(str).count().to_view("counts")
    settings = sa.Settings(restarts=AT_ONCE, checkpoint_every_ms=20)
    return sa.run(pipeline, data_dir, settings=settings, **options)


async def until(fact):
    while not fact():
        await asyncio.sleep(0.001)


# The table. -----------------------------------------------------------------------------------------------------------


def test_the_page_lists_all_metrics_with_their_kinds_and_labels():
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(streamactors_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", page, re.MULTILINE)
    listed = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows]
    assert listed == [(metric.name, metric.kind, metric.labels, metric.text) for metric in METRICS]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_follows_the_conventions(metric):
    assert re.fullmatch(r"streamactors(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if metric.kind == "histogram":
        assert metric.name.endswith(("_seconds", "_bytes"))
    assert metric.text.endswith((".", ")"))


@given(st.lists(st.floats(0, 20)), st.lists(st.floats(0.1, 10), min_size=1, unique=True).map(sorted))
def test_a_histogram_counts_what_is_not_greater_than_each_bound(values, bounds):
    histogram = Histogram.of(*bounds)
    for value in values:
        histogram.observe(value)
    assert histogram.up_to() == [sum(value <= bound for value in values) for bound in [*bounds, float("inf")]]
    assert histogram.sum == pytest.approx(sum(values))
    assert histogram.count == len(values)
    assert bisect_left(bounds, max(bounds) + 1) == len(histogram.counts) - 1


# The figures. ---------------------------------------------------------------------------------------------------------


async def test_what_a_job_has_done_is_what_its_input_says(registry, data_dir):
    words = ["a", "b", "a", "c", "a"]
    async with job_of(Script([*words, Pause()]), data_dir) as job:
        with metrics.register(job, registry):
            await job.catch_up()
            seen = scrape(registry)
    assert seen["streamactors_records_total", ("job", "script")] == len(words)
    assert seen["streamactors_operator_records_in_total", ("job", "job/aggregate")] == len(words)
    assert seen["streamactors_view_rows_changed_total", ("job", "counts")] >= len(set(words))
    assert seen["streamactors_region_state", ("job", "script", "running")] == 1
    assert seen["streamactors_partition_lag", ("job", "0", "script")] == 0
    assert seen["streamactors_view_age_seconds", ("job", "script")] == 0
    epochs = seen["streamactors_checkpoint_duration_seconds_count", ("job", "script")]
    assert epochs == seen["streamactors_epoch", ("job", "script")] >= 1
    assert seen["streamactors_checkpoint_bytes_sum", ("job", "script")] > 0


@pytest.mark.parametrize("guarantee", list(sa.Guarantee))
async def test_each_metric_has_a_value_in_a_job_that_uses_everything(registry, data_dir, guarantee):
    pipeline = sa.Pipeline("job")

    @pipeline.before_start
    async def make(log):
        await (await log.create_topic("in")).append(b'{"k": "a", "at": 1}')

    stream = pipeline.topic("in").event_time("at")
    stream.key_by("k").window(sa.Tumbling("1s")).count().to_view("counts")
    stream.to_topic("out")
    async with sa.run(pipeline, data_dir, guarantee=guarantee) as job:
        with metrics.register(job, registry):
            await job.catch_up()
            names = {name for name, _ in scrape(registry)}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert shown >= {metric.name for metric in METRICS}


async def test_nothing_that_rises_goes_back_when_a_region_restarts(registry, data_dir):
    items = [word for crash in range(3) for word in ("a", "b", Pause(), Crash(), "a")]
    script, seen = Script([*items, Pause()]), []
    async with job_of(script, data_dir) as job:
        with metrics.register(job, registry):
            for restarts in range(1, 4):
                await job.catch_up()
                seen.append(scrape(registry))
                script.go_on()
                await until(lambda restarts=restarts: job.status().regions[0].restarts == restarts)
                seen.append(scrape(registry))
            await until(lambda: job.state == "running")
            await job.catch_up()
            seen.append(scrape(registry))
    rising = [name for name, _ in seen[-1] if name.endswith(("_total", "_bucket", "_count", "_sum"))]
    for before, after in pairwise(seen):
        assert {key: value for key, value in before.items() if key[0] in rising and after.get(key, -1) < value} == {}
    last = seen[-1]
    assert last["streamactors_restarts_total", ("job", "script")] == 3
    assert last["streamactors_operator_records_in_total", ("job", "job/aggregate")] >= 9


async def test_refused_records_are_counted_through_restarts_for_each_who_refuses(registry, data_dir):
    script = Script([0, 1, Pause(), 2, Crash(), 0, Pause()])
    pipeline = sa.Pipeline("job")
    pipeline.source(script).map(lambda value: 6 // value).on_error("skip").key_by(str).count().to_view("counts")
    async with sa.run(pipeline, data_dir, settings=sa.Settings(restarts=AT_ONCE)) as job:
        with metrics.register(job, registry):
            await job.catch_up()
            assert scrape(registry)["streamactors_refused_records_total", ("job", "job/map")] == 1
            script.go_on()
            await until(lambda: job.status().regions[0].restarts == 1 and job.state == "running")
            await job.catch_up()
            assert scrape(registry)["streamactors_refused_records_total", ("job", "job/map")] == 2


async def test_late_records_of_an_earlier_run_are_not_counted_again(registry, data_dir):
    """The state remembers them all; a counter that began with them would rise by them at each start of the process."""

    def run():
        pipeline = sa.Pipeline("job")
        numbers = pipeline.topic("numbers").event_time("at", disorder=0)
        numbers.key_by("k").window(sa.Tumbling("10s")).count().to_view("counts")
        return sa.run(pipeline, data_dir, settings=sa.Settings(checkpoint_every_ms=20))

    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("numbers")
        await topic.append_many([b'{"k": "a", "at": %d}' % at for at in (1, 60_000, 2, 3)])
    for late, more in ((2, b'{"k": "a", "at": 4}'), (1, b'{"k": "a", "at": 70000}'), (0, None)):
        async with run() as job:
            with metrics.register(job, registry):
                await job.catch_up()
                assert scrape(registry)["streamactors_late_records_total", ("job", "job/window")] == late
            if more is not None:
                topic = await job.log.topic("numbers")
        if more is not None:
            async with sa.Log(data_dir) as log:
                await (await log.topic("numbers")).append(more)


async def test_what_a_process_appends_is_counted_also_where_it_runs_no_job(registry, data_dir):
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("in", 3)
        with metrics.register(log, registry):
            await topic.append_many([b"x" * 10] * 7)
            before = scrape(registry)
            await topic.partition(1).reopen()  # as after a failed sync
            await topic.partition(1).append(Records.of([b"y"]))
            after = scrape(registry)
    assert before["streamactors_log_appended_records_total", ("in",)] == 7
    assert before["streamactors_log_sync_duration_seconds_count", ("in",)] == 3
    assert after["streamactors_log_appended_records_total", ("in",)] == 8
    assert after["streamactors_log_sync_duration_seconds_count", ("in",)] == 4
    files = sum(path.stat().st_size for path in (data_dir / "log" / "in").rglob("*.seg*"))
    assert 0 < after["streamactors_log_appended_bytes_total", ("in",)] <= files


async def test_a_state_is_shown_for_each_region_and_no_other_with_it(registry, data_dir):
    async with job_of(Script(["a", Pause()]), data_dir) as job:
        with metrics.register(job, registry):
            text = generate_latest(registry).decode()
    states = re.findall(r'streamactors_region_state\{.*state="(\w+)"\} (\d)', text)
    assert Counter(value for _, value in states) == {"1": 1, "0": len(State) - 1}


# Registries, threads, loops. ------------------------------------------------------------------------------------------


async def test_two_jobs_share_a_registry_and_leave_nothing_behind(registry, data_dir):
    async with job_of(Script(["a", Pause()]), data_dir) as one:
        with metrics.register(one, registry):
            async with job_of(Script(["b", Pause()]), data_dir, name="other") as other:
                with metrics.register(other, registry):
                    both = {labels[0] for name, labels in scrape(registry) if name == "streamactors_records_total"}
            left = {labels[0] for name, labels in scrape(registry) if name == "streamactors_records_total"}
        assert (both, left) == ({"job", "other"}, {"job"})
        assert scrape(registry) == {}
        with metrics.register(one, registry):
            assert scrape(registry)


async def test_a_scrape_from_another_thread_reads_the_job_in_its_own_loop(registry, data_dir):
    async with job_of(Script(["a", Pause()]), data_dir) as job:
        with metrics.register(job, registry):
            await job.catch_up()
            seen = await asyncio.to_thread(scrape, registry)
    assert seen["streamactors_records_total", ("job", "script")] == 1


async def test_while_the_loop_is_blocked_a_scrape_gives_the_last_figures_and_their_age(registry, data_dir, monkeypatch):
    monkeypatch.setattr(metrics, "ANSWER_SECONDS", 0.05)
    async with job_of(Script(["a", Pause()]), data_dir) as job:
        with metrics.register(job, registry):
            await job.catch_up()
            scrape(registry)
            seen = {}
            scraping = threading.Thread(target=lambda: seen.update(scrape(registry)))
            scraping.start()
            scraping.join()  # blocks the loop for as long as the scrape lasts
    assert seen["streamactors_records_total", ("job", "script")] == 1
    assert seen["streamactors_status_age_seconds", ("job",)] >= 0.05


async def test_without_the_client_it_says_how_to_install_it(data_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with job_of(Script(["a", Pause()]), data_dir) as job:
        with pytest.raises(sa.UsageError, match=r"pip install 'streamactors\[metrics\]'"), metrics.register(job):
            pass


# At the command line. -------------------------------------------------------------------------------------------------

PIPELINE = """
import streamactors as sa
pipeline = sa.Pipeline("counting")
pipeline.topic("numbers").key_by("k").count().to_view("counts")
"""


@pytest.fixture
def program(command, tmp_path, data_dir):
    command("log", "append", "--data", data_dir, "numbers", file=b'{"k":"a"}\n{"k":"b"}\n')
    path = tmp_path / "users.py"
    path.write_text(PIPELINE)
    return path


def test_a_run_serves_metrics_on_loopback_until_it_ends(program, spawn, data_dir):
    process = spawn("run", program, "--data", data_dir, "--metrics-port", 0)
    for line in process.stderr:
        if b"started" in line:
            break
        if found := re.search(rb"metrics at (http://127\.0\.0\.1:\d+/metrics)", line):
            address = found[1].decode()
    while True:
        with urllib.request.urlopen(address) as answer:
            seen = parsed(answer.read().decode())
        if seen.get(("streamactors_records_total", ("counting", "numbers"))) == 2:
            break
    assert seen["python_info", next(labels for name, labels in seen if name == "python_info")] == 1
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 0, err.decode()


def test_a_port_that_is_taken_is_refused_before_anything_runs(command, program, data_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = command("run", program, "--data", data_dir, "--metrics-port", port)
    assert answer.code == 2
    assert f"metrics can't be served at 127.0.0.1:{port}" in answer.err
    assert not (data_dir / "jobs").exists()
