"""PyFlink's DataStream API in its local cluster: the decoder and the aggregate are Python, the windows are Flink's.

Python runs inside the JVM (form ``thread``) or in a worker process beside it (form ``process``, its default).
Net of start-up as in on_flink_sql.py: the same job runs three times, and the last less the second counts. (What PyFlink
does in SQL or its Table API without a Python function is Flink SQL.)
"""

import itertools
import os
import sys
import sysconfig
import time

import msgspec
from entry import SIZE_MS, WAIT_MS, cpu_seconds, main
from pyflink.common import Configuration, Duration, Encoder, Time, Types, WatermarkStrategy
from pyflink.common.watermark_strategy import TimestampAssigner
from pyflink.datastream import AggregateFunction, ProcessWindowFunction, StreamExecutionEnvironment
from pyflink.datastream.connectors.file_system import FileSink, FileSource, StreamFormat
from pyflink.datastream.window import TumblingEventTimeWindows

TINY_LINES = 1_000


class Happened(TimestampAssigner):
    """Event time."""

    def extract_timestamp(self, value, record_timestamp):
        return value[1]


class Count(AggregateFunction):
    """Count as records come."""

    def create_accumulator(self):
        return 0

    def add(self, value, accumulator):
        return accumulator + 1

    def get_result(self, accumulator):
        return accumulator

    def merge(self, a, b):
        return a + b


class Rows(ProcessWindowFunction):
    """Put the key and the window's start beside the count."""

    def process(self, key, context, elements):
        return [f'["{key}",{context.window().start},{n}]' for n in elements]


def decode(line):
    """Return quiz and time."""
    submission = msgspec.json.decode(line)
    return submission["quiz_id"], submission["submitted_at"]


def counts(lines):
    """Count each quiz's submissions in each window."""
    slim = lines.map(decode, Types.TUPLE([Types.STRING(), Types.LONG()]))
    waiting = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(WAIT_MS))
    timed = slim.assign_timestamps_and_watermarks(waiting.with_timestamp_assigner(Happened()))
    keyed = timed.key_by(lambda row: row[0], Types.STRING())
    windows = keyed.window(TumblingEventTimeWindows.of(Time.milliseconds(SIZE_MS)))
    return windows.aggregate(Count(), Rows(), Types.LONG(), Types.STRING())


def windowed(task):
    """Run it over a few lines twice, then over all."""
    # The interpreter inside the JVM knows nothing of a virtual environment.
    os.environ["PYTHONPATH"] = sysconfig.get_path("purelib")
    tiny = task.folder / "tiny.jsonl"
    with task.lines.open("rb") as file:
        tiny.write_bytes(b"".join(itertools.islice(file, TINY_LINES)))
    started = time.perf_counter()
    job(task, tiny, task.folder / "first")
    start = time.perf_counter() - started
    again, again_cpu = job(task, tiny, task.folder / "again")
    whole, whole_cpu = job(task, task.lines, task.out)
    return {"seconds": whole - again, "cpu": whole_cpu - again_cpu, "start": start}


def job(task, lines, out):
    """Run one job; return its seconds, and those of the processor."""
    settings = Configuration()
    for key, value in {
        "execution.checkpointing.interval": "1s",
        "execution.checkpointing.storage": "filesystem",
        "execution.checkpointing.dir": (task.folder / "checkpoints").as_uri(),
        "state.backend.type": "hashmap",
        "parallelism.default": str(task.cores),
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "python.execution-mode": task.form,
    }.items():
        settings.set_string(key, value)
    stream = StreamExecutionEnvironment.get_execution_environment(settings)
    source = FileSource.for_record_stream_format(StreamFormat.text_line_format(), lines.as_uri()).build()
    read = stream.from_source(source, WatermarkStrategy.no_watermarks(), "lines")
    counts(read).sink_to(FileSink.for_row_format(out.as_uri(), Encoder.simple_string_encoder()).build())
    cpu, started = cpu_seconds(), time.perf_counter()
    stream.execute(task.workload)
    return time.perf_counter() - started, cpu_seconds() - cpu


if __name__ == "__main__":
    main({"windowed": windowed})
