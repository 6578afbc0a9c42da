"""Flink SQL on a local cluster: the files connector, JSON, TUMBLE and OVER; checkpoints each second, no Python.

Net of start-up: the same statement is run three times on the running cluster, over the first 1,000 lines twice and then
over all of them. The time is the third less the second: what is left is neither the JVM, nor loading classes, nor
submitting the job, nor waiting for the last checkpoint. PyFlink here only hands SQL to the cluster.
"""

import itertools
import time

from entry import MINUTE_MS, SCORE_MIN, SIZE_MS, WAIT_MS, cpu_seconds, main
from flink_cluster import cluster
from pyflink.table import EnvironmentSettings, TableEnvironment

TINY_LINES = 1_000

SUBMISSIONS = """
    CREATE TABLE {source} (
        submission_id BIGINT, quiz_id STRING, user_id STRING, score DOUBLE, submitted_at BIGINT,
        happened AS TO_TIMESTAMP_LTZ(submitted_at, 3),
        WATERMARK FOR happened AS happened - INTERVAL '{wait}' MINUTE
    ) WITH ('connector' = 'filesystem', 'path' = '{lines}', 'format' = 'json')"""
TEXT = """
    CREATE TABLE {source} (line STRING, now AS PROCTIME())
    WITH ('connector' = 'filesystem', 'path' = '{lines}', 'format' = 'raw')"""
SINK = """
    CREATE TABLE {sink} ({columns}) WITH ('connector' = 'filesystem', 'path' = '{out}', 'format' = 'json')"""

WORKLOADS = {
    "windowed": (
        SUBMISSIONS,
        "quiz STRING, `start` BIGINT, n BIGINT",
        f"""SELECT quiz_id, UNIX_TIMESTAMP(CAST(CAST(window_start AS TIMESTAMP(0)) AS STRING)) * 1000, COUNT(*)
        FROM TABLE(TUMBLE(TABLE {{source}}, DESCRIPTOR(happened), INTERVAL '{SIZE_MS // MINUTE_MS}' MINUTE))
        GROUP BY window_start, window_end, quiz_id""",
    ),
    "stateless": (
        SUBMISSIONS,
        "submission_id BIGINT, quiz_id STRING, user_id STRING, score DOUBLE, submitted_at BIGINT",
        f"""SELECT submission_id, quiz_id, user_id, score, submitted_at FROM {{source}} WHERE score >= {SCORE_MIN}""",
    ),
    "words": (
        TEXT,
        "word STRING, n BIGINT",
        """SELECT word, COUNT(*) OVER (PARTITION BY word ORDER BY now ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
        FROM {source} CROSS JOIN UNNEST(SPLIT(TRIM(BOTH '"' FROM line), ' ')) AS words(word)""",
    ),
}


def run(task):
    """Run one workload: twice over a few lines, then over all."""
    tiny = task.folder / "tiny.jsonl"
    with task.lines.open("rb") as file:
        tiny.write_bytes(b"".join(itertools.islice(file, TINY_LINES)))
    started = time.perf_counter()
    with cluster(task) as port:
        table = environment(task, port)
        first, _ = statement(task, table, "first", tiny, task.folder / "first")
        start = time.perf_counter() - started
        again, again_cpu = statement(task, table, "again", tiny, task.folder / "again")
        whole, whole_cpu = statement(task, table, "whole", task.lines, task.out)
    return {
        "seconds": whole - again,
        "cpu": whole_cpu - again_cpu,
        "start": start,
        "gross": whole,
        "first": first,
        "again": again,
    }


def environment(task, port):
    """Return the entry to the cluster."""
    table = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    settings = {
        "execution.target": "remote",
        "rest.address": "localhost",
        "rest.port": str(port),
        "parallelism.default": str(task.cores),
        "execution.checkpointing.interval": "1s",
        "execution.checkpointing.storage": "filesystem",
        "execution.checkpointing.dir": (task.folder / "checkpoints").as_uri(),
        "state.backend.type": "hashmap",
        "table.local-time-zone": "UTC",
    }
    for key, value in settings.items():
        table.get_config().set(key, value)
    return table


def statement(task, table, name, lines, out):
    """Run the workload's statement over *lines*; return its seconds, and those of the processor."""
    source, columns, query = WORKLOADS[task.workload]
    tables = {"source": f"source_{name}", "sink": f"sink_{name}"}
    table.execute_sql(source.format(wait=WAIT_MS // MINUTE_MS, lines=lines.as_uri(), **tables))
    table.execute_sql(SINK.format(columns=columns, out=out.as_uri(), **tables))
    cpu, started = cpu_seconds(), time.perf_counter()
    table.execute_sql(f"INSERT INTO {tables['sink']} {query.format(**tables)}").wait()
    return time.perf_counter() - started, cpu_seconds() - cpu


if __name__ == "__main__":
    main(dict.fromkeys(WORKLOADS, run))
