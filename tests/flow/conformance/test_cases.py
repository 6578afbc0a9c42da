"""Conformance: what other stream processors assert about windows, as data, run on our operators.

``cases/*.json`` holds inputs and expected results taken from the tests of Flink, Beam, Kafka Streams and Bytewax (each
case names its origin). Every supported case runs in three ways, which must agree: as written; stopped and restored at
each barrier, or where it has none after each step; and stopped and restored after one step, for each.

The cases that this engine can't run yet are listed by id, each with what is missing; a case that is in neither list,
or a listed id that is no case, fails.
"""

import json
from pathlib import Path

import pytest

from streamactors.core.batch import Batch
from streamactors.core.errors import PipelineError
from streamactors.core.times import MIN_TIME
from streamactors.flow.aggregates import aggregate, count, max_, min_, sum_
from streamactors.flow.distinct import DistinctByEventTime
from streamactors.flow.window_operator import WindowOperator
from streamactors.flow.windows import Sliding, Tumbling
from tests.flow.fakes import Driver

CASES = {
    case["id"]: case
    for path in sorted((Path(__file__).parent / "cases").glob("*.json"))
    for case in json.loads(path.read_text())
}

SKIPPED = {
    "flink-sql-event-time-cumulative-windows": "cumulating windows",
    "kafka-window-skip-expired-final": "results stamped with the latest record, no windows that start before 0",
    "flink-window-lateness": "purging triggers: a correction carries the whole window here, never the late part alone",
    "kafka-sliding-reduce-small-input": "record-aligned windows",
    "kafka-sliding-early-repeated-input": "record-aligned windows",
    "nexmark-highest-bid-in-order": "a query of joined streams",
    "nexmark-highest-bid-out-of-order": "a query of joined streams",
    "beam-trigger-sessions-repeated-count": "session windows, count triggers",
    "beam-trigger-sessions-watermark-bundles-reversed-4": "session windows",
    "flink-evictor-delta-evictor-evict-before": "global windows, evictors",
    "flink-ttl-relaxed-on-read-value": "reads that renew a value, and that return an expired one",
    "flink-ttl-relaxed-on-write-list": "reads that return an expired value once",
    "flink-splits-same-split-no-regress": "splits of a source that come and go",
    "flink-splits-several": "splits of a source that come and go",
    "flink-splits-deferred-idle": "splits of a source that come and go",
    "flink-splits-remove-lowest": "splits of a source that come and go",
    "flink-valve-unaligned-active-becomes-idle": "watermarks in channels: the sequencer merges partitions, once",
    "flink-valve-multiple-input-yields-watermark-only-when-all-channels-receives-watermarks": "watermarks in channels",
    "flink-valve-multiple-input-watermark-advancing-with-partially-idle-channels": "watermarks in channels",
    "bytewax-clock-advances": "a watermark that moves with the wall clock",
    "bytewax-clock-unbounded-wait": "a watermark that moves with the wall clock",
}

AGGREGATES = {
    "sum": sum_,
    "count": count,
    "min": min_,
    "max": max_,
    "list": lambda: aggregate([], lambda acc, value: [*acc, value], merge=lambda a, b: [*a, *b]),
    "sorted_list": lambda: aggregate([], lambda acc, value: [*acc, value], sorted, merge=lambda a, b: [*a, *b]),
}

SUPPORTED = sorted(set(CASES) - set(SKIPPED))
INVALID = [case_id for case_id in SUPPORTED if CASES[case_id].get("mode") == "invalid"]
TTL = [case_id for case_id in SUPPORTED if CASES[case_id]["operator"] == "ttl"]
RUN = [case_id for case_id in SUPPORTED if case_id not in (*INVALID, *TTL)]


def make_assigner(spec):
    if spec["type"] == "sliding":
        return Sliding(spec["size"], spec["slide"], spec.get("offset", 0))
    assert spec["type"] == "tumbling", spec
    return Tumbling(spec["size"], spec.get("offset", 0))


