"""Bytewax: a source of its own that decodes blocks of lines, its windows, a sink of its own that encodes batches.

Of the forms tried this is the fastest that its documentation describes: custom sources and sinks, ``flat_map_batch``,
``stateful_batch``. Blocks of 1 MB are as fast as larger ones. Form ``files`` is what its tutorials do: ``FileSource``
with batches of 1,000 lines, ``map``, ``filter``, ``stateful_map``.

Recovery is on, with the default interval of 10 s. Its event clock also moves with the system's clock, which would make
stragglers late in a slow run; ``now_getter`` stops that, and saves it the look at the clock.
"""

import os
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import msgspec
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators.windowing import EventClock, TumblingWindower, count_window
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import run_main
from entry import SCORE_MIN, SIZE_MS, WAIT_MS, main

BLOCK_BYTES = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


class Slim(msgspec.Struct, gc=False):
    """What the count needs."""

    quiz_id: str
    submitted_at: int


class Quiet(msgspec.Struct, gc=False):
    """A submission without its comment."""

    submission_id: int
    quiz_id: str
    user_id: str
    score: float
    submitted_at: int


class Blocks(FixedPartitionedSource):
    """A file of JSON lines, decoded by blocks."""

    def __init__(self, path, kind):
        self.path, self.kind = path, kind

    def list_parts(self):
        return ["lines"]

    def build_part(self, step_id, for_part, resume_state):
        return BlocksPart(self.path, msgspec.json.Decoder(self.kind).decode_lines, resume_state or 0)


class BlocksPart(StatefulSourcePartition):
    """The file, from a position on."""

    def __init__(self, path, decode, at):
        self.file, self.decode, self.at = path.open("rb", buffering=0), decode, at
        self.file.seek(at)

    def next_batch(self):
        block = self.file.read(BLOCK_BYTES)
        if not block:
            raise StopIteration
        end = block.rfind(b"\n") + 1
        self.at += end
        self.file.seek(self.at)
        return self.decode(block[:end])

    def snapshot(self):
        return self.at

    def close(self):
        self.file.close()


class Rows(FixedPartitionedSink):
    """A file of JSON lines, written by batches, durable with the snapshot that names its length."""

    def __init__(self, path):
        self.path = path

    def list_parts(self):
        return ["rows"]

    def part_fn(self, item_key):
        return 0

    def build_part(self, step_id, for_part, resume_state):
        return RowsPart(self.path, resume_state or 0)


class RowsPart(StatefulSinkPartition):
    """The file, from a length on."""

    def __init__(self, path, length):
        self.file, self.encode = path.open("ab", buffering=0), msgspec.json.Encoder().encode_lines
        self.file.truncate(length)

    def write_batch(self, values):
        self.file.write(self.encode(values))

    def snapshot(self):
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self):
        os.fsync(self.file.fileno())
        self.file.close()


def arriving(task, flow, kind):
    """Return the stream of decoded lines."""
    if task.form != "files":
        return op.input("lines", flow, Blocks(task.lines, kind))
    lines = op.input("lines", flow, FileSource(task.lines, batch_size=1_000))
    return op.map("decode", lines, msgspec.json.Decoder(kind).decode)


def run(task, flow, keyed_rows):
    """Write the rows, with recovery."""
    op.output("rows", keyed_rows, Rows(task.out / "rows.jsonl"))
    recovery = task.folder / "recovery"
    recovery.mkdir()
    init_db_dir(recovery, 1)
    run_main(flow, epoch_interval=timedelta(seconds=10), recovery_config=RecoveryConfig(str(recovery)))


def windowed(task):
    """Count each quiz's submissions in each window."""
    flow = Dataflow("windowed")
    clock = EventClock(
        lambda s: EPOCH + s.submitted_at * MILLISECOND,
        WAIT_MS * MILLISECOND,
        now_getter=lambda: EPOCH,
        to_system_utc=lambda _: None,
    )
    windower = TumblingWindower(align_to=EPOCH, length=SIZE_MS * MILLISECOND)
    counts = count_window("count", arriving(task, flow, Slim), clock, windower, lambda s: s.quiz_id)
    run(task, flow, op.map("row", counts.down, lambda kv: (kv[0], (kv[0], kv[1][0] * SIZE_MS, kv[1][1]))))


def stateless(task):
    """Filter and drop the comment, which is not decoded."""
    flow = Dataflow("stateless")
    submissions = arriving(task, flow, Quiet)
    if task.form == "files":
        passing = op.filter("passing", submissions, lambda s: s.score >= SCORE_MIN)
        return run(task, flow, op.map("row", passing, lambda s: ("", s)))
    rows = op.flat_map_batch("passing", submissions, lambda batch: [("", s) for s in batch if s.score >= SCORE_MIN])
    return run(task, flow, rows)


class Seen(op.StatefulBatchLogic):
    """How often a word was seen."""

    def __init__(self, number):
        self.number = number or 0

    def on_batch(self, values):
        first = self.number + 1
        self.number += len(values)
        return range(first, self.number + 1), False

    def snapshot(self):
        return self.number


def count(seen, _):
    """Return the new state, and the result."""
    number = (seen or 0) + 1
    return number, number


def words(task):
    """A result for every word."""
    flow = Dataflow("words")
    lines = arriving(task, flow, str)
    if task.form == "files":
        split = op.flat_map("split", lines, lambda line: [(word, None) for word in line.split()])
        return run(task, flow, op.map("row", op.stateful_map("count", split, count), lambda kv: (kv[0], kv)))
    split = op.flat_map_batch("split", lines, lambda batch: [(word, None) for line in batch for word in line.split()])
    counts = op.stateful_batch("count", split, Seen)
    return run(task, flow, op.flat_map_batch("row", counts, lambda batch: [(kv[0], kv) for kv in batch]))


if __name__ == "__main__":
    main({"windowed": windowed, "stateless": stateless, "words": words})
