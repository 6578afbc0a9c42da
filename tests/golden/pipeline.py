"""The job that wrote the golden files; each release has to be able to go on with what it left."""

import msgspec

import streamactors as sa


class Submission(msgspec.Struct):
    quiz: str
    at: int
    points: float = 0.0


class Best(msgspec.Struct):
    points: float
    count: int = 0


def best(event, state):
    state = Best(event.points) if state is None else Best(max(state.points, event.points), state.count + 1)
    return state.points, state


def pipeline(parts=2):
    flow = sa.Pipeline("golden", parts=parts)
    events = flow.topic("submissions", Submission).event_time("at", disorder=5, idle_after=None)
    by_quiz = events.key_by("quiz")
    windows = by_quiz.window(sa.Tumbling(100), name="windows").allowed_lateness(50).early(every="1h")
    results = windows.aggregate(n=sa.count(), top=sa.max("points"), avg=sa.mean("points"))
    results.to_view("windows")
    results.late.to_topic("late")
    by_quiz.window(sa.Sliding(60, slide=20), name="sliding").count().to_view("sliding")
    by_quiz.count(name="totals").to_view("totals")
    by_quiz.map_with_state(best, state_type=Best, name="best").to_topic("best")
    events.key_by(lambda e: (e.quiz, e.at % 2 == 0), name="pairs").sum("points", name="sums").to_view("sums")
    events.distinct("points", ttl="1s", name="seen").to_topic("seen")
    return flow


def values(first, last):
    quizzes = ("algebra", "Biologie 🌱", "x" * 600)
    return [
        msgspec.json.encode(
            {"quiz": quizzes[n * n % 3], "at": 9 * n + n * 7 % 12 - n % 9 // 8 * 170, "points": n * 5 % 8 / 2}
        )
        for n in range(first, last)
    ]