def run(case, restore_after):
    """Return the results, each with the index of the input that it came from."""
    spec = case["spec"]
    assigner = make_assigner(spec["assigner"])
    lateness = spec.get("allowed_lateness", 0)
    driver = Driver(lambda: WindowOperator(assigner, AGGREGATES[spec["aggregate"]](), lateness=lateness))
    partitions = dict.fromkeys(range(spec.get("partitions", 1)), MIN_TIME)
    results = []
    for at, item in enumerate(case["input"]):
        if "record" in item:
            record = item["record"]
            driver.batch(Batch([record["value"]], [record["ts"]], [record["key"]]))
        elif "watermark" in item:
            partitions[item.get("partition", 0)] = item["watermark"]
            driver.watermark_to(min(partitions.values()))
        else:
            assert "barrier" in item, f"no such input: {item}"
        if at in restore_after:
            driver.restore()
        if not spec.get("late_output"):
            driver.late.clear()
        results += drained(at, driver)
    dropped = 0 if spec.get("late_output") else driver.operator.late_records
    assert dropped == case.get("expected_dropped", 0)
    return results


def drained(at, driver):
    """Take what has come out, in the form of the cases."""
    results = [
        {"at": at, "key": key, "window": list(window), "value": value, "ts": time}
        for batch in driver.out
        for key, window, value, time in zip(batch.keys, batch.windows, batch.values, batch.timestamps, strict=True)
    ]
    results += [
        {"at": at, "late": {"key": key, "ts": time, "value": value}}
        for batch in driver.late
        for key, time, value in zip(batch.keys, batch.timestamps, batch.values, strict=True)
    ]
    driver.out.clear()
    driver.late.clear()
    return results


def assert_expected(case, results):
    """Compare the fields that the case lists; ``per_step``, each step as a multiset where order does not matter."""
    expected = case["expected"]
    assert len(results) == len(expected), results
    for wanted in expected:
        match = next((got for got in results if {name: got.get(name) for name in wanted} == wanted), None)
        assert match is not None, f"{wanted} is not in {results}"
        results.remove(match)


@pytest.mark.parametrize("case_id", RUN)
def test_case(case_id):
    case = CASES[case_id]
    steps = range(len(case["input"]))
    barriers = [at for at in steps if "barrier" in case["input"][at]]

    assert_expected(case, run(case, restore_after=()))
    assert_expected(case, run(case, restore_after=barriers or steps))
    for at in steps:
        assert_expected(case, run(case, restore_after=(at,)))


@pytest.mark.parametrize("case_id", TTL)
@pytest.mark.parametrize("restored", [False, True])
def test_a_key_is_a_repeat_while_its_value_would_be_read(case_id, restored):
    """``distinct`` keeps no value that could be read: where the case reads one, a record must be dropped, else pass."""
    case = CASES[case_id]
    driver, now, found = Driver(lambda: DistinctByEventTime(case["spec"]["ttl"])), 0, []
    for at, item in enumerate(case["input"]):
        if "processing_time" in item:
            now = item["processing_time"]
            continue
        driver.batch(Batch([at], [now], [item.get("get") or item["key"]]))
        if "get" in item:
            found.append({"at": at, "dropped": not driver.out})
        driver.out.clear()
        if restored:
            driver.restore()

    assert found == [{"at": each["at"], "dropped": bool(each["value"])} for each in case["expected"]]


@pytest.mark.parametrize("case_id", INVALID)
def test_a_specification_without_sense_is_refused_when_it_is_built(case_id):
    case = CASES[case_id]
    assert case["expected"] == [{"error": "invalid_spec"}]

    with pytest.raises(PipelineError):
        make_assigner(case["spec"]["assigner"])


def test_every_case_is_run_or_skipped_for_a_reason():
    assert set(SKIPPED) <= set(CASES)
    assert SUPPORTED == [
        "beam-sliding-slightly-overlapping",
        "flink-invalid-sliding-negative-size",
        "flink-sql-event-time-hopping-windows",
        "flink-trigger-event-time-separation",
        "flink-window-cleanup-time-overflow",
        "own-partitions-window-waits-for-slowest",
        "own-sliding-partly-late",
        "own-ttl-boundary-list",
        "own-window-watermark-never-back",
    ]
