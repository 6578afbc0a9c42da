"""Stateless: decode, filter, drop a field, encode, into a topic; against plain scripts that write a file.

    python -m benchmarks stateless

Submissions with a score of 50 or more go on, without their comment. Exactly-once on our side: the output is part of a
checkpoint each second, and then appended to the topic with fsync. The plain scripts write a file and sync nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

import streamactors as sa

from .inputs import SUBMISSIONS, submissions
from .jobs import into_topic
from .measuring import Measurement, Options, Side, begin, compare, digest, run_loop, stop

SCORE_MIN = 50
BLOCK_BYTES = 256 * 1024


class Submission(msgspec.Struct):
    """All that is known of a submission."""

    submission_id: int
    quiz_id: str
    user_id: str
    score: float
    comment: str
    submitted_at: int


class Quiet(msgspec.Struct):
    """A submission without its comment."""

    submission_id: int
    quiz_id: str
    user_id: str
    score: float
    submitted_at: int


def without_comment(s: Submission) -> Quiet:
    return Quiet(s.submission_id, s.quiz_id, s.user_id, s.score, s.submitted_at)


def pipeline() -> sa.Pipeline:
    """Read, filter, map, write."""
    passing = sa.Pipeline("passing")
    arriving = passing.topic("submissions", Submission)
    arriving.filter(lambda s: s.score >= SCORE_MIN).map(without_comment).to_topic("passing")
    return passing


def ours(data: str) -> Measurement:
    """Run the pipeline over the log to its end."""
    return run_loop(into_topic(pipeline(), Path(data), "passing"))


def plain(lines: str) -> Measurement:
    """Line by line."""
    with tempfile.TemporaryDirectory(dir=Path(lines).parent) as folder:
        written = Path(folder) / "passing.jsonl"
        started = begin()
        decode, encode = msgspec.json.Decoder(Submission).decode, msgspec.json.Encoder().encode
        with Path(lines).open("rb") as file, written.open("wb") as out:
            for line in file:
                submission = decode(line)
                if submission.score >= SCORE_MIN:
                    out.write(encode(without_comment(submission)) + b"\n")
        measured = stop(started)
        measured.answer = digest(written.read_bytes().splitlines())
        return measured


def tuned(lines: str) -> Measurement:
    """Block by block; the comment is dropped by not decoding it."""
    with tempfile.TemporaryDirectory(dir=Path(lines).parent) as folder:
        written = Path(folder) / "passing.jsonl"
        started = begin()
        decode, encode = msgspec.json.Decoder(Quiet).decode_lines, msgspec.json.Encoder().encode_lines
        rest = b""
        with Path(lines).open("rb", buffering=0) as file, written.open("wb", buffering=0) as out:
            while block := file.read(BLOCK_BYTES):
                end = block.rfind(b"\n") + 1
                block, rest = rest + block[:end], block[end:]
                out.write(encode([s for s in decode(block) if s.score >= SCORE_MIN]))
        measured = stop(started)
        measured.answer = digest(written.read_bytes().splitlines())
        return measured


def run(options: Options) -> None:
    """Compare the three."""
    made = submissions(options.cache, 5_000 if options.quick else SUBMISSIONS)
    sides = [
        Side("StreamActors, exactly-once", "benchmarks.stateless:ours", {"data": str(made.data)}),
        Side("plain", "benchmarks.stateless:plain", {"lines": str(made.lines)}),
        Side("tuned plain", "benchmarks.stateless:tuned", {"lines": str(made.lines)}),
    ]
    compare("stateless", sides, options, records=made.count)
