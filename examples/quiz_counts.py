"""Quiz submissions, counted live and right.

    streamactors run examples/quiz_counts.py --data ./quiz-data

Submissions come from students' phones, so they come out of order: most within seconds, some minutes late, a few hours
late, because a phone was in a bag without a network. Two views count them:

    quiz_counts     [quiz_id, start of a 10-minute window] → submissions in that window. Seen while the window is open,
                    again when it closes, and corrected by each submission that comes up to ten minutes after that.
    quiz_totals     quiz_id → {"count": ..., "mean_score": ...} over all submissions, however late.

What comes too late for its window goes to the topic `late`, whole: with fields that nobody here decodes. Every
submission counts, also one whose id was seen before: a student may answer twice.

Read them while it runs, or afterwards:

    streamactors view show --data ./quiz-data quiz_totals
    streamactors log read --data ./quiz-data late

If there is no topic `submissions`, it is filled with a simulated class day; always the same one. Give another number of
submissions behind `--`. Or bring your own: `streamactors log append --data ./quiz-data submissions < lines.jsonl`.
"""

import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

import streamactors as sa


class Submission(msgspec.Struct):
    """What is counted. A submission has more fields; only these are decoded."""

    quiz_id: str
    score: float
    submitted_at: int  # ms since the epoch


pipeline = sa.Pipeline("quiz-counts")
submissions = pipeline.topic("submissions", Submission).event_time("submitted_at", disorder="60s")
by_quiz = submissions.key_by("quiz_id")

counts = by_quiz.window(sa.Tumbling("10min")).allowed_lateness("10min").early(every="1s").count()
counts.to_view("quiz_counts")
counts.late.original().to_topic("late")

by_quiz.aggregate(count=sa.count(), mean_score=sa.mean("score")).to_view("quiz_totals")


# A class day, simulated. ----------------------------------------------------------------------------------------------

SUBMISSIONS = 50_000
QUIZZES = ("algebra", "biology", "chemistry", "english", "french", "geometry", "history", "latin", "music", "physics")
COMMENTS = ("", "done", "question 3 is unclear", "too easy", "more time please", "great quiz", "¿otra vez?")
DAY_BEGINS = 1_757_318_400_000  # 8 September 2025, 8:00 UTC
MS_BETWEEN = 576  # 50,000 submissions are a day of eight hours; more are a longer day
LINES_A_WRITE = 10_000


@pipeline.before_start
async def fill_if_missing(log: sa.Log) -> None:
    """Fill the topic. A fill that was killed goes on where it stopped: the day is always the same one."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else SUBMISSIONS
    topic = await log.topic("submissions")
    if topic is None:
        print(f"no topic submissions: filling it with a simulated class day of {wanted:,}", file=sys.stderr)
        topic = await log.create_topic("submissions")
    done = topic.partition(0).durable_end()
    if done >= wanted or topic.partitions > 1:
        return
    if done and await topic.partition(0).read_at(0) != next(class_day(1)):
        return  # somebody's own submissions
    day = islice(class_day(wanted), done, None)
    while lines := list(islice(day, LINES_A_WRITE)):
        await topic.append_many(lines)


def class_day(count: int) -> Iterator[bytes]:
    """Yield submissions in the order in which they arrive."""
    chance = random.Random(2025)
    for arrival in range(count):
        arrived_at = DAY_BEGINS + arrival * MS_BETWEEN
        number = arrival if chance.random() >= 0.01 else chance.randrange(arrival + 1)  # sent again
        submission: dict[str, Any] = {
            "submission_id": number,
            "quiz_id": chance.choices(QUIZZES, weights=range(len(QUIZZES), 0, -1))[0],
            "user_id": chance.randrange(600),
            "score": chance.choice((chance.randrange(101), round(chance.uniform(0, 100), 1))),
            "comment": chance.choice(COMMENTS),
            "submitted_at": arrived_at - delay_ms(chance),
            "device": chance.choice(("phone", "tablet", "laptop")),
        }
        yield json.dumps(submission, ensure_ascii=False).encode()


def delay_ms(chance: random.Random) -> int:
    """How long a submission was under way: seconds, mostly."""
    luck = chance.random()
    if luck < 0.95:
        return chance.randrange(30_000)
    if luck < 0.99:
        return chance.randrange(30_000, 15 * 60_000)
    return chance.randrange(15 * 60_000, 5 * 3_600_000)
