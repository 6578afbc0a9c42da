"""A pipeline whose views must agree at every epoch; tests/crash/test_views.py looks at them from other processes.

    left, right      how many records there are of each n, by two branches with two kinds of key, in three parts each
    both             the same by one branch that sees each record twice, as ["a", n] and as ["b", n]

At any epoch left equals right, their sum is how many records were read, and in `both` "a" equals "b".
"""

import streamactors as sa


def twice(record: dict[str, int]) -> list[list[str | int]]:
    return [["a", record["n"]], ["b", record["n"]]]


pipeline = sa.Pipeline("pairs", parts=3)
numbers = pipeline.topic("numbers")
numbers.key_by("n").count().to_view("left")
numbers.key_by(lambda record: str(record["n"])).count().to_view("right")
numbers.flat_map(twice).key_by(lambda pair: pair).count().to_view("both")
